"""The cases of the ops on gradients alone: `grad_stats` and `clip_grads_`."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import layouts
from .layouts import Layout

BAD = (float("inf"), float("-inf"), float("nan"))
MATRICES = [(5, 7), (33, 64), (3, 1), (1, 9), (2, 3, 300)]
ODD = [(n,) for n in (1, 3, 7, 8, 15, 16, 17, 63, 64, 65, 257, 1000, 4099)]


def draw(
    rng: torch.Generator,
    dtype: torch.dtype,
    device: str,
    shapes: Sequence[tuple[int, ...]],
    size: float,
    spoil: Sequence[float],
    layout: Layout,
    mixed: bool,
) -> list[Tensor]:
    """mixed: every second gradient is float32, whatever dtype the others have."""
    grads = []
    for i, shape in enumerate(shapes):
        kept = torch.float32 if mixed and i % 2 else dtype
        grads.append((torch.randn(shape, generator=rng, dtype=torch.float64) * size).to(device, kept))
    for i, value in enumerate(spoil):
        flat = grads[i % len(grads)].view(-1)
        flat[7 * i % flat.numel()] = value
    return layout(grads) if grads else grads


def grad_stats(
    rng: torch.Generator,
    dtype: torch.dtype,
    device: str,
    *,
    shapes: Sequence[tuple[int, ...]] = ((64, 33), (33,), (10, 64), (10,)),
    size: float = 0.1,
    spoil: Sequence[float] = (),
    grad_scale: float | None = None,
    layout: Layout = layouts.dense,
    mixed: bool = False,
) -> dict[str, Any]:
    size = min(size, torch.finfo(dtype).max / 16)
    grads = draw(rng, dtype, device, shapes, size, spoil, layout, mixed)
    scale = None if grad_scale is None else torch.full((), grad_scale, device=device)
    return {"grads": grads, "grad_scale": scale}


def clip_grads(
    rng: torch.Generator,
    dtype: torch.dtype,
    device: str,
    *,
    shapes: Sequence[tuple[int, ...]] = ((64, 33), (33,), (10, 64), (10,)),
    norm: float,
    max_norm: float,
    spoil: Sequence[float] = (),
    layout: Layout = layouts.dense,
    mixed: bool = False,
) -> dict[str, Any]:
    grads = draw(rng, dtype, device, shapes, 0.1, spoil, layout, mixed)
    stats = torch.tensor([norm, 0.0], dtype=torch.float64, device=device)
    return {"grads": grads, "stats": stats, "max_norm": max_norm}


STATS: dict[str, dict[str, Any]] = {
    "plain": {},
    "scaled": {"grad_scale": 1024.0, "size": 100.0},
    "large": {"size": 1e25},  # squares that no float32 holds
    "tiny": {"size": 1e-30},
    "odd_sizes": {"shapes": ODD},
    "empty_and_0_dim": {"shapes": [(0,), (), (3,), (0, 5), (1,), (2, 0, 4)]},
    "only_empty": {"shapes": [(0,), (3, 0)]},
    # Long enough for two threads, and for each to walk in strands: csrc/cpu/strands.h.
    "threads": {"shapes": [*[(30_011,)] * 24, (17,), (0,), (5,)]},
    "inf": {"spoil": (float("inf"),)},
    "nan": {"spoil": (float("nan"),)},
    "inf_and_nan": {"spoil": BAD * 3},
    "sliced": {"shapes": MATRICES, "layout": layouts.every_second},
    "transposed": {"shapes": MATRICES, "layout": layouts.transposed},
    "same_rows": {"shapes": MATRICES, "layout": layouts.same_rows},
    "misaligned": {"shapes": ODD, "layout": layouts.one_buffer},
    "mixed": {"mixed": True, "shapes": ODD},
}
CLIP: dict[str, dict[str, Any]] = {
    "clipped": {"norm": 2.0, "max_norm": 1.0},
    "within": {"norm": 2.0, "max_norm": 3.0},
    "to_zero": {"norm": 2.0, "max_norm": 0.0},
    "norm_inf": {"norm": float("inf"), "max_norm": 1.0, "spoil": BAD},
    "norm_nan": {"norm": float("nan"), "max_norm": 1.0},
    "no_limit": {"norm": 2.0, "max_norm": float("inf")},
    "odd_sizes": {"norm": 2.0, "max_norm": 1.0, "shapes": ODD},
    "empty_and_0_dim": {"norm": 2.0, "max_norm": 1.0, "shapes": [(0,), (), (3,), (0, 5), (1,)]},
    "sliced": {"norm": 2.0, "max_norm": 1.0, "shapes": MATRICES, "layout": layouts.every_second},
    "misaligned": {"norm": 2.0, "max_norm": 1.0, "shapes": ODD, "layout": layouts.one_buffer},
    "mixed": {"norm": 2.0, "max_norm": 1.0, "mixed": True, "shapes": ODD},
}
