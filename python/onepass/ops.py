"""THE TABLE: one row an op. Everything that exists once per op is named here; nothing is decided here.

onepass/backends.py turns each row into torch.ops.onepass.<name>; tests/test_table.py proves that every row
has a schema, a reference, checks, a case, a benchmark and a line of doc, and that the dispatcher agrees.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Column:
    """One column of a hyperparameter tensor: 0 <= value, and value < below where there is such a bound."""

    name: str
    what: str | None = None  # torch's word for it in an error; None: a switch, any value
    below: float | None = None


# An optimizer's hyperparameter tensor starts with these columns, whatever the optimizer; its own follow. The
# order of the structs in csrc/rules/, the bounds of csrc/common/optim_spec.h.
STEP_HYPER = (
    Column("lr", "learning rate"),
    Column("weight_decay", "weight_decay value"),
    Column("maximize"),
    Column("l1", "l1 value"),
    Column("ema_decay", "ema_decay value", below=1),
    Column("max_grad_norm", "max_grad_norm value"),
)
_BETA1 = Column("beta1", "beta parameter at index 0", below=1)
_BETA2 = Column("beta2", "beta parameter at index 1", below=1)
_EPS = Column("eps", "epsilon value")
_MOMENTUM = Column("momentum", "momentum value")


@dataclass(frozen=True)
class Op:
    name: str
    schema: str  # arguments and results, in torch's schema language
    writing: str  # of the overload `writing`, "" where there is none: also writes what the other only reads
    doc: str  # one line: the support table's
    reference: str  # module:function in plain PyTorch
    check: str  # function of onepass.call_checks: metadata (fakes), then values (reference)
    # Moved by a float32 call with no option: streams read + written, 4 bytes each; 0 where there are none.
    bytes_per_element: int
    bench: str  # `python -m onepass bench <this>` times it
    triton: str | None  # module:function in kernels/, None until there is one
    fake: str = "nothing"  # function of onepass.call_checks: an op's results as fake tensors
    cpp: tuple[str, ...] = ("CPU", "CUDA")  # dispatch keys that have a C++ kernel
    hyper: tuple[Column, ...] = ()  # columns of its hyperparameter tensor, () where it has none
    states: tuple[str, ...] = ()  # an optimizer's lists of states; the optional ones come last
    required: int = 0  # how many of them are always kept
    single: bool = False  # for float32 parameters alone
    counts: str = "always"  # steps; or "never", or "maybe": where a call has step counters
    autograd: str | None = (
        None  # module:function that records it for autograd, None: it is not differentiable
    )

    def bytes_moved(self, optional: int = 0, ema: bool = False, grads_written: bool = False) -> int:
        """By a float32 call that keeps so many optional states and an average of weights, each read and
        written, and that writes gradients, which are read in any case."""
        return self.bytes_per_element + 8 * (optional + ema) + 4 * grads_written

    @property
    def overloads(self) -> dict[str, str]:
        """Schemas by the name of the op with its overload's."""
        writing = {f"{self.name}.writing": self.writing} if self.writing else {}
        return {self.name: self.schema, **writing}


def _schema(states: tuple[str, ...], writing: bool) -> str:
    """writing: gradients are written too. torch.compile copies what a schema says is written, so that a step
    which leaves them alone has a schema that says so."""
    lists = "".join(f"Tensor({chr(ord('c') + i)}!)[] {name}, " for i, name in enumerate(states))
    return (
        f"(Tensor(a!)[] params, Tensor{'(b!)' if writing else ''}[] grads, {lists}Tensor(y!)[] emas, "
        "Tensor(z!)[] steps, Tensor hyper, int[] groups, *, Tensor? grad_scale=None, "
        f"Tensor? found_inf=None, Tensor? stats=None{', int grads_after' if writing else ''}) -> ()"
    )


