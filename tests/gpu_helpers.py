"""What the tests marked gpu share. DEVICE is the only place that says where they run."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from onepass.testing import variants
from optim_helpers import params_of, randn
from phase_helpers import KINDS
from torch import Tensor

DEVICE = "cuda"
HERE = torch.cuda.is_available() or DEVICE == "cpu"
marks = [pytest.mark.gpu, pytest.mark.skipif(not HERE, reason="torch sees no CUDA device here")]

VARIANTS = [v for v in variants(DEVICE) if v.backend != "reference"]
each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)
SHAPES = ((64, 33), (33,), (10, 64), (10,), (), (1,), (3, 5, 7), (0,), (4099,))

Make = Callable[..., torch.optim.Optimizer]


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


def warmed_up(kind: str, **options: Any) -> torch.optim.Optimizer:
    """After three steps, with gradients for a fourth."""
    optimizer = KINDS[kind].make(parameters(), **options)
    train(optimizer, range(3))
    feed(optimizer, 3)
    return optimizer


def capturable(kind: str) -> dict[str, bool]:
    """What an optimizer has to be told before its step is captured, where it takes that."""
    takes = "capturable" in KINDS[kind].make([torch.nn.Parameter(torch.ones(1))]).defaults
    return {"capturable": True} if takes and DEVICE == "cuda" else {}


def kernels_of(work: Callable[[], object]) -> list[str]:
    """Names of the kernels that it launches; copies and fills are none."""
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        work()
        torch.cuda.synchronize()
    on_device = [e.name for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    return [n for n in on_device if not n.startswith(("Memcpy", "Memset", "Optimizer."))]


@contextlib.contextmanager
def no_sync() -> Iterator[None]:
    """Raises where torch waits for the device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def on_a_side_stream(work: Callable[[], object]) -> None:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        work()
    torch.cuda.current_stream().wait_stream(side)
