"""Shared by the tests of onepass.amp: patterns of overflows, and both scalers driven through them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import onepass
import pytest
import torch
from hypothesis import strategies as st
from optim_helpers import params_of, randn
from torch import Tensor

BAD = (0.0, torch.inf, -torch.inf, torch.nan)  # what is put into a gradient; 0: nothing
SHAPES = ((3, 2), (5,), ())
OURS, TORCH = onepass.amp.GradScaler, torch.amp.GradScaler


@dataclass(frozen=True)
class Turn:
    """What one optimizer meets in one iteration."""

    bad: int  # which of BAD, in the gradient of parameter bad % len(SHAPES)
    unscale: bool
    clip: bool  # by hand, behind unscale_


@dataclass(frozen=True)
class Pattern:
    turns: Sequence[Sequence[Turn]]  # [iteration][optimizer]
    growth_interval: int
    init_scale: float

    @property
    def optimizers(self) -> int:
        return len(self.turns[0])


def _turn(draw: Callable[[Any], Any]) -> Turn:
    bad = draw(st.sampled_from((0, 0, 0, 1, 2, 3)))
    unscale = draw(st.booleans())
    return Turn(bad, unscale, unscale and draw(st.booleans()))


@st.composite
def patterns(draw: Callable[[Any], Any]) -> Pattern:
    """1-3 optimizers over 1-6 iterations; a scale that is a power of two."""
    optimizers, iterations = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    turns = [[_turn(draw) for _ in range(optimizers)] for _ in range(iterations)]
    return Pattern(turns, draw(st.integers(1, 3)), 2.0 ** draw(st.integers(-2, 16)))


def parameters(seed: int) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(randn(*shape, seed=10 * seed + i)) for i, shape in enumerate(SHAPES)]


GRADS = [
    [[randn(*s, seed=100 * t + 10 * k + i) for i, s in enumerate(SHAPES)] for k in range(3)] for t in range(6)
]


def give_scaled(optimizer: torch.optim.Optimizer, scale: Tensor, grads: Sequence[Tensor], bad: int) -> None:
    """Gradients as a backward of the scaled loss leaves them."""
    for p, g in zip(params_of(optimizer), grads, strict=True):
        p.grad = (g * scale).to(p.dtype)
    if bad:
        params_of(optimizer)[bad % len(SHAPES)].grad.view(-1)[0] = BAD[bad]


def drive(
    scaler: torch.amp.GradScaler,
    optimizers: Sequence[torch.optim.Optimizer],
    pattern: Pattern,
    clip: Callable[..., Any] = torch.nn.utils.clip_grad_norm_,
) -> list[Any]:
    """Runs the pattern. Returns scale, growth tracker and state_dict behind each iteration, as they are."""
    seen = []
    for t, turns in enumerate(pattern.turns):
        scaler.scale(torch.ones(()))
        for k, (optimizer, turn) in enumerate(zip(optimizers, turns, strict=True)):
            give_scaled(optimizer, scaler._scale, GRADS[t][k], turn.bad)
            if turn.unscale:
                scaler.unscale_(optimizer)
            if turn.clip:
                clip(params_of(optimizer), 0.5, foreach=False)
        for optimizer in optimizers:
            scaler.step(optimizer)
        scaler.update()
        seen.append((scaler.get_scale(), scaler._get_growth_tracker(), scaler.state_dict()))
    return seen


def scaler_for(kind: type, pattern: Pattern, **options: Any) -> torch.amp.GradScaler:
    return kind("cpu", init_scale=pattern.init_scale, growth_interval=pattern.growth_interval, **options)


def state_bytes(optimizers: Sequence[torch.optim.Optimizer]) -> list[bytes]:
    """Parameters, gradients and states, every bit of them."""
    found = []
    for optimizer in optimizers:
        for p in params_of(optimizer):
            tensors = [p, p.grad, *(optimizer.state[p][name] for name in sorted(optimizer.state.get(p, {})))]
            found += [t.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes() for t in tensors]
    return found


# --- one iteration after another ----------------------------------------------------------------------------
each_way = pytest.mark.parametrize("unscale", (False, True), ids=("scaled", "unscaled"))


def scaler_of(kind=OURS, **options):
    return kind("cpu", **{"init_scale": 1024.0, "growth_interval": 3, **options})


def adamw(**options):
    return onepass.optim.AdamW(parameters(0), lr=0.1, **options)


def torchs():
    return torch.optim.SGD(parameters(0), lr=0.1)


def begin(scaler, *optimizers, bad=0, t=0):
    """Scaled gradients for each, as backward leaves them."""
    scaler.scale(torch.ones(()))
    for k, optimizer in enumerate(optimizers):
        grads = [randn(*p.shape, seed=1000 * t + 10 * k + i) for i, p in enumerate(params_of(optimizer))]
        give_scaled(optimizer, scaler._scale, grads, bad)


def iterate(scaler, optimizer, bad=0, t=0, unscale=False):
    begin(scaler, optimizer, bad=bad, t=t)
    if unscale:
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
