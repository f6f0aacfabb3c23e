"""onepass.amp.GradScaler: what a step does and does not, what it refuses, and what torch's does not have."""

import copy
import math
import pickle
import weakref

import onepass
import pytest
import torch
from amp_helpers import BAD, OURS, TORCH, give_scaled, parameters
from onepass import use_backend
from onepass.optim import clip_grad_norm_, measured
from optim_helpers import each_backend, frozen, params_of, randn
from phase_helpers import KINDS, each_kind, few_kinds, three_groups
from phase_helpers import parameters as many_parameters
from test_host_path import WAITS, Watch

each_way = pytest.mark.parametrize("unscale", (False, True), ids=("scaled", "unscaled"))


def scaler_of(kind=OURS, **options):
    return kind("cpu", **{"init_scale": 1024.0, "growth_interval": 3, **options})


def adamw(**options):
    return onepass.optim.AdamW(parameters(0), lr=0.1, **options)


def torchs():
    return torch.optim.SGD(parameters(0), lr=0.1)


def begin(scaler, *optimizers, bad=0, t=0):
    """Scaled gradients for each, as backward leaves them."""
    scaler.scale(torch.ones(()))
    for k, optimizer in enumerate(optimizers):
        grads = [randn(*p.shape, seed=1000 * t + 10 * k + i) for i, p in enumerate(params_of(optimizer))]
        give_scaled(optimizer, scaler._scale, grads, bad)


def iterate(scaler, optimizer, bad=0, t=0, unscale=False):
    begin(scaler, optimizer, bad=bad, t=t)
    if unscale:
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()


# --- a step -------------------------------------------------------------------------------------------------
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


@pytest.mark.parametrize("kind", (OURS, TORCH), ids=("ours", "torch"))
def test_a_compiled_step_is_driven_as_by_torch(kind):
    plain, compiled = adamw(max_grad_norm=1.0), adamw(max_grad_norm=1.0)
    compiled.step = torch.compile(compiled.step, backend="eager")
    scalers = scaler_of(), scaler_of(kind)
    for t in range(6):
        for scaler, optimizer in zip(scalers, (plain, compiled), strict=True):
            iterate(scaler, optimizer, bad=t % 2, t=t)
        assert scalers[0].state_dict() == scalers[1].state_dict()
    for p, q in zip(params_of(plain), params_of(compiled), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)


@each_backend
def test_a_step_that_is_overridden_and_does_nothing_has_found_nothing(backend):
    """What an earlier step found is not taken for it; torch says that nothing was checked."""

    class EverySecond(onepass.optim.AdamW):
        calls = 0

        def step(self, closure=None):
            self.calls += 1
            return super().step(closure) if self.calls % 2 else None

    optimizer, scaler = EverySecond(parameters(0)), scaler_of()
    with use_backend(backend):
        iterate(scaler, optimizer, bad=1)
        begin(scaler, optimizer)
        scaler.step(optimizer)
        with pytest.raises(AssertionError, match="No inf checks were recorded"):
            scaler.update()


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


# --- what is refused ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", (OURS, TORCH), ids=("ours", "torch"))
@pytest.mark.parametrize("make", (adamw, torchs), ids=("ours", "torchs"))
def test_calls_out_of_order(kind, make):
    """torch's words, and nothing has been written."""
    optimizer, scaler = make(), scaler_of(kind)
    for call in (scaler.step, scaler.unscale_, lambda _: scaler.update()):
        with pytest.raises(AssertionError, match="_scale is None"):
            call(optimizer)
    scaler.scale(torch.ones(()))
    with pytest.raises(AssertionError, match="No inf checks were recorded prior to update"):
        scaler.update()
    begin(scaler, optimizer)
    scaler.unscale_(optimizer)
    before = frozen(p.grad for p in params_of(optimizer))
    with pytest.raises(RuntimeError, match=r"unscale_\(\) has already been called"):
        scaler.unscale_(optimizer)
    assert frozen(p.grad for p in params_of(optimizer)) == before
    scaler.step(optimizer)
    before = frozen(params_of(optimizer))
    with pytest.raises(RuntimeError, match=r"step\(\) has already been called"):
        scaler.step(optimizer)
    with pytest.raises(RuntimeError, match=r"unscale_\(\) is being called after step"):
        scaler.unscale_(optimizer)
    assert frozen(params_of(optimizer)) == before
    with pytest.raises(RuntimeError, match="Closure use is not currently supported"):
        scaler.step(optimizer, closure=lambda: None)


@each_backend
def test_float16_gradients_are_not_unscaled_in_place(backend):
    """As torch. A step alone takes them: it unscales in float32."""
    params = [torch.nn.Parameter(torch.ones(4, dtype=torch.float16))]
    optimizer, scaler = onepass.optim.AdamW(params, lr=0.1), scaler_of()
    begin(scaler, optimizer)
    before = frozen([params[0].grad])
    with use_backend(backend):
        with pytest.raises(ValueError, match="Attempting to unscale FP16 gradients"):
            scaler.unscale_(optimizer)
        assert frozen([params[0].grad]) == before
        scaler.step(optimizer)
        scaler.update()
    assert optimizer.state[params[0]]["step"] == 1


