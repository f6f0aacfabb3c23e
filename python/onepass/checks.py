"""Argument checks of the ops for callers without the compiled part: fakes and the reference.

csrc/common/optim_args.h makes the same checks in the same words; tests/test_errors.py holds them together.
Each check comes before the first write and names op, argument, index, what came and what is wanted.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .ops import Column

SERVED = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
HALF = (torch.bfloat16, torch.float16)


def _fail(*parts: object) -> None:
    raise RuntimeError("".join(map(str, parts)))


def _name(dtype: torch.dtype) -> str:
    return str(dtype) if dtype in SERVED else "a dtype that is not served"


def _shape(t: Tensor) -> str:
    return str(list(t.shape))


def _wanted_dtypes(name: str, row: Mapping[str, Tensor]) -> tuple[tuple[torch.dtype, ...], str]:
    """The dtypes that a tensor of a row may have, and why."""
    param = row["params"].dtype
    why = f"for {param} parameters"
    if name == "params":
        return (param,), why
    if name == "grads":  # those of half parameters may have been summed in float32
        return ((param, torch.float32) if param in HALF else (param,)), why
    if name == "emas":  # moves by little at a time: never kept in a half dtype
        return (torch.float32 if param in HALF else param,), why
    first = next(key for key in row if key not in ("params", "grads"))
    if name != first:
        return (row[first].dtype,), "as the first state"
    return ((torch.float64,) if param == torch.float64 else (torch.float32, torch.bfloat16)), why


def _check_stream(op: str, name: str, i: int, row: Mapping[str, Tensor]) -> None:
    arg, here, t, param = f"{op}: {name}[{i}]", f"params[{i}]", row[name], row["params"]
    if t.device != param.device:
        _fail(arg, " is on another device than ", here)
    if t.shape != param.shape:
        _fail(arg, " has shape ", _shape(t), ", expected ", _shape(param), " as ", here)
    wanted, why = _wanted_dtypes(name, row)
    if t.dtype not in wanted:
        _fail(arg, " has dtype ", _name(t.dtype), ", expected ", " or ".join(map(str, wanted)), " ", why)
    if name != "grads":
        check_written(arg, t)


def check_written(arg: str, t: Tensor) -> None:
    """What is written has one address an element."""
    repeated = any(n > 1 and s == 0 for n, s in zip(t.shape, t.stride(), strict=True))
    if repeated and t.numel() > 0:
        _fail(arg, " has several elements at one address: it cannot be written")


def check_lengths(op: str, lists: Mapping[str, Sequence[object]], wanted: int) -> None:
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


def _where(here: torch.device) -> object:
    return "the CPU" if here.type == "cpu" else here


def check_scalar(op: str, name: str, t: Tensor | None, here: torch.device) -> None:
    if t is not None and (t.numel() != 1 or t.dtype != torch.float32 or t.device != here):
        _fail(op, ": ", name, " has to be one torch.float32 element on ", _where(here))


def check_stats(op: str, t: Tensor | None, here: torch.device) -> None:
    if t is not None and (
        t.shape != (2,) or t.stride() != (1,) or t.dtype != torch.float64 or t.device != here
    ):
        _fail(op, ": stats has to be a contiguous torch.float64 tensor [2] on ", _where(here))


def check_grads_after(op: str, grads_after: int) -> None:
    if grads_after not in (0, 1, 2):
        _fail(op, ": grads_after is ", grads_after, ", expected 0 (keep), 1 (zero) or 2 (write)")


def check_row(
    op: str, i: int, row: Mapping[str, Tensor], here: torch.device, memory: bool, single: bool
) -> None:
    """One parameter and all that goes with it. row: params, grads, the states, emas.
    memory: look for freed storage too. single: the op is for float32 alone."""
    param = row["params"]
    if param.dtype not in SERVED:
        _fail(
            f"{op}: params[{i}] has a dtype that is not served, ",
            "expected torch.float32, float64, bfloat16 or float16",
        )
    if param.device != here:
        _fail(f"{op}: params[{i}] is on another device than params[0]")
    if single and param.dtype != torch.float32:
        _fail(f"{op}: params[{i}] has dtype ", _name(param.dtype), ", expected torch.float32")
    for name, t in row.items():
        _check_stream(op, name, i, row)
        if memory:
            check_storage(f"{op}: {name}[{i}]", t)


def check_grad(op: str, i: int, grad: Tensor, here: torch.device) -> None:
    """A gradient that comes without its parameter."""
    if grad.dtype not in SERVED:
        _fail(
            f"{op}: grads[{i}] has a dtype that is not served, ",
            "expected torch.float32, float64, bfloat16 or float16",
        )
    if grad.device != here:
        _fail(f"{op}: grads[{i}] is on another device than grads[0]")


def check_sum(op: str, i: int, total: Tensor, grad: Tensor, here: torch.device, memory: bool) -> None:
    """A sum of gradients and the gradient that is to be added to it."""
    arg, other = f"{op}: sums[{i}]", f"{op}: grads[{i}]"
    if grad.dtype not in SERVED:
        _fail(
            other,
            " has a dtype that is not served, expected torch.float32, float64, bfloat16 or float16",
        )
    if total.device != here:
        _fail(arg, " is on another device than sums[0]")
    if grad.device != here:
        _fail(other, f" is on another device than sums[{i}]")
    if grad.shape != total.shape:
        _fail(other, " has shape ", _shape(grad), ", expected ", _shape(total), f" as sums[{i}]")
    wanted = torch.float32 if grad.dtype in HALF else grad.dtype
    if total.dtype != wanted:
        _fail(arg, f" has dtype {_name(total.dtype)}, expected {wanted} for {grad.dtype} gradients")
    check_written(arg, total)
    if memory:
        check_storage(arg, total)
        check_storage(other, grad)


def check_elements(op: str, name: str, t: Tensor, dtype: torch.dtype, numel: int, here: torch.device) -> None:
    if t.dtype != dtype or t.numel() != numel or not t.is_contiguous() or t.device != here:
        count = "one" if numel == 1 else "two"
        _fail(f"{op}: {name} has to be {count} {dtype} element{'s' * (numel > 1)} on ", _where(here))


def check_scale_rule(
    op: str, growth_factor: float, backoff_factor: float, hysteresis: int, min_scale: float, max_scale: float
) -> None:
    """That factors grow and back off is for GradScaler's constructor to ask; 1, set later, freezes it."""
    for name, factor in (("growth_factor", growth_factor), ("backoff_factor", backoff_factor)):
        if factor != factor:
            _fail(f"{op}: {name} is nan, expected a number")
    if hysteresis < 0:
        _fail(f"{op}: hysteresis is {hysteresis}, expected >= 0")
    if not 0 <= min_scale <= max_scale:
        _fail(f"{op}: scales from {min_scale:g} to {max_scale:g}, expected 0 <= min_scale <= max_scale")


