"""A step that is skipped for inf or NaN has not been: not one byte of parameters, states and averages says
so, the first step included."""

import copy
import math

import pytest
import torch
from onepass import use_backend
from optim_helpers import each_backend, everything, first_backend, frozen, params_of
from phase_helpers import (
    KINDS,
    assert_same_bits,
    each_dtype,
    each_kind,
    few_kinds,
    give,
    gradients,
    hand_in,
    parameters,
    three_groups,
)

PHASE = {"l1": 0.01, "ema_decay": 0.9}
BAD = (math.inf, -math.inf, math.nan)


def found_by_the_step(optimizer, t):
    """One gradient is not finite; max_grad_norm makes the step look."""
    grads = gradients(params_of(optimizer), t)
    full = [g for g in grads if g.numel()]
    full[t % len(full)].view(-1)[-1] = BAD[t % 3]
    give(optimizer, grads)
    hand_in(optimizer, None)


def handed_in(optimizer, t):
    """torch's contract: the gradients may be anything."""
    found_by_the_step(optimizer, t)
    hand_in(optimizer, 2.0, found_inf=1.0 + t % 2)


def handed_in_with_finite_gradients(optimizer, t):
    """Another optimizer under the same scaler has seen the inf."""
    give(optimizer, gradients(params_of(optimizer), t))
    hand_in(optimizer, 2.0, found_inf=1.0)


REASONS = {
    "found": (found_by_the_step, {"max_grad_norm": 1.0}),
    "found by measuring": (found_by_the_step, {"max_grad_norm": math.inf}),
    "handed in": (handed_in, {}),
    "handed in, measured": (handed_in, {"max_grad_norm": 1.0}),
    "another's": (handed_in_with_finite_gradients, {"max_grad_norm": 1.0}),
}
each_reason = pytest.mark.parametrize("reason", REASONS)


def clean(optimizer, t):
    give(optimizer, gradients(params_of(optimizer), t))
    hand_in(optimizer, None)


def make(kind, reason, dtype=torch.float32, **options):
    return KINDS[kind].make(three_groups(parameters(dtype=dtype)), **PHASE, **REASONS[reason][1], **options)


@each_kind
@first_backend
@each_reason
def test_skipped_steps_have_not_been(kind, backend, reason):
    """Training with steps skipped at the start, in the middle and twice running has the bits of training
    without them, states and counters included."""
    spoil = REASONS[reason][0]
    disturbed, calm = make(kind, reason), make(kind, reason)
    with use_backend(backend):
        for t in range(21):
            for skipped in (2, 1)[t % 2 :] if t % 5 == 0 else ():
                spoil(disturbed, 100 + skipped)
                disturbed.step()
                assert disturbed.last_skipped
            for optimizer in (disturbed, calm):
                clean(optimizer, t)
                optimizer.step()
                assert not optimizer.last_skipped
            if t % 5 == 0:
                assert_same_bits(disturbed, calm)


@each_kind
@each_backend
@each_dtype
def test_a_skipped_first_step_leaves_states_as_fresh(kind, backend, dtype):
    """Moments at their initial values, no step counted, averages equal to the parameters."""
    optimizer = make(kind, "found", dtype)
    before = frozen(params_of(optimizer))
    found_by_the_step(optimizer, 0)
    with use_backend(backend):
        optimizer.step()
    assert frozen(params_of(optimizer)) == before
    for p in params_of(optimizer):
        state = optimizer.state[p]
        assert set(KINDS[kind].states) <= set(state)
        for name in KINDS[kind].states:
            initial = 0.1 if name == "sum" else 0.0
            assert torch.equal(state[name], torch.full_like(state[name], initial))
        assert float(state.get("step", 0.0)) == 0.0
        assert torch.equal(state["ema"], p.detach().to(state["ema"].dtype))


@few_kinds
@each_backend
@pytest.mark.parametrize("reason", ("found", "handed in, measured", "another's"))
@each_dtype
def test_no_byte_changes(kind, backend, reason, dtype):
    """Of parameters, states, averages and gradients, once all states are there."""
    optimizer = make(kind, reason, dtype, write_grads=True)
    with use_backend(backend):
        for t in range(3):
            clean(optimizer, t)
            optimizer.step()
        for t in range(3):
            REASONS[reason][0](optimizer, 10 + t)
            before = frozen(everything(optimizer))
            optimizer.step()
            assert frozen(everything(optimizer)) == before
            assert optimizer.last_skipped


@few_kinds
@each_backend
@each_reason
def test_gradients_are_zeroed_all_the_same(kind, backend, reason):
    optimizer = make(kind, reason, zero_grads_in_step=True)
    with use_backend(backend):
        for t in range(6):
            (clean if t % 2 else REASONS[reason][0])(optimizer, t)
            optimizer.step()
            assert bool(optimizer.last_skipped) == (t % 2 == 0)
            for p in params_of(optimizer):
                assert torch.equal(p.grad, torch.zeros_like(p))


@each_backend
@pytest.mark.parametrize("kind", ("sgd_dampening", "sgd_nesterov", "adam_amsgrad", "adagrad"))
def test_a_state_dict_between_a_skipped_and_the_first_step(kind, backend):
    """What is saved after a skipped first step is a fresh optimizer's state, for ours and for torch's."""
    spoiled, fresh = make(kind, "found"), make(kind, "found")
    theirs = KINDS[kind].make_torch(three_groups(parameters()))
    reference = KINDS[kind].make_torch(three_groups(parameters()))
    with use_backend(backend):
        found_by_the_step(spoiled, 0)
        spoiled.step()
        loaded = make(kind, "found")
        loaded.load_state_dict(copy.deepcopy(spoiled.state_dict()))
        theirs.load_state_dict(copy.deepcopy(spoiled.state_dict()))
        for t in range(3):
            for optimizer in (loaded, fresh, theirs, reference):
                clean(optimizer, t)
                optimizer.step()
    assert_same_bits(loaded, fresh)
    for p, q in zip(params_of(theirs), params_of(reference), strict=True):
        assert torch.equal(p, q)


@each_backend
def test_last_skipped_without_a_step_and_without_measuring(backend):
    """A bool tensor of one element at all times; inf that nobody looks for skips nothing, as in torch."""
    optimizer = KINDS["sgd"].make(parameters(), lr=1.0)
    assert optimizer.last_skipped.dtype == torch.bool and not optimizer.last_skipped
    found_by_the_step(optimizer, 0)
    with use_backend(backend):
        optimizer.step()
    assert optimizer.last_skipped.shape == () and not optimizer.last_skipped
    assert not all(p.isfinite().all() for p in params_of(optimizer))


@each_backend
def test_flags_of_one_element_and_any_shape(backend):
    """GradScaler hands over tensors of no dimension; others may have one."""
    for shape in ((), (1,)):
        optimizer = KINDS["adamw"].make(parameters())
        give(optimizer, gradients(params_of(optimizer), 0))
        optimizer.grad_scale, optimizer.found_inf = torch.full(shape, 2.0), torch.full(shape, 1.0)
        before = frozen(params_of(optimizer))
        with use_backend(backend):
            optimizer.step()
            assert frozen(params_of(optimizer)) == before
            assert optimizer.last_skipped.shape == () and optimizer.last_skipped
            optimizer.found_inf = torch.full(shape, 0.0)
            optimizer.step()
        assert not optimizer.last_skipped and frozen(params_of(optimizer)) != before
