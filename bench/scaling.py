"""What a contestant calls under a GradScaler, and to sum gradients over micro-batches.

Whatever unscales and clips in place leaves smaller gradients behind for the next round, which has to find the
same work: so the loss scale is a little above 1, and each call clips to a little less than the call before.
"""

import itertools
from typing import Any

import onepass
import torch

from .jobs import ACCUMULATE, EXPLICIT, LOOP, MAX_GRAD_NORM, OURS, Job
from .part import Step

SCALE = 1 + 2.0**-20  # not 1, by which there would be nothing to do
SHRINK = 0.9999
FOREVER = 2**30  # steps until the scale grows


def step(name: str, job: Job, made: Any) -> Step:
    """name: onepass, onepass-BACKEND, or one of torch's. made: its optimizer."""
    params = [p for group in made.param_groups for p in group["params"]]
    if job.phase == ACCUMULATE:
        return _sums(name, params)
    ours = name.startswith(OURS)
    amp = onepass.amp if ours else torch.amp
    clip = onepass.optim.clip_grad_norm_ if ours else torch.nn.utils.clip_grad_norm_
    device = params[0].device.type
    scaler = amp.GradScaler(device, init_scale=SCALE, growth_interval=FOREVER)
    scaler.scale(torch.ones((), device=device))  # which makes the scale's tensor
    powers = itertools.count()

    def explicit() -> None:
        scaler.unscale_(made)
        clip(params, MAX_GRAD_NORM * SHRINK ** next(powers))
        scaler.step(made)
        scaler.update()

    def by_argument() -> None:
        scaler.step(made)
        scaler.update()

    return explicit if job.phase == EXPLICIT or not ours else by_argument


def _sums(name: str, params: list[Any]) -> Step:
    """One micro-batch. The peers know nothing of a loss scale, and onepass is given none."""
    grads = [p.grad for p in params]
    if name.startswith(OURS):
        accumulator = onepass.amp.GradAccumulator(params)

        def ours() -> None:
            for p, g in zip(params, grads, strict=True):
                p.grad = g
            accumulator.accumulate()

        return ours

    sums = [torch.zeros_like(p, dtype=torch.float32) for p in params]

    def loop() -> None:
        for total, g in zip(sums, grads, strict=True):
            total.add_(g.float())

    def foreach() -> None:
        torch._foreach_add_(sums, grads)

    return loop if name == LOOP else foreach
