"""THE TABLE: one row an op. Everything that exists once per op is named here; nothing is decided here.

onepass/backends.py turns each row into torch.ops.onepass.<name>; tests/test_table.py proves that every row
has a schema, a reference, checks, a case, a benchmark and a line of doc, and that the dispatcher agrees.
"""

from dataclasses import dataclass

# The columns of an optimizer's hyperparameter tensor; the order of the structs in csrc/rules/.
ADAM_HYPER = ("lr", "beta1", "beta2", "eps", "weight_decay", "maximize")

_ADAM = (
    "(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, "
    "Tensor(d!)[] max_exp_avg_sqs, Tensor(e!)[] steps, Tensor hyper, int[] groups, *, "
    "Tensor? grad_scale=None, Tensor? found_inf=None) -> ()"
)


@dataclass(frozen=True)
class Op:
    name: str
    schema: str  # arguments and results, in torch's schema language
    doc: str  # one line: the support table's
    reference: str  # module:function in plain PyTorch
    check: str  # function of onepass.call_checks: metadata (fakes), then values (reference)
    hyper: tuple[str, ...]  # columns of its hyperparameter tensor, () where it has none
    cpp: tuple[str, ...]  # dispatch keys that have a C++ kernel
    triton: str | None  # module:function in kernels/, None until there is one
    bytes_per_element: int  # moved by a float32 call: streams read + written, 4 bytes each
    bench: str  # `python -m onepass bench <this>` times it


OPS = (
    Op(
        name="adam_",
        schema=_ADAM,
        doc="Adam step over lists of tensors, any number of groups; AMSGrad where max_exp_avg_sqs is given",
        reference="onepass.reference.optim:adam_",
        check="adam",
        hyper=ADAM_HYPER,
        cpp=("CPU", "CUDA"),
        triton="onepass.kernels.optim:adam_",
        bytes_per_element=28,
        bench="optim",
    ),
    Op(
        name="adamw_",
        schema=_ADAM,
        doc="AdamW step (decoupled weight decay) over lists of tensors, any number of groups",
        reference="onepass.reference.optim:adamw_",
        check="adam",
        hyper=ADAM_HYPER,
        cpp=("CPU", "CUDA"),
        triton="onepass.kernels.optim:adamw_",
        bytes_per_element=28,
        bench="optim",
    ),
)