def test_a_refused_step_leaves_the_scaler_as_it_was():
    optimizer, scaler = adamw(), scaler_of()
    begin(scaler, optimizer)
    grad = params_of(optimizer)[1].grad
    params_of(optimizer)[1].grad = None
    params_of(optimizer)[1].grad = grad.clone()
    grad = params_of(optimizer)[1].grad
    size = grad.untyped_storage().nbytes()
    grad.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="freed"):
        scaler.step(optimizer)
    assert not hasattr(optimizer, "grad_scale") and not hasattr(optimizer, "found_inf")
    grad.untyped_storage().resize_(size)
    grad.fill_(1.0)
    scaler.step(optimizer)
    scaler.update()
    assert scaler._get_growth_tracker() == 1


@pytest.mark.parametrize(
    "options, message",
    (
        ({"hysteresis": -1}, "Invalid hysteresis: -1"),
        ({"hysteresis": 1.5}, "Invalid hysteresis: 1.5"),
        ({"hysteresis": True}, "Invalid hysteresis: True"),
        ({"min_scale": 0.0}, "Invalid scales"),
        ({"min_scale": 2048.0}, "Invalid scales"),
        ({"max_scale": 512.0}, "Invalid scales"),
        ({"min_scale": math.nan}, "Invalid scales"),
    ),
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        scaler_of(**options)


@pytest.mark.parametrize("options", ({"growth_factor": 1.0}, {"backoff_factor": 1.0}))
def test_factors_out_of_range_are_refused_as_by_torch(options):
    with pytest.raises(AssertionError, match="factor must be"):
        scaler_of(**options)


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


# --- the cached norm ----------------------------------------------------------------------------------------
def reads(call):
    with Watch() as watch:
        call()
    return watch.calls["grad_stats"]


def test_behind_unscale_the_norm_is_known():
    optimizer, scaler = adamw(), scaler_of()
    begin(scaler, optimizer)
    scaler.unscale_(optimizer)
    wanted = torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in params_of(optimizer)]))
    norms = []
    assert reads(lambda: norms.append(clip_grad_norm_(params_of(optimizer)[::-1], 1e9))) == 0
    torch.testing.assert_close(norms[0], wanted)


def touch(optimizer):
    params_of(optimizer)[1].grad.mul_(2.0)


def replace(optimizer):
    p = params_of(optimizer)[1]
    p.grad = p.grad * 2


def drop(optimizer):
    params_of(optimizer)[1].grad = None


def move(optimizer):
    g = params_of(optimizer)[1].grad
    g.data = g.data * 2


@pytest.mark.parametrize("change", (touch, replace, drop, move))
def test_the_norm_of_other_gradients_is_measured(change):
    """Written, replaced, gone, or in other memory."""
    optimizer, scaler = adamw(), scaler_of()
    begin(scaler, optimizer)
    scaler.unscale_(optimizer)
    change(optimizer)
    norms = []
    assert reads(lambda: norms.append(clip_grad_norm_(params_of(optimizer), 1e9))) == 1
    grads = [p.grad.flatten() for p in params_of(optimizer) if p.grad is not None]
    torch.testing.assert_close(norms[0], torch.linalg.vector_norm(torch.cat(grads)))


def test_norms_of_several_optimizers_are_put_together():
    optimizers, scaler = [adamw(), adamw()], scaler_of()
    begin(scaler, *optimizers)
    for optimizer in optimizers:
        scaler.unscale_(optimizer)
    everything = [p for optimizer in optimizers for p in params_of(optimizer)]
    wanted = torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in everything]))
    norms = []
    assert reads(lambda: norms.append(clip_grad_norm_(everything, 1e9))) == 0
    torch.testing.assert_close(norms[0], wanted)
    assert reads(lambda: clip_grad_norm_(everything[:4], 1e9)) == 1  # a part of the second


@each_backend
def test_a_step_that_clips_behind_unscale_knows_the_norm(backend):
    optimizer, scaler = adamw(max_grad_norm=0.5), scaler_of()
    with use_backend(backend):
        for t in range(2):
            begin(scaler, optimizer, t=t)
            scaler.unscale_(optimizer)
            wanted = torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in params_of(optimizer)]))
            if t:  # the first one builds plans
                assert reads(lambda: scaler.step(optimizer)) == 0
            else:
                scaler.step(optimizer)
            torch.testing.assert_close(optimizer.last_grad_norm, wanted)
            scaler.update()
    assert measured.recall([p.grad for p in params_of(optimizer)]) is None  # forgotten by update()


def test_what_is_remembered_keeps_no_gradient_alive():
    optimizer, scaler = adamw(), scaler_of()
    begin(scaler, optimizer)
    scaler.unscale_(optimizer)
    ref = weakref.ref(params_of(optimizer)[0].grad)
    optimizer.zero_grad()
    assert ref() is None
    scaler.update(8.0)


# --- what torch's does not have -----------------------------------------------------------------------------
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


# --- files and copies ---------------------------------------------------------------------------------------
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
