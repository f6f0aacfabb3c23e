"""Adam and AdamW against torch's for-loop path in float32 and against torch in float64."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optim_helpers import (
    MOMENTS,
    OURS,
    copy_of,
    each_backend,
    error,
    leaves,
    make_torch,
    names,
    needs_cpp,
    params_of,
    randn,
    span,
    take_over,
)
from torch import Tensor

from onepass import backends, use_backend

ONE_STEP = 1e-6  # relative to the parameter before or after the step, whichever is larger
BETAS = ((0.0, 0.999), (0.9, 0.999), (0.5, 0.9), (0.95, 0.999))


def pair(name, tensors, split=None, **options):
    """Our optimizer and torch's. split: [(indices, options of that group)], one group of all if None."""
    split = split or [(range(len(tensors)), {})]
    made = []
    for make in (OURS[name], make_torch(name)):
        params = leaves(tensors)
        made.append(make([{"params": [params[i] for i in on], **extra} for on, extra in split], **options))
    return made


def set_grads(optimizer, grads):
    for p, g in zip(params_of(optimizer), grads, strict=True):
        p.grad = copy_of(g)


def scaled_grads(tensors, t, decades=(-3, 1)):
    """Random gradients whose scale differs from element to element, but not from step to step."""
    grads = []
    for i, x in enumerate(tensors):
        powers = torch.rand(x.shape, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
        scale = 10 ** (decades[0] + (decades[1] - decades[0]) * powers)
        grads.append((randn(*x.shape, seed=7919 * t + i).double() * scale).to(x.dtype))
    return grads


def assert_one_step_equal(ours, theirs, grads, tolerance=ONE_STEP, where=""):
    """One step of both from torch's state, with the same gradients.

    States are compared relative to the largest of: the state now, the state before, and what the gradient
    adds to it. torch's lerp and ours round in another order, so each may be off by a unit or two in the last
    place (1.2e-7) of the largest term; where terms cancel, that is far above the last place of their sum.
    """
    set_grads(ours, grads)
    set_grads(theirs, grads)
    if theirs.state:
        take_over(ours, theirs)
    old = [(q.detach().clone(), {k: v.clone() for k, v in theirs.state[q].items()}) for q in params_of(theirs)]
    ours.step()
    theirs.step()
    groups = [group for group in theirs.param_groups for _ in group["params"]]
    for i, (p, q, (p0, s0), group) in enumerate(zip(params_of(ours), params_of(theirs), old, groups, strict=True)):
        assert error(q, p, p0) <= tolerance, f"parameter {i} {where}"
        mine, state = ours.state[p], theirs.state[q]
        assert list(mine) == list(state)
        assert mine["step"].item() == state["step"].item()
        g = q.grad if group["decoupled_weight_decay"] else q.grad.abs() + group["weight_decay"] * p0.abs()
        beta1, beta2 = group["betas"]
        square = (1 - beta2) * g * g
        for key, added in zip(MOMENTS, ((1 - beta1) * g, square, square), strict=True):
            if key in state:
                before = s0.get(key, torch.zeros_like(q))
                assert error(state[key], mine[key], before, added) <= tolerance, f"{key} {i} {where}"


# --- (a) one step, float32 ----------------------------------------------------------------------------------
@names
@pytest.mark.parametrize("weight_decay", (0.0, 0.1))
@pytest.mark.parametrize("maximize", (False, True), ids=("min", "max"))
@pytest.mark.parametrize("amsgrad", (False, True), ids=("plain", "amsgrad"))
def test_one_step_is_torchs_at_every_step_number(name, amsgrad, maximize, weight_decay):
    rows = list(itertools.product(BETAS, (1e-8, 1e-3)))
    tensors = [randn(509, seed=i) for i in range(len(rows))]
    split = [([i], {"betas": betas, "eps": eps}) for i, (betas, eps) in enumerate(rows)]
    options = {"amsgrad": amsgrad, "maximize": maximize, "weight_decay": weight_decay}
    ours, theirs = pair(name, tensors, split, lr=1e-3, **options)
    for t in range(1, 101):
        assert_one_step_equal(ours, theirs, scaled_grads(tensors, t), where=f"{rows} at t = {t}")