def _optimizer(
    name: str,
    doc: str,
    own: tuple[Column, ...],
    states: tuple[str, ...],
    required: int,
    bytes_per_element: int,
    counts: str = "always",
    reference: str = "",
    everywhere: bool = True,
) -> Op:
    """reference: the op whose reference this one shares. everywhere: not on the CPU and in float32 alone."""
    return Op(
        name=name,
        schema=_schema(states, writing=False),
        writing=_schema(states, writing=True),
        doc=doc,
        reference=f"onepass.reference.optim:{reference or name}",
        check="optimizer",
        bytes_per_element=bytes_per_element,
        bench="optim",
        triton=f"onepass.kernels.optim:{name}" if everywhere else None,
        cpp=("CPU", "CUDA") if everywhere else ("CPU",),
        single=not everywhere,
        hyper=STEP_HYPER + own,
        states=states,
        required=required,
        counts=counts,
    )


_ADAM: dict[str, Any] = {
    "own": (_BETA1, _BETA2, _EPS),
    "states": ("exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs"),
    "required": 2,
    "bytes_per_element": 28,
}

# --- normalizations ---------------------------------------------------------------------------------------
# stats: [3, channels], float32 (float64 for float64 input): the mean in two parts (what the input is taken
# less, and the rest), and 1 / sqrt(variance + eps). mask: a bit an element in the order of memory, where the
# activation lets gradients pass; empty where that is told from the input. moments: [processes, 3 * channels
# + 1]: mean, what rounding cut off of it, the sum of squared deviations, and the count. sums: [2 * channels +
# 1]: of g, of g * (input - mean), and the count, where g is the gradient of what the activation is given.
# saving=False: no mask, for a result that nobody will differentiate.
_ACTIVATION = "str? act=None, float negative_slope=0.01"
_FORWARD = "Tensor input, Tensor? residual, Tensor? weight, Tensor? bias"
_RUNNING = "Tensor(a!)? running_mean, Tensor(b!)? running_var, Tensor(c!)? num_batches_tracked"
_TRAINED = f"float? momentum=0.1, float eps=1e-05, {_ACTIVATION}, bool saving=True"
_FORWARD_RESULTS = "(Tensor output, Tensor stats, Tensor mask)"
_BACKWARD = f"Tensor grad_output, {_FORWARD}, Tensor stats, Tensor mask"
_INPUT_GRADS = "Tensor grad_input, Tensor grad_residual"
_AFFINE_GRADS = "Tensor grad_weight, Tensor grad_bias"


def _norm(
    name: str, schema: str, doc: str, bytes_per_element: int, fake: str, autograd: str | None = None
) -> Op:
    return Op(
        name=name,
        schema=schema,
        writing="",
        doc=doc,
        reference=f"onepass.reference.norm:{name}",
        check=name,
        bytes_per_element=bytes_per_element,
        bench="norm",
        triton=f"onepass.kernels.norm:{name}",
        fake=fake,
        autograd=autograd,
    )


_NORMS = (
    _norm(
        "batch_norm_fwd",
        f"({_FORWARD}, {_RUNNING}, *, {_TRAINED}) -> {_FORWARD_RESULTS}",
        "batch normalization by the batch's own statistics, + residual, + activation",
        12,
        "new_forward",
        "onepass.autograd:batch_norm_fwd",
    ),
    _norm(
        "batch_norm_bwd",
        f"({_BACKWARD}, *, {_ACTIVATION}, bool training=True) -> ({_INPUT_GRADS}, {_AFFINE_GRADS})",
        "gradients of batch normalization, its residual and its activation",
        20,
        "new_backward",
    ),
    _norm(
        "batch_norm_eval",
        f"({_FORWARD}, Tensor running_mean, Tensor running_var, *, float eps=1e-05, {_ACTIVATION}, "
        f"bool saving=True) -> {_FORWARD_RESULTS}",
        "batch normalization by given statistics, + residual, + activation",
        8,
        "new_forward",
        "onepass.autograd:batch_norm_eval",
    ),
    _norm(
        "batch_norm_stats",
        "(Tensor input) -> (Tensor moments)",
        "moments of each channel, for several processes to share",
        4,
        "new_moments",
    ),
    _norm(
        "batch_norm_apply",
        f"({_FORWARD}, Tensor moments, {_RUNNING}, *, {_TRAINED}) -> {_FORWARD_RESULTS}",
        "batch normalization by the moments of all processes, + residual, + activation",
        8,
        "new_forward",
    ),
    _norm(
        "batch_norm_bwd_stats",
        f"({_BACKWARD}, *, {_ACTIVATION}) -> (Tensor sums, {_AFFINE_GRADS})",
        "sums of gradients of each channel, for several processes to share",
        8,
        "new_backward_sums",
    ),
    _norm(
        "batch_norm_bwd_apply",
        f"({_BACKWARD}, Tensor sums, *, {_ACTIVATION}) -> ({_INPUT_GRADS})",
        "gradient of the input by the sums of all processes",
        12,
        "new_input_grads",
    ),
)

