"""onepass.amp.GradScaler: what a step does and does not, and bugs that others have, or had."""

import copy
import math

import onepass
import pytest
import torch
from amp_helpers import BAD, OURS, TORCH, adamw, begin, each_way, iterate, parameters, scaler_of
from onepass import use_backend
from onepass.optim import clip_grad_norm_
from optim_helpers import each_backend, frozen, params_of, randn
from phase_helpers import KINDS, each_kind, few_kinds, three_groups
from phase_helpers import parameters as many_parameters
from test_host_path import WAITS, Watch


# --- a step -----------------------------------------------------------------------------------------------
@each_kind
@each_backend
@each_way
@pytest.mark.parametrize("bad", BAD[1:])
def test_a_skipped_step_changes_no_byte(kind, backend, unscale, bad):
    """The first one, and one behind others: parameters, states, counters, averages of weights."""
    optimizer = KINDS[kind].make(three_groups(many_parameters()), ema_decay=0.9)
    scaler = scaler_of()
    with use_backend(backend):
        for t in range(4):
            begin(scaler, optimizer, t=t)
            if t % 2 == 0:
                params_of(optimizer)[0].grad.view(-1)[0] = bad
                for p in params_of(optimizer) if t else ():
                    assert optimizer.state[p]
            before = frozen(held(optimizer)) if t else None
            if unscale:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
            if t == 0:  # states are there now, as they are before a first step
                fresh = KINDS[kind].make(three_groups(many_parameters()), ema_decay=0.9)
                assert frozen(params_of(optimizer)) == frozen(params_of(fresh))
                assert all(at_the_start(optimizer, p) for p in params_of(optimizer))
            else:
                assert (frozen(held(optimizer)) == before) == (t % 2 == 0)


def held(optimizer):
    return [t for p in params_of(optimizer) for t in (p, *optimizer.state[p].values())]


def at_the_start(optimizer, p):
    """No step has been done: averages of gradients are what they start from."""
    start = optimizer.param_groups[0].get("initial_accumulator_value", 0)
    state = dict(optimizer.state[p])
    ema = state.pop("ema")
    step = state.pop("step", torch.zeros(()))
    return torch.equal(ema, p) and step == 0 and all((value == start).all() for value in state.values())


@few_kinds
@each_backend
@each_way
def test_nothing_waits_for_the_device(kind, backend, unscale):
    """Not scaling, unscaling, clipping, a step, the next scale; skipped or not."""
    optimizer = KINDS[kind].make(three_groups(many_parameters()), max_grad_norm=None if unscale else 1.0)
    scaler = scaler_of(hysteresis=1, min_scale=1.0)
    with use_backend(backend):
        for t in range(6):
            begin(scaler, optimizer, bad=t % 3, t=t)
            with Watch() as watch:
                scaler.scale(torch.ones(3))
                if unscale:
                    scaler.unscale_(optimizer)
                    clip_grad_norm_(params_of(optimizer), 1.0)
                scaler.step(optimizer)
                scaler.update()
                found = scaler.skipped_steps, scaler.skipped_in_a_row, optimizer.last_skipped
            assert not [name for name in watch.calls if name in WAITS]
            assert all(isinstance(x, torch.Tensor) for x in found)


@each_backend
def test_gradients_are_read_twice_and_not_written(backend):
    """Scaled and clipped: once for the norm, once by the step; neither by the scaler."""
    optimizer, scaler = adamw(max_grad_norm=1.0), scaler_of()
    with use_backend(backend):
        iterate(scaler, optimizer)
        begin(scaler, optimizer, t=1)
        before = frozen(p.grad for p in params_of(optimizer))
        with Watch() as watch:
            scaler.step(optimizer)
            scaler.update()
    ours = {name: count for name, count in watch.calls.items() if name in onepass.ops.BY_NAME}
    if backend == "cpp":  # the plan measures and steps by itself
        assert ours == {"update_scale_": 1}
    else:
        assert ours == {"grad_stats": 1, "adamw_": 1, "update_scale_": 1}
    assert not [name for name in watch.calls if name.startswith("_amp")]
    assert frozen(p.grad for p in params_of(optimizer)) == before


@each_backend
def test_write_grads_leaves_what_torch_would(backend):
    ours, theirs = adamw(max_grad_norm=0.5, write_grads=True), adamw()
    scaler = scaler_of()
    with use_backend(backend):
        begin(scaler, ours)
        begin(scaler, theirs)
        scaler.step(ours)
    stock = scaler_of(TORCH)
    stock.scale(torch.ones(()))
    stock.unscale_(theirs)
    torch.nn.utils.clip_grad_norm_(params_of(theirs), 0.5)
    for p, q in zip(params_of(ours), params_of(theirs), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-6, atol=0)


