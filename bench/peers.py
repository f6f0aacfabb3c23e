"""Who takes part: onepass, torch's own optimizers, the null run, the memory limit, and onepass's host alone.

Each contestant owns its parameters, gradients and states, all made in the same way from the same seed.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from onepass import backends
from onepass.ops import Op

from .jobs import FOREACH, FUSED, LOOP, OURS, Job
from .phases import Around, Part, make, parts
from .workloads import Workload

NULL, LIMIT, HOST = "null", "limit", "host"
PEERS = (FUSED, FOREACH, LOOP)
TEMPORARIES = {FUSED: 0, FOREACH: 2, LOOP: 2}  # tensors the size of all parameters that a step may allocate


def in_front(backend: str | None) -> contextlib.AbstractContextManager[object]:
    """Puts a backend of onepass first for a with-block; None changes nothing."""
    return contextlib.nullcontext() if backend is None else backends.use_backend(backend)


def serving(op: Op, device: str) -> list[str]:
    """The backends that have kernels for an op on this type of device, first the one that a user gets there;
    the reference if it is that one."""
    first = backends.backend_of(device)
    asked_for = device != "cpu" or first == "triton"  # which its interpreter has to be
    there = {"cpp": device.upper() in op.cpp, "triton": op.triton is not None and asked_for}
    kernels = [b for b in backends.BACKENDS if there.get(b) and backends.serves(b, device)]
    if first == "reference" or not kernels:
        return ["reference", *kernels]
    return sorted(kernels, key=lambda b: b != first)


@dataclass
class Contestant:
    name: str
    step: Callable[[], object]
    moments: str | None  # dtype of its states; None where it has none
    bytes_per_element: int | None  # the least that a step has to move; None where nothing is moved
    part: str | None = None  # of its step, that is timed alone
    around: tuple[Around, ...] = ()  # what its turns are run under
    backend: str | None = None  # of onepass, first in line in its turns
    instances: int = 1  # equal copies that its steps go round

    @property
    def key(self) -> str:
        return self.name if self.part is None else f"{self.name}: {self.part}"

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """To be entered around its steps, outside of what is timed."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(in_front(self.backend))
            for around in self.around:
                stack.enter_context(around())
            yield


def contestants(job: Job, asked: Sequence[str]) -> list[str]:
    """Names of all who take part, the most important first. The null run comes with the first peer, the limit
    and the host alone with the compiled part."""
    first, rest = split(job.against(asked))
    compiled = [LIMIT, HOST] if backends.compiled() else []
    return [OURS, *first, *compiled, *(NULL for _ in first), *rest]


def split(names: list[str]) -> tuple[list[str], list[str]]:
    """The first peer, whom the null run repeats, and the others."""
    return names[:1], names[1:]


def needs(name: str, job: Job) -> int:
    """Bytes of memory that a contestant takes while it runs, an upper bound."""
    if name == HOST:  # it has onepass's tensors
        return 0
    if name == LIMIT:
        return 4 * 4 * job.elements()
    size = (2 + TEMPORARIES.get(name, 0)) * job.dtype.itemsize + job.states_bytes(name)
    return job.elements() * size


def fit(wanted: Mapping[str, int], free: int | None) -> tuple[list[str], list[str]]:
    """Who fits into the memory that is free, the first ones first, and a line about each who does not.

    Args:
        wanted: bytes by contestant.
        free: bytes, None if not known: then all are let in.
    """
    names, notes = [], []
    left = float("inf") if free is None else 0.9 * free  # the rest is for the process itself and others
    for name, size in wanted.items():
        if size <= left:
            names.append(name)
            left -= size
        else:
            notes.append(f"{name} is left out: it takes {size / 1e9:.1f} GB and {left / 1e9:.1f} GB are left")
    return names, notes


def parameters(workload: Workload, dtype: torch.dtype, device: str = "cpu") -> list[torch.nn.Parameter]:
    """The workload's tensors with their gradients."""
    # Gradients of ordinary size stay what they are, so the moments settle at normal numbers: no denormals,
    # which would be timed instead of the optimizer.
    random = torch.Generator(device).manual_seed(0)
    params = []
    for shape in workload.shapes():
        empty = functools.partial(torch.empty, shape, dtype=dtype, device=device)
        p = torch.nn.Parameter(empty().uniform_(-0.1, 0.1, generator=random))
        p.grad = empty().uniform_(-1, 1, generator=random)
        params.append(p)
    return params


def _limit(elements: int) -> Contestant:
    """The yardstick: p, m and v each plus g, four flat float32 arrays, 4 reads and 3 writes."""
    arrays = [torch.full((elements,), 1e-3) for _ in range(4)]
    return Contestant(LIMIT, functools.partial(backends.rmw_probe, *arrays), None, 28)


def contestant(name: str, job: Job, part: Part) -> Contestant:
    moments = job.moments(name)
    kept = None if moments is None else str(moments).removeprefix("torch.")
    return Contestant(name, part.step, kept, part.bytes_per_element, part.name, part.around)


class Builder:
    """Makes the contestants of a job, each with its states."""

    def __init__(self, job: Job, asked: Sequence[str]) -> None:
        self.job = job
        self.first, _ = split(job.against(asked))
        self.ours: Contestant | None = None

    def __call__(self, name: str) -> list[Contestant]:
        """A contestant and, of onepass and the first peer, its parts."""
        if name == LIMIT:
            return [_limit(self.job.elements())]
        if name == HOST:
            assert self.ours is not None, "onepass comes first"
            around = (*self.ours.around, lambda: backends.use_isa("idle"))
            return [Contestant(HOST, self.ours.step, None, None, around=around)]
        stands_for = self.first[0] if name == NULL else name
        made = make(stands_for, self.job, parameters(self.job.workload, self.job.dtype))
        made.step()
        whole, *pieces = [contestant(name, self.job, part) for part in parts(stands_for, self.job, made)]
        if name == OURS:
            self.ours = whole
        return [whole, *pieces] if name in (OURS, *self.first) else [whole]
