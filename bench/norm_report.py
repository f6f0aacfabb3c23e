"""Rows of normalizations as tables in Markdown: python -m onepass.bench.norm_report FILE.jsonl"""

import math
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .norm_jobs import BACKWARD, BOTH, FORWARD
from .norm_rows import Row, read_rows

OURS = "onepass"
_DIRECTIONS = (FORWARD, BACKWARD, BOTH)
_ALWAYS = {"dtype": "dtype", "layout": "layout", "what": "fusion"}
_IF_SEVERAL = {"device": "device", "threads": "threads", "memory": "allocator"}
_LARGE = "x56x56"  # the layers whose channels fit no cache near the core


@dataclass
class Kind:
    """What was measured of all layers in one way; `words` says in which."""

    words: list[str]
    found: dict[tuple[str, str], dict[str, Row]] = field(default_factory=dict)

    def rows(self, contestant: str, direction: str = BOTH) -> list[Row]:
        return list(self.found.get((contestant, direction), {}).values())

    def everywhere(self, contestant: str) -> bool:
        """In all layers."""
        return len(self.rows(contestant)) == len(self.rows(OURS))


def kinds(rows: Sequence[Row]) -> tuple[list[str], list[Kind]]:
    """A heading for each word, and the kinds. Of a layer the last row counts."""
    several = {h: name for h, name in _IF_SEVERAL.items() if len({getattr(r, name) for r in rows}) > 1}
    heads = several | _ALWAYS
    made: dict[tuple[str, ...], Kind] = {}
    for row in rows:
        words = [str(getattr(row, name)) for name in heads.values()]
        kind = made.setdefault(tuple(words), Kind(words))
        kind.found.setdefault((row.contestant, row.direction), {})[row.shape] = row
    return list(heads), list(made.values())


def peers(rows: Sequence[Row]) -> list[str]:
    """Who is compared with onepass, torch's own ways first."""
    compared = [row.contestant for row in rows if row.baseline == OURS]
    return sorted(dict.fromkeys(compared), key=lambda name: not name.startswith("torch"))


def geometric_mean(values: Iterable[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, values)))


def _table(*lines: Sequence[str]) -> str:
    head, *rest = (f"| {' | '.join(cells)} |" for cells in lines)
    return "\n".join([head, f"|{'---|' * len(lines[0])}", *rest])


def _ratio(row: Row) -> float:
    assert row.ratio is not None, "peers have a baseline"
    return row.ratio


def summary(rows: Sequence[Row]) -> str:
    """Geometric means over the layers of how many times as long others take. They have a line each, if they
    are several; those who did not take part in all layers are in `layers`."""
    heads, found = kinds(rows)
    names = [name for name in peers(rows) if any(kind.everywhere(name) for kind in found)]
    over = ["over"] if len(names) > 1 else []
    lines = [[*heads, *over, *_DIRECTIONS, "worst layer"]]
    for kind in found:
        for name in filter(kind.everywhere, names):
            means = [geometric_mean(map(_ratio, kind.rows(name, d))) for d in _DIRECTIONS]
            worst = min(kind.rows(name), key=_ratio)
            figures = [*(f"{m:.2f}" for m in means), f"{_ratio(worst):.2f} ({worst.shape})"]
            lines.append([*kind.words, *([name] if over else []), *figures])
    return _table(*lines)


def layers(rows: Sequence[Row]) -> str:
    """A line a layer for who did not take part in all of them."""
    heads, found = kinds(rows)
    lines = [[*heads, "layer", "over", *_DIRECTIONS]]
    for kind in found:
        for name in peers(rows):
            for row in [] if kind.everywhere(name) else kind.rows(name):
                ratios = [_ratio(kind.found[name, d][row.shape]) for d in _DIRECTIONS]
                lines.append([*kind.words, row.shape, name, *(f"{ratio:.2f}" for ratio in ratios)])
    return _table(*lines) if lines[1:] else ""


def shares(rows: Sequence[Row]) -> str:
    """onepass's bytes a second and share of the limit: geometric means over the layers, and over those of 56
    x 56 pixels."""
    heads, found = kinds(rows)
    figures = ["GB/s", "share", "at 56 x 56"]
    lines = [[*heads, *(f"{d}: {name}" for d in (FORWARD, BACKWARD) for name in figures)]]
    for kind in found:
        cells = list(kind.words)
        for direction in (FORWARD, BACKWARD):
            ours = kind.rows(OURS, direction)
            large = [row for row in ours if row.shape.endswith(_LARGE)]
            cells += [_mean([row.gb_per_s for row in ours], 1)]
            cells += [_mean([row.share_of_limit for row in some], 2) for some in (ours, large)]
        lines.append(cells)
    return _table(*lines)


def _mean(values: Sequence[float | None], digits: int) -> str:
    known = [value for value in values if value is not None]
    return f"{geometric_mean(known):.{digits}f}" if known and len(known) == len(values) else "-"


if __name__ == "__main__":
    rows = read_rows(Path(sys.argv[1]))
    print(*filter(None, (summary(rows), layers(rows), shares(rows))), sep="\n\n")