# --- quantization -----------------------------------------------------------------------------------------
# x = (q - zero_point) * scale. q: int8 if symmetric (-127..127; 7 bits: -63..63), else uint8 (0..255;
# 0..127). scale, zero_point (empty if symmetric): float32 and int32, one a group. group_size: elements of the
# last dimension in a group; -1: all of it, 0: the whole tensor. scale's shape: the input's but for the last
# dimension, and the groups of a row; [] for the whole tensor. mask: uint8, a bit an element in the order of
# rows, the first in the lowest bit: was it inside the range, and not cut off? NaN is not.
_GRID = "Tensor? scale=None, Tensor? zero_point=None, *, int group_size=-1, bool symmetric=True, int bits=8"
_QUANTS = (
    Op(
        name="quantize",
        schema=f"(Tensor input, {_GRID}) -> (Tensor values, Tensor scales, Tensor zero_points)",
        writing="",
        doc="real numbers to 8-bit whole ones, by given scales or the finest that hold them",
        reference="onepass.reference.quant:quantize",
        check="quantize",
        fake="new_quantized",
        bytes_per_element=5,
        bench="int8",
        triton="onepass.kernels.quant:quantize",
    ),
    Op(
        name="dequantize",
        schema="(Tensor input, Tensor scale, Tensor? zero_point=None, *, int group_size=-1, "
        "ScalarType? dtype=None) -> Tensor",
        writing="",
        doc="8-bit whole numbers back to real ones",
        reference="onepass.reference.quant:dequantize",
        check="dequantize",
        fake="new_dequantized",
        bytes_per_element=5,
        bench="int8",
        triton="onepass.kernels.quant:dequantize",
    ),
    Op(
        name="fake_quant_fwd",
        schema=f"(Tensor input, {_GRID}) -> (Tensor output, Tensor mask, Tensor scales, Tensor zero_points)",
        writing="",
        doc="quantize and dequantize in one pass, and what was not cut off",
        reference="onepass.reference.fake_quant:fake_quant_fwd",
        check="quantize",
        fake="new_fake_quantized",
        bytes_per_element=8,
        bench="fake_quant",
        triton="onepass.kernels.fake_quant:fake_quant_fwd",
        autograd="onepass.quant_autograd:fake_quant_fwd",
    ),
    Op(
        name="fake_quant_bwd",
        schema=f"(Tensor grad_output, Tensor mask, Tensor? input=None, {_GRID}) -> "
        "(Tensor grad_input, Tensor grad_scale)",
        writing="",
        doc="gradients of fake quantization, straight through; of scales, too, given the input (12 bytes)",
        reference="onepass.reference.fake_quant:fake_quant_bwd",
        check="fake_quant_bwd",
        fake="new_fake_quant_grads",
        bytes_per_element=8,
        bench="fake_quant",
        triton="onepass.kernels.fake_quant:fake_quant_bwd",
    ),
)

