"""What rows of every area say in the same words: where they were measured, and how long it took."""

import platform
from datetime import UTC, datetime
from typing import Any

import numpy as np
import onepass
import torch

from . import machine
from .clock import spread
from .venues import Venue


def where(venue: Venue, threads: int) -> dict[str, Any]:
    """What all rows of a block have in common: time, place, versions and the clock."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": venue.model(),
        "isa": venue.isa(),
        "threads": threads,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "onepass": onepass.__version__,
        "commit": machine.commit(),
        "clock": venue.headline(threads),
    }


def times(seconds: np.ndarray, base: np.ndarray | None) -> dict[str, Any]:
    """Of a contestant's seconds, an entry a round, and of those of whom it is compared with."""
    ms = spread(1e3 * seconds)
    ratio = None if base is None else spread(seconds / base)
    return {
        "rounds": len(seconds),
        "ms": ms.median,
        "ms_p25": ms.p25,
        "ms_p75": ms.p75,
        "ratio": ratio.median if ratio else None,
        "ratio_p25": ratio.p25 if ratio else None,
        "ratio_p75": ratio.p75 if ratio else None,
    }
