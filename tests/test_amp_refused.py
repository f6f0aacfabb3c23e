"""onepass.amp.GradScaler: what is refused, in torch's words or better, with nothing written."""

import math

import onepass
import pytest
import torch
from amp_helpers import OURS, TORCH, adamw, begin, scaler_of, torchs
from onepass import use_backend
from optim_helpers import each_backend, frozen, params_of


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
