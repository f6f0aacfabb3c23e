"""The norm that unscale_ has measured, and whose gradients it is the norm of."""

import weakref

import pytest
import torch
from amp_helpers import adamw, begin, scaler_of
from onepass import use_backend
from onepass.optim import clip_grad_norm_, measured
from optim_helpers import each_backend, params_of
from test_host_path import Watch


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
