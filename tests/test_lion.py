"""Lion against algorithm 2 of "Symbolic Discovery of Optimization Algorithms" (Chen et al. 2023), written out
here in float64, and among torch's surroundings."""

import copy
import inspect
import math

import pytest
import torch
from onepass import use_backend
from onepass.optim import Lion
from optim_helpers import each_backend, frozen, params_of
from phase_helpers import (
    HALVES,
    SHAPES,
    assert_near,
    each_dtype,
    give,
    gradients,
    parameters,
    three_groups,
)
from torch.optim import lr_scheduler

STEPS = 30


def algorithm_2(p, m, g, lr, beta1, beta2, decay):
    """One step on float64 tensors: the new parameter and momentum."""
    c = beta1 * m + (1 - beta1) * g
    return p - lr * (torch.sign(c) + decay * p), beta2 * m + (1 - beta2) * g


def train(optimizer, steps):
    for t in steps:
        give(optimizer, gradients(params_of(optimizer), t))
        optimizer.step()


def rows_of(optimizer):
    """Each parameter with its group's lr, betas, weight decay and direction."""
    return [
        (p, (g["lr"], *g["betas"], g["weight_decay"]), -1.0 if g["maximize"] else 1.0)
        for g in optimizer.param_groups
        for p in g["params"]
    ]


def assert_trains_by_the_paper(optimizer, backend):
    """Half parameters start each step of the paper's, too: only what the step does is compared."""
    starts = [p.detach().double().clone() for p in params_of(optimizer)]
    exact = [(start, torch.zeros_like(start)) for start in starts]
    with use_backend(backend):
        for t in range(STEPS):
            grads = gradients(params_of(optimizer), t)
            give(optimizer, grads)
            for i, (p, hyper, direction) in enumerate(rows_of(optimizer)):
                start = p.detach().double() if p.dtype in HALVES else exact[i][0]
                exact[i] = algorithm_2(start.clone(), exact[i][1], direction * grads[i].double(), *hyper)
            optimizer.step()
            if t % 3 == 2:
                compare(optimizer, exact, t + 1)


def compare(optimizer, exact, steps):
    for (p, hyper, _), (value, momentum) in zip(rows_of(optimizer), exact, strict=True):
        assert_near(p, value, p.dtype, steps, steps, least=1.0)
        added = 1 - hyper[2]  # by a gradient of size 1, whose rounding stays when others cancel it
        assert_near(optimizer.state[p]["exp_avg"], momentum, p.dtype, steps, steps, least=added)


@each_backend
@each_dtype
@pytest.mark.parametrize("maximize", (False, True), ids=("minimize", "maximize"))
@pytest.mark.parametrize("betas", ((0.9, 0.99), (0.95, 0.98), (0.0, 0.5)), ids=str)
def test_training_is_the_papers(backend, dtype, maximize, betas):
    """Over many steps and groups, with weight decay and without."""
    groups = three_groups(parameters(dtype=dtype))
    assert_trains_by_the_paper(Lion(groups, lr=3e-3, betas=betas, maximize=maximize), backend)


@each_backend
def test_groups_may_differ_in_everything(backend):
    p = parameters()
    groups = [
        {"params": p[:2]},
        {"params": p[2:4], "betas": (0.5, 0.7), "maximize": True},
        {"params": p[4:], "weight_decay": 1.0, "lr": 2e-2},
    ]
    assert_trains_by_the_paper(Lion(groups, lr=1e-3), backend)


@each_backend
@each_dtype
def test_where_the_update_cancels_nothing_moves(backend, dtype):
    """sign(0) is 0: beta1 * m and (1 - beta1) * g are +1 and -1 times the same number."""
    optimizer = Lion([torch.nn.Parameter(torch.ones(5, dtype=dtype))], lr=0.25, betas=(0.5, 0.5))
    (p,) = params_of(optimizer)
    with use_backend(backend):
        p.grad = torch.full_like(p, 2.0)  # momentum 1, and p one step down
        optimizer.step()
        p.grad = torch.full_like(p, -1.0)
        optimizer.step()
    assert torch.equal(p.detach(), torch.full_like(p, 0.75))
    assert torch.equal(optimizer.state[p]["exp_avg"], torch.zeros_like(optimizer.state[p]["exp_avg"]))


@each_backend
def test_every_update_is_lr_wide(backend):
    """Whatever the size of the gradient."""
    optimizer = Lion([torch.nn.Parameter(torch.zeros(3))], lr=0.5)
    (p,) = params_of(optimizer)
    p.grad = torch.tensor([1e30, -1e-30, 0.0])
    with use_backend(backend):
        optimizer.step()
    assert torch.equal(p.detach(), torch.tensor([-0.5, 0.5, 0.0]))


