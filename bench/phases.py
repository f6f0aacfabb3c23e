"""What a contestant calls in a round: the step alone, or the whole phase and each of its parts.

Ours is one call. torch's is what torch.amp.GradScaler and a training loop call one after the other, without
the sync by which GradScaler learns whether to step.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import onepass
import torch
from torch import Tensor

from . import scaling
from .jobs import AMP_PHASES, FOREACH, FUSED, LOOP, MAX_GRAD_NORM, SCALED, Job
from .part import Around, Part, Step

FLAGS: dict[str, dict[str, bool]] = {
    FUSED: {"fused": True},
    FOREACH: {"foreach": True},
    LOOP: {"foreach": False},
}


def make(name: str, job: Job, params: Sequence[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of a contestant: onepass, onepass-BACKEND, or one of torch's."""
    if name in FLAGS:
        return getattr(torch.optim, job.kind.cls)(params, **job.kind.arguments, **FLAGS[name])
    made = getattr(onepass.optim, job.kind.cls)(params, **job.kind.arguments, state=job.state)
    if job.phase in AMP_PHASES:
        made.max_grad_norm = MAX_GRAD_NORM if job.phase == SCALED else None
    elif job.phase:
        made.max_grad_norm, made.zero_grads_in_step = MAX_GRAD_NORM, job.phase == "zeroed"
        made.grad_scale = torch.ones((), device=params[0].device)
    return made


def parts(name: str, job: Job, made: torch.optim.Optimizer) -> list[Part]:
    """What is to be timed of this optimizer: all of it, and its parts where there are several."""
    if job.phase is None:
        return [Part(None, made.step, job.bytes(name))]
    if job.phase in AMP_PHASES:
        return [Part(None, scaling.step(name, job, made), job.bytes(name))]
    params = [p for group in made.param_groups for p in group["params"]]
    grads = [p.grad for p in params]
    found = _torchs(name, job, made, params, grads) if name in FLAGS else _ours(name, job, made, grads)
    return [*found]


def _ours(name: str, job: Job, made: Any, grads: list[Tensor]) -> Iterator[Part]:
    @contextlib.contextmanager
    def without_norm() -> Iterator[None]:
        made.max_grad_norm = None
        yield
        made.max_grad_norm = MAX_GRAD_NORM

    again = _gradients(job, grads)
    yield Part(None, made.step, job.bytes(name), again)
    yield Part(
        "grad_stats",
        lambda: torch.ops.onepass.grad_stats(grads, grad_scale=made.grad_scale),
        job.dtype.itemsize,
    )
    yield Part("step", made.step, job.step_bytes(name), (*again, without_norm))


def _torchs(
    name: str, job: Job, made: Any, params: list[torch.nn.Parameter], grads: list[Tensor]
) -> Iterator[Part]:
    scale, found_inf = torch.ones((), device=grads[0].device), torch.zeros((), device=grads[0].device)
    if name == FUSED:
        made.found_inf = found_inf  # as GradScaler hands it over

    steps: list[tuple[str, Step, int]] = [
        ("unscale", lambda: torch._amp_foreach_non_finite_check_and_unscale_(grads, found_inf, scale), 2),
        ("clip", lambda: torch.nn.utils.clip_grad_norm_(params, MAX_GRAD_NORM), 3),
        ("step", made.step, 3),
    ]
    if job.phase == "zeroed":
        steps.append(("zero", lambda: made.zero_grad(set_to_none=False), 1))
    calls = [step for _, step, _ in steps]

    def phase() -> None:
        for call in calls:
            call()

    yield Part(None, phase, job.bytes(name), _gradients(job, grads))
    for part, step, streams in steps:
        moved = streams * job.dtype.itemsize + (2 * job.states_bytes(name) if part == "step" else 0)
        yield Part(part, step, moved)


def _gradients(job: Job, grads: list[Tensor]) -> tuple[Around, ...]:
    """Where a phase leaves zeros behind: gradients of ordinary size before each turn. Moments that only ever
    decay end as denormal numbers, which would be timed instead of the optimizer."""

    @contextlib.contextmanager
    def filled() -> Iterator[None]:
        for grad in grads:
            grad.fill_(0.5)
        yield

    return (filled,) if job.phase == "zeroed" else ()
