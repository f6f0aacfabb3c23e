"""What onepass.amp.GradScaler has and torch's does not, and what of it is in files and copies."""

import copy
import math
import pickle

import onepass
import pytest
import torch
from amp_helpers import OURS, TORCH, adamw, begin, each_way, iterate, parameters, scaler_of, torchs
from onepass import use_backend
from optim_helpers import each_backend, params_of


# --- what torch's does not have ---------------------------------------------------------------------------
def scales(scaler, optimizer, overflows):
    seen = []
    for t, bad in enumerate(overflows):
        iterate(scaler, optimizer, bad=bad, t=t)
        seen.append(scaler.get_scale())
    return seen


@each_backend
def test_hysteresis_tolerates_so_many_overflows_in_a_row(backend):
    scaler = scaler_of(hysteresis=2, growth_interval=100)
    with use_backend(backend):
        seen = scales(scaler, adamw(), (1, 1, 0, 1, 1, 1, 1, 0, 1))
    assert seen == [1024, 1024, 1024, 1024, 1024, 512, 256, 256, 256]
    assert scaler.skipped_steps == 7 and scaler.skipped_in_a_row == 1


@each_backend
def test_the_scale_stays_within_its_bounds(backend):
    scaler = scaler_of(min_scale=300.0, max_scale=1500.0, growth_interval=1)
    with use_backend(backend):
        assert scales(scaler, adamw(), (1, 1, 1, 0, 0, 0, 1)) == [512, 300, 300, 600, 1200, 1500, 750]


def test_a_scale_that_is_set_by_hand_is_taken_as_it_is():
    scaler = scaler_of(max_scale=2048.0)
    scaler.scale(torch.ones(()))
    scaler.update(4096.0)
    assert scaler.get_scale() == 4096.0
    scaler.update(torch.tensor(64.0))
    assert scaler.get_scale() == 64.0


@each_way
def test_the_last_overflow_names_its_parameters(unscale):
    names = [(f"layer.{i}", p) for i, p in enumerate(parameters(0))]
    named, plain, scaler = onepass.optim.AdamW(names), adamw(), scaler_of()
    begin(scaler, named, plain)
    params_of(named)[0].grad[1, 0] = math.nan
    params_of(named)[0].grad[2] = -math.inf
    params_of(plain)[2].grad.fill_(math.inf)
    for optimizer in (named, plain):
        if unscale:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
    for _ in range(2):  # before and behind update()
        first, second = scaler.last_overflow()
        assert (first.optimizer, first.group, first.index, first.name) == (named, 0, 0, "layer.0")
        assert (first.inf, first.nan) == (2, 1) and first.param is params_of(named)[0]
        assert (second.optimizer, second.index, second.name, second.inf, second.nan) == (plain, 2, None, 1, 0)
        assert str(first) == "layer.0 of group 0: 2 inf, 1 NaN of 6" and "Overflow" in repr(first)
        if scaler._per_optimizer_states:
            scaler.update()
    for p in params_of(named) + params_of(plain):
        p.grad = None
    with pytest.raises(RuntimeError, match=r"last_overflow\(\): the gradients that were not finite are gone"):
        scaler.last_overflow()
    begin(scaler, plain, t=1)
    scaler.step(plain)
    assert scaler.last_overflow() == []


def test_the_last_overflow_is_of_the_last_iteration():
    """Also where every optimizer is unscaled before the first one steps."""
    optimizers, scaler = [adamw(), adamw()], scaler_of()
    for t, bad in enumerate((1, 0)):
        begin(scaler, *optimizers, bad=bad, t=t)
        for optimizer in optimizers:
            scaler.unscale_(optimizer)
        for optimizer in optimizers:
            scaler.step(optimizer)
        assert len(scaler.last_overflow()) == (2 if bad else 0)
        scaler.update()


@pytest.mark.parametrize("kind", (OURS, TORCH), ids=("ours", "torch"))
def test_a_backward_through_the_old_scale_is_an_error(kind):
    """A kernel wrote the scale behind autograd's back: it has to be told."""
    optimizer, scaler = adamw(), scaler_of(kind)
    late = scaler.scale(sum((p * 1.0).sum() for p in params_of(optimizer)))
    iterate(scaler, optimizer, bad=1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        late.backward()


def test_the_last_overflow_of_an_optimizer_of_torchs():
    optimizer, scaler = torchs(), scaler_of()
    begin(scaler, optimizer, bad=1)
    scaler.step(optimizer)
    (overflow,) = scaler.last_overflow()
    assert overflow.index == 1 and overflow.optimizer is optimizer


# --- files and copies -------------------------------------------------------------------------------------
def test_a_state_dict_is_torchs_both_ways():
    ours, torchs = scaler_of(), scaler_of(TORCH)
    optimizer = adamw()
    for scaler in (ours, torchs):
        scales(scaler, optimizer, (0, 1, 0, 0))
    assert ours.state_dict() == torchs.state_dict()
    for kind, state in ((OURS, torchs.state_dict()), (TORCH, ours.state_dict())):
        for lazy in (True, False):
            loaded = kind("cpu")
            if not lazy:
                loaded.scale(torch.ones(()))
            loaded.load_state_dict(state)
            assert loaded.state_dict() == state


OPTIONS = {"hysteresis": 2, "min_scale": 4.0, "max_scale": 2.0**20}


def test_options_and_counters_travel_where_they_are_used():
    scaler = scaler_of(**OPTIONS)
    scales(scaler, adamw(), (1, 0, 1, 1))
    state = scaler.state_dict()
    assert {name: state[name] for name in OPTIONS} == OPTIONS and state["_skipped"] == [3, 2]
    for lazy in (True, False):
        loaded = scaler_of()
        if not lazy:
            loaded.scale(torch.ones(()))
        loaded.load_state_dict(state)
        assert loaded.state_dict() == state
        assert loaded.skipped_steps == 3
        assert scales(loaded, adamw(), (1,)) == [512.0]  # the third in a row
    torchs = scaler_of(TORCH)
    torchs.load_state_dict(state)
    assert torchs.get_scale() == state["scale"]


def pickled(scaler):
    return pickle.loads(pickle.dumps(scaler))


@pytest.mark.parametrize("copied", (copy.deepcopy, pickled))
def test_copies_go_on_alike(copied):
    scaler, optimizer = scaler_of(**OPTIONS), adamw()
    scales(scaler, optimizer, (1, 0, 1, 1))
    twin = copied(scaler)
    assert twin.state_dict() == scaler.state_dict() and twin.skipped_steps == 3
    assert scales(twin, adamw(), (1, 0)) == scales(scaler, optimizer, (1, 0))
    begin(scaler, optimizer)
    scaler.step(optimizer)
    with pytest.raises(AssertionError, match="may only be pickled at the beginning"):
        copied(scaler)


@pytest.mark.parametrize("missing", ("scale", "growth_factor", "_growth_tracker"))
def test_a_state_dict_that_lacks_something_is_refused_whole(missing):
    scaler = scaler_of()
    scales(scaler, adamw(), (1, 0))
    before = scaler.state_dict()
    state = {**before, "scale": 7.0, "growth_factor": 3.0}
    del state[missing]
    with pytest.raises(RuntimeError, match=f"lacks {missing}"):
        scaler.load_state_dict(state)
    assert scaler.state_dict() == before
    with pytest.raises(RuntimeError, match="source state dict is empty"):
        scaler.load_state_dict({})
