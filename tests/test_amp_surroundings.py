"""Steps that are hooked, overridden, patched or compiled under our scaler: scale and weights are those under
torch's scaler, whose check of the gradients comes before all of it."""

import copy
import math
from pathlib import Path

import onepass
import pytest
import torch
from amp_helpers import BAD, OURS, TORCH, adamw, begin, iterate, parameters, scaler_of
from onepass import use_backend
from onepass.amp.scaler import MOST_FLAGS
from onepass.optim import clip_grad_norm_, measured
from optim_helpers import each_backend, frozen, params_of
from torch.optim.optimizer import register_optimizer_step_pre_hook


class Releasing(onepass.optim.AdamW):
    def step(self, closure=None):
        loss = super().step(closure)
        self.zero_grad()
        return loss


class Idle(onepass.optim.AdamW):
    def step(self, closure=None):
        return None


class EverySecond(onepass.optim.AdamW):
    calls = 0

    def step(self, closure=None):
        self.calls += 1
        return super().step(closure) if self.calls % 2 else None


def mend(optimizer, *_):
    for p in params_of(optimizer):
        p.grad.nan_to_num_(0.0, 0.0, 0.0)


def released():
    optimizer = adamw()
    optimizer.register_step_post_hook(lambda o, *_: o.zero_grad())
    return optimizer


def mended():
    optimizer = adamw()
    optimizer.register_step_pre_hook(mend)
    return optimizer


def patched():
    """As a scheduler or Accelerate puts its own function before the class's."""
    optimizer = adamw()
    step = optimizer.step
    optimizer.step = lambda *args: step(*args)
    return optimizer


def patched_away():
    optimizer = adamw()
    optimizer.step = lambda *args: None
    return optimizer


def with_closure_left_out():
    return onepass.optim.SGD(parameters(0), lr=0.1, momentum=0.9, max_grad_norm=1.0)


SURROUNDINGS = {
    "overridden, releasing": lambda: Releasing(parameters(0), lr=0.1),
    "overridden, idle": lambda: Idle(parameters(0), lr=0.1),
    "overridden, every second": lambda: EverySecond(parameters(0), lr=0.1),
    "released by a hook": released,
    "mended by a hook": mended,
    "patched": patched,
    "patched away": patched_away,
    "plain": with_closure_left_out,
}


def outcome(kind, make, backend, unscale):
    """Beside a second optimizer, which never overflows, in every second run of iterations."""
    optimizer, other, scaler, seen = make(), adamw(), scaler_of(kind), []
    with use_backend(backend):
        for t in range(8):
            both = [optimizer, other] if t >= 4 else [optimizer]
            begin(scaler, *both, t=t)
            if t % 2:
                params_of(optimizer)[1].grad.view(-1)[0] = BAD[1 + t % 3]
            for each in both:
                if unscale:
                    scaler.unscale_(each)
                scaler.step(each)
            scaler.update()
            seen.append(scaler.state_dict())
    return seen, frozen([*params_of(optimizer), *params_of(other)])


@each_backend
@pytest.mark.parametrize("unscale", (False, True), ids=("scaled", "unscaled"))
@pytest.mark.parametrize("name", SURROUNDINGS)
def test_whatever_stands_around_a_step(name, backend, unscale):
    make = SURROUNDINGS[name]
    assert outcome(OURS, make, backend, unscale) == outcome(TORCH, make, backend, unscale)


@each_backend
def test_a_global_hook_that_mends(backend):
    handle = register_optimizer_step_pre_hook(mend)
    try:
        assert outcome(OURS, adamw, backend, False) == outcome(TORCH, adamw, backend, False)
    finally:
        handle.remove()


@each_backend
def test_a_closure_that_makes_the_gradients(backend):
    """Handed on as by torch. Nothing was there to be checked before it: what it makes is looked at."""
    optimizer, scaler = adamw(), scaler_of()
    scaler.scale(torch.ones(()))

    def closure():
        begin(scaler, optimizer, bad=1)
        return torch.ones(())

    before = frozen(params_of(optimizer))
    with use_backend(backend):
        scaler.step(optimizer, closure)
        scaler.update()
    assert frozen(params_of(optimizer)) == before and scaler.get_scale() == 512.0


