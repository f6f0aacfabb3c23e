"""Loss scaling on a GPU: no sync, and what torch's scaler does there."""

import math

import onepass
import pytest
import torch
from amp_helpers import OURS, TORCH
from gpu_helpers import DEVICE, each_variant, feed, marks, no_sync, parameters
from onepass.amp import GradAccumulator
from onepass.optim import clip_grad_norm_
from onepass.testing import Variant
from optim_helpers import params_of
from phase_helpers import KINDS, assert_same_bits, each_dtype, few_kinds

pytestmark = marks
each_way = pytest.mark.parametrize("unscale", (False, True), ids=("scaled", "unscaled"))
OVERFLOWS = (0, 3, 4)


def begin(scaler, optimizer, t):
    feed(optimizer, t)
    scaler.scale(torch.ones((), device=DEVICE))
    for p in params_of(optimizer):
        p.grad *= scaler._scale
    if t in OVERFLOWS:
        params_of(optimizer)[0].grad.view(-1)[5] = (math.inf, math.nan)[t % 2]


def scaler_of(kind=OURS, **options):
    return kind(DEVICE, **{"init_scale": 256.0, "growth_interval": 2, **options})


@few_kinds
@each_variant
@each_way
def test_a_step_waits_for_nothing(kind: str, variant: Variant, unscale: bool):
    optimizer = KINDS[kind].make(parameters(), max_grad_norm=None if unscale else 1.0)
    scaler = scaler_of(hysteresis=1)
    with variant.use():
        for t in range(6):
            begin(scaler, optimizer, t)
            with no_sync() if t else torch.no_grad():  # the first one compiles and makes tables
                if unscale:
                    scaler.unscale_(optimizer)
                    clip_grad_norm_(params_of(optimizer), 1.0)
                scaler.step(optimizer)
                scaler.update()
            assert bool(optimizer.last_skipped) == (t in OVERFLOWS)
    assert scaler.skipped_steps == len(OVERFLOWS)


@few_kinds
@each_variant
@each_way
def test_every_bit_is_that_under_torchs_scaler(kind: str, variant: Variant, unscale: bool):
    ours, theirs = (KINDS[kind].make(parameters(), max_grad_norm=1.0) for _ in range(2))
    scalers = scaler_of(), scaler_of(TORCH)
    with variant.use():
        for t in range(8):
            for scaler, optimizer in zip(scalers, (ours, theirs), strict=True):
                begin(scaler, optimizer, t)
                if unscale:
                    scaler.unscale_(optimizer)
                scaler.step(optimizer)
                scaler.update()
            assert scalers[0].state_dict() == scalers[1].state_dict()
    assert_same_bits(ours, theirs)


@each_variant
@each_dtype
def test_sums_of_gradients(variant: Variant, dtype: torch.dtype):
    optimizer = onepass.optim.AdamW(parameters(dtype=dtype), lr=1e-2)
    params, acc = params_of(optimizer), GradAccumulator(params_of(optimizer))
    wanted = [torch.zeros(p.shape, dtype=torch.float64, device=DEVICE) for p in params]
    with variant.use():
        for t in range(4):
            feed(optimizer, t)
            for total, p in zip(wanted, params, strict=True):
                total += p.grad.double() * 0.5
            acc.accumulate(0.5)
        for total, want in zip(acc.grads, wanted, strict=True):
            torch.testing.assert_close(total.double(), want, rtol=1e-6, atol=1e-6)
        acc.install()
        before = [p.detach().clone() for p in params]
        optimizer.step()
        acc.zero()
    assert all(p.grad is None for p in params)
    moved = [not torch.equal(p, old) for p, old in zip(params, before, strict=True) if p.numel()]
    assert all(moved)


def test_the_first_scale_waits_for_nothing():
    loss, scaler = torch.ones((), device=DEVICE), scaler_of()
    with no_sync():
        scaler.scale(loss)


def test_the_last_overflow_is_named():
    optimizer, scaler = KINDS["adamw"].make(parameters()), scaler_of()
    begin(scaler, optimizer, 0)
    scaler.step(optimizer)
    (overflow,) = scaler.last_overflow()
    assert (overflow.index, overflow.inf) == (0, 1)
