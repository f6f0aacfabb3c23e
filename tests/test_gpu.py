"""Every op and every optimizer on a GPU (`pytest -m gpu`). The oracle: the reference, or torch's for-loop.

The phase around a step stands in test_gpu_phase.py, what is about CUDA itself in test_gpu_cuda.py.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from gpu_helpers import DEVICE, VARIANTS, Make, each_variant, feed, marks, parameters, train
from onepass import backends, use_backend
from onepass.ops import OPS, Op
from onepass.testing import CASES, Case, Variant, verify
from optim_helpers import assert_trained_alike, params_of, randn, values
from phase_helpers import KINDS, each_kind, few_kinds
from torch import Tensor

pytestmark = marks

each_half = pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
CASES_OF_OPS = [
    pytest.param(op, case, dtype, id=f"{op.name}-{case.name}-{str(dtype).removeprefix('torch.')}")
    for op in OPS
    for case in CASES[op.name]
    for dtype in case.dtypes
    if not case.packed
]


def test_some_kernels_serve_this_device():
    assert VARIANTS, "neither C++ nor Triton kernels are here: nothing below would be tested"


@each_variant
@pytest.mark.parametrize("op, case, dtype", CASES_OF_OPS)
def test_op_agrees_with_the_reference(op: Op, case: Case, dtype: torch.dtype, variant: Variant):
    with variant.use():
        mismatches = verify(op, case, dtype, DEVICE)
    assert not mismatches, "\n".join(map(str, mismatches))


# --- optimizers against torch's -----------------------------------------------------------------------------
def many_steps(make: Make, **options: Any) -> list[Tensor]:
    optimizer = make(parameters(), **options)
    train(optimizer, range(30))
    return values(optimizer)


def groups(make: Make) -> list[Tensor]:
    p = parameters()
    more = {"lr": 2e-2, "weight_decay": 0.3, "maximize": True}
    optimizer = make([{"params": p[:4]}, {"params": p[4:7], **more}, {"params": p[7:], "lr": 1e-3}])
    train(optimizer, range(10))
    optimizer.param_groups[1]["lr"] = 1e-3
    train(optimizer, range(10, 15))
    return values(optimizer)


def lr_tensor(make: Make) -> list[Tensor]:
    lr = torch.tensor(1e-2, device=DEVICE)
    optimizer = make(parameters(), lr=lr)
    for t in range(10):
        lr.fill_(1e-2 / (1 + t))
        train(optimizer, range(t, t + 1))
    return values(optimizer)


def gradients_set_to_none(make: Make) -> list[Tensor]:
    """Gradients come to lie elsewhere at every step, between other allocations."""
    optimizer, others = make(parameters()), []
    for t in range(20):
        optimizer.zero_grad(set_to_none=True)
        others.append(torch.ones(64 * (t % 5 + 1), device=DEVICE))
        if t % 3 == 0:
            others.clear()
        train(optimizer, range(t, t + 1))
    return values(optimizer)


def gradients_now_and_then(make: Make) -> list[Tensor]:
    optimizer = make(parameters())
    for t in range(20):
        feed(optimizer, t)
        for i, p in enumerate(params_of(optimizer)):
            if (t + i) % 3 == 0:
                p.grad = None
        optimizer.step()
    optimizer.zero_grad()
    optimizer.step()
    return values(optimizer)


def add_param_group(make: Make) -> list[Tensor]:
    p = parameters()
    optimizer = make(p[:5])
    train(optimizer, range(4))
    optimizer.add_param_group({"params": p[5:], "lr": 3e-2})
    train(optimizer, range(4, 10))
    return values(optimizer)


def grad_scaler(make: Make, **options: Any) -> list[Tensor]:
    """A scale that grows, and overflows on the way, of which the optimizer may see nothing: the first step is
    one of them."""
    optimizer = make(parameters(), **options)
    scaler = torch.amp.GradScaler(DEVICE, init_scale=1024.0, growth_interval=3)
    scales = []
    for t in range(12):
        optimizer.zero_grad()
        weights = [randn(*p.shape, seed=100 * t + i).to(DEVICE) for i, p in enumerate(params_of(optimizer))]
        if t in (0, 4, 9):
            weights[2][0, 0] = float("inf")
        loss = sum((p * w).sum() for p, w in zip(params_of(optimizer), weights, strict=True))
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    return [*values(optimizer), torch.tensor(scales)]


SCENARIOS: dict[str, Callable[[Make], list[Tensor]]] = {
    "plain": many_steps,
    "weight_decay": functools.partial(many_steps, weight_decay=0.1),
    "groups": groups,
    "lr_tensor": lr_tensor,
    "gradients_set_to_none": gradients_set_to_none,
    "gradients_now_and_then": gradients_now_and_then,
    "add_param_group": add_param_group,
    "grad_scaler": grad_scaler,
}


@each_kind
@each_variant
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_trains_as_torch_does(scenario: str, variant: Variant, kind: str):
    with variant.use():
        ours = SCENARIOS[scenario](KINDS[kind].make)
    assert_trained_alike(ours, SCENARIOS[scenario](KINDS[kind].make_torch))


@each_variant
@pytest.mark.parametrize("kind", ("adam", "adamw", "sgd_nesterov"))
def test_fused_grad_scaler(variant: Variant, kind: str):
    """With fused=True the scaler hands scale and overflow to the optimizer, as device tensors."""
    with variant.use():
        ours = grad_scaler(KINDS[kind].make, fused=True)
    assert_trained_alike(ours, grad_scaler(KINDS[kind].make_torch))


@each_kind
@each_variant
def test_goes_on_from_a_state_dict_of_torchs(variant: Variant, kind: str):
    """A checkpoint in mid-training, and parameters in other memory."""

    def scenario(make: Make) -> list[Tensor]:
        first = KINDS[kind].make_torch(parameters())
        train(first, range(5))
        optimizer = make(parameters(), lr=7.0)
        train(optimizer, range(2))
        optimizer.load_state_dict(first.state_dict())
        for p, q in zip(params_of(optimizer), params_of(first), strict=True):
            p.data = q.detach().clone()
        train(optimizer, range(5, 12))
        return values(optimizer)

    with variant.use():
        ours = scenario(KINDS[kind].make)
    assert_trained_alike(ours, scenario(KINDS[kind].make_torch))


@each_variant
@pytest.mark.parametrize(
    "kind, option",
    (("adam", "amsgrad"), ("adamw", "amsgrad"), ("sgd", "momentum"), ("rmsprop", "centered")),
)
def test_groups_of_two_kinds(variant: Variant, kind: str, option: str):
    def scenario(make: Make) -> list[Tensor]:
        p, more = parameters(), {option: 0.9 if option == "momentum" else True}
        optimizer = make([{"params": p[:4]}, {"params": p[4:], **more}])
        train(optimizer, range(10))
        return values(optimizer)

    with variant.use():
        ours = scenario(KINDS[kind].make)
    assert_trained_alike(ours, scenario(KINDS[kind].make_torch))


@each_kind
@each_variant
@each_half
def test_half_parameters_are_rounded_from_float32_steps(variant: Variant, kind: str, dtype: torch.dtype):
    """Each step starts from our half parameters; torch's float32 step from there, rounded, is wanted."""
    ours = KINDS[kind].make(parameters(dtype=dtype))
    theirs = KINDS[kind].make_torch([p.detach().float() for p in params_of(ours)])
    with variant.use():
        for t in range(30):
            feed(ours, t)
            for p, q in zip(params_of(ours), params_of(theirs), strict=True):
                q.data.copy_(p.detach())
                q.grad = p.grad.float()
            ours.step()
            theirs.step()
            for p, q in zip(params_of(ours), params_of(theirs), strict=True):
                assert all(ours.state[p][name].dtype == torch.float32 for name in KINDS[kind].states)
                close = 2 * torch.finfo(dtype).eps
                torch.testing.assert_close(p.detach(), q.detach().to(dtype), rtol=close, atol=1e-6)


