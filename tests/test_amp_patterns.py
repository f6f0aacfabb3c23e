"""Our GradScaler against torch's over random patterns of overflows: every bit of scale, states, weights."""

import onepass
import pytest
import torch
from amp_helpers import OURS, TORCH, Pattern, drive, parameters, patterns, scaler_for, state_bytes
from hypothesis import HealthCheck, given, settings

MANY = 10_000
ONEPASS = (
    lambda p: onepass.optim.AdamW(p, lr=0.1),
    lambda p: onepass.optim.SGD(p, lr=0.1, momentum=0.9),
    lambda p: onepass.optim.RMSprop(p, lr=0.1, max_grad_norm=1.5, ema_decay=0.9),
)
TORCHS = (
    lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
    lambda p: torch.optim.Adagrad(p, lr=0.1, foreach=True),
)


def both(pattern: Pattern, makers) -> None:
    """The same pattern, the same optimizers, under one scaler and under the other."""
    outcomes = []
    for kind in (OURS, TORCH):
        optimizers = [make(parameters(k)) for k, make in enumerate(makers[: pattern.optimizers])]
        seen = drive(scaler_for(kind, pattern), optimizers, pattern)
        outcomes.append((seen, state_bytes(optimizers)))
    (ours, our_bytes), (torchs, torch_bytes) = outcomes
    assert ours == torchs
    assert our_bytes == torch_bytes


def runs(count: int):
    return settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck), database=None)


@runs(300)
@given(patterns())
def test_our_optimizers_under_our_scaler_and_under_torchs(pattern: Pattern):
    """With max_grad_norm, with clipping by hand and without."""
    both(pattern, ONEPASS)


@runs(300)
@given(patterns())
def test_torchs_optimizers_under_our_scaler_and_under_torchs(pattern: Pattern):
    both(pattern, TORCHS)


@runs(100)
@given(patterns())
def test_both_kinds_of_optimizers_under_one_scaler(pattern: Pattern):
    both(pattern, (ONEPASS[0], TORCHS[0], ONEPASS[2]))


@pytest.mark.slow
@runs(MANY)
@given(patterns())
def test_our_optimizers_in_ten_thousand_patterns(pattern: Pattern):
    both(pattern, ONEPASS)


@pytest.mark.slow
@runs(MANY)
@given(patterns())
def test_torchs_optimizers_in_ten_thousand_patterns(pattern: Pattern):
    both(pattern, TORCHS)
