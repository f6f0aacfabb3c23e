"""Moments in bfloat16 (state="bf16"): what they save, what they cost in precision, and how they come and go
through a state_dict."""

import copy

import pytest
import torch
from onepass import use_backend
from optim_helpers import each_backend, frozen, params_of
from phase_helpers import (
    HALVES,
    KINDS,
    few_kinds,
    give,
    gradients,
    parameters,
    three_groups,
)

STEPS = 100
WITH_STATES = tuple(kind for kind in KINDS if KINDS[kind].states)
with_states = pytest.mark.parametrize("kind", WITH_STATES)
served_dtypes = pytest.mark.parametrize("dtype", (torch.float32, *HALVES), ids=str)


def make(kind, dtype=torch.float32, state="bf16", **options):
    return KINDS[kind].make(three_groups(parameters(dtype=dtype)), state=state, **options)


def train(optimizer, steps):
    for t in steps:
        give(optimizer, gradients(params_of(optimizer), t))
        optimizer.step()


def moments(kind, optimizer):
    return [optimizer.state[p][name] for p in params_of(optimizer) for name in KINDS[kind].states]


@with_states
@each_backend
@served_dtypes
def test_moments_are_bfloat16_and_nothing_else_is(kind, backend, dtype):
    """Averages of weights and step counters keep their precision."""
    optimizer = make(kind, dtype, ema_decay=0.9)
    with use_backend(backend):
        train(optimizer, range(3))
    assert all(m.dtype == torch.bfloat16 for m in moments(kind, optimizer))
    for p in params_of(optimizer):
        assert optimizer.state[p]["ema"].dtype == torch.float32
        assert p.dtype == dtype
        assert optimizer.state[p].get("step", torch.tensor(3.0)).dtype == torch.float32


@with_states
def test_many_small_moments_are_bfloat16_too(kind):
    """Where float32 ones would be packed into one block."""
    optimizer = KINDS[kind].make([torch.nn.Parameter(torch.ones(5)) for _ in range(300)], state="bf16")
    give(optimizer, gradients(params_of(optimizer), 0))
    optimizer.step()
    assert all(m.dtype == torch.bfloat16 for m in moments(kind, optimizer))


@with_states
@each_backend
def test_training_stays_close_to_that_with_float32_moments(kind, backend):
    """Each store rounds a moment by up to 2^-9 = 0.2 %, up as often as down: of the way that the parameters
    have gone after 100 steps it comes to 0.1 to 0.5 %. Lion's update is a sign, which a rounding can turn
    where the average is close to zero: 2 %."""
    ours, exact = make(kind), make(kind, state="fp32")
    start = torch.cat([p.detach().flatten() for p in params_of(ours)])
    with use_backend(backend):
        train(ours, range(STEPS))
        train(exact, range(STEPS))
    end, wanted = (torch.cat([p.detach().flatten() for p in params_of(o)]) for o in (ours, exact))
    off = ((end - wanted).norm() / (wanted - start).norm()).item()
    assert 0 < off < BOUNDS[kind], off


BOUNDS = {kind: 0.03 if kind == "lion" else 0.01 for kind in WITH_STATES}


@few_kinds
def test_float64_parameters_are_refused(kind):
    """At construction and when they are added later; the optimizer goes on without them."""
    words = "state='bf16' is for float32, bfloat16 and float16 parameters, not for float64"
    with pytest.raises(ValueError, match=words):
        make(kind, torch.float64)
    optimizer = make(kind)
    with pytest.raises(ValueError, match=words):
        optimizer.add_param_group({"params": parameters(dtype=torch.float64)})
    assert len(optimizer.param_groups) == 3
    train(optimizer, range(2))


def test_other_states_are_refused():
    with pytest.raises(ValueError, match="Invalid state: 'fp8', expected 'fp32' or 'bf16'"):
        make("adamw", state="fp8")


# --- state_dict ---------------------------------------------------------------------------------------------
def load(optimizer, source):
    optimizer.load_state_dict(copy.deepcopy(source.state_dict()))
    for p, q in zip(params_of(optimizer), params_of(source), strict=True):
        p.data.copy_(q.data)


@with_states
@each_backend
@served_dtypes
def test_resumed_training_is_bit_equal(kind, backend, dtype):
    whole, first, second = (make(kind, dtype, ema_decay=0.9) for _ in range(3))
    with use_backend(backend):
        train(whole, range(10))
        train(first, range(5))
        load(second, first)
        assert frozen(moments(kind, second)) == frozen(moments(kind, first))
        train(second, range(5, 10))
    assert frozen(params_of(second)) == frozen(params_of(whole))
    assert frozen(moments(kind, second)) == frozen(moments(kind, whole))


@with_states
@each_backend
@served_dtypes
def test_float32_moments_are_rounded_once_when_loaded(kind, backend, dtype):
    """Not by way of the parameter's dtype: float16 would lose the small ones."""
    exact, ours = make(kind, dtype, state="fp32"), make(kind, dtype)
    with use_backend(backend):
        train(exact, range(5))
        load(ours, exact)
        for got, wanted in zip(moments(kind, ours), moments(kind, exact), strict=True):
            assert wanted.dtype == torch.float32
            assert torch.equal(got, wanted.to(torch.bfloat16))
        train(ours, range(5, 10))


@with_states
@each_backend
@served_dtypes
def test_bfloat16_moments_become_float32_of_equal_value(kind, backend, dtype):
    ours, exact = make(kind, dtype), make(kind, dtype, state="fp32")
    with use_backend(backend):
        train(ours, range(5))
        load(exact, ours)
        for got, wanted in zip(moments(kind, exact), moments(kind, ours), strict=True):
            assert got.dtype == torch.float32
            assert torch.equal(got, wanted.float())
        train(exact, range(5, 10))


@with_states
def test_to_torch_and_back(kind):
    """torch's optimizer takes bfloat16 moments over as its own float32 ones, and ours takes those."""
    ours, theirs, again = make(kind), KINDS[kind].make_torch(three_groups(parameters())), make(kind)
    train(ours, range(5))
    load(theirs, ours)
    for got, wanted in zip(moments(kind, theirs), moments(kind, ours), strict=True):
        assert got.dtype == torch.float32 and torch.equal(got, wanted.float())
    train(theirs, range(5, 10))
    load(again, theirs)
    for got, wanted in zip(moments(kind, again), moments(kind, theirs), strict=True):
        assert torch.equal(got, wanted.to(torch.bfloat16))
    train(again, range(10, 15))
    assert all(p.isfinite().all() for p in params_of(again))


@with_states
def test_a_copy_keeps_its_moments_in_bfloat16(kind):
    """deepcopy carries the dtype of states that are still to be made."""
    other = copy.deepcopy(make(kind))
    train(other, range(2))
    assert all(m.dtype == torch.bfloat16 for m in moments(kind, other))
