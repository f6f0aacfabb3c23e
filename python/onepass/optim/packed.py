"""Zero states of many small CPU parameters, packed into one block of memory.

A step over thousands of small tensors is bound by cache and TLB misses, and half of the memory that it
touches are states. One block for all of them is walked in order and lies on few pages. Each tensor still has
a storage of its own, of its own size, so that saving, copying or sharing one takes along no other; the block
is freed with the last of them. Such a storage cannot be resized in place: torch says so.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

MANY = 256  # parameters; fewer fit the caches however they lie
SMALL = 16384  # elements; a larger tensor has pages of its own
_LINE = 64  # bytes: where a tensor starts
_NUMPY = {torch.float32: np.float32, torch.float64: np.float64}


def packable(p: Tensor, dtype: torch.dtype) -> bool:
    """Small, on the CPU, and without gaps, so that a state of this dtype can lie just like it."""
    return dtype in _NUMPY and p.device.type == "cpu" and 0 < p.numel() <= SMALL and _order(p) is not None


def zeros_like(params: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """For each packable parameter a tensor of zeros of this dtype, with its shape and strides."""
    per_line = _LINE // torch.empty((), dtype=dtype).element_size()
    starts = np.cumsum([0, *(-(-p.numel() // per_line) * per_line for p in params)])
    block = np.zeros(starts[-1], dtype=_NUMPY[dtype])
    return [
        torch.from_numpy(_laid_out(block[a : a + p.numel()], p)) for a, p in zip(starts, params, strict=False)
    ]


def zero_scalars(count: int, dtype: torch.dtype) -> list[Tensor]:
    """So many zeros, each a tensor of no dimension."""
    block = np.zeros(count, dtype=_NUMPY[dtype])
    return [torch.from_numpy(block[i : i + 1].reshape(())) for i in range(count)]


def _order(p: Tensor) -> list[int] | None:
    """Dimensions from the largest stride to the smallest; None where they leave gaps or overlap."""
    order = sorted(range(p.dim()), key=lambda d: (p.stride()[d], p.shape[d]), reverse=True)
    expected = 1
    for d in reversed(order):
        if p.shape[d] != 1 and p.stride()[d] != expected:
            return None
        expected *= p.shape[d]
    return order


def _laid_out(flat: np.ndarray, p: Tensor) -> np.ndarray:
    order = _order(p)
    assert order is not None
    return flat.reshape([p.shape[d] for d in order]).transpose(np.argsort(order))
