"""How a case of an optimizer's op is made: one function, whose arguments are what cases.py varies."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..ops import BY_NAME
from . import layouts
from .layouts import Layout

# Steps of 1e-2 on parameters of 0.1: large enough to move bfloat16, whose neighbours are up to 0.8 % apart.
# Lion's betas are exact in binary: where beta1 * exp_avg and (1 - beta1) * grad cancel, the sign of what is
# left is not to be a matter of rounding.
_ROW = {
    "lr": 1e-2,
    "weight_decay": 0.1,
    "maximize": 0.0,
    "l1": 0.0,
    "ema_decay": 0.9,
    "max_grad_norm": float("inf"),
    "beta1": 0.9,
    "beta2": 0.999,
    "eps": 1e-8,
    "momentum": 0.9,
    "dampening": 0.0,
    "nesterov": 0.0,
    "alpha": 0.99,
    "lr_decay": 0.01,
}
_LION = {"beta1": 0.875, "beta2": 0.96875}
_LARGER_LR = {"sgd_": 10.0}  # its steps are as small as the gradients

# States after many steps with gradients of size 0.1: their size, and the decay by which they came together.
# Averages of squares are never so small that only eps is left of them, and larger than the squares of
# grad_avgs, whose variance they are part of.
_SQUARES = {"exp_avg_sqs": 0.999, "max_exp_avg_sqs": 0.999, "square_avgs": 0.0, "sums": 0.0}
_AVERAGES = {"exp_avgs": 0.05, "momentum_buffers": 0.1, "grad_avgs": 0.002}
_UPDATES = 1.0  # the size of what RMSprop's momentum averages: gradients by their own size


def variant_names(op: str) -> dict[str, int]:
    """Each variant of an optimizer, as bits, by a name: "plain" without its optional states."""
    special = {"max_exp_avg_sqs": "amsgrad", "grad_avgs": "centered", "momentum_buffers": "momentum"}
    optional = BY_NAME[op].states[BY_NAME[op].required :]
    names = {}
    for variant in range(2 ** len(optional)):
        there = [special[name] for k, name in enumerate(optional) if variant >> k & 1]
        names["_".join(there) or "plain"] = variant
    return names


def hyper(op: str, rows: Sequence[Mapping[str, float]]) -> Tensor:
    """The op's float64 tensor [len(rows), columns]; what a row does not name is _ROW's."""
    fixed = _LION if op == "lion_" else {}
    names = [column.name for column in BY_NAME[op].hyper]
    given = [[{**_ROW, **row, **fixed}[name] for name in names] for row in rows]
    values = torch.tensor(given, dtype=torch.float64)
    values[:, names.index("lr")] *= _LARGER_LR.get(op, 1.0)
    return values


def optimizer(
    rng: torch.Generator,
    dtype: torch.dtype,
    device: str,
    *,
    op: str,
    variant: int = 0,
    shapes: Sequence[tuple[int, ...]] = ((64, 33), (33,), (10, 64), (10,)),
    rows: Sequence[Mapping[str, float]] = ({},),
    ema: bool = False,
    bf16_states: bool = False,
    float32_grads: bool = False,
    steps: Sequence[float] = (7,),
    step_dtype: torch.dtype = torch.float32,
    first: bool = False,
    step_counters: bool = False,
    spoil: Sequence[float] = (),
    grad_scale: float | None = None,
    found_inf: float | None = None,
    stats: tuple[float, float] | None = None,
    grads_after: int | None = None,
    scalar_shape: tuple[int, ...] = (),
    params: Layout = layouts.dense,
    grads: Layout = layouts.dense,
    states: Layout = layouts.dense,
) -> dict[str, Any]:
    """One call of an optimizer's op.

    Args:
        variant: which of its optional states it keeps, as bits.
        shapes: of the parameters. Parameter i belongs to group i % len(rows) and has done
            steps[i % len(steps)] steps so far.
        rows: hyperparameters of each group, where they differ from _ROW.
        ema: keep an average of weights.
        bf16_states: the states are bfloat16.
        float32_grads: the gradients are float32, whatever the parameters are.
        first: the states are zero, as before a first step.
        step_counters: there are some also where the op can do without.
        spoil: values put into the gradients at scattered places.
        grads_after: what the step leaves in the gradients; None where that is not for it to say.
        stats: what grad_stats is to have found: norm, and whether a gradient was not finite.
        scalar_shape: of the step counters, grad_scale and found_inf: () or (1,).
        params, grads, states: the memory layout of these lists; of the average of weights as of the states.
    """
    spec = BY_NAME[op]
    counted = spec.counts == "always" or (spec.counts == "maybe" and (first or step_counters))
    exact = torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype
    state_dtype = torch.bfloat16 if bf16_states else exact
    done = [steps[i % len(steps)] for i in range(len(shapes))]
    scaled = 0.1 * (grad_scale or 1.0)

    def drawn(
        draw: Callable, dtype: torch.dtype, scale: Sequence[float], offset: float = 0.0
    ) -> list[Tensor]:
        values = [draw(shape, generator=rng, dtype=torch.float64) + offset for shape in shapes]
        return [(t * s).to(device=device, dtype=dtype) for t, s in zip(values, scale, strict=True)]

    def state(name: str) -> list[Tensor]:
        """A running average that has come together over the steps done so far."""
        share = [0.0 if first else 1 - _SQUARES.get(name, 0.9) ** (t + 1) for t in done]
        if name in _SQUARES:
            return states(drawn(torch.rand, state_dtype, [0.02 * s for s in share], offset=0.05))
        updates = op == "rmsprop_" and name == "momentum_buffers"
        size = _UPDATES if updates else _AVERAGES[name]
        return states(drawn(torch.randn, state_dtype, [size * s for s in share]))

    def scalar(value: float | None, dtype: torch.dtype = torch.float32) -> Tensor | None:
        return None if value is None else torch.full(scalar_shape, value, dtype=dtype, device=device)

    weights = drawn(torch.randn, dtype, [0.1] * len(shapes))
    gradients = drawn(torch.randn, torch.float32 if float32_grads else dtype, [scaled] * len(shapes))
    for i, value in enumerate(spoil):  # one tensor after another, ever further from its start
        flat = gradients[i % len(gradients)].view(-1)
        flat[7 * i % flat.numel()] = value
    kept = {
        name: state(name) if k < spec.required or variant >> (k - spec.required) & 1 else []
        for k, name in enumerate(spec.states)
    }
    return {
        "params": params(weights),
        "grads": grads(gradients),
        **kept,
        "emas": states(drawn(torch.randn, exact, [0.1] * len(shapes))) if ema else [],
        "steps": [scalar(t, step_dtype) for t in done] if counted else [],
        "hyper": hyper(op, rows),
        "groups": [i % len(rows) for i in range(len(shapes))],
        "grad_scale": scalar(grad_scale),
        "found_inf": scalar(found_inf),
        "stats": None if stats is None else torch.tensor(stats, dtype=torch.float64, device=device),
        **({} if grads_after is None else {"grads_after": grads_after}),
    }
