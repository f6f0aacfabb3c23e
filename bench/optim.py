"""The sweep over optimizers: every job, at every thread count, with every contestant."""

import argparse
import contextlib
import gc
import itertools
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import onepass
import torch
from onepass.testing.threads import threads as torch_threads

from . import jobs, machine, peers, venues
from .clock import Clock, Laps, ratio, spread
from .jobs import Job
from .rows import SCHEMA, Row
from .venues import Venue
from .workloads import WORKLOADS, usual

Progress = Callable[[str], contextlib.AbstractContextManager[Callable[[float], None]]]


@dataclass
class Block:
    """One job at one thread count: what is shown together."""

    title: str
    rows: list[Row]
    notes: list[str]  # what was left out and why, one line each


def add_shared_arguments(parser: argparse.ArgumentParser) -> None:
    known = ", ".join(f"{w.name} ({w.doc})" for w in WORKLOADS.values())
    parser.add_argument(
        "--workload",
        action="append",
        choices=WORKLOADS,
        metavar="NAME",
        help=f"may be given several times; if not given, those that suit the device: {known}",
    )
    parser.add_argument(
        "--optimizer", nargs="+", choices=jobs.OPTIMIZERS, default=["adamw"], help="default: adamw"
    )
    parser.add_argument(
        "--state", choices=jobs.STATES, default="fp32", help="dtype of onepass's moments; default: fp32"
    )
    parser.add_argument(
        "--peers",
        nargs="+",
        choices=peers.PEERS,
        help="whom to compare with; if not given, all, on cuda without torch-loop; the null run comes with "
        "the first of them",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_shared_arguments(parser)
    parser.add_argument(
        "--phase",
        nargs="+",
        choices=jobs.PHASES,
        help="the whole phase instead of the step alone: unscale, clip, step, and gradients that are let go "
        "or become zero; against torch's calls one after the other, with times per part",
    )
    parser.add_argument(
        "--dtype",
        choices=jobs.DTYPES,
        default="float32",
        help="of parameters and gradients; default: float32",
    )


def sweep(args: argparse.Namespace, progress: Progress) -> Iterator[Block]:
    """Measures; yields a block as soon as it is done. `progress` opens a bar for a block."""
    venue = venues.of(args.device)
    dtype, phases = getattr(torch, args.dtype), args.phase or [None]
    names = dict.fromkeys(args.workload or usual(args.device))
    for name, optimizer, phase in itertools.product(names, args.optimizer, phases):
        job = Job(WORKLOADS[name], optimizer, dtype, args.state, phase)
        yield from _blocks(job, args, venue, progress)


def _blocks(job: Job, args: argparse.Namespace, venue: Venue, progress: Progress) -> Iterator[Block]:
    gc.collect()  # what the job before this one left
    with torch_threads(args.threads[0]):
        field, notes = _enter(job, args.peers, venue)
    if jobs.OURS not in field:
        out = f"{job.workload.name} is left out: onepass itself cannot run it here"
        yield Block(job.title, [], [*notes, out])
        return
    notes += _remarks(field, venue)
    for threads in dict.fromkeys(args.threads):
        titled = f"{job.title} · {venue.place(threads)}"
        with torch_threads(threads), progress(titled) as tick:
            laps = venue.race(field, args.rounds, args.seconds, tick)
            rows = _rows(job, venue, field, laps)
        yield Block(titled, rows, notes)


def _enter(
    job: Job, asked: Sequence[str] | None, venue: Venue
) -> tuple[dict[str, peers.Contestant], list[str]]:
    """The contestants, built, by their keys, and a line about each who is not among them."""
    asked = asked or venue.peers
    names, notes = peers.fit(venue.needs(job, asked), venue.free_memory())
    notes = job.lacks(asked) + notes
    field: dict[str, peers.Contestant] = {}
    if jobs.OURS not in names:
        return field, notes
    build = venue.builder(job, asked)
    for name in names:
        if name == peers.NULL and (first := job.against(asked)[0]) not in field:
            notes.append(f"{name} is left out: there is no {first} to compare it with")
            continue
        try:
            field.update({contestant.key: contestant for contestant in build(name)})
        except RuntimeError as error:  # a dtype that a peer does not serve; memory that went meanwhile
            if name == jobs.OURS and not isinstance(error, torch.OutOfMemoryError):
                raise
            notes.append(f"{name} is left out: {str(error).splitlines()[0]}")
            if name == jobs.OURS:
                break
    return field, notes


def _remarks(field: dict[str, peers.Contestant], venue: Venue) -> list[str]:
    """What a reader of the numbers has to know."""
    notes = []
    if peers.LIMIT not in field and not onepass.backends.compiled():
        notes.append(
            "no share of the limit: the compiled part of onepass, which measures it, is not built here"
        )
    if onepass.backends.backend_of(venue.device) == "reference":
        notes.append("onepass is served by its reference in plain PyTorch, which is not made to be fast")
    ours = field[jobs.OURS]
    whole = [c for c in field.values() if c.part is None and c.moments not in (None, ours.moments)]
    for moments, size in {c.moments: c.bytes_per_element for c in whole}.items():
        notes.append(
            f"torch keeps the moments in {moments} ({size} bytes an element), onepass in {ours.moments} "
            f"({ours.bytes_per_element} bytes): torch moves less and loses precision"
        )
    return notes


def _rows(job: Job, venue: Venue, field: dict[str, peers.Contestant], laps: dict[str, Laps]) -> list[Row]:
    shared = _shared(job, venue)
    return [
        Row(
            **shared,
            **_times(laps[key], shared["clock"]),
            **_compared(key, field, laps, shared["clock"]),
            **_moved(key, job, field, laps, shared["clock"]),
            backend=contestant.backend or onepass.backends.backend_of(venue.device),
            contestant=contestant.name,
            part=contestant.part,
            moments=contestant.moments,
        )
        for key, contestant in field.items()
    ]


def _shared(job: Job, venue: Venue) -> dict[str, Any]:
    """What all rows of a block have in common."""
    threads = torch.get_num_threads()
    return {
        "schema": SCHEMA,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "area": job.area,
        "device": venue.model(),
        "isa": venue.isa(),
        "threads": threads,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "onepass": onepass.__version__,
        "commit": machine.commit(),
        "workload": job.workload.name,
        "tensors": len(job.workload.shapes()),
        "elements": job.elements(),
        "optimizer": job.optimizer,
        "phase": job.phase,
        "dtype": str(job.dtype).removeprefix("torch."),
        "clock": venue.headline(threads),
    }


def _times(laps: Laps, clock: Clock) -> dict[str, Any]:
    time = spread(1e3 * laps.by(clock))
    return {
        "rounds": len(laps.wall),
        "batch": laps.batch,
        "ms": time.median,
        "ms_p25": time.p25,
        "ms_p75": time.p75,
        "ms_thread_cpu": spread(1e3 * laps.by("thread_cpu")).median,
        "ms_wall": spread(1e3 * laps.by("wall")).median,
    }


def _baseline(key: str, field: dict[str, peers.Contestant]) -> str | None:
    """Whom a contestant is compared with. The null run repeats the first of torch's."""
    if field[key].part is not None or key in (jobs.OURS, peers.LIMIT, peers.HOST):
        return None
    return next(name for name in peers.PEERS if name in field) if key == peers.NULL else jobs.OURS


def _compared(
    key: str, field: dict[str, peers.Contestant], laps: dict[str, Laps], clock: Clock
) -> dict[str, Any]:
    baseline = _baseline(key, field)
    if baseline is None:
        return dict.fromkeys(("baseline", "ratio", "ratio_p25", "ratio_p75", "ratio_wall"))
    by = ratio(laps[key], laps[baseline], clock)
    return {
        "baseline": baseline,
        "ratio": by.median,
        "ratio_p25": by.p25,
        "ratio_p75": by.p75,
        "ratio_wall": ratio(laps[key], laps[baseline], "wall").median,
    }


def _moved(
    key: str, job: Job, field: dict[str, peers.Contestant], laps: dict[str, Laps], clock: Clock
) -> dict[str, Any]:
    """Bytes, and the part of the limit's bytes a second that a contestant reaches in the same rounds."""
    size = field[key].bytes_per_element
    if size is None:
        return dict.fromkeys(("bytes_per_element", "gb_per_s", "share_of_limit"))
    share, limit = None, field.get(peers.LIMIT)
    if limit and limit.bytes_per_element:
        scale = size / limit.bytes_per_element
        share = scale * ratio(laps[peers.LIMIT], laps[key], clock).median
    rate = job.elements() * size / (1e9 * spread(laps[key].by(clock)).median)
    return {"bytes_per_element": size, "gb_per_s": rate, "share_of_limit": share}
