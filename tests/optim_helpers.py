"""What the optimizer tests share: our optimizer and torch's for-loop one over equal parameters.

The oracle is torch's default path (foreach=False, fused=False) or torch in float64, never torch's fused
kernels: on the CPU those are wrong for strided and half tensors.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import onepass
import pytest
import torch
from onepass import backends
from torch import Tensor

NAMES = ("adam", "adamw")
OURS = {"adam": onepass.optim.Adam, "adamw": onepass.optim.AdamW}
TORCH = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")

names = pytest.mark.parametrize("name", NAMES)
BACKENDS = [b for b in backends.available() if b != "triton"]
each_backend = pytest.mark.parametrize("backend", BACKENDS)
# Where many optimizers do many steps: the reference, which takes most of the time, in the slow tests.
first_backend = pytest.mark.parametrize(
    "backend", [BACKENDS[0], *(pytest.param(b, marks=pytest.mark.slow) for b in BACKENDS[1:])]
)
needs_cpp = pytest.mark.skipif("cpp" not in backends.available(), reason="the C++ kernels are not built")


def make_torch(name: str) -> Callable[..., torch.optim.Optimizer]:
    return functools.partial(TORCH[name], foreach=False)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    widest = torch.complex128 if dtype.is_complex else torch.float64
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=widest).to(dtype)


def span(t: Tensor) -> Tensor:
    """All memory from the first element of t to its last, gaps included, as a flat tensor over it."""
    if t.numel() == 0:
        return t.detach().reshape(-1)
    length = 1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))
    return t.detach().as_strided((length,), (1,), t.storage_offset())


def copy_of(t: Tensor) -> Tensor:
    """A copy with the strides of t, gaps and expanded dimensions included."""
    if t.numel() == 0:
        return t.detach().clone()
    return span(t).clone().as_strided(t.shape, t.stride())


def leaves(tensors: Sequence[Tensor]) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(copy_of(t)) for t in tensors]


def params_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def values(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Copies of the parameters."""
    return [p.detach().clone() for p in params_of(optimizer)]


def feed(optimizer: torch.optim.Optimizer, seed: int) -> None:
    """A fresh random gradient for each parameter, the same for the same seed."""
    for i, p in enumerate(params_of(optimizer)):
        p.grad = randn(*p.shape, seed=1000 * seed + i, dtype=p.dtype)


def train(optimizer: torch.optim.Optimizer, steps: range | int) -> None:
    for t in range(steps) if isinstance(steps, int) else steps:
        feed(optimizer, t)
        optimizer.step()


def both(name: str, scenario: Callable[[Callable], Any]) -> tuple[Any, Any]:
    """What the scenario returns with our optimizer and with torch's."""
    return scenario(OURS[name]), scenario(make_torch(name))


def assert_trained_alike(ours: Sequence[Tensor], theirs: Sequence[Tensor], rtol=1e-5, atol=1e-6) -> None:
    """After some steps of training: parameters around 1 that moved by 0.01 or more a step."""
    assert len(ours) == len(theirs)
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        torch.testing.assert_close(
            a, b, rtol=rtol, atol=atol, equal_nan=True, msg=lambda m, i=i: f"[{i}] {m}"
        )


def assert_same_training(name: str, scenario: Callable[[Callable], Sequence[Tensor]]) -> None:
    assert_trained_alike(*both(name, scenario))


def take_over(ours: torch.optim.Optimizer, theirs: torch.optim.Optimizer) -> None:
    """Parameters and states of torch's optimizer, copied into ours."""
    for p, q in zip(params_of(ours), params_of(theirs), strict=True):
        p.data.copy_(q.data)
        for key, value in theirs.state.get(q, {}).items():
            ours.state[p][key].copy_(value)


def error(a: Tensor, b: Tensor, *scales: Tensor) -> float:
    """max |a - b| / max(|a|, |scales|): 0 where a equals b, inf where only one of them is a number."""
    if a.numel() == 0:
        return 0.0
    a, b = a.detach().double(), b.detach().double()
    scale = functools.reduce(torch.maximum, [s.detach().double().abs() for s in scales], a.abs())
    alike = (a == b) | (a.isnan() & b.isnan())
    relative = torch.where(alike, 0.0, (a - b).abs() / scale)
    return relative.nan_to_num(nan=math.inf, posinf=math.inf).max().item()


def has_memory(t: Tensor) -> bool:
    """False for a tensor on the meta device, or whose storage was freed."""
    last = t.storage_offset() + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))
    return t.device.type != "meta" and t.untyped_storage().nbytes() >= (last + 1) * t.element_size()


def frozen(tensors: Iterable[Tensor]) -> list[bytes | None]:
    """The bytes of each tensor, gaps included; None for one without memory."""
    return [
        span(t).contiguous().view(torch.uint8).numpy().tobytes() if has_memory(t) else None for t in tensors
    ]


@contextlib.contextmanager
def memory_given_back(tensors: Callable[[], Iterable[Tensor]]) -> Iterator[None]:
    """Gives freed storage of the tensors back at the end: pytest would print them, and die of it."""
    try:
        yield
    finally:
        for t in tensors():
            if t.device.type != "meta" and not has_memory(t):
                t.untyped_storage().resize_((t.storage_offset() + t.numel()) * t.element_size())


def everything(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Parameters, gradients and states."""
    tensors: list[Tensor] = []
    for p in params_of(optimizer):
        tensors += [p] if p.grad is None else [p, p.grad]
        tensors += [v for v in optimizer.state.get(p, {}).values() if isinstance(v, Tensor)]
    return tensors
