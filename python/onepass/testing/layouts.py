"""Ways in which tensors can lie in memory: same values, other strides, offsets and neighbours.

Each function takes dense tensors and returns tensors of the same shapes and, unless it says otherwise, the
same values, on the same device. Memory around them holds GAP, so that a stray write can be seen.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Layout = Callable[[list[Tensor]], list[Tensor]]

GAP = 77.0  # exact in every floating dtype


def _each(place: Callable[[Tensor], Tensor]) -> Layout:
    return lambda tensors: [place(t) for t in tensors]


def _channels_last(t: Tensor) -> Tensor:
    return t.to(memory_format=torch.channels_last) if t.dim() == 4 else t


def _transposed(t: Tensor) -> Tensor:
    return t.transpose(0, -1).contiguous().transpose(0, -1) if t.dim() > 1 else t


def _every_second(t: Tensor) -> Tensor:
    """x[..., ::2] of a tensor twice as wide."""
    if t.dim() == 0:
        return t
    view = t.new_full((*t.shape[:-1], 2 * t.shape[-1]), GAP)[..., ::2]
    view.copy_(t)
    return view


def _same_rows(t: Tensor) -> Tensor:
    """The first row everywhere, with stride 0: other values."""
    return t[:1].expand_as(t) if t.dim() > 0 and t.numel() > 0 else t


def _one_value(t: Tensor) -> Tensor:
    """The first element everywhere, as sum().backward() leaves it: other values."""
    return t.flatten()[:1].reshape(()).expand(t.shape) if t.numel() > 0 else t


def dense(tensors: list[Tensor]) -> list[Tensor]:
    return tensors


def one_buffer(tensors: list[Tensor]) -> list[Tensor]:
    """Views of one buffer with a gap before each and behind the last, so that no vector load is aligned."""
    buffer = tensors[0].new_full((sum(t.numel() + 1 for t in tensors) + 1,), GAP)
    views, start = [], 1
    for t in tensors:
        views.append(buffer[start : start + t.numel()].view(t.shape).copy_(t))
        start += t.numel() + 1
    return views


channels_last = _each(_channels_last)
transposed = _each(_transposed)
every_second = _each(_every_second)
same_rows = _each(_same_rows)
one_value = _each(_one_value)
