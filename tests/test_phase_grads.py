"""Gradients that a step writes: unscaled and clipped, or zeroed, wherever they lie; autograd hears of it."""

import pytest
import torch
from onepass import use_backend
from onepass.testing import layouts
from optim_helpers import each_backend, everything, first_backend, frozen, params_of, randn, span
from phase_helpers import (
    KINDS,
    CallByCall,
    assert_near,
    assert_trained,
    few_kinds,
    give,
    gradients,
    hand_in,
    parameters,
    three_groups,
)

STEPS = 20
SHAPES = ((40, 3), (65,), (7, 9), (4, 3, 5, 7), (1,), (2, 3, 5))
WRITING = {"write": {"write_grads": True}, "zero": {"zero_grads_in_step": True}}
LAYOUTS = {
    "dense": layouts.dense,
    "transposed": layouts.transposed,
    "channels last": layouts.channels_last,
    "sliced": layouts.every_second,
    "in one buffer": layouts.one_buffer,
}

each_writing = pytest.mark.parametrize("writing", WRITING)


def lay(optimizer, grads, layout):
    """Gives the gradients as they lie, without copying them."""
    laid = LAYOUTS[layout]([g.clone() for g in grads])
    for p, g in zip(params_of(optimizer), laid, strict=True):
        p.grad = g


def gaps(t):
    """Memory between the elements of t."""
    marks = torch.zeros_like(span(t), dtype=torch.bool)
    marks.as_strided(t.shape, t.stride()).fill_(True)
    return span(t)[~marks]


@few_kinds
@first_backend
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_that_lie_otherwise_than_their_parameters(kind, backend, dtype, layout):
    """Each element of the right gradient is written, and nothing between and beside them: unscaled and
    clipped in one step, zeroed in the next."""
    optimizer = KINDS[kind].make(three_groups(parameters(SHAPES, dtype)), max_grad_norm=3.0)
    oracle = CallByCall(kind, optimizer, max_grad_norm=3.0)
    with use_backend(backend):
        for t in range(6):
            optimizer.write_grads, optimizer.zero_grads_in_step = t % 2 == 0, t % 2 == 1
            grads = gradients(params_of(optimizer), t, 8.0)
            lay(optimizer, grads, layout)
            hand_in(optimizer, 8.0)
            oracle.follow_halves(params_of(optimizer))
            oracle.step(grads, 8.0)
            optimizer.step()
            for p, wanted in zip(params_of(optimizer), oracle.clipped, strict=True):
                assert (gaps(p.grad) == layouts.GAP).all()
                if optimizer.zero_grads_in_step:
                    assert torch.equal(p.grad, torch.zeros_like(p))
                else:
                    assert_near(p.grad, wanted, dtype)
            assert_trained(optimizer, oracle, t + 1)


@few_kinds
@each_backend
@each_writing
def test_written_gradients_are_torchs_over_many_steps(kind, backend, writing):
    """With zeroing, gradients may be accumulated into, as after torch's zero_grad(set_to_none=False)."""
    optimizer = KINDS[kind].make(three_groups(parameters()), max_grad_norm=2.0, **WRITING[writing])
    oracle = CallByCall(kind, optimizer, max_grad_norm=2.0)
    with use_backend(backend):
        for t in range(STEPS):
            grads = gradients(params_of(optimizer), t)
            for p, g in zip(params_of(optimizer), grads, strict=True):
                if writing == "zero" and p.grad is not None:
                    p.grad.add_(g)
                else:
                    p.grad = g.clone()
            oracle.step(grads)
            optimizer.step()
    assert_trained(optimizer, oracle, STEPS)


@each_backend
@each_writing
def test_a_stale_backward_raises(backend, writing):
    """A graph that holds the gradient, as a second derivative does, may not use what was overwritten."""
    optimizer = KINDS["adamw"].make([torch.nn.Parameter(randn(8))], max_grad_norm=0.1, **WRITING[writing])
    (p,) = params_of(optimizer)
    with use_backend(backend):
        for _ in range(3):
            p.grad = randn(8)
            held = torch.ones(8, requires_grad=True)
            loss = (held * p.grad).sum()  # saves the gradient for backward
            before = p.grad._version, p._version
            optimizer.step()
            assert p.grad._version > before[0] and p._version > before[1]
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                loss.backward()


