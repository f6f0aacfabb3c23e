"""Any optimizer with any options: one step against torch's in float32, many against float64."""

import copy

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onepass.testing.threads import threads
from optim_helpers import error, leaves, params_of, randn
from phase_helpers import KINDS

ONE_STEP = 1e-6  # relative to the largest of the parameter before and after the step, and its momentum

lrs, decays = st.sampled_from((0.0, 1e-4, 1e-3, 0.01)), st.sampled_from((0.0, 1e-2, 0.3))
betas = st.sampled_from(((0.0, 0.999), (0.5, 0.9), (0.9, 0.99), (0.9, 0.999), (0.95, 0.99999)))
eps = st.sampled_from((1e-8, 1e-3, 1.0))
OPTIONS = {
    "adam": {"betas": betas, "eps": eps, "amsgrad": st.booleans()},
    "adamw": {"betas": betas, "eps": eps, "amsgrad": st.booleans()},
    "sgd": {"momentum": st.sampled_from((0.0, 0.5, 0.99)), "dampening": st.sampled_from((0.0, 0.3))},
    "sgd_nesterov": {"momentum": st.sampled_from((0.5, 0.9))},
    "rmsprop": {
        "alpha": st.sampled_from((0.5, 0.9, 0.99)),
        "eps": eps,
        "centered": st.booleans(),
        "momentum": st.sampled_from((0.0, 0.9)),
    },
    "adagrad": {
        "lr_decay": st.sampled_from((0.0, 0.1)),
        "initial_accumulator_value": st.sampled_from((0.1, 1.0)),
        "eps": eps,
    },
    "lion": {"betas": st.sampled_from(((0.875, 0.96875), (0.75, 0.5)))},  # exact: a sign is all that counts
}

CANCELS = ("sgd_nesterov", {"lr": 0.01, "momentum": 0.9})  # somewhere the gradient, against the momentum


@st.composite
def configurations(draw):
    kind = draw(st.sampled_from(sorted(OPTIONS)))
    options = {"lr": lrs, "weight_decay": decays, "maximize": st.booleans(), **OPTIONS[kind]}
    return kind, {name: draw(values) for name, values in options.items()}


@settings(max_examples=200, deadline=None)
@example(CANCELS, (8, 14, 16), 30.0, 1, 5)
@given(
    configuration=configurations(),
    shape=st.lists(st.integers(1, 40), max_size=3).map(tuple),
    scale=st.sampled_from((1e-3, 1.0, 30.0)),
    steps=st.integers(0, 5),
    seed=st.integers(0, 10_000),
)
def test_one_step_of_200_configurations_is_torchs(configuration, shape, scale, steps, seed):
    """From torch's state after some steps, with the same gradient."""
    kind, options = configuration
    x = randn(*shape, seed=seed)
    start = x + 0.2 * x.sign()  # a parameter that comes close to zero has no digits to be compared by
    theirs = KINDS[kind].make_torch(leaves([start]), **options)
    (q,) = params_of(theirs)
    for t in range(steps):
        q.grad = scale * randn(*shape, seed=seed + 1 + t)
        theirs.step()
    ours = KINDS[kind].make(leaves([q.detach()]), **options)
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    (p,) = params_of(ours)
    before = q.detach().clone()
    momentum = theirs.state[q].get("momentum_buffer")  # the gradient may take all but its last digits away
    terms = [] if momentum is None else [options["lr"] * momentum.clone()]
    for x in (p, q):
        x.grad = scale * randn(*shape, seed=seed + 99)
    ours.step()
    theirs.step()
    assert error(q, p, before, *terms) <= ONE_STEP
    for name, state in theirs.state_dict()["state"].get(0, {}).items():
        mine = ours.state_dict()["state"][0][name]
        assert (mine.shape, mine.dtype) == (state.shape, state.dtype), name


def network_like(seed):
    """Weights of five layers, each of its own size."""
    sizes, scales = (12288, 6144, 1536, 96, 64), (0.10, 0.12, 0.25, 0.02, 1.0)
    return randn(sum(sizes), seed=seed) * torch.tensor(scales).repeat_interleave(torch.tensor(sizes))


def displacement(p, exact, start):
    """||p - exact|| / ||exact - start||"""
    exact, start = exact.detach().double(), start.double()
    return ((p.detach().double() - exact).norm() / (exact - start).norm()).item()


LRS = {"sgd": 1e-2, "sgd_nesterov": 1e-3, "sgd_dampening": 1e-3, "adagrad": 1e-2}
LUCK = (
    1.01  # SGD and AdaGrad: what is left is each parameter's own rounding, once a step, which is torch's too
)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "lion"])
def test_displacement_after_2000_steps_is_no_further_from_float64_than_torchs(kind):
    """Gradients whose mean turns slowly, as a network has them. Lion's steps are of one size, whatever the
    gradient: its sign where terms cancel is a matter of rounding, and the way from there another one."""
    start, drift = network_like(seed=1), randn(20128, seed=2)
    options = {"lr": LRS.get(kind, 1e-4), "weight_decay": 1e-2}
    ours = KINDS[kind].make(leaves([start]), **options)
    theirs = KINDS[kind].make_torch(leaves([start]), **options)
    exact = KINDS[kind].make_torch(leaves([start.double()]), **options)
    generator = torch.Generator().manual_seed(7)
    with threads(1):
        for t in range(2000):
            g = 1e-3 * (drift * (1 - t / 1000) + torch.randn(drift.shape, generator=generator))
            for optimizer in (ours, theirs, exact):
                (p,) = params_of(optimizer)
                p.grad = g.to(p.dtype)
                optimizer.step()
    mine, torchs = (displacement(*params_of(o), *params_of(exact), start) for o in (ours, theirs))
    assert mine <= torchs * (LUCK if kind in LRS else 1.0)
    assert mine < 1e-4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize(
    "phase", ({}, {"max_grad_norm": 1.0, "zero_grads_in_step": True, "ema_decay": 0.9}), ids=str
)
def test_a_long_list_has_the_bits_of_its_tensors_alone(kind, dtype, phase):
    """A long piece is walked in strands, csrc/cpu/strands.h: each element once, whatever lies between."""
    shapes = ((70_001,), (0,), (5,), (300, 401), (0,), (33,), *[(700,)] * 50, (65_537,), ())
    start = [randn(*shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes)]
    grads = [1e-4 * randn(*shape, seed=100 + i, dtype=dtype) for i, shape in enumerate(shapes)]  # not clipped
    whole = KINDS[kind].make(leaves(start), **phase)
    single = [KINDS[kind].make(leaves([x]), **phase) for x in start]
    with threads(1):
        for _ in range(3):
            for p, g in zip(params_of(whole), grads, strict=True):
                p.grad = g.clone()
            whole.step()
            for optimizer, g in zip(single, grads, strict=True):
                params_of(optimizer)[0].grad = g.clone()
                optimizer.step()
    for i, (p, optimizer) in enumerate(zip(params_of(whole), single, strict=True)):
        (q,) = params_of(optimizer)
        assert torch.equal(p, q) and torch.equal(p.grad, q.grad), i
        for name, value in optimizer.state.get(q, {}).items():
            assert torch.equal(whole.state[p][name], value), (i, name)
