"""The sweep over the 8-bit product: a linear layer of every shape against those of torch and others."""

import argparse
import gc
import itertools
import platform
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

import onepass
import torch
from onepass import backends
from onepass.testing.threads import threads as torch_threads

from . import clock, int8_jobs, machine, peers, venues
from .clock import Laps, spread
from .int8_jobs import LIMIT, NULL, OURS, RACES, Job, Layer, Step
from .int8_rows import SCHEMA, Row
from .int8_table import show
from .optim import Progress

__all__ = ["Block", "add_arguments", "show", "sweep"]


@dataclass
class Block:
    """One layer at one thread count: what is shown together."""

    title: str
    rows: list[Row]
    notes: list[str] = field(default_factory=list)  # who was left out and why, one line each


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--op", nargs="+", choices=RACES, default=list(RACES), help="what is timed of ours; default: all"
    )
    parser.add_argument(
        "--rows",
        nargs="+",
        type=int,
        default=list(int8_jobs.ROWS),
        metavar="M",
        help="default: all of 1 .. 4096",
    )
    parser.add_argument(
        "--weight",
        nargs="+",
        choices=int8_jobs.WEIGHTS,
        default=list(int8_jobs.WEIGHTS),
        help="outputs x inputs; default: all",
    )
    parser.add_argument(
        "--peers",
        nargs="+",
        choices=int8_jobs.PEERS,
        default=list(int8_jobs.USUAL),
        help=f"whom to compare with; default: {' '.join(int8_jobs.USUAL)}",
    )


def sweep(args: argparse.Namespace, progress: Progress) -> Iterator[Block]:
    """Measures; yields a block as soon as it is done. `progress` opens a bar for a block."""
    for op, weight, m, threads in itertools.product(args.op, args.weight, args.rows, args.threads):
        with torch_threads(threads):
            yield _block(Job(m, weight, op), args, threads, progress)


def _block(job: Job, args: argparse.Namespace, threads: int, progress: Progress) -> Block:
    title = f"{job.title} · {threads} thread{'s' if threads > 1 else ''}"
    gc.collect()  # what the job before has left
    field, notes = _enter(job, args.peers)
    if OURS not in field:
        return Block(title, [], [*notes, f"{job.title} is left out: onepass itself cannot run it here"])
    with progress(title) as tick:
        laps = clock.race(field, rounds=args.rounds, seconds=args.seconds, tick=tick)
    return Block(title, list(_rows(job, laps, threads)), notes)


def _enter(job: Job, asked: list[str]) -> tuple[dict[str, Step], list[str]]:
    """The steps of all who take part, and a line about each who does not."""
    compiled = backends.backend_of("cpu") == "cpp"
    race = job.race
    limit = [LIMIT] if compiled and job.has_limit() else []
    null = [NULL] if race.null in asked else []
    names = [*race.ours, *limit, *(p for p in race.peers if p in asked), *null]
    fitting, notes = peers.fit({name: job.needs(name) for name in names}, machine.free_memory())
    steps: dict[str, Step] = {}
    if OURS not in fitting:
        return steps, notes
    layer = Layer(job)
    for name in fitting:
        try:
            step = layer.build(name)
            step()
        except RuntimeError as error:  # what is not installed, or does not serve this shape
            if name == OURS:
                raise
            notes.append(f"{name} is left out: {(str(error).splitlines() or [''])[0]}")
        else:
            steps[name] = step
    if not compiled:
        notes.append("onepass is served by its reference in plain PyTorch, which is not made to be fast")
    return steps, notes


def _baseline(job: Job, name: str) -> str | None:
    """Whom a contestant is compared with. The null run repeats a peer."""
    return job.race.null if name == NULL else job.race.peers.get(name)


def _rows(job: Job, laps: dict[str, Laps], threads: int) -> Iterator[Row]:
    venue, by = venues.of("cpu"), clock.headline(threads)
    m, n, k = job.sizes
    for name, lap in laps.items():
        base, ms = _baseline(job, name), spread(1e3 * lap.by(by))
        ratio = None if base is None else clock.ratio(lap, laps[base], by)
        yield Row(
            schema=SCHEMA,
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            area="int8",
            device=venue.model(),
            isa=venue.isa(),
            backend=backends.backend_of("cpu"),
            threads=threads,
            python=platform.python_version(),
            torch=str(torch.__version__),
            onepass=onepass.__version__,
            commit=machine.commit(),
            op=job.op,
            m=m,
            n=n,
            k=k,
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
            gops=job.operations() / ms.median / 1e6,
            gb_per_s=n * k / ms.median / 1e6,
            share_of_limit=clock.ratio(laps[LIMIT], lap, by).median if LIMIT in laps else None,
        )
