"""NVIDIA Apex as a peer, where it is installed: it fuses sum and ReLU where channels are innermost.

Nobody who builds onepass needs it, so nothing here is taken on trust: before it takes part in a job, it does
a small one of the kind and has to find what torch finds.
"""

import functools
import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .norm_jobs import BACKWARD, FORWARD, Job, Step, Tensors


def _module(job: Job) -> Any:
    """groupbn where it serves the dtype, else SyncBatchNorm, that without processes shares nothing."""
    channels = job.sizes[1]
    if job.dtype == "float16":
        groupbn = importlib.import_module("apex.contrib.groupbn.batch_norm")
        return groupbn.BatchNorm2d_NHWC(channels, fuse_relu=job.act is not None)
    parallel = importlib.import_module("apex.parallel")
    return parallel.SyncBatchNorm(channels, channel_last=True, fuse_relu=job.act is not None)


def _forward(job: Job, tensors: Tensors) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """The call, and whose gradients are wanted."""
    module = _module(job).to(tensors.x.device).train()
    with torch.no_grad():
        module.weight.copy_(tensors.weight)
        module.bias.copy_(tensors.bias)

    def forward() -> Tensor:  # apex wants N, H, W, C, which channels-last memory is
        images = [None if t is None else t.permute(0, 2, 3, 1) for t in (tensors.x, tensors.z)]
        return module(*images).permute(0, 3, 1, 2)

    params = [module.weight, module.bias]
    return forward, [*(t for t in (tensors.x, tensors.z) if t is not None), *params]


def steps(job: Job, tensors: Tensors) -> dict[str, Step]:
    """Forward and backward. Raises RuntimeError where `why_not` has a reason."""
    if why := why_not(job, tensors.x.device.type):
        raise RuntimeError(why)
    return tensors.steps(*_forward(job, tensors))


def why_not(job: Job, device: str) -> str | None:
    """What stands in the way of apex doing this job, or None."""
    if importlib.util.find_spec("apex") is None:
        return "it is not installed"
    if device != "cuda":
        return "it has kernels for CUDA alone"
    if job.layout != "nhwc":
        return "it fuses sum and ReLU in channels-last memory alone"
    return _failure(replace(job, shape="64x56", batch=4), device)


@functools.cache
def _failure(job: Job, device: str) -> str | None:
    """What is wrong with apex's results on a small job."""
    try:
        mine, its = Tensors(job, device), Tensors(job, device)
        forward, wanted = _forward(job, mine)
        found, right = mine.steps(forward, wanted), its.steps(its.torch)
        close = 1e-3 if job.dtype == "float32" else 2e-2
        for direction in (FORWARD, BACKWARD):
            pairs = (_tuple(steps[direction]()) for steps in (found, right))
            for got, want in zip(*pairs, strict=True):
                # Sums over a channel are as large as their terms are many.
                size = want.abs().max().clamp(min=1.0)
                torch.testing.assert_close(got.float() / size, want.float() / size, rtol=close, atol=close)
    except Exception as error:  # whatever an installation is short of
        return f"{type(error).__name__} on a small layer: {(str(error).splitlines() or [''])[0]}"
    return None


def _tuple(results: Any) -> tuple[Tensor, ...]:
    return results if isinstance(results, tuple) else (results,)
