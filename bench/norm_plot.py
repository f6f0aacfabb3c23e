"""A picture of the sweep over normalizations, forward and backward together: a line of panels a kind, over
whom onepass is faster by how much, and how much of what memory gives it uses; a group of bars a layer."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .files import replacing
from .norm_peers import LIMIT
from .norm_report import OURS, Kind, kinds, peers
from .norm_rows import Row
from .plot import _COLOURS, _NOISE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def figure(rows: Sequence[Row]) -> "Figure":
    from matplotlib.figure import Figure

    compared = peers(rows)
    if not compared:
        raise ValueError("plot: no row has a ratio, there is nothing to draw")
    _, found = kinds(rows)
    drawn = Figure(figsize=(16, 1.0 + 3.2 * len(found)), layout="constrained")
    for (left, right), kind in zip(drawn.subplots(len(found), 2, squeeze=False), found, strict=True):
        _ratios(left, kind, compared)
        _rates(right, kind)
        left.set_title(" ".join(kind.words), loc="left", fontsize=10)
    drawn.suptitle(f"batch normalization, forward and backward, on {rows[0].device}", fontsize=11)
    return drawn


def _ratios(axes: "Axes", kind: Kind, compared: Sequence[str]) -> None:
    """How many times as long others take; 1.0 is as fast as onepass."""
    found = {name: {row.shape: row.ratio for row in kind.rows(name)} for name in compared}
    _bars(axes, kind, {name: by_shape for name, by_shape in found.items() if by_shape}, _COLOURS)
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_ylabel("onepass is faster by")


def _rates(axes: "Axes", kind: Kind) -> None:
    """Bytes of two passes a second, onepass's and the limit's; above onepass's bars their share of it."""
    ours, limit = kind.rows(OURS), kind.rows(LIMIT)
    found = {OURS: {row.shape: row.gb_per_s for row in ours}}
    if any(row.gb_per_s for row in limit):
        found[LIMIT] = {row.shape: row.gb_per_s for row in limit}
    shares = [None if row.share_of_limit is None else f"{row.share_of_limit:.2f}" for row in ours]
    _bars(axes, kind, found, (_COLOURS[0], _NOISE), [share or "" for share in shares])
    axes.set_ylabel("GB/s (share of limit)")


def _bars(
    axes: "Axes",
    kind: Kind,
    found: dict[str, dict[str, float | None]],
    colours: Sequence[str],
    labels: Sequence[str] | None = None,
) -> None:
    """Of each name a bar a layer, where it has a value; labels: of the first name's."""
    shapes, width = [row.shape for row in kind.rows(OURS)], 0.8 / max(1, len(found))
    for i, (name, by_shape) in enumerate(found.items()):
        places = np.arange(len(shapes)) + (i - (len(found) - 1) / 2) * width
        heights = [by_shape.get(shape) or 0.0 for shape in shapes]
        bars = axes.bar(places, heights, width, label=name, color=colours[i % len(colours)])
        texts = labels if i == 0 and labels else [f"{height:.1f}" if height else "" for height in heights]
        axes.bar_label(bars, texts, fontsize=6, padding=1)
    axes.set_xticks(np.arange(len(shapes)), shapes, rotation=30, fontsize=8)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(found), frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def save(path: Path, rows: Sequence[Row]) -> None:
    """Draws into a file (.png, .svg or .pdf). A failure leaves an old file as it was."""
    drawn = figure(rows)
    with replacing(path) as temporary:
        drawn.savefig(temporary, format=path.suffix.removeprefix("."), dpi=150)
