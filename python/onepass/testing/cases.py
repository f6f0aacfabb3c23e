"""The inputs of every op: named cases, each a function from a seed, a dtype and a device to one call.

A call is a dict from the schema's argument names to values. The same seed gives the same numbers on every
device (they are drawn on the CPU) and the same memory layout, so that two backends can be given equal,
separate inputs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..ops import ADAM_HYPER
from . import layouts
from .layouts import Layout

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

Call = dict[str, Any]


@dataclass(frozen=True)
class Case:
    name: str
    build: Callable[[torch.Generator, torch.dtype, str], Call]
    dtypes: tuple[torch.dtype, ...] = FLOATS  # of the op's main argument

    def __call__(self, seed: int, dtype: torch.dtype, device: str = "cpu") -> Call:
        return self.build(torch.Generator().manual_seed(seed), dtype, device)


# --- Adam and AdamW ---------------------------------------------------------------------------------------
# Steps of 1e-2 on parameters of 0.1: large enough to move bfloat16, whose neighbours are up to 0.8 % apart.
_ADAM_ROW = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.1, "maximize": 0.0}

# Below, at and above the widths of a vector, of an unrolled loop, of a tile and of the cut between threads.
_ODD = [(n,) for n in (1, 3, 7, 8, 15, 16, 17, 63, 64, 65, 257, 1000, 4099)]
_IMAGES = [(4, 3, 5, 7), (8, 16, 3, 3)]
_MATRICES = [(5, 7), (33, 64), (3, 1), (1, 9), (2, 3, 300)]


def adam_hyper(rows: Sequence[Mapping[str, float]]) -> Tensor:
    """The op's float64 tensor [len(rows), 6]; what a row does not name is _ADAM_ROW's."""
    values = [[{**_ADAM_ROW, **row}[name] for name in ADAM_HYPER] for row in rows]
    return torch.tensor(values, dtype=torch.float64)


def adam(
    rng: torch.Generator,
    dtype: torch.dtype,
    device: str,
    *,
    shapes: Sequence[tuple[int, ...]] = ((64, 33), (33,), (10, 64), (10,)),
    rows: Sequence[Mapping[str, float]] = ({},),
    amsgrad: bool = False,
    steps: Sequence[float] = (7,),
    step_dtype: torch.dtype = torch.float32,
    first: bool = False,
    spoil: Sequence[float] = (),
    grad_scale: float | None = None,
    found_inf: float | None = None,
    scalar_shape: tuple[int, ...] = (),
    params: Layout = layouts.dense,
    grads: Layout = layouts.dense,
    states: Layout = layouts.dense,
) -> Call:
    """One call of adam_ or adamw_.

    Args:
        shapes: of the parameters. Parameter i belongs to group i % len(rows) and has done
            steps[i % len(steps)] steps so far.
        rows: hyperparameters of each group, where they differ from _ADAM_ROW.
        first: the states are zero, as before a first step.
        spoil: values put into the gradients at scattered places.
        scalar_shape: of the step counters, grad_scale and found_inf: () or (1,).
        params, grads, states: the memory layout of these lists.
    """
    state_dtype = torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype
    done = [steps[i % len(steps)] for i in range(len(shapes))]

    def drawn(
        draw: Callable, dtype: torch.dtype, scales: Sequence[float], offset: float = 0.0
    ) -> list[Tensor]:
        values = [draw(shape, generator=rng, dtype=torch.float64) + offset for shape in shapes]
        return [(t * s).to(device=device, dtype=dtype) for t, s in zip(values, scales, strict=True)]

    def so_far(beta: float) -> list[float]:
        """How much of a running average has come together after this many steps."""
        return [0.0 if first else 1 - beta ** (t + 1) for t in done]

    def squares() -> list[Tensor]:
        """Running averages of squared gradients of size 0.1; none so small that only eps is left."""
        return drawn(torch.rand, state_dtype, [0.02 * share for share in so_far(0.999)], offset=0.05)

    def scalar(value: float | None, dtype: torch.dtype = torch.float32) -> Tensor | None:
        return None if value is None else torch.full(scalar_shape, value, dtype=dtype, device=device)

    gradients = drawn(torch.randn, dtype, [0.1 * (grad_scale or 1.0)] * len(shapes))
    for i, value in enumerate(spoil):  # one tensor after another, ever further from its start
        flat = gradients[i % len(gradients)].view(-1)
        flat[7 * i % flat.numel()] = value
    return {
        "params": params(drawn(torch.randn, dtype, [0.1] * len(shapes))),
        "grads": grads(gradients),
        "exp_avgs": states(drawn(torch.randn, state_dtype, [0.05 * share for share in so_far(0.9)])),
        "exp_avg_sqs": states(squares()),
        "max_exp_avg_sqs": states(squares()) if amsgrad else [],
        "steps": [scalar(t, step_dtype) for t in done],
        "hyper": adam_hyper(rows),
        "groups": [i % len(rows) for i in range(len(shapes))],
        "grad_scale": scalar(grad_scale),
        "found_inf": scalar(found_inf),
    }


_GROUPS: tuple[dict[str, float], ...] = (
    {},
    {"lr": 2e-2, "weight_decay": 0.5, "maximize": 1.0},
    {"lr": 5e-3, "beta1": 0.95, "beta2": 0.98, "eps": 1e-3, "weight_decay": 0.0},
    {"beta1": 0.0, "beta2": 0.5},
    {"lr": 0.0, "beta2": 0.0},
)
_BAD = (float("inf"), float("-inf"), float("nan"))

# Weight decay stays out of a first step: where weight_decay * p all but cancels the gradient, a zero state
# leaves nothing but the rounding of their sum, and the update lr * g / |g| makes that large.
_ADAM: dict[str, dict[str, Any]] = {
    "plain": {},
    "amsgrad": {"amsgrad": True},
    "groups": {"rows": _GROUPS, "shapes": [(40, 3), (5,), (65,), (7, 9), (12,), (33, 2), (1,)]},
    "groups_amsgrad": {"rows": _GROUPS, "shapes": [(40, 3), (5,), (65,), (7, 9), (12,)], "amsgrad": True},
    "odd_sizes": {"shapes": _ODD},
    "odd_sizes_amsgrad": {"shapes": _ODD, "amsgrad": True},
    "empty_and_0_dim": {"shapes": [(0,), (), (3,), (0, 5), (1,), (2, 0, 4)]},
    "no_tensors": {"shapes": []},
    "threads": {"shapes": [(41_003,), (17,), (90_000,), (5,)], "steps": (3, 4)},
    "channels_last": {
        "shapes": _IMAGES,
        "params": layouts.channels_last,
        "grads": layouts.channels_last,
        "states": layouts.channels_last,
    },
    "transposed": {
        "shapes": _MATRICES,
        "params": layouts.transposed,
        "grads": layouts.transposed,
        "states": layouts.transposed,
    },
    "sliced": {
        "shapes": _MATRICES,
        "params": layouts.every_second,
        "grads": layouts.every_second,
        "states": layouts.every_second,
    },
    "param_sliced": {"shapes": _MATRICES, "params": layouts.every_second, "amsgrad": True},
    "grad_channels_last": {"shapes": _IMAGES, "grads": layouts.channels_last},
    "grad_transposed": {"shapes": _MATRICES, "grads": layouts.transposed},
    "grad_sliced": {"shapes": _MATRICES, "grads": layouts.every_second},
    "grad_same_rows": {"shapes": _MATRICES, "grads": layouts.same_rows},
    "grad_one_value": {"shapes": _MATRICES, "grads": layouts.one_value},
    "states_transposed": {"shapes": _MATRICES, "states": layouts.transposed, "amsgrad": True},
    "misaligned": {
        "shapes": [(3, 5), (17,), (1,), (300,), (8, 8)],
        "params": layouts.one_buffer,
        "grads": layouts.one_buffer,
        "states": layouts.one_buffer,
    },
    "grad_misaligned": {"shapes": _ODD, "grads": layouts.one_buffer},
    "first_step": {"steps": (0,), "first": True, "rows": ({"weight_decay": 0.0},)},
    "many_steps": {"steps": (0, 1, 99, 100_000), "rows": ({"weight_decay": 0.0},)},
    "many_steps_float64": {
        "steps": (0, 1, 99, 100_000),
        "step_dtype": torch.float64,
        "rows": ({"weight_decay": 0.0},),
    },
    "scaled": {"grad_scale": 1024.0},
    "scaled_oddly": {"grad_scale": 3.0, "amsgrad": True},
    "scaled_finite": {"grad_scale": 1024.0, "found_inf": 0.0},
    "scalars_of_one_dim": {
        "shapes": [(), (5,)],
        "scalar_shape": (1,),
        "grad_scale": 2.0,
        "found_inf": 0.0,
    },
    "skipped": {"grad_scale": 1024.0, "found_inf": 1.0, "spoil": _BAD, "amsgrad": True},
    "inf_and_nan": {"spoil": _BAD * 9},
    "inf_and_nan_amsgrad": {"spoil": _BAD * 9, "amsgrad": True},
}
# Enough elements for eight threads to have work, so not in every dtype.
_FEW = {"threads": (torch.float32, torch.bfloat16)}
_ADAM_CASES = tuple(Case(n, partial(adam, **settings), _FEW.get(n, FLOATS)) for n, settings in _ADAM.items())

CASES: dict[str, tuple[Case, ...]] = {"adam_": _ADAM_CASES, "adamw_": _ADAM_CASES}