# --- the 8-bit matrix product -----------------------------------------------------------------------------
# weight: int8 [n, k] in -127..127, or, on the CPU, what int8_pack has made of it (csrc/common/int8.h). Scales
# and zero_points as quantize leaves them, a row of the input or of the weight each, or [] for all. bias:
# float32 [n]. act: None, "relu", "gelu" or "silu". dtype: of the output; torch.int32: the exact sums.
#
# dtype torch.int8 or torch.uint8: the output of int8_mm is quantized again on its way to memory, a byte each,
# ready for the next product; no float32 tensor of its size is made. It has the bits of quantize(output in
# float32, output_scale, output_zero_point, group_size=0), NaN and inf included: round(output / output_scale)
# + output_zero_point, to even, cut off at the ends. output_scale: float32, [] or [1], read on the device.
# torch.int8 is symmetric, -127..127; torch.uint8, 0..255, needs output_zero_point: int32, [] or [1].
#
# int8_mm_bwd: gradients with respect to the numbers that input and weight stand for, as if those had not been
# rounded. grad_output: [..., n], float32, bfloat16 or float16; the gradients have its dtype, or `dtype`, and
# the shapes of input and weight; [0] where they are not wanted. Each reads grad_output once, multiplies
# scales in and quantizes it, a row (for the input) or a column (for the weight) to a scale; what follows is
# an exact product, of which more than 65,536 numbers may be added up in float32, piece by piece. A row or
# column that holds inf or NaN becomes NaN. seed: grad_output is rounded by chance, so that its mean is kept
# (csrc/rules/philox.h); None: to nearest. A SymInt, for a compiled graph not to be made anew for each.
_PRODUCT = "str? act=None, ScalarType? dtype=None"


def _int8(
    name: str,
    schema: str,
    doc: str,
    bytes_per_element: int,
    fake: str,
    module: str = "int8",
    cpp: tuple[str, ...] = ("CPU", "CUDA"),
    triton: bool = True,
) -> Op:
    """module: of the reference, and of Triton's kernels."""
    return Op(
        name=name,
        schema=schema,
        writing="",
        doc=doc,
        reference=f"onepass.reference.{module}:{name}",
        check=name,
        fake=fake,
        bytes_per_element=bytes_per_element,
        bench="int8",
        triton=f"onepass.kernels.{module}:{name}" if triton else None,
        cpp=cpp,
    )


_INT8 = (
    _int8(
        "int8_pack",
        "(Tensor weight) -> Tensor",
        "weights as the CPU's 8-bit product reads them",
        0,
        "new_packed",
        cpp=("CPU",),
        triton=False,
    ),
    _int8(
        "int8_unpack",
        "(Tensor packed, int n, int k) -> Tensor",
        "packed weights as they were",
        0,
        "new_unpacked",
        cpp=("CPU",),
        triton=False,
    ),
    _int8(
        "int8_mm",
        "(Tensor input, Tensor weight, Tensor? input_scale=None, Tensor? weight_scale=None, "
        f"Tensor? input_zero_point=None, Tensor? bias=None, *, {_PRODUCT}, Tensor? output_scale=None, "
        "Tensor? output_zero_point=None) -> Tensor",
        "exact product of 8-bit numbers; behind it scales, zero points, bias, activation, and 8 bits again",
        1,
        "new_product",
    ),
    _int8(
        "int8_linear",
        "(Tensor input, Tensor weight, Tensor weight_scale, Tensor? bias=None, *, bool symmetric=True, "
        f"int bits=8, {_PRODUCT}) -> Tensor",
        "a linear layer in 8 bits: the input is quantized row by row on the way",
        4,
        "new_linear",
    ),
    _int8(
        "int8_weight_only_mm",
        "(Tensor input, Tensor weight, Tensor weight_scale, Tensor? bias=None, *, str? act=None) -> "
        "(Tensor output)",
        "a linear layer with weights in 8 bits: the input stays as it is, sums in float32",
        4,
        "new_linear",
    ),
    _int8(
        "int8_mm_bwd",
        "(Tensor grad_output, Tensor input, Tensor weight, Tensor? input_scale=None, "
        "Tensor? weight_scale=None, Tensor? input_zero_point=None, *, SymInt? seed=None, "
        "bool input_grad=True, bool weight_grad=True, ScalarType? dtype=None) -> "
        "(Tensor grad_input, Tensor grad_weight)",
        "gradients of int8_mm in 8 bits, rounded to nearest or by chance",
        8,
        "new_product_grads",
        "int8_backward",
    ),
)

