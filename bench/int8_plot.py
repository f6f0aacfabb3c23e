"""A picture of the 8-bit product: how many operations a second each contestant does, a panel a weight,
a row of panels an op."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .files import replacing
from .int8_jobs import NULL
from .int8_rows import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

# Colours that stay apart for the colour-blind too (Okabe & Ito).
_COLOURS = ("#0072B2", "#56B4E9", "#999999", "#E69F00", "#D55E00", "#009E73", "#CC79A7", "#F0E442", "#000000")


def figure(rows: Sequence[Row]) -> "Figure":
    """Both axes are logarithmic. The limit is dashed; of one row it is what memory gives."""
    from matplotlib.figure import Figure

    rows = [row for row in rows if row.contestant != NULL]
    if not rows:
        raise ValueError("plot: there are no rows, there is nothing to draw")
    ops, weights = list(dict.fromkeys(row.op for row in rows)), _weights(rows)
    made = Figure(figsize=(2.0 + 3.4 * len(weights), 4.2 * len(ops)), layout="constrained")
    for part, op in zip(made.subfigures(len(ops), 1, squeeze=False)[:, 0], ops, strict=True):
        _draw(part, op, [row for row in rows if row.op == op], weights)
    return made


def _weights(rows: Sequence[Row]) -> list[tuple[int, int, int]]:
    return list(dict.fromkeys((row.n, row.k, row.threads) for row in rows))


def _draw(part: "SubFigure", op: str, rows: Sequence[Row], weights: list[tuple[int, int, int]]) -> None:
    from matplotlib.ticker import FuncFormatter, NullLocator

    names = list(dict.fromkeys(row.contestant for row in rows))
    panels = part.subplots(1, len(weights), squeeze=False, sharey=True)[0]
    for axes, weight in zip(panels, weights, strict=True):
        for name, colour in zip(names, itertools.cycle(_COLOURS), strict=False):
            mine = [r for r in rows if (r.n, r.k, r.threads) == weight and r.contestant == name]
            style = "--" if name == "limit" else "-"
            axes.plot(
                [r.m for r in mine], [r.gops for r in mine], style, marker="o", color=colour, label=name
            )
        axes.set(xscale="log", yscale="log", xlabel="rows")
        ticks = sorted({r.m for r in rows})
        axes.set_xticks(ticks, [str(m) for m in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
        threads = f", {weight[2]} threads" if weight[2] > 1 else ""
        axes.set_title(f"{weight[0]}x{weight[1]}{threads}", loc="left", fontsize=10)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("GOP/s")
    panels[0].yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    handles, labels = panels[0].get_legend_handles_labels()
    part.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    part.suptitle(f"{op} on {rows[0].device}", fontsize=11)


def save(path: Path, rows: Sequence[Row]) -> None:
    with replacing(path) as new:
        figure(rows).savefig(new, dpi=150, format=path.suffix[1:])
