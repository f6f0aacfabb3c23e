"""The sweep over optimizers: every workload, at every thread count, with every contestant."""

import argparse
import contextlib
import gc
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import onepass
import torch
from onepass.testing.threads import threads as torch_threads

from . import machine, peers, venues
from .clock import Clock, Laps, ratio, spread
from .rows import SCHEMA, Row
from .venues import Venue
from .workloads import WORKLOADS, Workload, usual

Progress = Callable[[str], contextlib.AbstractContextManager[Callable[[float], None]]]


@dataclass
class Block:
    """One workload at one thread count: what is shown together."""

    title: str
    rows: list[Row]
    notes: list[str]  # what was left out and why, one line each


def add_arguments(parser: argparse.ArgumentParser) -> None:
    known = ", ".join(f"{w.name} ({w.doc})" for w in WORKLOADS.values())
    parser.add_argument(
        "--workload",
        action="append",
        choices=WORKLOADS,
        metavar="NAME",
        help=f"may be given several times; if not given, those that suit the device: {known}",
    )
    parser.add_argument("--optimizer", choices=peers.OPTIMIZERS, default="adamw", help="default: adamw")
    parser.add_argument(
        "--dtype",
        choices=peers.DTYPES,
        default="float32",
        help="of parameters and gradients; default: float32",
    )
    parser.add_argument(
        "--peers",
        nargs="+",
        choices=peers.PEERS,
        help="whom to compare with; if not given, all, on cuda without torch-loop; the null run comes with "
        "torch-fused",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")


def sweep(args: argparse.Namespace, progress: Progress) -> Iterator[Block]:
    """Measures; yields a block as soon as it is done. `progress` opens a bar for a block."""
    venue = venues.of(args.device)
    for name in dict.fromkeys(args.workload or usual(args.device)):
        yield from _workload(WORKLOADS[name], args, venue, progress)


def _workload(
    workload: Workload, args: argparse.Namespace, venue: Venue, progress: Progress
) -> Iterator[Block]:
    title = f"{workload.name} · {args.optimizer} {args.dtype}"
    gc.collect()  # what the workload before this one left
    with torch_threads(args.threads[0]):
        field, notes = _enter(workload, args, venue)
    if peers.OURS not in field:
        yield Block(title, [], [*notes, f"{workload.name} is left out: onepass itself cannot run it here"])
        return
    notes += _remarks(field, venue)
    for threads in dict.fromkeys(args.threads):
        titled = f"{title} · {venue.place(threads)}"
        with torch_threads(threads), progress(titled) as tick:
            laps = venue.race(field, args.rounds, args.seconds, tick)
            rows = _rows(workload, args, venue, field, laps)
        yield Block(titled, rows, notes)


def _enter(
    workload: Workload, args: argparse.Namespace, venue: Venue
) -> tuple[dict[str, peers.Contestant], list[str]]:
    """The contestants, built, and a line about each who is not among them."""
    dtype = getattr(torch, args.dtype)
    names, notes = peers.fit(venue.needs(args.peers or venue.peers, workload, dtype), venue.free_memory())
    field: dict[str, peers.Contestant] = {}
    if peers.OURS not in names:
        return field, notes
    build = venue.builder(workload, args.optimizer, dtype)
    for name in names:
        try:
            field[name] = build(name)
        except RuntimeError as error:  # a dtype that a peer does not serve; memory that went meanwhile
            if name == peers.OURS and not isinstance(error, torch.OutOfMemoryError):
                raise
            notes.append(f"{name} is left out: {str(error).splitlines()[0]}")
    if peers.NULL in field and peers.FUSED not in field:
        del field[peers.NULL]
        notes.append(f"{peers.NULL} is left out: there is no {peers.FUSED} to compare it with")
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
    ours = field[peers.OURS]
    others = {c.moments: c.bytes_per_element for c in field.values() if c.moments not in (None, ours.moments)}
    for moments, size in others.items():
        notes.append(
            f"torch keeps the moments in {moments} ({size} bytes an element), onepass in {ours.moments} "
            f"({ours.bytes_per_element} bytes): torch moves less and loses precision"
        )
    return notes


def _rows(
    workload: Workload,
    args: argparse.Namespace,
    venue: Venue,
    field: dict[str, peers.Contestant],
    laps: dict[str, Laps],
) -> list[Row]:
    elements, shared = workload.elements(), _shared(workload, args, venue)
    rows = []
    for name, contestant in field.items():
        clock = shared["clock"]
        time = spread(1e3 * laps[name].by(clock))
        rows.append(
            Row(
                **shared,
                **_compared(name, laps, clock),
                backend=contestant.backend or onepass.backends.backend_of(venue.device),
                contestant=name,
                moments=contestant.moments,
                rounds=len(laps[name].wall),
                batch=laps[name].batch,
                ms=time.median,
                ms_p25=time.p25,
                ms_p75=time.p75,
                ms_thread_cpu=spread(1e3 * laps[name].by("thread_cpu")).median,
                ms_wall=spread(1e3 * laps[name].by("wall")).median,
                bytes_per_element=contestant.bytes_per_element,
                gb_per_s=elements * contestant.bytes_per_element / time.median / 1e6,
                share_of_limit=_share(contestant, field, laps, clock),
            )
        )
    return rows


def _shared(workload: Workload, args: argparse.Namespace, venue: Venue) -> dict[str, Any]:
    """What all rows of a block have in common."""
    threads = torch.get_num_threads()
    return {
        "schema": SCHEMA,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "area": "optim",
        "device": venue.model(),
        "isa": venue.isa(),
        "threads": threads,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "onepass": onepass.__version__,
        "commit": machine.commit(),
        "workload": workload.name,
        "tensors": len(workload.shapes()),
        "elements": workload.elements(),
        "optimizer": args.optimizer,
        "dtype": args.dtype,
        "clock": venue.headline(threads),
    }


def _compared(name: str, laps: dict[str, Laps], clock: Clock) -> dict[str, Any]:
    if name in (peers.OURS, peers.LIMIT):
        return dict.fromkeys(("baseline", "ratio", "ratio_p25", "ratio_p75", "ratio_wall"))
    baseline = peers.FUSED if name == peers.NULL else peers.OURS
    by = ratio(laps[name], laps[baseline], clock)
    return {
        "baseline": baseline,
        "ratio": by.median,
        "ratio_p25": by.p25,
        "ratio_p75": by.p75,
        "ratio_wall": ratio(laps[name], laps[baseline], "wall").median,
    }


def _share(
    contestant: peers.Contestant, field: dict[str, peers.Contestant], laps: dict[str, Laps], clock: Clock
) -> float | None:
    """The part of the limit's bytes a second that a contestant reaches, in the same rounds."""
    if peers.LIMIT not in field:
        return None
    scale = contestant.bytes_per_element / field[peers.LIMIT].bytes_per_element
    return scale * ratio(laps[peers.LIMIT], laps[contestant.name], clock).median
