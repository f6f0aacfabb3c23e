"""From what the clocks said of normalizations to rows."""

import itertools
from collections.abc import Iterator

import numpy as np

from . import norm_peers
from .clock import Clock, Laps, spread
from .measured import times, where
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
    layer = {"shape": "x".join(map(str, job.sizes)), "layout": job.layout, "dtype": job.dtype}
    shared = where(venue, threads) | layer | {"fusion": job.fusion, "allocator": allocator}
    names = dict.fromkeys(contestant.name for contestant in field.values())
    served = norm_peers.serving(venue.device)[0]
    for direction, name in itertools.product((FORWARD, BACKWARD, BOTH), names):
        seconds = _seconds(laps, name, direction, clock)
        base = _baseline(name)
        against = None if base is None else _seconds(laps, base, direction, clock)
        limit = spread(_seconds(laps, LIMIT, direction, clock) / seconds) if LIMIT in names else None
        measured = times(seconds, against)
        yield Row(
            **shared,
            **measured,
            schema=SCHEMA,
            area="norm",
            backend=norm_peers.backend(name, venue.device) or served,
            direction=direction,
            contestant=name,
            baseline=base,
            ms_wall=spread(1e3 * _seconds(laps, name, direction, "wall")).median,
            gb_per_s=job.bytes(direction) / measured["ms"] / 1e6,
            share_of_limit=limit.median if limit else None,
        )


def _baseline(name: str) -> str | None:
    """Whom a contestant is compared with. The null run repeats torch."""
    return {OURS: None, LIMIT: None, NULL: EAGER}.get(name, OURS)


def _seconds(laps: dict[str, Laps], name: str, direction: str, clock: Clock) -> np.ndarray:
    if direction == BOTH:
        return _seconds(laps, name, FORWARD, clock) + _seconds(laps, name, BACKWARD, clock)
    return laps[f"{name}: {direction}"].by(clock)
