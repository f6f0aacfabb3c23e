"""The cases of loss scaling: `unscale_`, `accumulate_` and `update_scale_`."""

from collections.abc import Sequence
from typing import Any

import torch

from . import layouts
from .grad_cases import BAD, MATRICES, ODD, draw
from .layouts import Layout

_SHAPES = ((64, 33), (33,), (10, 64), (10,))


def unscale(
    rng: torch.Generator,
    dtype: torch.dtype,
    device: str,
    *,
    shapes: Sequence[tuple[int, ...]] = _SHAPES,
    grad_scale: float = 1024.0,
    size: float = 100.0,
    scalar_shape: tuple[int, ...] = (),
    spoil: Sequence[float] = (),
    layout: Layout = layouts.dense,
    mixed: bool = False,
) -> dict[str, Any]:
    """size: of the scaled gradients, if the dtype goes so far."""
    size = min(size, torch.finfo(dtype).max / 16)
    grads = draw(rng, dtype, device, shapes, size, spoil, layout, mixed)
    return {"grads": grads, "grad_scale": torch.full(scalar_shape, grad_scale, device=device)}


def accumulate(
    rng: torch.Generator,
    dtype: torch.dtype,
    device: str,
    *,
    shapes: Sequence[tuple[int, ...]] = _SHAPES,
    inv_scale: float | None = None,
    spoil: Sequence[float] = (),
    sums: Layout = layouts.dense,
    grads: Layout = layouts.dense,
    mixed: bool = False,
) -> dict[str, Any]:
    gradients = draw(rng, dtype, device, shapes, 0.1, spoil, layouts.dense, mixed)
    exact = [torch.float32 if g.dtype in (torch.bfloat16, torch.float16) else g.dtype for g in gradients]
    totals = [
        torch.randn(s, generator=rng, dtype=torch.float64).to(device, d)
        for s, d in zip(shapes, exact, strict=True)
    ]
    return {
        "sums": sums(totals) if totals else totals,
        "grads": grads(gradients) if gradients else gradients,
        "inv_scale": None if inv_scale is None else torch.full((), inv_scale, device=device),
    }


def update_scale(
    rng: torch.Generator,
    dtype: torch.dtype,
    device: str,
    *,
    scale: float = 1024.0,
    tracker: int = 0,
    skipped: tuple[int, int] = (5, 0),
    found: Sequence[float] = (0.0,),
    growth_factor: float = 2.0,
    backoff_factor: float = 0.5,
    growth_interval: int = 3,
    hysteresis: int = 0,
    min_scale: float = 0.0,
    max_scale: float = float("inf"),
) -> dict[str, Any]:
    def full(value: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.full((), value, dtype=dtype, device=device)

    return {
        "scale": full(scale),
        "growth_tracker": full(tracker, torch.int32),
        "skipped": torch.tensor(skipped, device=device),
        "found_infs": [full(value) for value in found],
        "growth_factor": growth_factor,
        "backoff_factor": backoff_factor,
        "growth_interval": growth_interval,
        "hysteresis": hysteresis,
        "min_scale": min_scale,
        "max_scale": max_scale,
    }


UNSCALE: dict[str, dict[str, Any]] = {
    "plain": {},
    "by_one": {"grad_scale": 1.0},
    "oddly": {"grad_scale": 1000.0, "scalar_shape": (1,)},
    "up": {"grad_scale": 0.125, "size": 1.0},
    "large": {"grad_scale": 2.0**16, "size": 1e25},
    "tiny": {"grad_scale": 2.0**16, "size": 1e-20},
    "no_tensors": {"shapes": []},
    "odd_sizes": {"shapes": ODD},
    "empty_and_0_dim": {"shapes": [(0,), (), (3,), (0, 5), (1,), (2, 0, 4)]},
    "threads": {"shapes": [*[(30_011,)] * 24, (17,), (5,)]},
    "inf": {"spoil": (float("inf"),)},
    "nan": {"spoil": (float("nan"),)},
    "inf_and_nan": {"spoil": BAD * 3},
    "sliced": {"shapes": MATRICES, "layout": layouts.every_second},
    "transposed": {"shapes": MATRICES, "layout": layouts.transposed},
    "misaligned": {"shapes": ODD, "layout": layouts.one_buffer},
    "mixed": {"mixed": True, "shapes": ODD},
}
ACCUMULATE: dict[str, dict[str, Any]] = {
    "plain": {},
    "scaled": {"inv_scale": 0.25},
    "scaled_oddly": {"inv_scale": 0.3},
    "no_tensors": {"shapes": []},
    "odd_sizes": {"shapes": ODD, "inv_scale": 0.5},
    "empty_and_0_dim": {"shapes": [(0,), (), (3,), (0, 5), (1,), (2, 0, 4)]},
    "threads": {"shapes": [(141_003,), (17,), (190_000,), (5,)]},
    "inf_and_nan": {"spoil": BAD * 3, "inv_scale": 0.5},
    "sliced": {"shapes": MATRICES, "sums": layouts.every_second, "grads": layouts.every_second},
    "grad_sliced": {"shapes": MATRICES, "grads": layouts.every_second},
    "grad_transposed": {"shapes": MATRICES, "grads": layouts.transposed},
    "grad_one_value": {"shapes": MATRICES, "grads": layouts.one_value},
    "transposed": {"shapes": MATRICES, "sums": layouts.transposed, "grads": layouts.transposed},
    "misaligned": {"shapes": ODD, "sums": layouts.one_buffer, "grads": layouts.one_buffer},
    "grad_misaligned": {"shapes": ODD, "grads": layouts.one_buffer},
    "sum_misaligned": {"shapes": ODD, "sums": layouts.one_buffer},
    "mixed": {"mixed": True, "shapes": ODD},
}
SCALE: dict[str, dict[str, Any]] = {
    "clean": {},
    "grows": {"tracker": 2},
    "past_the_interval": {"tracker": 7},
    "grows_oddly": {"tracker": 2, "growth_factor": 1.1, "scale": 1000.7},
    "grows_to_inf": {"tracker": 2, "scale": 3e38},
    "overflow": {"found": (1.0,), "tracker": 2},
    "overflow_oddly": {"found": (1.0,), "backoff_factor": 0.3, "scale": 1000.7},
    "overflow_at_one_step_of_three": {"found": (0.0, 1.0, 0.0)},
    "overflow_at_all_steps": {"found": (1.0, 1.0, 2.0)},
    "nothing_found": {"found": ()},
    "tolerated": {"found": (1.0,), "hysteresis": 2, "skipped": (9, 1), "tracker": 1},
    "tolerated_no_longer": {"found": (1.0,), "hysteresis": 2, "skipped": (9, 2)},
    "clean_again": {"hysteresis": 2, "skipped": (9, 2)},
    "at_the_least": {"found": (1.0,), "scale": 1.5, "min_scale": 1.0},
    "at_the_most": {"tracker": 2, "max_scale": 1500.0},
    "below_the_least": {"scale": 0.5, "min_scale": 1.0},
}
