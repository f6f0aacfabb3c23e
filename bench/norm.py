"""The sweep over batch normalization: every layer shape, layout, dtype and fusion, forward and backward."""

import argparse
import gc
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from onepass.testing.threads import threads as torch_threads

from . import allocator, norm_jobs, norm_peers, peers, venues
from .norm_jobs import FUSIONS, Job
from .norm_measured import rows_of
from .norm_peers import APEX, COMPILED, EAGER, LIMIT, NULL, OURS, PEERS
from .norm_rows import Row
from .norm_table import show
from .optim import Progress
from .peers import Contestant
from .venues import Venue

__all__ = ["Block", "add_arguments", "show", "sweep"]

# What is measured where nothing is asked for, the more important first.
BATCH = {"cpu": 16, "cuda": 256}
DTYPES = {"cpu": ["float32", "bfloat16"], "cuda": ["bfloat16", "float32"]}
ALLOCATORS = (allocator.DEFAULT, allocator.KEPT)  # in this order, as there is no way back
USUAL = {"cpu": [EAGER], "cuda": [EAGER, COMPILED, APEX]}


@dataclass
class Block:
    """One job at one thread count: what is shown together."""

    title: str
    rows: list[Row]
    notes: list[str] = field(default_factory=list)  # who was left out and why, one line each


def add_arguments(parser: argparse.ArgumentParser) -> None:
    def several(name: str, choices: Any, default: list[str] | None, doc: str) -> None:
        if default:
            doc += f"; default: {' '.join(default)}"
        parser.add_argument(name, nargs="+", choices=choices, default=default, help=doc)

    def on_each(usual: dict[str, Any]) -> str:
        texts = {d: " ".join(v) if isinstance(v, list) else v for d, v in usual.items()}
        return "; default: " + ", ".join(f"{text} on {device}" for device, text in texts.items())

    shapes = list(norm_jobs.SHAPES)
    parser.add_argument(
        "--shape",
        nargs="+",
        choices=shapes,
        default=shapes,
        help="channels x pixels across, of ResNet-50's layers; default: all",
    )
    parser.add_argument("--batch", type=int, help=f"images{on_each(BATCH)}")
    several("--layout", norm_jobs.LAYOUTS, list(norm_jobs.LAYOUTS), "nhwc is channels_last")
    several("--dtype", norm_jobs.DTYPES, None, f"of the images{on_each(DTYPES)}")
    several("--fusion", FUSIONS, ["bn+relu", "bn+add+relu"], "what is done in one call")
    several(
        "--peers",
        PEERS,
        None,
        "whom to compare with; torch's eager calls take part always, in place and out of place; apex where "
        f"it is installed, on cuda and nhwc{on_each(USUAL)}",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    parser.add_argument(
        "--allocator",
        nargs="+",
        choices=ALLOCATORS,
        default=[allocator.KEPT],
        help="of the CPU. kept: freed memory is used again, as in a training loop that reuses its buffers; "
        "default: the C library's own way, in which page faults cost more than the kernels. Default: kept",
    )


def sweep(args: argparse.Namespace, progress: Progress) -> Iterator[Block]:
    """Measures; yields a block as soon as it is done. `progress` opens a bar for a block."""
    if args.device != "cpu":
        yield from _sweep(args, venues.of(args.device), "torch", progress)
        return
    for name in ALLOCATORS:
        if name in args.allocator:
            allocator.use(name)
            yield from _sweep(args, venues.of(args.device), name, progress)


def _sweep(args: argparse.Namespace, venue: Venue, memory: str, progress: Progress) -> Iterator[Block]:
    batch, dtypes = args.batch or BATCH[args.device], args.dtype or DTYPES[args.device]
    jobs = itertools.product(args.layout, dtypes, args.fusion, args.shape)
    for (layout, dtype, fusion, shape), threads in itertools.product(jobs, args.threads):
        job = Job(shape, batch, layout, dtype, fusion)
        with torch_threads(threads):
            yield _block(job, args, threads, venue, memory, progress)


def _block(
    job: Job, args: argparse.Namespace, threads: int, venue: Venue, memory: str, progress: Progress
) -> Block:
    title = f"{job.title} · {venue.place(threads)}" + ("" if venue.on_gpu else f" · allocator {memory}")
    gc.collect()  # what the job before has left
    field, notes = _enter(job, args.peers or USUAL[args.device], venue)
    if not field:
        out = f"{job.title} is left out: onepass itself cannot run it here"
        return Block(title, [], [*notes, out])
    with progress(title) as tick:
        laps = venue.race(field, args.rounds, args.seconds, tick)
    rows = rows_of(job, venue, field, laps, threads=threads, allocator=memory)
    return Block(title, list(rows), [*notes, *_remarks(field, venue)])


def _enter(job: Job, asked: list[str], venue: Venue) -> tuple[dict[str, Contestant], list[str]]:
    """The contestants, built, by their keys, and a line about each who is not among them."""
    device, on_gpu = venue.device, venue.on_gpu
    everybody = norm_peers.contestants(job, asked, device, on_gpu)
    needs = norm_peers.needs(everybody, job, device, on_gpu)
    names, notes = peers.fit(needs, venue.free_memory())
    field: dict[str, Contestant] = {}
    if OURS not in names:
        return field, notes
    build = norm_peers.Builder(job, device, on_gpu)
    for name in names:
        if name == NULL and not any(contestant.name == EAGER for contestant in field.values()):
            notes.append(f"{name} is left out: there is no {EAGER} to compare it with")
            continue
        try:
            field.update({contestant.key: contestant for contestant in build(name)})
        except RuntimeError as error:  # what cannot be compiled, is not installed; memory that went meanwhile
            if name == OURS and not isinstance(error, torch.OutOfMemoryError):
                raise
            notes.append(f"{name} is left out: {(str(error).splitlines() or [''])[0]}")
            if name == OURS:
                break
    return field, notes


def _remarks(field: dict[str, Contestant], venue: Venue) -> list[str]:
    """What a reader of the numbers has to know."""
    notes = []
    if not any(contestant.name == LIMIT for contestant in field.values()):
        notes.append("no share of the limit: what measures it is not built here, or was left out")
    if norm_peers.serving(venue.device)[0] == "reference":
        notes.append("onepass is served by its reference in plain PyTorch, which is not made to be fast")
    return notes
