"""What is known of gradients that were read a moment ago: their norm, and whether one is inf or NaN.

GradScaler.unscale_ learns it while it unscales. clip_grad_norm_, and a step that clips, then need not read
the gradients again, as long as they are the same: the same tensors, at the same addresses, in the same
version. A write behind autograd's back (through `.data`, or by a kernel that bumps no version) is not seen,
neither here nor by autograd. Collectives are such kernels: among several processes nothing is remembered.
"""

import weakref
from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .phase import on_each_device

Stats = dict[torch.device, Tensor]  # on each device the same two numbers, see ops.py: grad_stats


class _Measured:
    def __init__(self, grads: Sequence[Tensor], stats: Stats) -> None:
        # Weak: a gradient that is let go is let go. By identity: a tensor compares by value.
        self._seen = {id(g): (weakref.ref(g), g.data_ptr(), g._version) for g in grads}
        self.stats = stats

    def __len__(self) -> int:
        return len(self._seen)

    def has(self, g: Tensor) -> bool:
        seen = self._seen.get(id(g))
        return seen is not None and seen[0]() is g and seen[1:] == (g.data_ptr(), g._version)


_all: deque[_Measured] = deque(maxlen=16)  # one for each optimizer since the last update() of a scaler


def remember(grads: Sequence[Tensor], stats: Stats) -> None:
    """stats are those of these gradients as they are now."""
    together = torch.distributed.is_available() and torch.distributed.is_initialized()
    if not together or torch.distributed.get_world_size() == 1:
        _all.append(_Measured(grads, stats))


def recall(grads: Sequence[Tensor] | Callable[[], Sequence[Tensor]]) -> Stats | None:
    """The stats of these gradients together; None where they have to be read. grads: or a function that lists
    them, called where something is known at all."""
    if not _all:
        return None
    parts: list[_Measured] = []
    left = list(grads() if callable(grads) else grads)
    if len({id(g) for g in left}) < len(left):  # one that is listed twice counts twice
        return None
    for measured in reversed(_all):
        others = [g for g in left if not measured.has(g)]
        if len(left) - len(others) == len(measured) > 0:
            parts.append(measured)
            left = others
    if left or not parts:
        return None
    devices = dict.fromkeys(device for part in parts for device in part.stats)
    return on_each_device([_any(part.stats) for part in parts], devices)


def forget() -> None:
    _all.clear()


def _any(stats: Stats) -> Tensor:
    return next(iter(stats.values()))
