"""The norm that a step measures and clips by: exact at any size, and one for all gradients of an optimizer,
however they are stepped."""

import itertools
import math

import pytest
import torch
from onepass import backends, use_backend
from optim_helpers import each_backend, needs_cpp, params_of, randn
from phase_helpers import (
    KINDS,
    CallByCall,
    assert_trained,
    close,
    each_kind,
    few_kinds,
    give,
    gradients,
    hand_in,
    parameters,
    three_groups,
)

STEPS = 20


def norm_of(grads):
    """sqrt of the sum of squares, each scaled first, so that float64 holds them all."""
    largest = max(g.double().abs().max().item() for g in grads if g.numel())
    return largest * math.sqrt(sum((g.double() / largest).square().sum().item() for g in grads))


@few_kinds
@each_backend
@pytest.mark.parametrize(
    "size, scale", ((1e25, None), (1e-25, 1024.0), (1e-38, None), (3e36, None), (3e36, 1024.0))
)
def test_norms_whose_squares_no_float32_holds(kind, backend, size, scale):
    """The norm is right, nothing is skipped, and what is clipped has the norm that was asked for."""
    shapes = [(64, 33), (33,), (1,)]
    optimizer = KINDS[kind].make(parameters(shapes), max_grad_norm=0.5, write_grads=True)
    with use_backend(backend):
        for t in range(3):
            grads = gradients(params_of(optimizer), t, size)
            give(optimizer, grads)
            hand_in(optimizer, scale)
            optimizer.step()
            wanted = norm_of(grads) / (scale or 1.0)
            assert not optimizer.last_skipped
            # A float32 below 1.2e-38 has fewer digits than others.
            digits = 1e-6 if wanted > 1e-37 else 1e-3
            assert close(optimizer.last_grad_norm.item(), wanted, digits)
            left = norm_of([p.grad for p in params_of(optimizer)])
            assert close(left, min(0.5, wanted), digits) or wanted < 1e-37
    assert all(p.isfinite().all() for p in params_of(optimizer))


@each_kind
@each_backend
def test_an_infinite_max_norm_only_measures(kind, backend):
    """Bit for bit the training without it, and each step's norm."""
    plain = KINDS[kind].make(three_groups(parameters()))
    measured = KINDS[kind].make(three_groups(parameters()), max_grad_norm=math.inf)
    with use_backend(backend):
        for t in range(STEPS):
            for optimizer in (plain, measured):
                give(optimizer, gradients(params_of(optimizer), t))
                optimizer.step()
            wanted = norm_of([p.grad for p in params_of(measured)])
            assert close(measured.last_grad_norm.item(), wanted)
            assert plain.last_grad_norm is None
    assert all(torch.equal(p, q) for p, q in zip(params_of(plain), params_of(measured), strict=True))


@each_backend
def test_last_grad_norm_is_a_new_tensor_at_every_step(backend):
    """Of one element, in float64 where a parameter is, else float32; the next step leaves it alone."""
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        optimizer = KINDS["adamw"].make(parameters(dtype=dtype), max_grad_norm=1.0)
        norms = []
        with use_backend(backend):
            for t in range(3):
                give(optimizer, gradients(params_of(optimizer), t, 1.0 + t))
                optimizer.step()
                norms.append((optimizer.last_grad_norm, optimizer.last_grad_norm.item()))
        assert all(norm.item() == value for norm, value in norms)
        assert len({value for _, value in norms}) == 3
        assert norms[0][0].shape == () and norms[0][0].dtype == (
            torch.float64 if dtype == torch.float64 else torch.float32
        )


@each_backend
def test_without_gradients_the_norm_is_zero(backend):
    """As torch's clip_grad_norm_ has it, after steps with gradients too."""
    optimizer = KINDS["adamw"].make(parameters(), max_grad_norm=1.0)
    with use_backend(backend):
        optimizer.step()
        assert optimizer.last_grad_norm.item() == 0.0
        give(optimizer, gradients(params_of(optimizer), 0))
        optimizer.step()
        assert optimizer.last_grad_norm.item() > 0
        optimizer.zero_grad()
        optimizer.step()
    assert optimizer.last_grad_norm.item() == 0.0 and not optimizer.last_skipped


# --- one norm for all, whichever way a group is stepped -----------------------------------------------------
class Tagged(torch.nn.Parameter):
    """A subclass: stepped through the op, and not by a plan."""


def tagged(p):
    return Tagged(p.detach())


def dtypes(params):
    kinds = (torch.float32, torch.bfloat16, torch.float64)
    return [torch.nn.Parameter(p.detach().to(kind)) for p, kind in zip(params, itertools.cycle(kinds))]