@each_backend
def test_nan_stays_nan(backend):
    """The sign of NaN is NaN, as torch has it: no gradient is lost in silence."""
    optimizer = Lion([torch.nn.Parameter(torch.ones(3))], lr=0.5)
    (p,) = params_of(optimizer)
    p.grad = torch.tensor([1.0, math.nan, math.inf])
    with use_backend(backend):
        optimizer.step()
    wanted = 1 - 0.5 * torch.sign(p.grad)
    torch.testing.assert_close(p.detach(), wanted, equal_nan=True, rtol=0, atol=0)


# --- as torch's optimizers are ------------------------------------------------------------------------------
def test_signature_is_the_papers_implementations():
    """params, lr, betas, weight_decay may be given by position; all else by name."""
    arguments = list(inspect.signature(Lion).parameters.values())
    positional = [(a.name, a.default) for a in arguments if a.kind is not a.KEYWORD_ONLY]
    wanted = [("lr", 1e-4), ("betas", (0.9, 0.99)), ("weight_decay", 0.0)]
    assert positional[0][0] == "params" and positional[1:] == wanted
    assert ("maximize", False) in [(a.name, a.default) for a in arguments if a.kind is a.KEYWORD_ONLY]
    optimizer = Lion(parameters(), 1e-3, (0.8, 0.9), 0.1)
    assert isinstance(optimizer, torch.optim.Optimizer)
    group = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
    assert group == {"lr": 1e-3, "betas": (0.8, 0.9), "weight_decay": 0.1, "maximize": False}


@pytest.mark.parametrize(
    "options, words",
    (
        ({"lr": -1.0}, "Invalid learning rate: -1.0"),
        ({"lr": math.nan}, "Invalid learning rate: nan"),
        ({"betas": (1.0, 0.9)}, "Invalid beta parameter at index 0: 1.0"),
        ({"betas": (0.9, -0.1)}, "Invalid beta parameter at index 1: -0.1"),
        ({"weight_decay": -0.1}, "Invalid weight_decay value: -0.1"),
    ),
)
def test_arguments_out_of_range(options, words):
    with pytest.raises(ValueError, match=words):
        Lion(parameters(), **options)


@each_backend
@each_dtype
def test_the_state_is_exp_avg_and_nothing_else(backend, dtype):
    optimizer = Lion(parameters(dtype=dtype))
    with use_backend(backend):
        train(optimizer, range(2))
    kept = torch.float32 if dtype in HALVES else dtype
    for p in params_of(optimizer):
        assert list(optimizer.state[p]) == ["exp_avg"]
        assert optimizer.state[p]["exp_avg"].dtype == kept and optimizer.state[p]["exp_avg"].shape == p.shape


@each_backend
@each_dtype
def test_resumed_training_is_bit_equal(backend, dtype):
    whole, first, second = (Lion(three_groups(parameters(dtype=dtype))) for _ in range(3))
    with use_backend(backend):
        train(whole, range(10))
        train(first, range(5))
        second.load_state_dict(copy.deepcopy(first.state_dict()))
        for p, q in zip(params_of(second), params_of(first), strict=True):
            p.data.copy_(q.data)
        train(second, range(5, 10))
    assert frozen(params_of(second)) == frozen(params_of(whole))
    assert second.state_dict()["param_groups"] == whole.state_dict()["param_groups"]


@each_backend
def test_schedulers_and_a_tensor_lr(backend):
    """A scheduler that writes a tensor lr and one that replaces a float lead to the same parameters."""
    rate = torch.tensor(1e-2, dtype=torch.float64)
    floats, tensors = Lion(parameters(), lr=1e-2), Lion(parameters(), lr=rate)
    schedulers = [lr_scheduler.ExponentialLR(o, 0.8) for o in (floats, tensors)]
    with use_backend(backend):
        for t in range(10):
            train(floats, [t])
            train(tensors, [t])
            for scheduler in schedulers:
                scheduler.step()
    assert floats.param_groups[0]["lr"] == pytest.approx(1e-2 * 0.8**10)
    for p, q in zip(params_of(floats), params_of(tensors), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)


@each_backend
@pytest.mark.parametrize("kind", ("complex", "listed twice", "sparse"))
def test_what_no_kernel_serves_is_refused(backend, kind):
    """There is no Lion in torch to fall back on. Nothing is written."""
    dtype = torch.complex64 if kind == "complex" else torch.float32
    p = torch.nn.Parameter(torch.ones(SHAPES[0], dtype=dtype))
    optimizer = Lion([p, torch.nn.Parameter(p.detach())] if kind == "listed twice" else [p])
    for q in params_of(optimizer):
        q.grad = torch.ones_like(q).to_sparse() if kind == "sparse" else torch.ones_like(q)
    before = p.detach().clone()
    with use_backend(backend), pytest.raises(RuntimeError, match="Lion"):
        optimizer.step()
    assert torch.equal(p.detach(), before)