@each_backend
@pytest.mark.parametrize("clip", (clip_grad_norm_, torch.nn.utils.clip_grad_norm_), ids=("onepass", "torch"))
def test_clipping_by_hand_is_max_grad_norm(backend, clip):
    by_hand, by_argument = adamw(), adamw(max_grad_norm=0.5)
    first, second = scaler_of(), scaler_of()
    with use_backend(backend):
        for t in range(5):
            begin(first, by_hand, t=t, bad=t == 2)
            begin(second, by_argument, t=t, bad=t == 2)
            first.unscale_(by_hand)
            norm = clip(params_of(by_hand), 0.5)
            for scaler, optimizer in ((first, by_hand), (second, by_argument)):
                scaler.step(optimizer)
                scaler.update()
            torch.testing.assert_close(norm, by_argument.last_grad_norm, equal_nan=True)
    for p, q in zip(params_of(by_hand), params_of(by_argument), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    assert first.state_dict() == second.state_dict()


@each_backend
def test_a_window_of_several_backwards_that_overflows_midway_is_skipped(backend):
    model = torch.nn.Linear(3, 2)
    optimizer = onepass.optim.SGD(model.parameters(), lr=0.1)
    scaler, before = scaler_of(), copy.deepcopy(model.state_dict())
    with use_backend(backend):
        for window in (True, False):
            optimizer.zero_grad()
            for micro in range(4):
                factor = math.inf if window and micro == 1 else 1.0
                scaler.scale(model(randn(5, 3, seed=micro)).sum() * factor).backward()
            scaler.step(optimizer)
            scaler.update()
            same = [torch.equal(value, before[name]) for name, value in model.state_dict().items()]
            assert all(same) if window else not any(same)
    assert scaler.skipped_steps == 1 and scaler.get_scale() == 512.0


def test_a_product_of_scales_is_the_scale():
    """torch: grad_scale that the user has set is a factor more."""
    ours, theirs = adamw(), adamw()
    for kind, optimizer in ((OURS, ours), (TORCH, theirs)):
        scaler = scaler_of(kind)
        begin(scaler, optimizer)
        optimizer.grad_scale = torch.tensor(4.0)
        scaler.step(optimizer)
        assert not hasattr(optimizer, "grad_scale")
    assert frozen(params_of(ours)) == frozen(params_of(theirs))


@each_backend
@pytest.mark.parametrize("kind", (OURS, TORCH), ids=("ours", "torch"))
def test_no_parameter_has_a_gradient(kind, backend):
    """torch: a step is none, and update() says that nothing was checked."""
    optimizer, scaler = adamw(), scaler_of(kind)
    scaler.scale(torch.ones(()))
    with use_backend(backend):
        scaler.step(optimizer)
        with pytest.raises(AssertionError, match="No inf checks were recorded prior to update"):
            scaler.update()


@each_backend
def test_some_parameters_have_no_gradient(backend):
    optimizer, scaler = adamw(max_grad_norm=1.0), scaler_of()
    with use_backend(backend):
        for t in range(3):
            begin(scaler, optimizer, t=t)
            params_of(optimizer)[t].grad = None
            scaler.step(optimizer)
            scaler.update()
    assert scaler._get_growth_tracker() == 0 and scaler.get_scale() == 2048.0


def test_parameters_that_torchs_own_code_steps_are_looked_at_too():
    """A sparse gradient beside dense ones: inf in either skips both."""
    embedding = torch.nn.Embedding(4, 2, sparse=True)
    dense = torch.nn.Parameter(torch.ones(3))
    optimizer = onepass.optim.SGD([{"params": embedding.parameters()}, {"params": [dense]}], lr=0.1)
    before, scaler = frozen([embedding.weight, dense]), scaler_of()
    for factors in ((math.inf, 1.0), (1.0, math.inf), (1.0, 1.0)):
        optimizer.zero_grad()
        loss = (embedding(torch.tensor([1, 1, 3])) * factors[0]).sum() + (dense * factors[1]).sum()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        assert (frozen([embedding.weight, dense]) == before) == (math.inf in factors)
    assert torch.allclose(
        embedding.weight.detach()[1].double(),
        torch.frombuffer(bytearray(before[0]), dtype=torch.float32).view(4, 2)[1].double() - 0.2,
    )


@pytest.mark.parametrize("kind", (OURS, TORCH), ids=("ours", "torch"))
def test_disabled_it_does_nothing(kind):
    scaler, optimizer = scaler_of(kind, enabled=False), adamw()
    loss = torch.ones(3)
    assert scaler.scale(loss) is loss and not scaler.is_enabled() and scaler.get_scale() == 1.0
    for p in params_of(optimizer):
        p.grad = torch.ones_like(p)
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    assert scaler.state_dict() == {}
    scaler.load_state_dict({"scale": 3.0})
    assert optimizer.state[params_of(optimizer)[0]]["step"] == 1


def test_disabled_it_has_nothing_to_tell():
    scaler = scaler_of(enabled=False)
    assert scaler.last_overflow() == [] and scaler.skipped_steps == scaler.skipped_in_a_row == 0


def test_cuda_that_is_not_there_disables_it():
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.warns(UserWarning, match="CUDA is not available"):
        assert not onepass.amp.GradScaler().is_enabled()


# --- bugs that others have, or had ------------------------------------------------------------------------
@few_kinds
@each_backend
@pytest.mark.parametrize("scaler", (OURS, TORCH), ids=("ours", "torch"))
def test_gradients_are_unscaled_once(kind, backend, scaler):
    """Apex and Transformer Engine unscale again what unscale_ has unscaled."""
    ours, plain = (KINDS[kind].make(parameters(0)) for _ in range(2))
    scaler = scaler_of(scaler)
    with use_backend(backend):
        for t in range(3):
            begin(scaler, ours, t=t)
            for p, q in zip(params_of(ours), params_of(plain), strict=True):
                q.grad = p.grad / scaler.get_scale()
            scaler.unscale_(ours)
            scaler.step(ours)
            scaler.update()
            plain.step()
    assert frozen(params_of(ours)) == frozen(params_of(plain))


@each_backend
@each_way
@pytest.mark.parametrize("scaler", (OURS, TORCH), ids=("ours", "torch"))
def test_momentum_starts_with_the_first_step_that_is_done(backend, unscale, scaler):
    """torch's fused SGD leaves it uninitialised in a skipped first step and uses it in the second."""
    optimizer = onepass.optim.SGD(parameters(0), lr=0.1, momentum=0.9, dampening=0.5)
    scaler = scaler_of(scaler)
    with use_backend(backend):
        iterate(scaler, optimizer, bad=1, unscale=unscale)
        iterate(scaler, optimizer, t=1, unscale=unscale)
    for i, p in enumerate(params_of(optimizer)):
        torch.testing.assert_close(optimizer.state[p]["momentum_buffer"], randn(*p.shape, seed=1000 + i))


@each_backend
@each_way
def test_a_flag_of_an_earlier_step_is_not_taken_for_this_ones(backend, unscale):
    """Overflow and none in turn, under both scalers, whose contracts differ in who finds out."""
    optimizer = adamw(max_grad_norm=1.0)
    scalers = [scaler_of(), scaler_of(TORCH)]
    with use_backend(backend):
        for t in range(12):
            iterate(scalers[t // 3 % 2], optimizer, bad=t % 2, t=t, unscale=unscale)
            assert bool(optimizer.last_skipped) == bool(t % 2)
            assert not hasattr(optimizer, "found_inf")


@each_backend
def test_a_flag_that_was_left_behind_is_not_looked_at(backend):
    """A step that raises under torch's scaler leaves found_inf on the optimizer."""
    optimizer, scaler = adamw(), scaler_of()
    optimizer.found_inf = torch.ones(())
    with use_backend(backend):
        iterate(scaler, optimizer)
    assert "found_inf" not in vars(optimizer) and not optimizer.last_skipped
    assert optimizer.state[params_of(optimizer)[0]]["step"] == 1


@each_backend
def test_flags_of_several_optimizers_stay_apart(backend):
    """update() of torch adds all flags up in the first one: the first optimizer would skip its next step."""
    first, second = adamw(), adamw()
    scaler = scaler_of()
    with use_backend(backend):
        for t in range(4):
            begin(scaler, first, second, t=t)
            params_of(second)[0].grad.view(-1)[0] = math.inf
            scaler.step(first)
            scaler.step(second)
            scaler.update()
            assert not first.last_skipped and second.last_skipped
    assert first.state[params_of(first)[0]]["step"] == 4
    assert second.state[params_of(second)[0]]["step"] == 0


@each_backend
@each_way
@pytest.mark.parametrize("value", (1e25, -3e38))
def test_a_large_gradient_is_not_inf(backend, unscale, value):
    """The sum of its squares is more than float32 holds."""
    optimizer, scaler = adamw(max_grad_norm=1.0), scaler_of(init_scale=1.0)
    begin(scaler, optimizer)
    params_of(optimizer)[0].grad.fill_(value)
    before = frozen(params_of(optimizer))
    with use_backend(backend):
        if unscale:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 1.0 and frozen(params_of(optimizer)) != before
    assert all(p.isfinite().all() for p in params_of(optimizer))
    assert scaler.last_overflow() == []
