"""The average of weights: its formula, precision and place in the state, and the model with it swapped in."""

import copy

import pytest
import torch
from onepass import use_backend
from optim_helpers import each_backend, frozen, params_of
from phase_helpers import (
    HALVES,
    KINDS,
    assert_near,
    each_dtype,
    each_kind,
    few_kinds,
    give,
    gradients,
    parameters,
    three_groups,
)

STEPS = 24


def make(kind, dtype=torch.float32, **options):
    return KINDS[kind].make(three_groups(parameters(dtype=dtype)), **{"ema_decay": 0.9, **options})


def train(optimizer, steps):
    for t in steps:
        give(optimizer, gradients(params_of(optimizer), t))
        optimizer.step()


def averages(optimizer):
    return [average.detach().clone() for average in optimizer.ema_parameters()]


# --- values -------------------------------------------------------------------------------------------------
@each_kind
@each_backend
@pytest.mark.parametrize("decay", (0.0, 0.5, 0.999))
def test_the_formula_from_the_parameter_on(kind, backend, decay):
    """ema <- decay * ema + (1 - decay) * p after each step, from the parameter before the first."""
    optimizer = make(kind, ema_decay=decay)
    wanted = [p.detach().double() for p in params_of(optimizer)]
    with use_backend(backend):
        for t in range(STEPS):
            train(optimizer, [t])
            wanted = [
                decay * w + (1 - decay) * p.detach().double()
                for w, p in zip(wanted, params_of(optimizer), strict=True)
            ]
            if t % 4 == 3:
                for average, w in zip(optimizer.ema_parameters(), wanted, strict=True):
                    assert_near(average, w, torch.float32, t + 1, least=1.0)


@few_kinds
@each_backend
@each_dtype
def test_an_average_is_kept_in_the_precision_of_the_step(kind, backend, dtype):
    """float32 for half parameters: changes too small for half precision are not lost."""
    optimizer = make(kind, dtype, ema_decay=0.999, lr=1e-1)
    start = [p.detach().double() for p in params_of(optimizer)]
    kept = torch.float32 if dtype in HALVES else dtype
    with use_backend(backend):
        train(optimizer, range(STEPS))
    for p, average, first in zip(params_of(optimizer), optimizer.ema_parameters(), start, strict=True):
        assert average is optimizer.state[p]["ema"]
        assert average.dtype == kept and average.shape == p.shape and not average.requires_grad
        if p.numel():
            assert ((average.double() - first) != 0).all()


@each_kind
@each_backend
def test_without_a_decay_training_has_the_same_bits_and_no_average(kind, backend):
    plain, averaged = make(kind, ema_decay=None), make(kind)
    with use_backend(backend):
        train(plain, range(STEPS))
        train(averaged, range(STEPS))
    for p, q in zip(params_of(plain), params_of(averaged), strict=True):
        assert torch.equal(p, q)
        assert "ema" not in plain.state[p]


# --- in the state -------------------------------------------------------------------------------------------
@few_kinds
@each_backend
@each_dtype
def test_a_state_dict_carries_the_average(kind, backend, dtype):
    """Loaded as it was saved, in its own dtype, and the training goes on bit for bit."""
    whole, first, second = (make(kind, dtype) for _ in range(3))
    with use_backend(backend):
        train(whole, range(10))
        train(first, range(5))
        second.load_state_dict(copy.deepcopy(first.state_dict()))
        for p, q in zip(params_of(second), params_of(first), strict=True):
            p.data.copy_(q.data)
        assert frozen(second.ema_parameters()) == frozen(first.ema_parameters())
        train(second, range(5, 10))
    assert [a.dtype for a in second.ema_parameters()] == [a.dtype for a in whole.ema_parameters()]
    assert frozen(second.ema_parameters()) == frozen(whole.ema_parameters())


@few_kinds
@each_backend
def test_a_state_dict_without_an_average_starts_one_anew(kind, backend):
    """From the parameter as it is at the next step: also a state_dict of torch's."""
    sources = (make(kind, ema_decay=None), KINDS[kind].make_torch(three_groups(parameters())))
    for source in sources:
        optimizer = make(kind)
        with use_backend(backend):
            train(source, range(3))
            train(optimizer, range(7))
            optimizer.load_state_dict(copy.deepcopy(source.state_dict()))
            start = [p.detach().double() for p in params_of(optimizer)]
            train(optimizer, [8])
        for p, average, old in zip(params_of(optimizer), optimizer.ema_parameters(), start, strict=True):
            assert_near(average, 0.9 * old + 0.1 * p.detach().double(), torch.float32, least=1.0)


@few_kinds
@each_backend
def test_torch_loads_a_state_dict_with_averages(kind, backend):
    """It keeps what it does not know and steps on."""
    ours, theirs = make(kind), KINDS[kind].make_torch(three_groups(parameters()))
    with use_backend(backend):
        train(ours, range(3))
    theirs.load_state_dict(copy.deepcopy(ours.state_dict()))
    train(theirs, range(3, 6))
    assert all("ema" in theirs.state[p] for p in params_of(theirs))


