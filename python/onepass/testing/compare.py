"""Compares what two backends left behind, and says where they differ most."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .tolerances import CANCELS, EXACT, FLOOR, FLOOR_OF_SUMS, TOLERANCES, Tolerance


@dataclass(frozen=True)
class Mismatch:
    op: str
    case: str
    argument: str  # with its index: "exp_avgs[3]"
    message: str

    def __str__(self) -> str:
        return f"{self.op} {self.case}: {self.argument} {self.message}"


def compare(
    op: str,
    case: str,
    got: Mapping[str, Any],
    want: Mapping[str, Any],
    before: Mapping[str, Any],
    written: frozenset[str],
) -> list[Mismatch]:
    """Compares the arguments (and results) of two equal calls after they ran.

    Args:
        got, want: from argument names to tensors, nested lists of them, numbers or None.
        before: the same arguments before the call, where there are any.
        written: names that the call may write. All others have to be what they were, bit for bit.
    """
    found = []
    for name in want:
        if name in PACKED and name in written and _alike(got[name], want[name]):
            found += [
                Mismatch(op, case, name, f"{part} {message}")
                for part, ours, theirs in PACKED[name](got[name].double(), want[name].double())
                if (message := _beyond(ours, theirs, _allowed_of_part(want[name].dtype, theirs)))
            ]
            continue
        floor = (FLOOR_OF_SUMS if name in CANCELS else FLOOR) * _largest(want[name])
        for place, ours, theirs, old in _leaves(name, got[name], want[name], before.get(name)):
            message = _difference(name, ours, theirs, old, floor) if name in written else _change(ours, old)
            if message:
                found.append(Mismatch(op, case, place, message))
    return found


# --- several quantities in one tensor ---------------------------------------------------------------------
# Each against a size of its own: a mean in units of the deviation, squared deviations and deviations by what
# is wanted, so that 1 is the size of all of them. They are the rows that onepass/ops.py describes.
def _stats(got: Tensor, want: Tensor) -> list[tuple[str, Tensor, Tensor]]:
    return [
        ("mean", got[:2].sum(0) * want[2], want[:2].sum(0) * want[2]),
        ("1 / deviation", got[2] / want[2], want[2] / want[2]),
    ]


def _moments(got: Tensor, want: Tensor) -> list[tuple[str, Tensor, Tensor]]:
    ours, theirs = got[:-1].view(3, -1), want[:-1].view(3, -1)
    deviation = (theirs[2] / want[-1]).sqrt()
    unit = torch.where(deviation > 0, 1 / deviation, 1.0)
    square = torch.where(theirs[2] > 0, 1 / theirs[2], 1.0)
    return [
        ("mean", ours[:2].sum(0) * unit, theirs[:2].sum(0) * unit),
        ("squared deviations", ours[2] * square, theirs[2] * square),
        ("count", got[-1:], want[-1:]),
    ]


def _sums(got: Tensor, want: Tensor) -> list[tuple[str, Tensor, Tensor]]:
    ours, theirs = got[:-1].view(2, -1), want[:-1].view(2, -1)
    size = theirs.abs().amax(1, keepdim=True).clamp(min=1e-30) if theirs.numel() else 1.0
    return [
        ("sum of g", (ours / size)[0], (theirs / size)[0]),
        ("sum of g * (input - mean)", (ours / size)[1], (theirs / size)[1]),
        ("count", got[-1:], want[-1:]),
    ]


PACKED = {"stats": _stats, "moments": _moments, "sums": _sums}


def _alike(got: Any, want: Any) -> bool:
    """Tensors that can be taken apart alike; others are told apart as a whole."""
    tensors = isinstance(got, Tensor) and isinstance(want, Tensor)
    return tensors and (got.shape, got.dtype, got.device) == (want.shape, want.dtype, want.device)


def _allowed_of_part(dtype: torch.dtype, want: Tensor) -> Tensor:
    """What is left of float32 sums beside 1; float64 keeps no low part of a mean, and loses by its size."""
    size = _finite_size(want).clamp(min=1.0) if dtype == torch.float64 else torch.ones_like(want)
    return FLOOR_OF_SUMS * TOLERANCES[dtype].rtol * size


# --- one quantity -----------------------------------------------------------------------------------------
def _leaves(place: str, got: Any, want: Any, before: Any) -> Iterator[tuple[str, Any, Any, Any]]:
    if not isinstance(want, list | tuple):
        yield place, got, want, before
        return
    before = [None] * len(want) if before is None else before
    for i, entry in enumerate(zip(got, want, before, strict=True)):
        yield from _leaves(f"{place}[{i}]", *entry)


def _change(got: Any, before: Any) -> str:
    """Empty if an argument that is only read is what it was."""
    if isinstance(got, Tensor):
        same = (
            got.shape == before.shape and got.dtype == before.dtype and torch.equal(_bits(got), _bits(before))
        )
    else:
        same = got == before
    return "" if same else "was changed, although it is only read"


def _bits(t: Tensor) -> Tensor:
    return t.detach().contiguous().reshape(-1).view(torch.uint8)


def _largest(value: Any) -> float:
    """The largest finite size of an element in nested lists of tensors."""
    if isinstance(value, Tensor):
        return float(_finite_size(value).max()) if value.numel() > 0 else 0.0
    return max(map(_largest, value), default=0.0) if isinstance(value, list | tuple) else 0.0


def _difference(name: str, got: Any, want: Any, before: Any, floor: float) -> str:
    """What is wrong with `got`, in words; empty if it is within the tolerance."""
    if not isinstance(want, Tensor) or not isinstance(got, Tensor):
        same = type(got) is type(want) and got == want
        return "" if same else f"is {got!r}, wanted {want!r}"
    for what in ("dtype", "shape", "device"):
        ours, theirs = getattr(got, what), getattr(want, what)
        if ours != theirs:
            return f"has {what} {ours}, wanted {theirs}"
    if want.numel() == 0:
        return ""
    if name in EXACT or not want.is_floating_point():
        return _beyond(got, want, torch.zeros_like(want, dtype=torch.float64))
    tolerance = TOLERANCES[want.dtype]
    arithmetic = tolerance.rtol * _scale(want, before, floor)
    if tolerance.ulps == 0:
        return _beyond(got, want, arithmetic)
    beyond = _beyond(got, want, arithmetic + tolerance.ulps * spacing(want))
    return beyond or _rounded_otherwise(errors(got, want) > arithmetic, tolerance)


def _beyond(got: Tensor, want: Tensor, allowed: Tensor) -> str:
    """Where got is further from want than allowed, and the worst such element."""
    error = errors(got, want)
    wrong = error > allowed
    if not wrong.any():
        return ""
    worst = int((error - allowed).masked_fill(~wrong, -1).argmax())
    place = [int(i) for i in torch.unravel_index(torch.tensor(worst), want.shape)]
    return (
        f"differs in {int(wrong.sum())} of {want.numel()} elements, most at {place}: "
        f"{got[tuple(place)].item():.9g}, wanted {want[tuple(place)].item():.9g}, "
        f"off by {error.flatten()[worst].item():.3g}, allowed {allowed.flatten()[worst].item():.3g}"
    )


def _rounded_otherwise(off: Tensor, tolerance: Tolerance) -> str:
    count = int(off.sum())
    if count <= max(2, tolerance.flips * off.numel()):
        return ""
    return f"is off by a unit in the last place in {count} of {off.numel()} elements: not rounded to nearest"


def errors(got: Tensor, want: Tensor) -> Tensor:
    """|got - want| in float64: 0 where both are NaN or the same inf, inf where only one of them is."""
    got, want = got.detach().double(), want.detach().double()
    same = (got == want) | (got.isnan() & want.isnan())
    return (got - want).abs().nan_to_num(nan=float("inf")).masked_fill(same, 0.0)


def _scale(want: Tensor, before: Tensor | None, floor: float) -> Tensor:
    scale = _finite_size(want)
    scale = scale if before is None else torch.maximum(scale, _finite_size(before))
    return scale.clamp(min=floor)


def _finite_size(t: Tensor) -> Tensor:
    size = t.detach().double().abs()
    return size.masked_fill(~size.isfinite(), 0.0)


def spacing(t: Tensor) -> Tensor:
    """The distance to the next larger number of t's dtype, as float64; 0 for inf and NaN."""
    info = torch.finfo(t.dtype)
    size = t.detach().double().abs()
    _, exponent = torch.frexp(size)
    smallest = info.smallest_normal * info.eps
    distance = torch.ldexp(torch.full_like(size, info.eps), exponent - 1).clamp(min=smallest)
    return distance.masked_fill(size == 0, smallest).masked_fill(~size.isfinite(), 0.0)


def margins(arguments: Mapping[str, Any]) -> list[Tensor]:
    """The memory that the tensors' storages hold beside them, as bytes: copies of these storages, in order,
    with the tensors' own elements set to 0."""
    copies: dict[int, Tensor] = {}
    for name, value in arguments.items():
        for _, t, _, _ in _leaves(name, value, value, None):
            if isinstance(t, Tensor) and t.numel() * t.element_size() < t.untyped_storage().nbytes():
                storage = t.untyped_storage()
                if storage.data_ptr() not in copies:
                    copies[storage.data_ptr()] = t.detach().new_empty(0).set_(storage).clone()
                copies[storage.data_ptr()].as_strided(t.shape, t.stride(), t.storage_offset()).zero_()
    return [_bits(copy) for copy in copies.values()]
