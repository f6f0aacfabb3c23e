"""Who takes part on a GPU, and the memory that they share.

All contestants step the same parameters, gradients and, where their dtype is the same, states: a GPU has
room for one large model and not for five. Nobody profits by it, as the caches are flushed before each step.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from onepass import backends

from .jobs import FOREACH, FUSED, OURS, Job
from .peers import LIMIT, NULL, TEMPORARIES, Contestant, contestant, in_front, parameters, split
from .phases import make, parts

USUAL = (FUSED, FOREACH)  # the peers if none is named
COPY = 14  # bytes of the limit's copy for an element, each way: 28 in all, as AdamW's float32 step moves
CHUNK = 2**30  # bytes copied at once at most
MAX_INSTANCES = 4


def contestants(job: Job, asked: Sequence[str], device: str = "cuda") -> list[str]:
    """Names of all who take part, the most important first. onepass is the backend that serves a user there;
    each other backend with kernels comes as onepass-BACKEND."""
    default = backends.backend_of(device)
    others = [b for b in backends.BACKENDS if b not in (default, "reference") and backends.serves(b, device)]
    first, rest = split(job.against(asked))
    return [OURS, *first, LIMIT, *(f"{OURS}-{b}" for b in others), *(NULL for _ in first), *rest]


def backend(name: str, device: str = "cuda") -> str | None:
    """The backend of a contestant that is onepass."""
    first, _, second = name.partition("-")
    return (second or backends.backend_of(device)) if first == OURS else None


def instances(size: int, cache_bytes: int) -> int:
    """How many sets of so many bytes to go round: one that is larger than the cache is enough."""
    return 1 if size > cache_bytes else min(MAX_INSTANCES, cache_bytes // size + 2)


def needs(names: Sequence[str], job: Job, sets: int = 1, device: str = "cuda") -> dict[str, int]:
    """Bytes that each contestant adds to those before it, an upper bound."""
    elements, largest = job.elements(), max(math.prod(shape) for shape in job.workload.shapes())
    added, have = {}, set()
    for name in names:
        size = 2 * sets * elements * job.dtype.itemsize if name == OURS else 0
        if name == LIMIT:
            added[name] = 2 * sets * min(COPY * elements, CHUNK)
            continue
        if (moments := job.moments(name)) not in have:
            have.add(moments)
            size += sets * elements * job.states_bytes(name)
        size += TEMPORARIES.get(name, 0) * elements * job.dtype.itemsize
        if backend(name, device) == "reference":
            size += 6 * 8 * largest  # it works in float64, tensor by tensor
        added[name] = size
    return added


@dataclass
class Pool:
    """One set of tensors: parameters with gradients, and what an optimizer keeps, by the states' dtype."""

    params: list[torch.nn.Parameter]
    states: dict[torch.dtype | None, dict[Any, Any]] = field(default_factory=dict)

    def optimizer(self, name: str, job: Job) -> torch.optim.Optimizer:
        """An optimizer over this pool that has done a step. The first one's states serve the next ones."""
        made, moments = make(name, job, self.params), job.moments(name)
        if moments in self.states:  # load_state_dict keeps tensors that have the right dtype and device
            on_host = name in TEMPORARIES and name != FUSED
            step = torch.zeros((), device="cpu" if on_host else self.params[0].device)
            own = {i: self._own(s, step) for i, s in self.states[moments].items()}
            made.load_state_dict({"state": own, "param_groups": made.state_dict()["param_groups"]})
        made.step()
        self.states.setdefault(moments, made.state_dict()["state"])
        return made

    @staticmethod
    def _own(state: dict[str, Any], step: torch.Tensor) -> dict[str, Any]:
        """The same states, with a step counter of its own where there is one."""
        return {name: step.clone() if name == "step" else value for name, value in state.items()}


def pools(job: Job, sets: int, device: str = "cuda") -> list[Pool]:
    return [Pool(parameters(job.workload, job.dtype, device)) for _ in range(sets)]


def buffers(total: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """To copy so many bytes from and to, in chunks far larger than any cache."""
    size = min(total, CHUNK)
    source, target = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
    return source, target


def copying(total: int, source: torch.Tensor, target: torch.Tensor) -> Callable[[], None]:
    """A copy of so many bytes, as many at a time as the buffers hold."""

    def step() -> None:
        for start in range(0, total, source.numel()):
            count = min(source.numel(), total - start)
            target[:count].copy_(source[:count])

    return step


def turning(steps: Sequence[Callable[[], object]]) -> Callable[[], object]:
    """A step that goes round: another instance each time."""
    endless = itertools.cycle(steps)
    return lambda: next(endless)()


class Builder:
    """Makes the contestants of a job over pools that they share."""

    def __init__(self, job: Job, asked: Sequence[str], sets: int, device: str) -> None:
        self.job, self.device = job, device
        self.first, _ = split(job.against(asked))
        self._pools = functools.cache(lambda: pools(job, sets, device))

    def __call__(self, name: str) -> list[Contestant]:
        """A contestant and, of onepass and the first peer, its parts; each instance has done a step."""
        shared = self._pools()
        if name == LIMIT:
            total = COPY * self.job.elements()
            steps = [copying(total, *buffers(total, self.device)) for _ in shared]
            return [Contestant(LIMIT, turning(steps), None, 2 * COPY, instances=len(steps))]
        stands_for = self.first[0] if name == NULL else name
        served = backend(name, self.device)
        with in_front(served):
            made = [parts(stands_for, self.job, pool.optimizer(stands_for, self.job)) for pool in shared]
        field = []
        for copies in zip(*made, strict=True):
            one = contestant(name, self.job, copies[0])
            one.step, one.instances = turning([part.step for part in copies]), len(copies)
            one.around, one.backend = tuple(a for part in copies for a in part.around), served
            field.append(one)
        return field if name in (OURS, *self.first) else field[:1]
