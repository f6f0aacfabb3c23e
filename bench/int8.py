"""The sweep over the 8-bit product: a linear layer of every shape against those of torch and others."""

import argparse
import gc
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from onepass.testing.threads import threads as torch_threads

from . import clock, int8_gpu, int8_jobs, peers, venues
from .clock import Laps, spread
from .int8_jobs import LIMIT, RACES, Job, Layer
from .int8_rows import SCHEMA, Row
from .int8_table import show
from .measured import times, where
from .optim import Progress
from .peers import Contestant
from .venues import Venue

__all__ = ["Block", "add_arguments", "show", "sweep"]

# What is measured where nothing is asked for.
ROWS = {"cpu": int8_jobs.ROWS, "cuda": int8_gpu.ROWS}
USUAL = {"cpu": int8_jobs.USUAL, "cuda": tuple(itertools.chain(*int8_gpu.PEERS.values()))}


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
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    parser.add_argument("--rows", nargs="+", type=int, metavar="M", help=f"default: {_on_each(ROWS)}")
    parser.add_argument(
        "--weight",
        nargs="+",
        choices=int8_jobs.WEIGHTS,
        default=list(int8_jobs.WEIGHTS),
        help="outputs x inputs; default: all",
    )
    parser.add_argument(
        "--dtype",
        nargs="+",
        choices=int8_gpu.DTYPES,
        default=["bfloat16"],
        help="of the rows on cuda; on cpu it stands in the names of peers. Default: bfloat16",
    )
    parser.add_argument(
        "--peers",
        nargs="+",
        choices=list(dict.fromkeys((*int8_jobs.PEERS, *USUAL["cuda"]))),
        help="whom to compare with; on cuda torch's linear of the dtype takes part always; "
        f"default: {_on_each(USUAL)}",
    )


def _on_each(usual: dict[str, tuple]) -> str:
    return "; ".join(f"{', '.join(map(str, values))} on {device}" for device, values in usual.items())


def sweep(args: argparse.Namespace, progress: Progress) -> Iterator[Block]:
    """Measures; yields a block as soon as it is done. `progress` opens a bar for a block."""
    venue = venues.of(args.device)
    for job, threads in itertools.product(_jobs(args, venue), args.threads):
        with torch_threads(threads):
            yield _block(job, args, threads, venue, progress)


def _jobs(args: argparse.Namespace, venue: Venue) -> Iterator[Job]:
    rows = args.rows or ROWS[args.device]
    if not venue.on_gpu:
        yield from (Job(m, weight, op) for op, weight, m in itertools.product(args.op, args.weight, rows))
        return
    for op, dtype, weight, m in itertools.product(args.op, args.dtype, args.weight, rows):
        yield int8_gpu.Job(m, weight, op, dtype, venue.device)


def _block(job: Job, args: argparse.Namespace, threads: int, venue: Venue, progress: Progress) -> Block:
    title = f"{job.title} · {venue.place(threads)}"
    gc.collect()  # what the job before has left
    field, notes = _enter(job, args.peers or USUAL[args.device], venue)
    if not field:
        return Block(title, [], [*notes, f"{job.title} is left out: onepass itself cannot run it here"])
    with progress(title) as tick:
        laps = venue.race(field, args.rounds, args.seconds, tick)
    return Block(title, list(_rows(job, venue, laps, threads)), notes)


def _enter(job: Job, asked: Sequence[str], venue: Venue) -> tuple[dict[str, Contestant], list[str]]:
    """The contestants, each of whom has done a step, and a line about each who does not take part."""
    names, notes = peers.fit({name: job.needs(name) for name in job.names(asked)}, venue.free_memory())
    notes += [f"{peer} is left out: it is no peer here" for peer in asked if peer not in job.known]
    field: dict[str, Contestant] = {}
    ours = job.race.ours[0]
    if ours not in names:
        return field, notes
    layer = job.layer()
    for name in names:
        try:
            field[name] = _contestant(job, layer, name, field)
        except RuntimeError as error:  # what is not installed, does not serve this shape, or has no room
            if name == ours and not isinstance(error, torch.OutOfMemoryError):
                raise
            notes.append(f"{name} is left out: {(str(error).splitlines() or [''])[0]}")
            if name == ours:
                return {}, notes
    if job.backend == "reference":
        notes.append("onepass is served by its reference in plain PyTorch, which is not made to be fast")
    return field, notes


def _contestant(job: Job, layer: Layer, name: str, field: dict[str, Contestant]) -> Contestant:
    base, served = job.baseline(name), job.served(name)
    if base not in (None, *field):
        raise RuntimeError(f"there is no {base} to compare it with")
    with peers.in_front(served):
        step = layer.build(name)
        step()
    return Contestant(name, step, None, None, backend=served)


def _rows(job: Job, venue: Venue, laps: dict[str, Laps], threads: int) -> Iterator[Row]:
    shared, by = where(venue, threads), venue.headline(threads)
    m, n, k = job.sizes
    for name, lap in laps.items():
        base = job.baseline(name)
        measured = times(lap.by(by), None if base is None else laps[base].by(by))
        yield Row(
            **shared,
            **measured,
            schema=SCHEMA,
            area="int8",
            backend=job.served(name) or job.backend,
            op=job.op,
            m=m,
            n=n,
            k=k,
            contestant=name,
            baseline=base,
            ms_wall=spread(1e3 * lap.by("wall")).median,
            gops=job.operations() / measured["ms"] / 1e6,
            gb_per_s=n * k / measured["ms"] / 1e6,
            share_of_limit=clock.ratio(laps[LIMIT], lap, by).median if LIMIT in laps else None,
        )