def options_of(kind):
    """Options of a group that bring about another variant, where the optimizer has one."""
    variants = {"adam": {"amsgrad": True}, "sgd": {"momentum": 0.9}, "rmsprop": {"centered": True}}
    return variants.get(kind.split("_")[0], {})


def one_dtype(kind, params):
    return three_groups(params)


def dtypes_in_each_group(kind, params):
    return three_groups(dtypes(params))


def two_variants(kind, params):
    return [{"params": params[:3]}, {"params": params[3:], **options_of(kind)}]


def plan_and_subclass(kind, params):
    return [{"params": params[:3]}, {"params": [tagged(p) for p in params[3:]]}]


def everything_at_once(kind, params):
    mixed = dtypes(params)
    subclass = {"params": [tagged(p) for p in mixed[4:]], "weight_decay": 0.1}
    return [{"params": mixed[:2]}, {"params": mixed[2:4], **options_of(kind)}, subclass]


MIXES = (one_dtype, dtypes_in_each_group, two_variants, plan_and_subclass, everything_at_once)


def negative(g):
    """The same values behind the negative bit, which a plan does not read."""
    return torch._neg_view(-g)


@few_kinds
@each_backend
@pytest.mark.parametrize("mix", MIXES, ids=lambda mix: mix.__name__)
def test_one_norm_over_all_groups(kind, backend, mix):
    """Groups, dtypes, variants, plans and ops beside each other are clipped by the norm of all of them; in
    some steps one gradient has the negative bit, so that its group leaves its plan."""
    optimizer = KINDS[kind].make(mix(kind, parameters()), max_grad_norm=2.0, ema_decay=0.9)
    oracle = CallByCall(kind, optimizer, max_grad_norm=2.0, ema_decay=0.9)
    with use_backend(backend):
        for t in range(STEPS):
            grads = gradients(params_of(optimizer), t, 0.02 if t % 4 == 0 else 1.0)
            give(optimizer, grads)
            if t % 3 == 2:
                params_of(optimizer)[1].grad = negative(grads[1])
            oracle.follow_halves(params_of(optimizer))
            norm = oracle.step(grads)
            optimizer.step()
            torch.testing.assert_close(optimizer.last_grad_norm.double(), norm, rtol=1e-7, atol=0.0)
            if t % 4 == 3:
                assert_trained(optimizer, oracle, t + 1)


@needs_cpp
@few_kinds
def test_the_mixes_take_the_ways_that_they_name(kind):
    """What the test above is about does happen."""
    ways = {}
    for mix in MIXES:
        optimizer = KINDS[kind].make(mix(kind, parameters()), max_grad_norm=2.0)
        give(optimizer, gradients(params_of(optimizer), 0))
        optimizer.step()
        ways[mix] = (len(optimizer._plans), len(optimizer._plans.rest))
    assert backends.backend_of("cpu") != "cpp" or ways[one_dtype] == (1, 0)
    assert ways[plan_and_subclass] == (1, 1)
    variants = 2 if options_of(kind) else 1
    assert ways[two_variants][0] in (1, variants)


@each_backend
def test_inf_in_one_way_skips_all_ways(backend):
    """A group stepped by an op hears of the inf that a plan has found, and the other way round."""
    for bad in (0, 5):
        optimizer = KINDS["adamw"].make(plan_and_subclass("adamw", parameters()), max_grad_norm=1.0)
        before = [p.detach().clone() for p in params_of(optimizer)]
        grads = gradients(params_of(optimizer), 0)
        grads[bad].view(-1)[-1] = math.nan
        give(optimizer, grads)
        with use_backend(backend):
            optimizer.step()
        assert optimizer.last_skipped
        assert all(torch.equal(p, old) for p, old in zip(params_of(optimizer), before, strict=True))


@each_backend
def test_a_step_without_max_norm_forgets_the_norm(backend):
    """max_grad_norm switched off and on between steps takes effect at once."""
    optimizer = KINDS["sgd"].make([torch.nn.Parameter(randn(5))], lr=1.0)
    (p,) = params_of(optimizer)
    with use_backend(backend):
        for limit in (None, 0.1, None, math.inf, 0.1):
            optimizer.max_grad_norm = limit
            before, p.grad = p.detach().clone(), torch.ones(5)
            optimizer.step()
            moved = (before - p.detach()).norm().item()
            assert close(moved, 0.1 if limit == 0.1 else math.sqrt(5), 1e-5)
            assert (optimizer.last_grad_norm is None) == (limit is None)
