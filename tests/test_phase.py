"""The whole optimizer phase, in one step of ours, against torch doing it call by call in float64."""

import collections

import torch
from onepass import use_backend
from onepass.testing import TOLERANCES
from optim_helpers import each_backend, first_backend, params_of
from phase_helpers import (
    KINDS,
    CallByCall,
    assert_near,
    assert_trained,
    each_dtype,
    each_kind,
    give,
    gradients,
    hand_in,
    parameters,
    three_groups,
)

STEPS = 24
SCALE = 1000.0
PHASE = {"max_grad_norm": 5.0, "l1": 0.02, "ema_decay": 0.9}
AFTER = ("kept", "written", "zeroed")

# A norm is a float64 sum of at most a thousand squares, handed out in float32 (float64 for float64).
NORM = {dtype: 4e-15 if dtype == torch.float64 else 1e-7 for dtype in TOLERANCES}


def size_of_gradients(t: int) -> float:
    """Norms on both sides of max_grad_norm."""
    return 0.01 if t % 4 == 0 else 1.0


def leave_gradients(optimizer, after):
    optimizer.write_grads, optimizer.zero_grads_in_step = after == "written", after == "zeroed"


def check_gradients(optimizer, scaled, oracle, after, dtype):
    """What the step has left in the gradients."""
    for p, given, wanted in zip(params_of(optimizer), scaled, oracle.clipped, strict=True):
        if after == "kept":
            assert torch.equal(p.grad, given)
        elif after == "zeroed":
            assert torch.equal(p.grad, torch.zeros_like(p))
        else:
            assert_near(p.grad, wanted, dtype)


@each_kind
@first_backend
@each_dtype
def test_a_phase_is_torchs_call_by_call(kind, backend, dtype):
    """Parameters, averages, states, norm and gradients, over many steps and groups, norms that are clipped
    and not, and gradients that are left, written and zeroed in turn. Half parameters start each step of the
    oracle too: what a store rounds away is no error."""
    optimizer = KINDS[kind].make(three_groups(parameters(dtype=dtype)), **PHASE)
    oracle = CallByCall(kind, optimizer, **PHASE)
    clipped, largest = set(), collections.defaultdict(float)
    with use_backend(backend):
        for t in range(STEPS):
            scaled = gradients(params_of(optimizer), t, SCALE * size_of_gradients(t))
            hand_in(optimizer, SCALE)
            give(optimizer, scaled)
            leave_gradients(optimizer, AFTER[t % 3])
            oracle.follow_halves(params_of(optimizer))
            norm = oracle.step(scaled, SCALE)
            optimizer.step()
            clipped.add(bool(norm > PHASE["max_grad_norm"]))
            for i, q in enumerate(oracle.params):
                for name in KINDS[kind].states:
                    now = oracle.optimizer.state[q][name].abs()
                    largest[name, i] = torch.maximum(now, torch.as_tensor(largest[name, i], dtype=now.dtype))
            torch.testing.assert_close(
                optimizer.last_grad_norm.double(), norm, rtol=NORM[dtype], atol=0.0, check_dtype=False
            )
            assert not optimizer.last_skipped
            check_gradients(optimizer, scaled, oracle, AFTER[t % 3], dtype)
            if t % 4 == 3:
                assert_trained(optimizer, oracle, t + 1)
    assert clipped == {False, True}
    for i, (p, q) in enumerate(zip(params_of(optimizer), oracle.params, strict=True)):
        state, wanted = optimizer.state[p], oracle.optimizer.state[q]
        for name in KINDS[kind].states:
            where = f"{name} of params[{i}]"
            assert_near(state[name], wanted[name], dtype, STEPS, where, least=largest[name, i])
        if "step" in wanted:
            assert state["step"].item() == wanted["step"].item() == STEPS


@each_kind
@first_backend
def test_one_phase_argument_at_a_time(kind, backend):
    """Each alone does what it does among the others."""
    for options in ({"max_grad_norm": 2.0}, {"l1": 0.05}, {"ema_decay": 0.5}):
        optimizer = KINDS[kind].make(three_groups(parameters()), **options)
        oracle = CallByCall(kind, optimizer, **options)
        with use_backend(backend):
            for t in range(STEPS):
                grads = gradients(params_of(optimizer), t)
                give(optimizer, grads)
                oracle.step(grads)
                optimizer.step()
        assert_trained(optimizer, oracle, STEPS)


@each_kind
@each_backend
def test_parameters_without_gradients_stay_out(kind, backend):
    """Of the norm, the step and the average, whenever they have none."""
    optimizer = KINDS[kind].make(three_groups(parameters()), **PHASE)
    oracle = CallByCall(kind, optimizer, **PHASE)
    with use_backend(backend):
        for t in range(STEPS):
            grads = gradients(params_of(optimizer), t)
            grads = [None if (t + i) % 3 == 0 else g for i, g in enumerate(grads)]
            give(optimizer, grads)
            norm = oracle.step(grads)
            optimizer.step()
            assert torch.isclose(optimizer.last_grad_norm.double(), norm, rtol=1e-7)
    assert_trained(optimizer, oracle, STEPS)


@each_kind
@each_backend
def test_training_resumed_from_a_state_dict_is_bit_equal(kind, backend):
    """Averages, counters and moments are all that a phase carries from step to step."""

    def run(optimizer, steps):
        for t in steps:
            give(optimizer, gradients(params_of(optimizer), t))
            optimizer.step()

    with use_backend(backend):
        whole, first, second = (KINDS[kind].make(three_groups(parameters()), **PHASE) for _ in range(3))
        run(whole, range(10))
        run(first, range(5))
        second.load_state_dict(first.state_dict())
        for p, q in zip(params_of(second), params_of(first), strict=True):
            p.data.copy_(q.data)
        run(second, range(5, 10))
    for p, q in zip(params_of(second), params_of(whole), strict=True):
        assert torch.equal(p, q)
        assert torch.equal(second.state[p]["ema"], whole.state[q]["ema"])
