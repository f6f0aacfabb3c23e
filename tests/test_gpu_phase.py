"""The whole optimizer phase on a GPU, against torch doing it call by call in float64 on the same device."""

import math

import pytest
import torch
from gpu_helpers import DEVICE, each_variant, marks
from onepass.optim import clip_grad_norm_
from onepass.testing import Variant, layouts
from optim_helpers import params_of
from phase_helpers import (
    KINDS,
    CallByCall,
    assert_near,
    assert_same_bits,
    assert_trained,
    bits,
    close,
    each_dtype,
    each_kind,
    few_kinds,
    give,
    gradients,
    hand_in,
    three_groups,
)
from phase_helpers import parameters as on_the_host
from test_phase_skip import REASONS, clean, each_reason

pytestmark = marks

STEPS = 24
SHAPES = ((64, 33), (33,), (10, 64), (), (1,), (3, 5, 7), (0,), (4099,), (5, 4, 6, 3))
PHASE = {"max_grad_norm": 20.0, "l1": 0.02, "ema_decay": 0.9}
AFTER = ({}, {"write_grads": True}, {"zero_grads_in_step": True})


def parameters(shapes=SHAPES, dtype=torch.float32):
    return [torch.nn.Parameter(p.detach().to(DEVICE)) for p in on_the_host(shapes, dtype)]


def leave_gradients(optimizer, t):
    chosen = AFTER[t % 3]
    optimizer.write_grads = chosen.get("write_grads", False)
    optimizer.zero_grads_in_step = chosen.get("zero_grads_in_step", False)


def check_gradients(optimizer, given, oracle, t):
    for p, g, wanted in zip(params_of(optimizer), given, oracle.clipped, strict=True):
        if optimizer.write_grads:
            assert_near(p.grad, wanted, p.dtype)
        else:
            assert torch.equal(p.grad, torch.zeros_like(p) if optimizer.zero_grads_in_step else g)


@each_kind
@each_variant
@each_dtype
def test_a_phase_is_torchs_call_by_call(kind: str, variant: Variant, dtype: torch.dtype):
    """Parameters, averages, norm and gradients, scaled, clipped and not, over many steps and groups."""
    optimizer = KINDS[kind].make(three_groups(parameters(dtype=dtype)), **PHASE)
    oracle = CallByCall(kind, optimizer, **PHASE)
    clipped = set()
    with variant.use():
        for t in range(STEPS):
            scaled = gradients(params_of(optimizer), t, 8.0 if t % 4 else 0.08)
            give(optimizer, scaled)
            hand_in(optimizer, 8.0)
            leave_gradients(optimizer, t)
            oracle.follow_halves(params_of(optimizer))
            norm = oracle.step(scaled, 8.0)
            optimizer.step()
            clipped.add(bool(norm > PHASE["max_grad_norm"]))
            assert close(optimizer.last_grad_norm.item(), norm.item(), 1e-6)
            assert not optimizer.last_skipped
            check_gradients(optimizer, scaled, oracle, t)
            if t % 4 == 3:
                assert_trained(optimizer, oracle, t + 1)
    assert clipped == {False, True}


@each_kind
@each_variant
@each_reason
def test_skipped_steps_have_not_been(kind: str, variant: Variant, reason: str):
    """Bit for bit, the first step included."""
    spoil, options = REASONS[reason]
    disturbed, calm = (
        KINDS[kind].make(three_groups(parameters()), ema_decay=0.9, write_grads=True, **options)
        for _ in range(2)
    )
    with variant.use():
        for t in range(10):
            if t % 3 == 0:
                spoil(disturbed, 100 + t)
                given = [p.grad.clone() for p in params_of(disturbed)]
                disturbed.step()
                assert disturbed.last_skipped
                for p, g in zip(params_of(disturbed), given, strict=True):
                    assert torch.equal(bits(p.grad), bits(g))
            for optimizer in (disturbed, calm):
                clean(optimizer, t)
                optimizer.step()
                assert not optimizer.last_skipped
            assert_same_bits(disturbed, calm)


@few_kinds
@each_variant
def test_gradients_of_a_skipped_step_are_zeroed(kind: str, variant: Variant):
    optimizer = KINDS[kind].make(three_groups(parameters()), max_grad_norm=1.0, zero_grads_in_step=True)
    with variant.use():
        for t in range(4):
            (clean if t % 2 else REASONS["found"][0])(optimizer, t)
            optimizer.step()
            assert bool(optimizer.last_skipped) == (t % 2 == 0)
            assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in params_of(optimizer))


@few_kinds
@each_variant
@pytest.mark.parametrize("size", (1e25, 1e-25))
def test_norms_whose_squares_no_float32_holds(kind: str, variant: Variant, size: float):
    optimizer = KINDS[kind].make(parameters(), max_grad_norm=0.5)
    grads = gradients(params_of(optimizer), 0, size)
    give(optimizer, grads)
    with variant.use():
        optimizer.step()
    wanted = math.sqrt(sum(g.double().square().sum().item() for g in grads))
    assert close(optimizer.last_grad_norm.item(), wanted, 1e-6) and not optimizer.last_skipped
    assert all(p.isfinite().all() for p in params_of(optimizer))


