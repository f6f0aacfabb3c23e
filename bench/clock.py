"""Timing of several contestants side by side.

Everything on a shared machine drifts: clock speed, memory bandwidth, neighbours. So contestants take turns, a
few tens of milliseconds each, and are compared within one round only; a ratio is the median of the ratios of
the single rounds, and what drifts from round to round falls out of it.
"""

import contextlib
import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Step = Callable[[], object]
Clock = Literal["thread_cpu", "wall", "cuda_event"]

BATCH_SECONDS = 0.02  # long enough for the clocks' resolution, short enough for neighbours in one round
WARM_UP_STEPS = 2  # the first makes states and plans, the second touches what the first allocated
MIN_ROUNDS = 3  # below that a median and its quartiles say nothing


@dataclass(frozen=True)
class Timer:
    """Two clocks, in seconds. Tests put their own in."""

    thread_cpu: Callable[[], float] = time.thread_time  # of the calling thread only: no worker threads
    wall: Callable[[], float] = time.perf_counter


@dataclass
class Laps:
    """What one contestant did: seconds per step by each clock, one entry a round."""

    batch: int  # consecutive steps a round
    thread_cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    cuda_event: list[float] = field(default_factory=list)  # on a GPU only: see gpu_clock.py

    def by(self, clock: Clock) -> np.ndarray:
        return np.array(getattr(self, clock))


@dataclass(frozen=True)
class Spread:
    """A median and its quartiles."""

    median: float
    p25: float
    p75: float


def spread(values: np.ndarray) -> Spread:
    p25, median, p75 = np.percentile(values, (25, 50, 75))
    return Spread(float(median), float(p25), float(p75))


def ratio(over: Laps, base: Laps, clock: Clock) -> Spread:
    """How many times as long as `base` a step of `over` takes: median and quartiles of per-round ratios."""
    return spread(over.by(clock) / base.by(clock))


def headline(threads: int) -> Clock:
    """The clock to quote. One thread: its CPU time, which leaves out what others took of the core. More: wall
    time, as the calling thread's CPU time says nothing of its workers."""
    return "thread_cpu" if threads == 1 else "wall"


def timed(step: Step, steps: int, timer: Timer) -> tuple[float, float]:
    """Seconds per step by (thread_cpu, wall) over consecutive steps."""
    wall, cpu = timer.wall(), timer.thread_cpu()
    for _ in range(steps):
        step()
    cpu, wall = timer.thread_cpu() - cpu, timer.wall() - wall
    return cpu / steps, wall / steps


def calibrate(step: Step, timer: Timer, seconds: float = BATCH_SECONDS) -> int:
    """Warms up and returns the number of steps that last about `seconds` of wall time, at least one."""
    for _ in range(WARM_UP_STEPS):
        step()
    steps = 1
    while True:
        _, wall = timed(step, steps, timer)
        if wall * steps >= seconds / 2:
            return max(1, math.ceil(seconds / wall))
        steps *= 2


def order(names: Sequence[str], turn: int) -> list[str]:
    """The order of one round. The start moves on every second round and the rounds between run backwards, so
    each contestant comes first equally often and follows either of its neighbours."""
    start = turn // 2 % len(names)
    turned = [*names[start:], *names[:start]]
    return turned[::-1] if turn % 2 else turned


@contextlib.contextmanager
def _no_collector() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def race(
    steps: Mapping[str, Step],
    *,
    rounds: int,
    seconds: float,
    timer: Timer | None = None,
    tick: Callable[[float], None] = lambda done: None,
    turn: Callable[[str], contextlib.AbstractContextManager[object]] = lambda name: contextlib.nullcontext(),
) -> dict[str, Laps]:
    """Warms up and calibrates each contestant, then times all of them in interleaved rounds.

    Args:
        steps: the contestants, by name.
        rounds: at most so many rounds.
        seconds: of wall time for the rounds; no round starts after it, but MIN_ROUNDS are run all the same.
        tick: called after each round with the part that is done, 0..1.
        turn: what a contestant's steps are run under; entering it is not timed.
    """
    timer = timer or Timer()
    laps = {}
    for name, step in steps.items():
        with turn(name):
            laps[name] = Laps(calibrate(step, timer))

    def lap(name: str) -> None:
        with turn(name):
            cpu, wall = timed(steps[name], laps[name].batch, timer)
        laps[name].thread_cpu.append(cpu)
        laps[name].wall.append(wall)

    in_rounds(list(steps), lap, rounds=rounds, seconds=seconds, wall=timer.wall, tick=tick)
    return laps


def in_rounds(
    names: Sequence[str],
    lap: Callable[[str], None],
    *,
    rounds: int,
    seconds: float,
    wall: Callable[[], float],
    tick: Callable[[float], None],
) -> None:
    """Calls lap(name) for each contestant in each round, until the rounds or the seconds are used up."""
    with _no_collector():
        start = wall()
        for turn in range(rounds):
            for name in order(names, turn):
                lap(name)
            spent = wall() - start
            tick(min(1.0, max((turn + 1) / rounds, spent / seconds)))
            if turn + 1 >= MIN_ROUNDS and spent >= seconds:
                break
