"""Every op and optimizer on a GPU (`pytest -m gpu`). The oracle: the reference, or torch's for-loop path.

DEVICE is the only place that says where; everything that is about CUDA itself stands in the second half.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import onepass
import pytest
import torch
from onepass import backends, use_backend
from onepass.ops import OPS, Op
from onepass.testing import CASES, Case, Variant, variants, verify
from optim_helpers import OURS, assert_trained_alike, make_torch, names, params_of, randn, values
from torch import Tensor

DEVICE = "cuda"
HERE = torch.cuda.is_available() or DEVICE == "cpu"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not HERE, reason="torch sees no CUDA device here")]

VARIANTS = [v for v in variants(DEVICE) if v.backend != "reference"]
each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)
each_half = pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
SHAPES = ((64, 33), (33,), (10, 64), (10,), (), (1,), (3, 5, 7), (0,), (4099,))
CASES_OF_OPS = [
    pytest.param(op, case, dtype, id=f"{op.name}-{case.name}-{str(dtype).removeprefix('torch.')}")
    for op in OPS
    for case in CASES[op.name]
    for dtype in case.dtypes
]

Make = Callable[..., torch.optim.Optimizer]


def test_some_kernels_serve_this_device():
    assert VARIANTS, "neither C++ nor Triton kernels are here: nothing below would be tested"


@each_variant
@pytest.mark.parametrize("op, case, dtype", CASES_OF_OPS)
def test_op_agrees_with_the_reference(op: Op, case: Case, dtype: torch.dtype, variant: Variant):
    with variant.use():
        mismatches = verify(op, case, dtype, DEVICE)
    assert not mismatches, "\n".join(map(str, mismatches))


# --- optimizers against torch's -----------------------------------------------------------------------------
def parameters(
    shapes: Sequence[tuple[int, ...]] = SHAPES, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    return [torch.nn.Parameter(1 + randn(*s, seed=i, dtype=dtype).to(DEVICE)) for i, s in enumerate(shapes)]


def feed(optimizer: torch.optim.Optimizer, seed: int, in_place: bool = False) -> None:
    """Fresh gradients, the same for the same seed; in place: into the memory of the old ones."""
    for i, p in enumerate(params_of(optimizer)):
        g = randn(*p.shape, seed=1000 * seed + i, dtype=p.dtype).to(p.device)
        if in_place and p.grad is not None:
            p.grad.copy_(g)
        else:
            p.grad = g


def train(optimizer: torch.optim.Optimizer, steps: range) -> None:
    for t in steps:
        feed(optimizer, t)
        optimizer.step()


def many_steps(make: Make, **options: Any) -> list[Tensor]:
    optimizer = make(parameters(), lr=1e-2, **options)
    train(optimizer, range(30))
    return values(optimizer)


def groups(make: Make) -> list[Tensor]:
    p = parameters()
    more = {"lr": 2e-2, "betas": (0.8, 0.95), "weight_decay": 0.3, "maximize": True}
    optimizer = make([{"params": p[:4]}, {"params": p[4:7], **more}, {"params": p[7:], "eps": 1e-3}], lr=1e-2)
    train(optimizer, range(10))
    optimizer.param_groups[1]["lr"] = 1e-3
    train(optimizer, range(10, 15))
    return values(optimizer)


def groups_of_two_kinds(make: Make) -> list[Tensor]:
    p = parameters()
    optimizer = make([{"params": p[:4]}, {"params": p[4:], "amsgrad": True}], lr=1e-2)
    train(optimizer, range(10))
    return values(optimizer)


def lr_tensor(make: Make) -> list[Tensor]:
    lr = torch.tensor(1e-2, device=DEVICE)
    optimizer = make(parameters(), lr=lr, capturable=DEVICE == "cuda")
    for t in range(10):
        lr.fill_(1e-2 / (1 + t))
        train(optimizer, range(t, t + 1))
    return values(optimizer)


def gradients_set_to_none(make: Make) -> list[Tensor]:
    """Gradients come to lie elsewhere at every step, between other allocations."""
    optimizer, others = make(parameters(), lr=1e-2), []
    for t in range(20):
        optimizer.zero_grad(set_to_none=True)
        others.append(torch.ones(64 * (t % 5 + 1), device=DEVICE))
        if t % 3 == 0:
            others.clear()
        train(optimizer, range(t, t + 1))
    return values(optimizer)


def gradients_now_and_then(make: Make) -> list[Tensor]:
    optimizer = make(parameters(), lr=1e-2)
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
    optimizer = make(p[:5], lr=1e-2)
    train(optimizer, range(4))
    optimizer.add_param_group({"params": p[5:], "lr": 3e-2})
    train(optimizer, range(4, 10))
    return values(optimizer)


def state_of_torchs(make: Make) -> list[Tensor]:
    """A checkpoint of torch's optimizer in mid-training, and its parameters in other memory."""
    first = torch.optim.AdamW(parameters(), lr=1e-2, amsgrad=True, fused=False, foreach=False)
    train(first, range(5))
    optimizer = make(parameters(), lr=7.0)
    train(optimizer, range(2))
    state = first.state_dict()
    for group in state["param_groups"]:
        group["decoupled_weight_decay"] = optimizer.defaults["decoupled_weight_decay"]
    optimizer.load_state_dict(state)
    for p, q in zip(params_of(optimizer), params_of(first), strict=True):
        p.data = q.detach().clone()
    train(optimizer, range(5, 12))
    return values(optimizer)


