"""From what the clocks said of normalizations to rows."""

import itertools
import platform
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import numpy as np
import onepass
import torch

from . import machine, norm_peers
from .clock import Clock, Laps, spread
from .norm_jobs import BACKWARD, BOTH, FORWARD, Job
from .norm_peers import EAGER, LIMIT, NULL, OURS
from .norm_rows import SCHEMA, Row
from .peers import Contestant
from .venues import Venue


def rows_of(
    job: Job,
    venue: Venue,
    field: dict[str, Contestant],
    laps: dict[str, Laps],
    *,
    threads: int,
    allocator: str,
) -> Iterator[Row]:
    """One row a direction and contestant. field, laps: forward and backward of each, by their keys."""
    clock = venue.headline(threads)
    shared = _shared(job, venue, threads, clock) | {"allocator": allocator}
    names = dict.fromkeys(contestant.name for contestant in field.values())
    served = norm_peers.serving(venue.device)[0]
    for direction, name in itertools.product((FORWARD, BACKWARD, BOTH), names):
        seconds = _seconds(laps, name, direction, clock)
        base = _baseline(name)
        ratio = None if base is None else spread(seconds / _seconds(laps, base, direction, clock))
        limit = spread(_seconds(laps, LIMIT, direction, clock) / seconds) if LIMIT in names else None
        ms = spread(1e3 * seconds)
        yield Row(
            **shared,
            backend=norm_peers.backend(name, venue.device) or served,
            direction=direction,
            contestant=name,
            baseline=base,
            rounds=len(seconds),
            ms=ms.median,
            ms_p25=ms.p25,
            ms_p75=ms.p75,
            ms_wall=spread(1e3 * _seconds(laps, name, direction, "wall")).median,
            ratio=ratio.median if ratio else None,
            ratio_p25=ratio.p25 if ratio else None,
            ratio_p75=ratio.p75 if ratio else None,
            gb_per_s=job.bytes(direction) / ms.median / 1e6,
            share_of_limit=limit.median if limit else None,
        )


def _baseline(name: str) -> str | None:
    """Whom a contestant is compared with. The null run repeats torch."""
    return {OURS: None, LIMIT: None, NULL: EAGER}.get(name, OURS)


def _seconds(laps: dict[str, Laps], name: str, direction: str, clock: Clock) -> np.ndarray:
    if direction == BOTH:
        return _seconds(laps, name, FORWARD, clock) + _seconds(laps, name, BACKWARD, clock)
    return laps[f"{name}: {direction}"].by(clock)


def _shared(job: Job, venue: Venue, threads: int, clock: Clock) -> dict[str, Any]:
    """What all rows of a block have in common."""
    return {
        "schema": SCHEMA,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "area": "norm",
        "device": venue.model(),
        "isa": venue.isa(),
        "threads": threads,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "onepass": onepass.__version__,
        "commit": machine.commit(),
        "shape": "x".join(map(str, job.sizes)),
        "layout": job.layout,
        "dtype": job.dtype,
        "fusion": job.fusion,
        "clock": clock,
    }
