"""Where a sweep runs, on the CPU or on a GPU, and what differs between the two."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from onepass import backends

from . import clock, gpu_clock, gpu_peers, machine, peers
from .clock import Clock, Laps
from .jobs import FUSED, OURS, Job
from .peers import Contestant

Tick = Callable[[float], None]


class Venue(Protocol):
    device: str  # torch's type of it
    on_gpu: bool  # whose caches are flushed and whose memory is shared
    peers: Sequence[str]  # with whom to compare if none is named

    def model(self) -> str:
        """Whose figures these are."""

    def place(self, threads: int) -> str:
        """What a title says of it."""

    def isa(self) -> str | None:
        """What the compiled kernels were made for."""

    def headline(self, threads: int) -> Clock:
        """The clock to quote."""

    def free_memory(self) -> int | None: ...

    def needs(self, job: Job, peers: Sequence[str]) -> dict[str, int]:
        """Everybody who takes part, with the bytes of memory that they take, an upper bound."""

    def builder(self, job: Job, peers: Sequence[str]) -> Callable[[str], list[Contestant]]:
        """The function that makes, of a name, a contestant and its parts."""

    def race(
        self, field: dict[str, Contestant], rounds: int, seconds: float, tick: Tick
    ) -> dict[str, Laps]: ...


class Cpu:
    device = "cpu"
    on_gpu = False
    peers: Sequence[str] = peers.PEERS

    def model(self) -> str:
        return machine.cpu_model()

    def place(self, threads: int) -> str:
        return f"{threads} thread{'s' if threads > 1 else ''}"

    def isa(self) -> str | None:
        return backends.isa()

    def headline(self, threads: int) -> Clock:
        return clock.headline(threads)

    def free_memory(self) -> int | None:
        return machine.free_memory()

    def needs(self, job: Job, asked: Sequence[str]) -> dict[str, int]:
        return {name: peers.needs(name, job) for name in peers.contestants(job, asked)}

    def builder(self, job: Job, asked: Sequence[str]) -> Callable[[str], list[Contestant]]:
        return peers.Builder(job, asked)

    def race(self, field: dict[str, Contestant], rounds: int, seconds: float, tick: Tick) -> dict[str, Laps]:
        steps = {name: contestant.step for name, contestant in field.items()}
        turn = lambda name: field[name].turn()  # noqa: E731
        return clock.race(steps, rounds=rounds, seconds=seconds, tick=tick, turn=turn)


@dataclasses.dataclass
class Cuda:
    """The current CUDA device. Tests give it another device and another gpu."""

    on_gpu = True  # no field: it is so for all
    device: str = "cuda"
    gpu: gpu_clock.Gpu = dataclasses.field(default_factory=gpu_clock.Gpu)
    peers: Sequence[str] = gpu_peers.USUAL

    def model(self) -> str:
        return torch.cuda.get_device_name()

    def place(self, threads: int) -> str:
        return self.model()

    def isa(self) -> str | None:
        major, minor = torch.cuda.get_device_capability()
        return f"sm_{major}{minor}" if backends.serves("cpp", self.device) else None

    def headline(self, threads: int) -> Clock:
        return "cuda_event"

    def free_memory(self) -> int | None:
        return machine.free_gpu_memory()

    def _sets(self, job: Job) -> int:
        states = min(job.states_bytes(OURS), job.states_bytes(FUSED))  # of whoever moves the least
        size = job.elements() * (2 * job.dtype.itemsize + states)
        return gpu_peers.instances(size, self.gpu.cache_bytes)

    def needs(self, job: Job, asked: Sequence[str]) -> dict[str, int]:
        everybody = gpu_peers.contestants(job, asked, self.device)
        return gpu_peers.needs(everybody, job, self._sets(job), self.device)

    def builder(self, job: Job, asked: Sequence[str]) -> Callable[[str], list[Contestant]]:
        return gpu_peers.Builder(job, asked, self._sets(job), self.device)

    def race(self, field: dict[str, Contestant], rounds: int, seconds: float, tick: Tick) -> dict[str, Laps]:
        return gpu_clock.race(field, rounds=rounds, seconds=seconds, gpu=self.gpu, tick=tick)


def of(device: str) -> Venue:
    return Cuda() if device == "cuda" else Cpu()


def why_not(device: str) -> str | None:
    """What stands in the way of measuring on this type of device, or None."""
    if device == "cuda" and not torch.cuda.is_available():
        return f"there is no CUDA device here (torch {torch.__version__} sees none)"
    return None
