"""The sweep over fake quantization: forward, and both ways, against the ops that torch's autograd calls."""

import argparse
import gc
import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

from onepass import backends
from onepass.testing.threads import threads as torch_threads

from . import peers, venues
from .clock import Laps
from .fake_quant_jobs import DIRECTIONS, SCALES, SHAPES, Job
from .fake_quant_rows import SCHEMA, Row
from .measured import times, where
from .optim import Progress
from .peers import Contestant
from .venues import Venue

__all__ = ["Block", "add_arguments", "show", "sweep"]

_WIDTH = 132  # columns where there is no terminal to ask


@dataclass
class Block:
    """One job at one thread count: what is shown together."""

    title: str
    rows: list[Row]
    notes: list[str] = field(default_factory=list)  # who was left out and why, one line each


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    for name, known in (("--shape", SHAPES), ("--scale", SCALES), ("--direction", DIRECTIONS)):
        parser.add_argument(
            name, nargs="+", choices=list(known), default=list(known), help="default: all of them"
        )


def sweep(args: argparse.Namespace, progress: Progress) -> Iterator[Block]:
    """Measures; yields a block as soon as it is done. `progress` opens a bar for a block."""
    venue = venues.of(args.device)
    jobs = itertools.product(args.shape, args.scale, args.direction)
    for (shape, scale, direction), threads in itertools.product(jobs, args.threads):
        with torch_threads(threads):
            yield _block(Job(shape, scale, direction, venue.device), args, threads, venue, progress)


def _block(job: Job, args: argparse.Namespace, threads: int, venue: Venue, progress: Progress) -> Block:
    title = f"{job.title} · {venue.place(threads)}"
    gc.collect()  # what the job before has left
    everybody = job.baselines()
    fitting, notes = peers.fit(dict.fromkeys(everybody, job.needs()), venue.free_memory())
    if len(fitting) < len(everybody):
        return Block(title, [], notes)
    field = {name: job.contestant(name) for name in fitting}
    with progress(title) as tick:
        laps = venue.race(field, args.rounds, args.seconds, tick)
    return Block(title, list(_rows(job, venue, field, laps, threads)))


def _rows(
    job: Job, venue: Venue, field: dict[str, Contestant], laps: dict[str, Laps], threads: int
) -> Iterator[Row]:
    shared, by = where(venue, threads), venue.headline(threads)
    for name, lap in laps.items():
        base = job.baselines()[name]
        measured = times(lap.by(by), None if base is None else laps[base].by(by))
        yield Row(
            **shared,
            **measured,
            schema=SCHEMA,
            area="fake_quant",
            backend=field[name].backend or backends.backend_of(venue.device),
            shape=job.shape,
            scale=job.scale,
            direction=job.direction,
            contestant=name,
            baseline=base,
            gb_per_s=job.bytes() / measured["ms"] / 1e6,
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