def grad_scaler(make: Make) -> list[Tensor]:
    """A scale that grows, and two overflows on the way, of which the optimizer may see nothing."""
    optimizer = make(parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler(DEVICE, init_scale=1024.0, growth_interval=3)
    scales = []
    for t in range(12):
        optimizer.zero_grad()
        weights = [randn(*p.shape, seed=100 * t + i).to(DEVICE) for i, p in enumerate(params_of(optimizer))]
        if t in (4, 9):
            weights[2][0, 0] = float("inf")
        loss = sum((p * w).sum() for p, w in zip(params_of(optimizer), weights, strict=True))
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    return [*values(optimizer), torch.tensor(scales)]


SCENARIOS: dict[str, Callable[[Make], list[Tensor]]] = {
    "plain": many_steps,
    "amsgrad": functools.partial(many_steps, amsgrad=True),
    "maximize": functools.partial(many_steps, maximize=True, weight_decay=0.1),
    "groups": groups,
    "groups_of_two_kinds": groups_of_two_kinds,
    "lr_tensor": lr_tensor,
    "gradients_set_to_none": gradients_set_to_none,
    "gradients_now_and_then": gradients_now_and_then,
    "add_param_group": add_param_group,
    "state_of_torchs": state_of_torchs,
    "grad_scaler": grad_scaler,
}


@names
@each_variant
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_trains_as_torch_does(scenario: str, variant: Variant, name: str):
    with variant.use():
        ours = SCENARIOS[scenario](OURS[name])
    assert_trained_alike(ours, SCENARIOS[scenario](make_torch(name)))


@names
@each_variant
def test_fused_grad_scaler(variant: Variant, name: str):
    """With fused=True the scaler hands scale and overflow to the optimizer, as device tensors."""
    with variant.use():
        ours = grad_scaler(functools.partial(OURS[name], fused=True))
    assert_trained_alike(ours, grad_scaler(make_torch(name)))


@names
@each_variant
@each_half
def test_half_parameters_are_rounded_from_float32_steps(variant: Variant, name: str, dtype: torch.dtype):
    """Each step starts from our half parameters; torch's float32 step from there, rounded, is wanted."""
    ours = OURS[name](parameters(dtype=dtype), lr=1e-2)
    theirs = make_torch(name)([p.detach().float() for p in params_of(ours)], lr=1e-2)
    with variant.use():
        for t in range(30):
            feed(ours, t)
            for p, q in zip(params_of(ours), params_of(theirs), strict=True):
                q.data.copy_(p.detach())
                q.grad = p.grad.float()
            ours.step()
            theirs.step()
            for p, q in zip(params_of(ours), params_of(theirs), strict=True):
                assert ours.state[p]["exp_avg"].dtype == torch.float32
                close = 2 * torch.finfo(dtype).eps
                torch.testing.assert_close(p.detach(), q.detach().to(dtype), rtol=close, atol=1e-6)


@names
@each_variant
def test_empty_tensors_only(variant: Variant, name: str):
    optimizer = OURS[name](parameters([(0,), (2, 0, 4)]), lr=1e-2)
    with variant.use():
        train(optimizer, range(3))
    assert all(float(optimizer.state[p]["step"]) == 3 for p in params_of(optimizer))


@names
@each_variant
def test_thousands_of_tiny_tensors(variant: Variant, name: str):
    def scenario(make: Make) -> list[Tensor]:
        optimizer = make(parameters([(i % 7 + 1,) for i in range(5000)]), lr=1e-2)
        train(optimizer, range(3))
        return [torch.cat(values(optimizer))]

    with variant.use():
        ours = scenario(OURS[name])
    assert_trained_alike(ours, scenario(make_torch(name)))


@names
@each_variant
def test_stale_backward_raises(variant: Variant, name: str):
    optimizer = OURS[name](parameters([(8, 8)]), lr=1e-2)
    (p,) = params_of(optimizer)
    with variant.use():
        for _ in range(3):
            loss = (p * p).sum()
            loss.backward(retain_graph=True)
            optimizer.step()
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                loss.backward()


@names
def test_backends_take_turns_in_one_training(name: str):
    def scenario(make: Make, turns: Sequence[str]) -> list[Tensor]:
        optimizer = make(parameters(), lr=1e-2)
        for t in range(9):
            with use_backend(turns[t % len(turns)]):
                train(optimizer, range(t, t + 1))
        return values(optimizer)

    served = [b for b in backends.BACKENDS if backends.serves(b, DEVICE)]
    assert_trained_alike(scenario(OURS[name], served), scenario(make_torch(name), ["reference"]))


# --- CUDA ---------------------------------------------------------------------------------------------------
def warmed_up(name: str, **options: Any) -> torch.optim.Optimizer:
    optimizer = OURS[name](parameters(), **{"lr": 1e-2, **options})
    train(optimizer, range(3))
    feed(optimizer, 3)
    return optimizer


def kernels_of(work: Callable[[], object]) -> list[str]:
    """Names of the kernels that it launches; copies and fills are none."""
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        work()
        torch.cuda.synchronize()
    on_device = [e.name for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    return [n for n in on_device if not n.startswith(("Memcpy", "Memset", "Optimizer."))]


@names
@each_variant
@pytest.mark.parametrize("amsgrad", (False, True), ids=("plain", "amsgrad"))
def test_one_kernel_a_step(variant: Variant, name: str, amsgrad: bool):
    if not kernels_of(lambda: torch.ones(3, device=DEVICE).add_(1)):
        pytest.skip("torch.profiler sees no kernels on this machine")
    with variant.use():
        launched = kernels_of(warmed_up(name, amsgrad=amsgrad).step)
    assert len(launched) == 1, launched


@contextlib.contextmanager
def no_sync() -> Iterator[None]:
    """Raises where torch waits for the device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@names
@each_variant
@pytest.mark.parametrize("tensor_lr", (False, True), ids=("float", "tensor"))
def test_no_host_sync(variant: Variant, name: str, tensor_lr: bool):
    with variant.use():
        lr = torch.tensor(1e-2, device=DEVICE) if tensor_lr else 1e-2
        optimizer = warmed_up(name, lr=lr, capturable=tensor_lr)
        with no_sync():
            for factor in (1, 2):
                for group in optimizer.param_groups:
                    group["weight_decay"] = 1e-2 * factor
                optimizer.step()


@names
@each_variant
def test_step_returns_before_the_device_is_done(variant: Variant, name: str):
    """What the debug mode cannot see: a wait in C++."""
    with variant.use():
        optimizer = warmed_up(name)
        torch.cuda.synchronize()
        torch.cuda._sleep(1_000_000_000)  # about half a second
        done = torch.cuda.Event()
        done.record()
        optimizer.step()
        assert not done.query()
    torch.cuda.synchronize()


@names
@each_variant
@pytest.mark.parametrize("amsgrad", (False, True), ids=("plain", "amsgrad"))
@pytest.mark.parametrize("tensor_lr", (False, True), ids=("float", "tensor"))
def test_graph_replay_equals_eager(variant: Variant, name: str, amsgrad: bool, tensor_lr: bool):
    def optimizer() -> tuple[torch.optim.Optimizer, Tensor]:
        lr = torch.tensor(1e-2, device=DEVICE)
        rate = lr if tensor_lr else 1e-2  # a float is captured as it is
        return OURS[name](parameters(), lr=rate, capturable=True, amsgrad=amsgrad), lr

    with variant.use():
        (eager, eager_lr), (captured, lr) = optimizer(), optimizer()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for t in range(3):
                feed(captured, t, in_place=True)
                captured.step()
        torch.cuda.current_stream().wait_stream(side)
        train(eager, range(3))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured.step()
        for t in range(3, 9):
            for rate in (lr, eager_lr):
                rate.fill_(1e-2 / t)
            feed(captured, t, in_place=True)
            graph.replay()
            train(eager, range(t, t + 1))
    for ours, theirs in zip(values(captured), values(eager), strict=True):
        assert torch.equal(ours, theirs)
    for p, q in zip(params_of(captured), params_of(eager), strict=True):
        assert float(captured.state[p]["step"]) == float(eager.state[q]["step"]) == 9


@names
@each_variant
def test_capture_without_capturable_raises(variant: Variant, name: str):
    with variant.use():
        optimizer = warmed_up(name)
        graph = torch.cuda.CUDAGraph()
        with pytest.raises(RuntimeError, match="capturable"), torch.cuda.graph(graph):
            optimizer.step()
    torch.cuda.synchronize()


@names
@each_variant
def test_runs_on_the_current_stream(variant: Variant, name: str):
    """The gradients are there only after a sleep on the side stream: a step on another misses them."""
    with variant.use():
        plain, aside = warmed_up(name), warmed_up(name)
        plain.step()
        wanted = [p.grad.clone() for p in params_of(aside)]
        for p in params_of(aside):
            p.grad.fill_(1e3)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            torch.cuda._sleep(100_000_000)
            for p, g in zip(params_of(aside), wanted, strict=True):
                p.grad.copy_(g)
            aside.step()
        torch.cuda.current_stream().wait_stream(side)
    for ours, theirs in zip(values(aside), values(plain), strict=True):
        assert torch.equal(ours, theirs)


@names
@each_variant
def test_second_device_while_the_first_is_current(variant: Variant, name: str):
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU only")

    def scenario(make: Make) -> list[Tensor]:
        p = [torch.nn.Parameter(q.detach().to(f"cuda:{i % 2}")) for i, q in enumerate(parameters())]
        optimizer = make(p, lr=1e-2)
        train(optimizer, range(5))
        assert torch.cuda.current_device() == 0
        return values(optimizer)

    with torch.cuda.device(0), variant.use():
        ours = scenario(OURS[name])
        assert_trained_alike(ours, scenario(make_torch(name)))


@each_variant
def test_parameters_on_the_host_and_on_the_device_in_one_optimizer(variant: Variant):
    def scenario(make: Make) -> list[Tensor]:
        p = [
            torch.nn.Parameter(q.detach().to("cpu" if i % 2 else DEVICE)) for i, q in enumerate(parameters())
        ]
        optimizer = make(p, lr=1e-2)
        train(optimizer, range(5))
        return [q.cpu() for q in values(optimizer)]

    with variant.use():
        ours = scenario(onepass.optim.AdamW)
    assert_trained_alike(ours, scenario(make_torch("adamw")))


@each_variant
def test_same_bits_from_run_to_run(variant: Variant):
    def scenario() -> list[Tensor]:
        optimizer = warmed_up("adamw", amsgrad=True)
        optimizer.step()
        return values(optimizer)

    with variant.use():
        first, second = scenario(), scenario()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