@pytest.mark.parametrize("unscale", (False, True), ids=("scaled", "unscaled"))
@pytest.mark.parametrize("kind", (OURS, TORCH), ids=("ours", "torch"))
def test_a_compiled_step(kind, unscale):
    plain, compiled = adamw(max_grad_norm=1.0), adamw(max_grad_norm=1.0)
    compiled.step = torch.compile(compiled.step, backend="eager")
    scalers = scaler_of(), scaler_of(kind)
    for t in range(6):
        for scaler, optimizer in zip(scalers, (plain, compiled), strict=True):
            iterate(scaler, optimizer, bad=t % 2, t=t, unscale=unscale)
        assert scalers[0].state_dict() == scalers[1].state_dict()
    for p, q in zip(params_of(plain), params_of(compiled), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)


def test_a_compiled_step_asks_for_no_norm_that_is_remembered(monkeypatch):
    """Whether one is known would become part of the graph."""
    optimizer, scaler = adamw(max_grad_norm=1.0), scaler_of()
    iterate(scaler, optimizer)
    begin(scaler, optimizer, t=1)
    scaler.unscale_(optimizer)
    monkeypatch.setattr(measured, "recall", lambda grads: pytest.fail("asked"))
    torch.compile(optimizer.step, backend="eager")()


def test_a_refused_step_leaves_nothing_that_cannot_be_copied():
    scaler = scaler_of()
    with pytest.raises(AssertionError, match="_scale is None"):
        scaler.step(adamw())
    assert copy.deepcopy(scaler).state_dict() == scaler.state_dict()


@pytest.mark.parametrize("kind", (OURS, TORCH), ids=("ours", "torch"))
@pytest.mark.parametrize("bad", (0, 1))
def test_a_scale_that_is_frozen_by_factors_of_one(kind, bad):
    """Set behind the constructor, or by a checkpoint: torch takes them."""
    optimizer, scaler = adamw(), scaler_of(kind)
    scaler.set_growth_factor(1.0)
    scaler.set_backoff_factor(1.0)
    loaded = scaler_of(kind)
    loaded.load_state_dict(scaler.state_dict())
    for each in (scaler, loaded):
        for t in range(4):
            iterate(each, optimizer, bad=bad, t=t)
        assert each.get_scale() == 1024.0


def test_room_for_flags_is_the_kernels():
    header = (Path(__file__).parent.parent / "csrc/cuda/table.h").read_text()
    assert f"kMostFlags = {MOST_FLAGS};" in header


def test_more_optimizers_than_a_kernel_has_room_for_flags():
    optimizers = [onepass.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1) for _ in range(300)]
    scaler = scaler_of()
    asked = []
    for bad in (False, True):
        begin(scaler, *optimizers)
        if bad:
            params_of(optimizers[-1])[0].grad.fill_(math.nan)
        for optimizer in optimizers:
            scaler.step(optimizer)
        scaler.update()
        asked.append(scaler.get_scale())
    assert asked == [1024.0, 512.0]


def test_the_first_scale_makes_nothing_on_the_host():
    """What is made there and copied to a device would be a wait."""
    from test_host_path import Watch

    with Watch() as watch:
        scaler_of().scale(torch.ones(()))
    assert "lift_fresh" not in watch.calls


# --- whose norm it is ---------------------------------------------------------------------------------------
def test_the_norm_is_not_that_of_a_gradient_listed_twice():
    optimizer, scaler = adamw(), scaler_of()
    begin(scaler, optimizer)
    scaler.unscale_(optimizer)
    first = params_of(optimizer)[0]
    twice = [first, first, params_of(optimizer)[1]]
    assert len(twice) == len(params_of(optimizer))
    norm = clip_grad_norm_(twice, 1e9)
    torch.testing.assert_close(norm, torch.nn.utils.clip_grad_norm_(twice, 1e9))


def test_the_norms_of_several_optimizers_are_known_on_all_their_devices():
    """Here the CPU and one without memory stand for two GPUs."""
    grads = [torch.ones(2), torch.ones(3, device="meta")]
    more = [torch.ones(4), torch.ones(5, device="meta")]
    stats = torch.tensor([3.0, 0.0], dtype=torch.float64)
    for some in (grads, more):
        measured.remember(some, {g.device: stats.to(g.device) for g in some})
    try:
        found = measured.recall([*grads, *more])
        assert found is not None and found.keys() == {g.device for g in grads}
        torch.testing.assert_close(found[torch.device("cpu")][0], torch.tensor(18.0).sqrt().double())
    finally:
        measured.forget()


def test_among_several_processes_no_norm_is_remembered(monkeypatch):
    """A collective writes gradients and bumps no version: the norm would be the one from before it."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda *_: 2)
    optimizer, scaler = adamw(), scaler_of()
    begin(scaler, optimizer)
    scaler.unscale_(optimizer)
    assert measured.recall([p.grad for p in params_of(optimizer)]) is None