@each_kind
@each_backend
def test_a_decay_switched_off_and_on(kind, backend):
    """Off: the average stays as it is. On again, or on for the first time in mid-training: it goes on, or
    starts from the parameters of that time, with gradients or without."""
    optimizer = make(kind, ema_decay=None)
    with use_backend(backend):
        train(optimizer, range(3))
        optimizer.ema_decay = 0.5
        start = [p.detach().double() for p in params_of(optimizer)]
        grads = gradients(params_of(optimizer), 3)
        give(optimizer, [None, *grads[1:-1], None])
        optimizer.step()
        for p, average, old in zip(params_of(optimizer), optimizer.ema_parameters(), start, strict=True):
            assert_near(average, 0.5 * old + 0.5 * p.detach().double(), torch.float32, least=1.0)
        train(optimizer, [4])
        kept = averages(optimizer)
        optimizer.ema_decay = None
        train(optimizer, range(5, 8))
        optimizer.ema_decay = 0.9
        assert frozen(optimizer.ema_parameters()) == frozen(kept)
        train(optimizer, [8])
    for p, average, old in zip(params_of(optimizer), optimizer.ema_parameters(), kept, strict=True):
        assert_near(average, 0.9 * old.double() + 0.1 * p.detach().double(), torch.float32, least=1.0)


@each_kind
@each_backend
def test_parameters_without_gradients_are_their_own_averages(kind, backend):
    """Until their first gradient; after it, a step without one leaves their averages alone."""
    optimizer = make(kind)
    first, *rest = params_of(optimizer)
    with use_backend(backend):
        for t in range(3):
            give(optimizer, [None, *gradients(rest, t)])
            optimizer.step()
        assert torch.equal(optimizer.ema_parameters()[0], first)
        train(optimizer, [3])
        average = optimizer.ema_parameters()[0].clone()
        assert not torch.equal(average, first)
        give(optimizer, [None, *gradients(rest, 4)])
        optimizer.step()
    assert torch.equal(optimizer.ema_parameters()[0], average)


# --- the model with its averages ----------------------------------------------------------------------------
@few_kinds
@each_backend
@each_dtype
def test_swapped_in_and_back_bit_for_bit(kind, backend, dtype):
    """Inside: the averages, rounded to the parameter's dtype, in the parameter's own memory. Behind: all as
    it was, also after an exception, NaN and zeros with a sign included."""
    optimizer = make(kind, dtype)
    with use_backend(backend):
        train(optimizer, range(5))
    with torch.no_grad():
        params_of(optimizer)[0].view(-1)[:3] = torch.tensor([torch.nan, -0.0, torch.inf])
    before, places = frozen(params_of(optimizer)), [p.data_ptr() for p in params_of(optimizer)]
    kept = frozen(optimizer.ema_parameters())
    with pytest.raises(KeyError, match="inside"), optimizer.swap_ema():
        for p, average in zip(params_of(optimizer), optimizer.ema_parameters(), strict=True):
            assert torch.equal(p, average.to(dtype))
        assert [p.data_ptr() for p in params_of(optimizer)] == places
        raise KeyError("inside")
    assert frozen(params_of(optimizer)) == before
    assert frozen(optimizer.ema_parameters()) == kept
    assert all(p.requires_grad and p.is_leaf for p in params_of(optimizer))


@each_backend
def test_neither_a_step_nor_a_swap_inside_a_swap(backend):
    """Both would lose the parameters; refused before anything is written, and possible again behind it."""
    optimizer = make("adamw", max_grad_norm=1.0)
    with use_backend(backend):
        train(optimizer, range(3))
        before = frozen(params_of(optimizer))
        with optimizer.swap_ema():
            inside = frozen(params_of(optimizer))
            with pytest.raises(
                RuntimeError, match=r"AdamW: parameters hold their averages inside swap_ema\(\)"
            ):
                optimizer.step()
            with pytest.raises(RuntimeError, match="neither a step nor another swap"), optimizer.swap_ema():
                pass
            assert frozen(params_of(optimizer)) == inside
        assert frozen(params_of(optimizer)) == before
        train(optimizer, [3])
    assert frozen(params_of(optimizer)) != before


def test_without_a_decay_there_is_nothing_to_show_or_swap():
    optimizer = make("sgd", ema_decay=None)
    with pytest.raises(RuntimeError, match="SGD keeps no average of weights: ema_decay is None"):
        optimizer.ema_parameters()
    with pytest.raises(RuntimeError, match="ema_decay is None"), optimizer.swap_ema():
        pass


def test_a_backward_through_swapped_parameters_raises():
    """What was saved for backward has been overwritten, and autograd knows."""
    optimizer = make("adamw")
    train(optimizer, range(2))
    (p, *_) = params_of(optimizer)
    loss = (p * p).sum()
    with optimizer.swap_ema():
        pass
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("decay", (-0.1, 1.0, float("nan")))
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(ValueError, match="Invalid ema_decay value"):
        make("adamw", ema_decay=decay)
    optimizer = make("adamw")
    give(optimizer, gradients(params_of(optimizer), 0))
    before = frozen(params_of(optimizer))
    optimizer.ema_decay = decay
    with pytest.raises((ValueError, RuntimeError), match="ema_decay"):
        optimizer.step()
    assert frozen(params_of(optimizer)) == before


def test_copies_and_pickles_keep_averaging():
    """deepcopy carries the decay and the averages."""
    optimizer = make("adamw")
    train(optimizer, range(3))
    other = copy.deepcopy(optimizer)
    for o in (optimizer, other):
        train(o, range(3, 6))
    assert frozen(other.ema_parameters()) == frozen(optimizer.ema_parameters())