OPS = (
    _optimizer("adam_", "Adam step; AMSGrad given max_exp_avg_sqs", **_ADAM),
    _optimizer("adamw_", "AdamW step (decoupled weight decay); AMSGrad given max_exp_avg_sqs", **_ADAM),
    _optimizer(
        "sgd_",
        "SGD step; with momentum, dampening and Nesterov's given momentum_buffers (20 bytes)",
        own=(_MOMENTUM, Column("dampening"), Column("nesterov")),
        states=("momentum_buffers",),
        required=0,
        bytes_per_element=12,
        counts="maybe",
    ),
    _optimizer(
        "rmsprop_",
        "RMSprop step; centered given grad_avgs, with momentum given momentum_buffers (8 bytes more each)",
        own=(Column("alpha", "alpha value"), _EPS, _MOMENTUM),
        states=("square_avgs", "grad_avgs", "momentum_buffers"),
        required=1,
        bytes_per_element=20,
    ),
    _optimizer(
        "adagrad_",
        "AdaGrad step",
        own=(Column("lr_decay", "lr_decay value"), _EPS),
        states=("sums",),
        required=1,
        bytes_per_element=20,
    ),
    _optimizer(
        "lion_",
        "Lion step",
        own=(_BETA1, _BETA2),
        states=("exp_avgs",),
        required=1,
        bytes_per_element=20,
        counts="never",
    ),
    _optimizer(
        "adam_as_torch_",
        "Adam step in the order of rounding of torch's fused CPU kernel",
        reference="adam_",
        everywhere=False,
        **_ADAM,
    ),
    _optimizer(
        "adamw_as_torch_",
        "AdamW step in the order of rounding of torch's fused CPU kernel",
        reference="adamw_",
        everywhere=False,
        **_ADAM,
    ),
    Op(
        name="grad_stats",
        schema="(Tensor[] grads, *, Tensor? grad_scale=None) -> Tensor",
        writing="",
        doc="norm of all unscaled gradients, and whether one is inf or NaN, in one read",
        reference="onepass.reference.grads:grad_stats",
        check="grad_stats",
        fake="new_stats",
        bytes_per_element=4,
        bench="optim",
        triton="onepass.kernels.grads:grad_stats",
    ),
    Op(
        name="clip_grads_",
        schema="(Tensor(a!)[] grads, Tensor stats, float max_norm) -> ()",
        writing="",
        doc="gradients scaled down to max_norm, given their stats; untouched where they are within it",
        reference="onepass.reference.grads:clip_grads_",
        check="clip_grads",
        bytes_per_element=8,
        bench="optim",
        triton="onepass.kernels.grads:clip_grads_",
    ),
    Op(
        name="unscale_",
        schema="(Tensor(a!)[] grads, Tensor grad_scale) -> Tensor",
        writing="",
        doc="gradients divided by the loss scale, and their stats, in one pass",
        reference="onepass.reference.grads:unscale_",
        check="unscale",
        fake="new_stats",
        bytes_per_element=8,
        bench="amp",
        triton="onepass.kernels.grads:unscale_",
    ),
    Op(
        name="accumulate_",
        schema="(Tensor(a!)[] sums, Tensor[] grads, *, Tensor? inv_scale=None) -> ()",
        writing="",
        doc="float32 sums of gradients of any dtype: sum += inv_scale * grad",
        reference="onepass.reference.grads:accumulate_",
        check="accumulate",
        bytes_per_element=12,
        bench="amp",
        triton="onepass.kernels.amp:accumulate_",
    ),
    Op(
        name="update_scale_",
        schema="(Tensor(a!) scale, Tensor(b!) growth_tracker, Tensor(c!) skipped, Tensor[] found_infs, "
        "float growth_factor, float backoff_factor, int growth_interval, int hysteresis, float min_scale, "
        "float max_scale) -> ()",
        writing="",
        doc="the loss scale's next value, and the counters of skipped steps, by what the steps found",
        reference="onepass.reference.scale:update_scale_",
        check="update_scale",
        bytes_per_element=0,
        bench="amp",
        triton="onepass.kernels.amp:update_scale_",
    ),
    *_NORMS,
    *_QUANTS,
    *_INT8,
)
BY_NAME = {op.name: op for op in OPS}
