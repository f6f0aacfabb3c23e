"""Who takes part in the sweep over normalizations, on the CPU or on a GPU.

On the CPU each contestant has images of its own. On a GPU they share them, as caches are flushed before each
step, so that the largest layers fit; parameters and running statistics are each one's own everywhere.
"""

import functools
from collections.abc import Iterator, Sequence

import torch
from onepass import backends
from onepass.ops import BY_NAME
from torch._functorch import config as functorch

from . import gpu_peers, norm_apex, peers
from .norm_jobs import BACKWARD, FORWARD, Images, Job, Step, Tensors
from .peers import Contestant, in_front

OURS, EAGER, IN_PLACE, COMPILED, APEX = "onepass", "torch", "torch, in place", "torch.compile", "apex"
NULL, LIMIT = peers.NULL, peers.LIMIT
PEERS = (EAGER, COMPILED, APEX)  # that can be asked for; torch takes part in both ways, asked for or not


def serving(device: str) -> list[str]:
    """The backends that have kernels for normalizations on this type of device, as peers.serving has them."""
    return peers.serving(BY_NAME["batch_norm_fwd"], device)


def contestants(job: Job, asked: Sequence[str], device: str, on_gpu: bool) -> list[str]:
    """Names of all who take part, the most important first. onepass is the backend that serves a user; each
    other one with kernels comes as onepass-BACKEND. Where nothing follows, torch has one way only."""
    ways = [EAGER, IN_PLACE] if job.act is not None or job.residual else [EAGER]
    limit = [LIMIT] if on_gpu or backends.compiled() else []
    others = [f"{OURS}-{b}" for b in serving(device)[1:]] if on_gpu else []
    return [OURS, *ways, *limit, *others, NULL, *(p for p in (COMPILED, APEX) if p in asked)]


def backend(name: str, device: str) -> str | None:
    """The backend of a contestant that is onepass."""
    first, _, second = name.partition("-")
    return (second or serving(device)[0]) if first == OURS else None


def needs(names: Sequence[str], job: Job, device: str, on_gpu: bool) -> dict[str, int]:
    """Bytes that each contestant adds to those before it, an upper bound: what it keeps, and with onepass,
    that comes first, what is allocated within a step, as one at a time does one."""
    image = job.image()
    inputs = (2 + job.residual) * image
    kept, working = 2 * image, 4 * image
    if "reference" in (backend(name, device) for name in names):
        working += 6 * 8 * job.elements()  # it works in float64
    added = {name: kept + (0 if on_gpu else inputs) for name in names}
    added[OURS] = kept + inputs + working
    if LIMIT in added:
        added[LIMIT] = 2 * min(_each_way(job, BACKWARD), gpu_peers.CHUNK) if on_gpu else inputs + 2 * image
    return added


def _each_way(job: Job, direction: str) -> int:
    """Bytes that a copy reads, and writes, to move as much as two passes do."""
    return job.bytes(direction) // 2


def _copies(job: Job, device: str) -> dict[str, Step]:
    """What memory gives on a GPU: a copy from one buffer to another."""
    buffers = gpu_peers.buffers(_each_way(job, BACKWARD), device)
    return {d: gpu_peers.copying(_each_way(job, d), *buffers) for d in (FORWARD, BACKWARD)}


def _probes(job: Job) -> dict[str, Step]:
    """The fastest loops on the CPU that read and write what two passes do: the input, and for backward the
    output's gradient, then the same again, and in forward the residual; with it the results are written. A
    mask has no stream of its own: all of them are longer by a share of it."""
    sizes = {d: job.bytes(d) // job.streams(d) // 4 for d in (FORWARD, BACKWARD)}
    # Written to: pages that were not are one page, which no memory has to give.
    made = [torch.full((max(sizes.values()),), 1e-3) for _ in range(4)]
    (x, z, y, _), (a, dy, *grads) = ([t[:size] for t in made] for size in sizes.values())
    return {
        FORWARD: lambda: backends.two_read_probe([x], [x, z][: 1 + job.residual], [y]),
        BACKWARD: lambda: backends.two_read_probe([a, dy], [a, dy], grads[: 1 + job.residual]),
    }


class Builder:
    """Makes the contestants of a job."""

    def __init__(self, job: Job, device: str, on_gpu: bool) -> None:
        self.job, self.device, self.on_gpu = job, device, on_gpu
        self._images = functools.cache(lambda: Images.of(job, device))

    def __call__(self, name: str) -> list[Contestant]:
        """Forward and backward of a contestant, which has done each once. RuntimeError: it cannot."""
        served = backend(name, self.device)
        with in_front(served if self.on_gpu else None):
            steps = self._steps(name)
            if name != COMPILED:
                for step in steps.values():
                    step()
        return list(self._contestants(name, steps, served))

    def _contestants(self, name: str, steps: dict[str, Step], served: str | None) -> Iterator[Contestant]:
        for direction, step in steps.items():
            yield Contestant(
                name,
                step,
                None,
                None,
                part=direction,
                backend=served if self.on_gpu else None,
            )

    def _steps(self, name: str) -> dict[str, Step]:
        if name == LIMIT:
            return _copies(self.job, self.device) if self.on_gpu else _probes(self.job)
        tensors = Tensors(self.job, self.device, self._images() if self.on_gpu else None)
        if name == COMPILED:
            return _compiled(tensors)
        if name == APEX:
            return norm_apex.steps(self.job, tensors)
        ways = {EAGER: tensors.torch, NULL: tensors.torch, IN_PLACE: tensors.torch_in_place}
        return tensors.steps(ways.get(name, tensors.onepass))


def _compiled(tensors: Tensors) -> dict[str, Step]:
    """Under torch.compile, compiled. By default its backward may write over what forward has kept, and then
    refuses to be run again."""
    torch._dynamo.reset()
    with functorch.patch(donated_buffer=False):
        steps = tensors.steps(torch.compile(tensors.torch, fullgraph=True))
        for step in steps.values():
            step()
    return steps