def check_step(op: str, i: int, step: Tensor, param: Tensor, memory: bool) -> None:
    if step.device != param.device:
        _fail(f"{op}: steps[{i}] is on another device than params[{i}]")
    if step.numel() != 1:
        _fail(f"{op}: steps[{i}] has shape {_shape(step)}, expected one element")
    if step.dtype not in (torch.float32, torch.float64):
        _fail(f"{op}: steps[{i}] has dtype {_name(step.dtype)}, expected torch.float32 or torch.float64")
    if memory:
        check_storage(f"{op}: steps[{i}]", step)


def check_apart(op: str, params: Sequence[Tensor]) -> None:
    """Two rows over the same memory would be updated side by side, in no order."""
    seen: dict[int, int] = {}
    for i, param in enumerate(params):
        if param.numel() > 0 and param.data_ptr() != 0:  # 0: without memory, as on the meta device
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


def check_hyper_values(op: str, columns: Sequence[Column], hyper: Tensor) -> None:
    """The rows of hyper; each comparison is written so that NaN fails."""
    for g, row in enumerate(hyper.tolist()):
        for column, value in zip(columns, row, strict=True):
            good = value >= 0 and (column.below is None or value < column.below)
            if column.what and not good:
                _fail(f"{op}: hyper[{g}]: Invalid {column.what}: {value:g}")
