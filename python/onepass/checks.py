"""Argument checks of the ops for callers without the compiled part: fakes and the reference.

csrc/common/optim_args.h makes the same checks in the same words; tests/test_errors.py holds them together.
Each check comes before the first write and names op, argument, index, what came and what is wanted.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

SERVED = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
HALF = (torch.bfloat16, torch.float16)


def _fail(*parts: object) -> None:
    raise RuntimeError("".join(map(str, parts)))


def _name(dtype: torch.dtype) -> str:
    return str(dtype) if dtype in SERVED else "a dtype that is not served"


def _shape(t: Tensor) -> str:
    return str(list(t.shape))


def _check_stream(op: str, name: str, i: int, t: Tensor, param: Tensor) -> None:
    arg, here = f"{op}: {name}[{i}]", f"params[{i}]"
    if t.device != param.device:
        _fail(arg, " is on another device than ", here)
    if t.shape != param.shape:
        _fail(arg, " has shape ", _shape(t), ", expected ", _shape(param), " as ", here)
    state = name not in ("params", "grads")
    wanted = torch.float32 if state and param.dtype in HALF else param.dtype
    if t.dtype != wanted:
        _fail(arg, " has dtype ", _name(t.dtype), ", expected ", wanted, f" for {param.dtype} parameters")
    repeated = any(n > 1 and s == 0 for n, s in zip(t.shape, t.stride(), strict=True))
    if name != "grads" and repeated and t.numel() > 0:
        _fail(arg, " has several elements at one address: it cannot be written")


def check_lengths(op: str, lists: Mapping[str, Sequence[object]]) -> None:
    """All lists as long as params."""
    wanted = len(lists["params"])
    for name, entries in lists.items():
        if len(entries) != wanted:
            _fail(op, ": ", name, " has ", len(entries), " entries, expected ", wanted, " as params")


def check_hyper(op: str, hyper: Tensor, columns: int, here: torch.device) -> None:
    shaped = hyper.dim() == 2 and hyper.shape[1] == columns and hyper.is_contiguous()
    if hyper.dtype != torch.float64 or not shaped or hyper.device not in (here, torch.device("cpu")):
        _fail(
            f"{op}: hyper has to be a contiguous torch.float64 tensor [groups, {columns}] on the CPU, ",
            "came with shape ",
            _shape(hyper),
        )


def check_groups(op: str, groups: Sequence[int], rows: int) -> None:
    for i, group in enumerate(groups):
        if not 0 <= group < rows:
            _fail(f"{op}: groups[{i}] is {group}, but hyper has {rows} rows")


def check_scalar(op: str, name: str, t: Tensor | None, here: torch.device) -> None:
    if t is not None and (t.numel() != 1 or t.dtype != torch.float32 or t.device != here):
        where = "the CPU" if here.type == "cpu" else here
        _fail(op, ": ", name, " has to be one torch.float32 element on ", where)


def check_row(op: str, i: int, row: Mapping[str, Tensor], here: torch.device, memory: bool) -> None:
    """One parameter and all that goes with it. row: params, grads, the states, steps.
    memory: look for freed storage too."""
    param = row["params"]
    if param.dtype not in SERVED:
        _fail(
            f"{op}: params[{i}] has a dtype that is not served, ",
            "expected torch.float32, float64, bfloat16 or float16",
        )
    if param.device != here:
        _fail(f"{op}: params[{i}] is on another device than params[0]")
    for name, t in row.items():
        if name == "steps":
            _check_step(op, i, t, param)
        else:
            _check_stream(op, name, i, t, param)
        if memory:
            check_storage(f"{op}: {name}[{i}]", t)


def _check_step(op: str, i: int, step: Tensor, param: Tensor) -> None:
    if step.device != param.device:
        _fail(f"{op}: steps[{i}] is on another device than params[{i}]")
    if step.numel() != 1:
        _fail(f"{op}: steps[{i}] has shape {_shape(step)}, expected one element")
    if step.dtype not in (torch.float32, torch.float64):
        _fail(f"{op}: steps[{i}] has dtype {_name(step.dtype)}, expected torch.float32 or torch.float64")


def check_apart(op: str, params: Sequence[Tensor]) -> None:
    """Two rows over the same memory would be updated side by side, in no order."""
    seen: dict[int, int] = {}
    for i, param in enumerate(params):
        if param.numel() > 0:
            first = seen.setdefault(param.data_ptr(), i)
            if first != i:
                _fail(f"{op}: params[{i}] is the same memory as params[{first}]")


def check_storage(arg: str, t: Tensor | None) -> None:
    if t is not None and freed(t):
        _fail(arg, " has no storage: it was freed")


def freed(t: Tensor) -> bool:
    """Is the memory that t needs no longer there (storage resized to less)?"""
    if t.numel() == 0 or t.layout != torch.strided:
        return False
    last = t.storage_offset() + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))
    return t.untyped_storage().nbytes() < (last + 1) * t.element_size()


def check_adam_values(op: str, hyper: Tensor) -> None:
    """The rows of hyper; each comparison is written so that NaN fails."""
    for g, (lr, beta1, beta2, eps, weight_decay, _) in enumerate(hyper.tolist()):
        for good, what, value in (
            (lr >= 0, "learning rate", lr),
            (0 <= beta1 < 1, "beta parameter at index 0", beta1),
            (0 <= beta2 < 1, "beta parameter at index 1", beta2),
            (eps >= 0, "epsilon value", eps),
            (weight_decay >= 0, "weight_decay value", weight_decay),
        ):
            if not good:
                _fail(f"{op}: hyper[{g}]: Invalid {what}: {value:g}")
