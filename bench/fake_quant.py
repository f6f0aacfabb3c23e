"""The sweep over fake quantization: forward, and both ways, against the ops that torch's autograd calls."""

import argparse
import gc
import itertools
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

import onepass
import torch
from onepass import backends
from onepass.testing.threads import threads as torch_threads

from . import clock, machine, peers, venues
from .clock import Laps, spread
from .fake_quant_jobs import DIRECTIONS, NULL, OURS, SCALES, SHAPES, TORCH, Job
from .fake_quant_rows import SCHEMA, Row
from .optim import Progress

__all__ = ["Block", "add_arguments", "show", "sweep"]

_BASELINES = {OURS: None, TORCH: OURS, NULL: TORCH}  # whom a contestant is compared with
_WIDTH = 132  # columns where there is no terminal to ask


@dataclass
class Block:
    """One job at one thread count: what is shown together."""

    title: str
    rows: list[Row]
    notes: list[str] = field(default_factory=list)  # who was left out and why, one line each


def add_arguments(parser: argparse.ArgumentParser) -> None:
    for name, known in (("--shape", SHAPES), ("--scale", SCALES), ("--direction", DIRECTIONS)):
        parser.add_argument(
            name, nargs="+", choices=list(known), default=list(known), help="default: all of them"
        )


def sweep(args: argparse.Namespace, progress: Progress) -> Iterator[Block]:
    """Measures; yields a block as soon as it is done. `progress` opens a bar for a block."""
    jobs = itertools.product(args.shape, args.scale, args.direction)
    for (shape, scale, direction), threads in itertools.product(jobs, args.threads):
        with torch_threads(threads):
            yield _block(Job(shape, scale, direction), args, threads, progress)


def _block(job: Job, args: argparse.Namespace, threads: int, progress: Progress) -> Block:
    title = f"{job.title} · {threads} thread{'s' if threads > 1 else ''}"
    gc.collect()  # what the job before has left
    fitting, notes = peers.fit(dict.fromkeys(_BASELINES, job.needs()), machine.free_memory())
    if len(fitting) < len(_BASELINES):
        return Block(title, [], notes)
    steps = {name: job.build(name) for name in fitting}
    with progress(title) as tick:
        laps = clock.race(steps, rounds=args.rounds, seconds=args.seconds, tick=tick)
    return Block(title, list(_rows(job, laps, threads)))


def _rows(job: Job, laps: dict[str, Laps], threads: int) -> Iterator[Row]:
    venue, by = venues.of("cpu"), clock.headline(threads)
    for name, lap in laps.items():
        base, ms = _BASELINES[name], spread(1e3 * lap.by(by))
        ratio = None if base is None else clock.ratio(lap, laps[base], by)
        yield Row(
            schema=SCHEMA,
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            area="fake_quant",
            device=venue.model(),
            isa=venue.isa(),
            backend=backends.backend_of("cpu"),
            threads=threads,
            python=platform.python_version(),
            torch=str(torch.__version__),
            onepass=onepass.__version__,
            commit=machine.commit(),
            shape=job.shape,
            scale=job.scale,
            direction=job.direction,
            contestant=name,
            baseline=base,
            clock=by,
            rounds=len(lap.wall),
            ms=ms.median,
            ms_p25=ms.p25,
            ms_p75=ms.p75,
            ratio=ratio.median if ratio else None,
            ratio_p25=ratio.p25 if ratio else None,
            ratio_p75=ratio.p75 if ratio else None,
            gb_per_s=job.bytes() / ms.median / 1e6,
        )


def show(block: Block) -> None:
    """A table on the screen."""
    from rich.console import Console
    from rich.table import Table

    from .report import significant  # needs rich, which is an extra

    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    table = Table(title=block.title, title_justify="left", title_style="bold")
    for name in ("contestant", "us", "spread", "onepass is faster by", "GB/s"):
        table.add_column(name, justify="left" if name == "contestant" else "right", no_wrap=True)
    for r in block.rows:
        ratio = "" if r.ratio is None else f"{r.ratio:.2f} x [{r.ratio_p25:.2f}-{r.ratio_p75:.2f}]"
        times = f"{significant(1e3 * r.ms_p25)}-{significant(1e3 * r.ms_p75)}"
        table.add_row(r.contestant, significant(1e3 * r.ms), times, ratio, f"{r.gb_per_s:.1f}")
    console.print(table)
    for line in block.notes:
        console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
