"""Where a sweep runs, on the CPU or on a GPU, and what differs between the two."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from onepass import backends

from . import clock, gpu_clock, gpu_peers, machine, peers
from .clock import Clock, Laps
from .peers import Contestant
from .workloads import Workload

Tick = Callable[[float], None]


class Venue(Protocol):
    device: str  # torch's type of it
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

    def needs(self, peers: Sequence[str], workload: Workload, dtype: torch.dtype) -> dict[str, int]:
        """Everybody who takes part, with the bytes of memory that they take, an upper bound."""

    def builder(self, workload: Workload, optimizer: str, dtype: torch.dtype) -> Callable[[str], Contestant]:
        """The function that makes a contestant of a name."""

    def race(
        self, field: dict[str, Contestant], rounds: int, seconds: float, tick: Tick
    ) -> dict[str, Laps]: ...


class Cpu:
    device = "cpu"
    peers: Sequence[str] = tuple(peers.PEERS)

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

    def needs(self, names: Sequence[str], workload: Workload, dtype: torch.dtype) -> dict[str, int]:
        elements = workload.elements()
        return {name: peers.needs(name, elements, dtype) for name in peers.contestants(names)}

    def builder(self, workload: Workload, optimizer: str, dtype: torch.dtype) -> Callable[[str], Contestant]:
        return lambda name: peers.build(name, workload, optimizer, dtype)

    def race(self, field: dict[str, Contestant], rounds: int, seconds: float, tick: Tick) -> dict[str, Laps]:
        steps = {name: contestant.step for name, contestant in field.items()}
        return clock.race(steps, rounds=rounds, seconds=seconds, tick=tick)


@dataclasses.dataclass
class Cuda:
    """The current CUDA device. Tests give it another device and another gpu."""

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

    def _sets(self, workload: Workload, dtype: torch.dtype) -> int:
        size = workload.elements() * 4 * dtype.itemsize  # at least: p, g and both moments
        return gpu_peers.instances(size, self.gpu.cache_bytes)

    def needs(self, names: Sequence[str], workload: Workload, dtype: torch.dtype) -> dict[str, int]:
        everybody = gpu_peers.contestants(names, self.device)
        return gpu_peers.needs(everybody, workload, dtype, self._sets(workload, dtype), self.device)

    def builder(self, workload: Workload, optimizer: str, dtype: torch.dtype) -> Callable[[str], Contestant]:
        sets = self._sets(workload, dtype)
        shared = functools.cache(lambda: gpu_peers.pools(workload, dtype, sets, self.device))
        return lambda name: gpu_peers.build(name, workload, optimizer, dtype, shared(), self.device)

    def race(self, field: dict[str, Contestant], rounds: int, seconds: float, tick: Tick) -> dict[str, Laps]:
        return gpu_clock.race(field, rounds=rounds, seconds=seconds, gpu=self.gpu, tick=tick)


def of(device: str) -> Venue:
    return Cuda() if device == "cuda" else Cpu()


def why_not(device: str) -> str | None:
    """What stands in the way of measuring on this type of device, or None."""
    if device == "cuda" and not torch.cuda.is_available():
        return f"there is no CUDA device here (torch {torch.__version__} sees none)"
    return None
