"""torch.amp.GradScaler around our optimizers: scale, skipped steps and parameters are those of torch's."""

import warnings

import pytest
import torch
from onepass import use_backend
from optim_helpers import assert_trained_alike, each_backend, first_backend, params_of, randn, values
from phase_helpers import KINDS, each_kind, few_kinds, parameters, three_groups

STEPS = 24
OVERFLOWS = (0, 4, 5, 13)


def scaler_for(**options):
    return torch.amp.GradScaler("cpu", **{"init_scale": 1024.0, "growth_interval": 3, **options})


def backward(optimizer, scaler, t):
    """A loss whose gradients are random numbers; inf now and then."""
    optimizer.zero_grad()
    factors = [randn(*p.shape, seed=100 * t + i) for i, p in enumerate(params_of(optimizer))]
    if t in OVERFLOWS:
        factors[t % 3].view(-1)[0] = (torch.inf, torch.nan)[t % 2]
    loss = sum((p * x).sum() for p, x in zip(params_of(optimizer), factors, strict=True))
    scaler.scale(loss).backward()


def train(optimizer, unscale=False, clip=None, scheduler=None, **options):
    """Parameters, and the scaler's state at every step."""
    scaler, seen = scaler_for(**options), []
    schedule = scheduler(optimizer) if scheduler else None
    for t in range(STEPS):
        backward(optimizer, scaler, t)
        if unscale:
            scaler.unscale_(optimizer)
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(params_of(optimizer), clip, foreach=False)
        scaler.step(optimizer)
        scaler.update()
        if schedule:
            schedule.step()
        seen.append(scaler.state_dict())
    return values(optimizer), seen


def torchs(kind):
    return KINDS[kind].make_torch(three_groups(parameters()))


def assert_alike(ours, theirs):
    assert ours[1] == theirs[1]
    assert len({state["scale"] for state in theirs[1]}) > 3  # it has gone up and down
    assert_trained_alike(ours[0], theirs[0])


@each_kind
@first_backend
@pytest.mark.parametrize("unscale", (False, True), ids=("scaled", "unscaled"))
def test_training_under_a_scaler_is_torchs(kind, backend, unscale):
    """Gradients are unscaled once, by whoever does it."""
    with use_backend(backend):
        ours = train(KINDS[kind].make(three_groups(parameters())), unscale)
    assert_alike(ours, train(torchs(kind), unscale))


@each_kind
@first_backend
@pytest.mark.parametrize("unscale", (False, True), ids=("scaled", "unscaled"))
def test_max_grad_norm_is_torchs_clipping_between_unscale_and_step(kind, backend, unscale):
    with use_backend(backend):
        ours = train(KINDS[kind].make(three_groups(parameters()), max_grad_norm=3.0), unscale)
    assert_alike(ours, train(torchs(kind), unscale=True, clip=3.0))


@few_kinds
@each_backend
def test_clipping_by_hand_and_scales_that_are_no_powers_of_two(kind, backend):
    options = {
        "unscale": True,
        "clip": 3.0,
        "init_scale": 1000.0,
        "growth_factor": 3.0,
        "backoff_factor": 0.3,
    }
    with use_backend(backend):
        ours = train(KINDS[kind].make(three_groups(parameters())), **options)
    assert_alike(ours, train(torchs(kind), **options))


@few_kinds
@each_backend
@pytest.mark.parametrize("unscale", (False, True), ids=("scaled", "unscaled"))
def test_gradients_left_behind_are_unscaled_once(kind, backend, unscale):
    """write_grads leaves what torch would have after unscale_ and clip_grad_norm_; a skipped step nothing."""
    ours, theirs = KINDS[kind].make(parameters(), max_grad_norm=3.0, write_grads=True), torchs(kind)
    mine, scaler = scaler_for(), scaler_for()
    with use_backend(backend):
        for t in range(STEPS):
            backward(ours, mine, t)
            backward(theirs, scaler, t)
            scaler.unscale_(theirs)
            torch.nn.utils.clip_grad_norm_(params_of(theirs), 3.0, foreach=False)
            if unscale:
                mine.unscale_(ours)
            mine.step(ours)
            assert bool(ours.last_skipped) == (t in OVERFLOWS)
            for p, q in zip(params_of(ours), params_of(theirs), strict=True):
                if t not in OVERFLOWS:
                    torch.testing.assert_close(p.grad, q.grad, rtol=1e-6, atol=0.0)
            scaler.step(theirs)
            mine.update()
            scaler.update()


SCHEDULERS = {
    "step": lambda o: torch.optim.lr_scheduler.StepLR(o, 3, gamma=0.5),
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, STEPS),
    "once a cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(
        o, 2e-2, total_steps=STEPS + 1, cycle_momentum=False
    ),
}


@few_kinds
@each_backend
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_schedulers_under_a_scaler(kind, backend, scheduler):
    """Learning rates set by a scheduler take effect; none of its warnings that step() has not been called."""
    options = {"scheduler": SCHEDULERS[scheduler]}
    with use_backend(backend), warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = train(KINDS[kind].make(three_groups(parameters())), **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's optimizer is not called in a skipped first step
        theirs = train(torchs(kind), **options)
    assert_alike(ours, theirs)


@each_backend
def test_two_optimizers_under_one_scaler(backend):
    """Each is skipped for its own inf, and the scale backs off once."""

    def run(first, second):
        scaler, skipped = scaler_for(), []
        for t in range(8):
            before = [p.detach().clone() for o in (first, second) for p in params_of(o)]
            for optimizer, at in ((first, t), (second, t + 1000)):
                backward(optimizer, scaler, at)
            scaler.step(first)
            scaler.step(second)
            scaler.update()
            after = [p.detach() for o in (first, second) for p in params_of(o)]
            skipped.append([torch.equal(a, b) for a, b in zip(before, after, strict=True)])
        return [*values(first), *values(second)], skipped, scaler.state_dict()

    with use_backend(backend):
        ours = run(KINDS["adamw"].make(parameters()), KINDS["sgd_nesterov"].make(parameters()))
    theirs = run(torchs("adamw"), KINDS["sgd_nesterov"].make_torch(parameters()))
    assert ours[2] == theirs[2]
    assert ours[1] == theirs[1]


@each_backend
def test_a_disabled_scaler_scales_nothing(backend):
    with use_backend(backend):
        ours = KINDS["adamw"].make(three_groups(parameters()))
        scaler = scaler_for(enabled=False)
        theirs = torchs("adamw")
        for t in (1, 2, 3):
            for optimizer in (ours, theirs):
                backward(optimizer, scaler, t)
                scaler.step(optimizer)
                scaler.update()
    assert_trained_alike(values(ours), values(theirs))