@few_kinds
@each_variant
def test_one_norm_over_dtypes_and_variants(kind: str, variant: Variant):
    """float32, bfloat16, float64 and float16 parameters in one optimizer."""
    dtypes = (torch.float32, torch.bfloat16, torch.float64, torch.float16)
    mixed = [torch.nn.Parameter(p.detach().to(dtypes[i % 4])) for i, p in enumerate(parameters())]
    optimizer = KINDS[kind].make(three_groups(mixed), max_grad_norm=2.0)
    oracle = CallByCall(kind, optimizer, max_grad_norm=2.0)
    with variant.use():
        for t in range(8):
            grads = gradients(params_of(optimizer), t)
            give(optimizer, grads)
            oracle.follow_halves(params_of(optimizer))
            norm = oracle.step(grads)
            optimizer.step()
            assert close(optimizer.last_grad_norm.item(), norm.item(), 1e-6)
            assert_trained(optimizer, oracle, t + 1)


@few_kinds
@each_variant
@pytest.mark.parametrize("layout", ("transposed", "channels_last", "every_second", "one_buffer"))
def test_gradients_that_lie_otherwise_than_their_parameters(kind: str, variant: Variant, layout: str):
    """Measured, stepped with and written where they lie."""
    optimizer = KINDS[kind].make(three_groups(parameters()), max_grad_norm=3.0, ema_decay=0.9)
    oracle = CallByCall(kind, optimizer, max_grad_norm=3.0, ema_decay=0.9)
    with variant.use():
        for t in range(6):
            grads = gradients(params_of(optimizer), t)
            laid = getattr(layouts, layout)([g.clone() for g in grads])
            for p, g in zip(params_of(optimizer), laid, strict=True):
                p.grad = g
            leave_gradients(optimizer, t)
            oracle.step(grads)
            optimizer.step()
            check_gradients(optimizer, grads, oracle, t)
            assert_trained(optimizer, oracle, t + 1)


@each_kind
@each_variant
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16), ids=str)
def test_moments_in_bfloat16(kind: str, variant: Variant, dtype: torch.dtype):
    """Their dtype, and training that stays within 3 % of the way that it goes with float32 ones
    (test_phase_state.py says why)."""
    ours, exact = (KINDS[kind].make(parameters(dtype=dtype), state=state) for state in ("bf16", "fp32"))
    start = torch.cat([p.detach().flatten() for p in params_of(ours)]).double()
    with variant.use():
        for t in range(30):
            for optimizer in (ours, exact):
                give(optimizer, gradients(params_of(optimizer), t))
                optimizer.step()
    states = [ours.state[p][name] for p in params_of(ours) for name in KINDS[kind].states]
    assert all(state.dtype == torch.bfloat16 for state in states)
    end, wanted = (torch.cat([p.detach().flatten() for p in params_of(o)]).double() for o in (ours, exact))
    # What half parameters lose in 30 stores is not of the moments' making: half a spacing each, at random.
    lost = 0.0 if dtype == torch.float32 else math.sqrt(30) * torch.finfo(dtype).eps * start.norm()
    assert (end - wanted).norm() <= 0.03 * (wanted - start).norm() + lost


@each_variant
@each_dtype
@pytest.mark.parametrize("max_norm", (0.5, 1e6))
def test_clip_grad_norm(variant: Variant, dtype: torch.dtype, max_norm: float):
    params = parameters(dtype=dtype)
    grads = gradients(params, 0)
    exact = [torch.nn.Parameter(p.detach().double()) for p in params]
    for p, q, g in zip(params, exact, grads, strict=True):
        p.grad, q.grad = g.clone(), g.double()
    with variant.use():
        norm = clip_grad_norm_(params, max_norm)
    wanted = torch.nn.utils.clip_grad_norm_(exact, max_norm)
    assert norm.device == params[0].device and close(norm.item(), wanted.item(), 1e-6)
    for p, q in zip(params, exact, strict=True):
        assert_near(p.grad, q.grad, dtype)


@each_variant
def test_clip_grad_norm_of_gradients_on_the_host_and_on_the_device(variant: Variant):
    """One norm, wherever they are; the host's part is not read before the device's is there."""
    params = [*parameters(), *on_the_host(SHAPES)]
    grads = gradients(params, 0)
    wanted = math.sqrt(sum(g.double().square().sum().item() for g in grads))
    with variant.use():
        for _ in range(3):
            if DEVICE == "cuda":
                torch.cuda._sleep(50_000_000)
            for p, g in zip(params, grads, strict=True):
                p.grad = g.clone()
            norm = clip_grad_norm_(params, 1.0)
            assert close(norm.item(), wanted, 1e-6)
            for p, g in zip(params, grads, strict=True):
                torch.testing.assert_close(p.grad, g / wanted, rtol=3e-6, atol=1e-9)


@few_kinds
@each_variant
def test_one_norm_on_the_host_and_on_the_device(kind: str, variant: Variant):
    """Also where the device is late: it is waited for, then and only then."""
    params = [p if i % 2 else torch.nn.Parameter(p.detach().to(DEVICE)) for i, p in enumerate(on_the_host())]
    optimizer = KINDS[kind].make(params, max_grad_norm=2.0)
    oracle = CallByCall(kind, optimizer, max_grad_norm=2.0)
    with variant.use():
        for t in range(6):
            grads = gradients(params, t)
            give(optimizer, grads)
            norm = torch.stack([g.double().norm().cpu() for g in grads]).norm()
            for p, g in zip(oracle.params, grads, strict=True):
                p.grad = g.double() * min(1.0, 2.0 / (norm.item() + 1e-6))
            oracle.optimizer.step()
            if DEVICE == "cuda":
                torch.cuda._sleep(20_000_000)
            optimizer.step()
            assert close(optimizer.last_grad_norm.item(), norm.item(), 1e-6)
            assert_trained(optimizer, oracle, t + 1)