@each_backend
def test_a_gradient_that_is_only_read_keeps_its_version(backend):
    optimizer = KINDS["adamw"].make(parameters(), max_grad_norm=0.1, ema_decay=0.9)
    with use_backend(backend):
        for t in range(3):
            give(optimizer, gradients(params_of(optimizer), t))
            before = [p.grad._version for p in params_of(optimizer)]
            optimizer.step()
            assert [p.grad._version for p in params_of(optimizer)] == before


@few_kinds
@each_backend
@each_writing
def test_set_to_none_and_new_memory_at_every_step(kind, backend, writing):
    """Gradients come and go, now here and now there, and those of earlier steps stay as they are."""
    optimizer = KINDS[kind].make(three_groups(parameters()), **WRITING[writing])
    oracle, kept = CallByCall(kind, optimizer), []
    with use_backend(backend):
        for t in range(STEPS):
            old = [p.grad for p in params_of(optimizer) if p.grad is not None]
            kept.append((old, frozen(old)))
            optimizer.zero_grad(set_to_none=True)
            grads = [
                None if (t + i) % 4 == 0 else g for i, g in enumerate(gradients(params_of(optimizer), t))
            ]
            give(optimizer, grads)
            oracle.step(grads)
            optimizer.step()
    assert_trained(optimizer, oracle, STEPS)
    assert all(frozen(old) == was for old, was in kept)


# --- refused ------------------------------------------------------------------------------------------------
def test_both_at_once_is_refused():
    both = {"write_grads": True, "zero_grads_in_step": True}
    with pytest.raises(ValueError, match="zero_grads_in_step and write_grads exclude each other"):
        KINDS["adamw"].make(parameters(), **both)


@each_backend
def test_both_at_once_set_later_is_refused_before_any_write(backend):
    optimizer = KINDS["adamw"].make(parameters(), write_grads=True)
    give(optimizer, gradients(params_of(optimizer), 0))
    with use_backend(backend):
        optimizer.step()
        optimizer.zero_grads_in_step = True
        before = frozen(everything(optimizer))
        with pytest.raises(ValueError, match="exclude each other"):
            optimizer.step()
    assert frozen(everything(optimizer)) == before


def expanded(shape):
    """As sum().backward() leaves it: one element for all."""
    return torch.ones(()).expand(shape)


@few_kinds
@each_backend
@each_writing
@pytest.mark.parametrize("first", (True, False), ids=("first step", "later"))
def test_expanded_gradients_cannot_be_written(kind, backend, writing, first):
    """As torch refuses an in-place operation on them; nothing has been written, and no state made, then."""
    optimizer = KINDS[kind].make(three_groups(parameters(SHAPES)), max_grad_norm=1.0, **WRITING[writing])
    with use_backend(backend):
        if not first:
            give(optimizer, gradients(params_of(optimizer), 0))
            optimizer.step()
        give(optimizer, gradients(params_of(optimizer), 1))
        params_of(optimizer)[3].grad = expanded(SHAPES[3])
        before, states = frozen(everything(optimizer)), len(optimizer.state)
        with pytest.raises(RuntimeError, match=r"grads\[\d\] has several elements at one address"):
            optimizer.step()
        assert frozen(everything(optimizer)) == before and len(optimizer.state) == states
        give(optimizer, gradients(params_of(optimizer), 2))
        optimizer.step()
    assert frozen(everything(optimizer)) != before


@few_kinds
@each_backend
def test_expanded_gradients_may_be_read(kind, backend):
    """Measured, clipped by and stepped with, as any other."""
    optimizer = KINDS[kind].make(three_groups(parameters(SHAPES)), max_grad_norm=1.0)
    oracle = CallByCall(kind, optimizer, max_grad_norm=1.0)
    with use_backend(backend):
        for t in range(STEPS):
            grads = gradients(params_of(optimizer), t)
            grads[3] = expanded(SHAPES[3])
            for p, g in zip(params_of(optimizer), grads, strict=True):
                p.grad = g
            oracle.step(grads)
            optimizer.step()
    assert_trained(optimizer, oracle, STEPS)
