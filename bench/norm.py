"""The sweep over batch normalization: every layer shape, layout, dtype and fusion, forward and backward."""

import argparse
import gc
import itertools
import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import onepass
import torch
from onepass import backends
from onepass.testing.threads import threads as torch_threads

from . import allocator, machine, norm_jobs
from .clock import Clock, Laps, headline, race, spread
from .norm_jobs import BACKWARD, FORWARD, FUSIONS, Job, Tensors
from .norm_report import show
from .norm_rows import SCHEMA, Row
from .optim import Progress

__all__ = ["Block", "add_arguments", "show", "sweep"]

OURS, EAGER, COMPILED, NULL, LIMIT = "onepass", "torch", "torch.compile", "null", "limit"
BOTH = "both"
Step = Callable[[], object]


@dataclass
class Block:
    """One job at one thread count: what is shown together."""

    title: str
    rows: list[Row]
    notes: list[str] = field(default_factory=list)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    def several(name: str, choices: Any, default: list[str], doc: str) -> None:
        parser.add_argument(
            name, nargs="+", choices=choices, default=default, help=f"{doc}; default: {' '.join(default)}"
        )

    shapes = list(norm_jobs.SHAPES)
    parser.add_argument(
        "--shape",
        nargs="+",
        choices=shapes,
        default=shapes,
        help="channels x pixels across, of ResNet-50's layers; default: all",
    )
    parser.add_argument("--batch", type=int, default=16, help="images; default: 16")
    several("--layout", norm_jobs.LAYOUTS, list(norm_jobs.LAYOUTS), "nhwc is channels_last")
    several("--dtype", norm_jobs.DTYPES, ["float32", "bfloat16"], "of the images")
    several("--fusion", FUSIONS, ["bn+relu", "bn+add+relu"], "what is done in one call")
    several("--peers", (EAGER, COMPILED), [EAGER], "whom to compare with")
    parser.add_argument(
        "--allocator",
        choices=(allocator.KEPT, allocator.DEFAULT),
        default=allocator.KEPT,
        help="kept: freed memory is used again, as in a training loop that reuses its buffers; default: "
        "the C library's own way, in which page faults cost more than the kernels. Default: kept",
    )


def sweep(args: argparse.Namespace, progress: Progress) -> Iterator[Block]:
    """Measures; yields a block as soon as it is done. `progress` opens a bar for a block."""
    allocator.use(args.allocator)
    jobs = itertools.product(args.layout, args.dtype, args.fusion, args.shape)
    for (layout, dtype, fusion, shape), threads in itertools.product(jobs, args.threads):
        job = Job(shape, args.batch, layout, dtype, fusion)
        with torch_threads(threads):
            yield _block(job, args, threads, progress)
        gc.collect()


def _block(job: Job, args: argparse.Namespace, threads: int, progress: Progress) -> Block:
    title = f"{job.title} · {threads} thread{'s' if threads > 1 else ''}"
    steps = {
        f"{name} {direction}": step
        for name, its in _field(job, args.peers).items()
        for direction, step in its.items()
    }
    with progress(title) as tick:
        laps = race(steps, rounds=args.rounds, seconds=args.seconds, tick=tick)
    clock = headline(threads)
    return Block(title, list(_rows(job, args, threads, clock, laps)))


def _field(job: Job, peers: list[str]) -> Mapping[str, dict[str, Step]]:
    """Everybody who takes part, with forward and backward."""
    mine, its = Tensors(job), Tensors(job)
    field = {OURS: mine.steps(mine.onepass), EAGER: its.steps(its.torch)}
    again = Tensors(job)
    field[NULL] = again.steps(again.torch)
    if COMPILED in peers:
        other = Tensors(job)
        torch._dynamo.reset()
        field[COMPILED] = other.steps(torch.compile(other.torch, fullgraph=True))
    if backends.compiled():
        field[LIMIT] = _limits(mine)
    return field


def _limits(tensors: Tensors) -> dict[str, Step]:
    """Two reads and a write, without residual: of as many bytes as each tensor has."""
    x, dy, to = (tensors.dy.clone() for _ in range(3))  # written: pages that were not are all one page
    return {
        FORWARD: lambda: backends.two_read_probe([x], to),
        BACKWARD: lambda: backends.two_read_probe([x, dy], to),
    }


# --- rows -------------------------------------------------------------------------------------------------
def _rows(
    job: Job, args: argparse.Namespace, threads: int, clock: Clock, laps: dict[str, Laps]
) -> Iterator[Row]:
    shared = _shared(job, args, threads, clock)
    names = dict.fromkeys(key.rpartition(" ")[0] for key in laps)
    for direction, name in itertools.product((FORWARD, BACKWARD, BOTH), names):
        seconds = _seconds(laps, name, direction, clock)
        base = {OURS: None, LIMIT: None, NULL: EAGER}.get(name, OURS)
        ratio = None if base is None else spread(seconds / _seconds(laps, base, direction, clock))
        limit = spread(_seconds(laps, LIMIT, direction, clock) / seconds) if LIMIT in names else None
        moved = sum(job.bytes(d) for d in ((FORWARD, BACKWARD) if direction == BOTH else (direction,)))
        ms = spread(1e3 * seconds)
        yield Row(
            **shared,
            direction=direction,
            contestant=name,
            baseline=base,
            rounds=len(seconds),
            ms=ms.median,
            ms_p25=ms.p25,
            ms_p75=ms.p75,
            ratio=ratio.median if ratio else None,
            ratio_p25=ratio.p25 if ratio else None,
            ratio_p75=ratio.p75 if ratio else None,
            gb_per_s=None if name == LIMIT else job.elements() * moved / ms.median / 1e6,
            share_of_limit=limit.median if limit else None,
        )


def _seconds(laps: dict[str, Laps], name: str, direction: str, clock: Clock) -> np.ndarray:
    if direction == BOTH:
        return _seconds(laps, name, FORWARD, clock) + _seconds(laps, name, BACKWARD, clock)
    return laps[f"{name} {direction}"].by(clock)


def _shared(job: Job, args: argparse.Namespace, threads: int, clock: Clock) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "area": "norm",
        "device": machine.cpu_model(),
        "isa": backends.isa(),
        "backend": backends.backend_of("cpu"),
        "threads": threads,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "onepass": onepass.__version__,
        "commit": machine.commit(),
        "shape": "x".join(map(str, job.sizes)),
        "layout": job.layout,
        "dtype": job.dtype,
        "fusion": job.fusion,
        "allocator": args.allocator,
        "clock": clock,
    }
