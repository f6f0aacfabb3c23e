"""Timing on a GPU: the rounds of clock.py, each step between two CUDA events.

Before each timed step the GPU's cache is flushed, and the GPU is kept busy while the host issues the step:
what the events see is the work of the GPU and no wait for Python. What the host takes is measured apart.
"""

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .clock import Laps, Timer, in_rounds, timed
from .peers import Contestant

HOST_STEPS = 3  # steps in a row whose issuing is timed
BATCH_SECONDS = 0.01  # of timed steps and of what precedes each, per contestant and round
MAX_BATCH = 20
MAX_LEAD = 0.05  # seconds; a host that needs longer is waited for, and its step is the slower for it


class Gpu:
    """The current CUDA device, as this clock sees it. Tests put their own in."""

    def __init__(self) -> None:
        self.timer = Timer()
        self.cache_bytes = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
        self._junk = torch.zeros(2 * self.cache_bytes // 4, device="cuda")
        self._sum = torch.zeros((), device="cuda")
        self._cycles = 1e9
        self._cycles /= self._measured_lead(0.01) / 0.01

    def _measured_lead(self, seconds: float) -> float:
        self.lead(seconds)  # the first one loads the kernel
        start = self.mark()
        self.lead(seconds)
        end = self.mark()
        self.sync()
        return self.seconds(start, end)

    def flush(self) -> None:
        """Drives everything out of the L2 cache: by a write of twice its size, which leaves its own lines
        behind, still to be written to memory; then by a read, which leaves lines that cost nothing."""
        self._junk.zero_()
        torch.sum(self._junk, dim=0, out=self._sum)

    def lead(self, seconds: float) -> None:
        """Keeps the GPU busy, so that the host gets ahead of it."""
        torch.cuda._sleep(int(seconds * self._cycles))

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: Any, end: Any) -> float:
        """Between two marks, after a sync."""
        return 1e-3 * start.elapsed_time(end)

    def sync(self) -> None:
        torch.cuda.synchronize()


@dataclass(frozen=True)
class Pace:
    batch: int  # timed steps a round
    lead: float  # seconds that the host may take to issue a step


def _host(contestant: Contestant, gpu: Gpu) -> tuple[float, float]:
    """Seconds (of CPU, of wall time) in which the host issues a step, waiting for nothing."""
    gpu.sync()
    cpu, wall = timed(contestant.step, HOST_STEPS, gpu.timer)
    gpu.sync()
    return cpu, wall


def _device(contestant: Contestant, pace: Pace, gpu: Gpu) -> float:
    """Seconds of the GPU for a step: the mean of a batch."""
    marks = []
    for _ in range(pace.batch):
        gpu.flush()
        gpu.lead(pace.lead)
        start = gpu.mark()
        contestant.step()
        marks.append((start, gpu.mark()))
    gpu.sync()
    return statistics.fmean(gpu.seconds(*pair) for pair in marks)


def _warm_up(contestant: Contestant, times: int) -> None:
    """Steps of every instance: states, kernels, and the plans that a switch of backends makes stale."""
    for _ in range(times * contestant.instances):
        contestant.step()


def calibrate(contestant: Contestant, gpu: Gpu) -> Pace:
    """Warms up; finds how long the host takes for a step and how many steps last about BATCH_SECONDS."""
    with contestant.turn():
        _warm_up(contestant, 2)
        _, host = _host(contestant, gpu)
        lead = min(MAX_LEAD, 20e-6 + 1.5 * host)
        step = _device(contestant, Pace(1, lead), gpu)
    return Pace(max(1, min(MAX_BATCH, math.ceil(BATCH_SECONDS / (step + lead)))), lead)


def race(
    field: Mapping[str, Contestant],
    *,
    rounds: int,
    seconds: float,
    gpu: Gpu,
    tick: Callable[[float], None] = lambda done: None,
) -> dict[str, Laps]:
    """clock.race on a GPU: the same rounds, and seconds per step by CUDA events; thread_cpu and wall are what
    the host takes to issue a step."""
    paces = {name: calibrate(contestant, gpu) for name, contestant in field.items()}
    laps = {name: Laps(pace.batch) for name, pace in paces.items()}

    def lap(name: str) -> None:
        with field[name].turn():
            _warm_up(field[name], 1)
            laps[name].cuda_event.append(_device(field[name], paces[name], gpu))
            cpu, wall = _host(field[name], gpu)
        laps[name].thread_cpu.append(cpu)
        laps[name].wall.append(wall)

    in_rounds(list(field), lap, rounds=rounds, seconds=seconds, wall=gpu.timer.wall, tick=tick)
    return laps