@each_kind
@each_variant
def test_empty_tensors_only(variant: Variant, kind: str):
    optimizer = KINDS[kind].make(parameters([(0,), (2, 0, 4)]), max_grad_norm=1.0, ema_decay=0.9)
    with variant.use():
        train(optimizer, range(3))
    assert all(float(optimizer.state[p].get("step", 3)) == 3 for p in params_of(optimizer))
    assert optimizer.last_grad_norm.item() == 0.0


@few_kinds
@each_variant
def test_thousands_of_tiny_tensors(variant: Variant, kind: str):
    def scenario(make: Make) -> list[Tensor]:
        optimizer = make(parameters([(i % 7 + 1,) for i in range(3000)]))
        train(optimizer, range(3))
        return [torch.cat(values(optimizer))]

    with variant.use():
        ours = scenario(KINDS[kind].make)
    assert_trained_alike(ours, scenario(KINDS[kind].make_torch))


@each_kind
@each_variant
def test_stale_backward_raises(variant: Variant, kind: str):
    optimizer = KINDS[kind].make(parameters([(8, 8)]))
    (p,) = params_of(optimizer)
    with variant.use():
        for _ in range(3):
            loss = (p * p).sum()
            loss.backward(retain_graph=True)
            optimizer.step()
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                loss.backward()


@each_kind
def test_backends_take_turns_in_one_training(kind: str):
    def scenario(make: Make, turns: Sequence[str]) -> list[Tensor]:
        optimizer = make(parameters())
        for t in range(9):
            with use_backend(turns[t % len(turns)]):
                train(optimizer, range(t, t + 1))
        return values(optimizer)

    served = [b for b in backends.BACKENDS if backends.serves(b, DEVICE)]
    ours = scenario(KINDS[kind].make, served)
    assert_trained_alike(ours, scenario(KINDS[kind].make_torch, ["reference"]))
