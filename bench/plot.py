"""A picture of the ratios: bars per workload and peer, a panel per thread count."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from .files import replacing
from .peers import NULL
from .rows import Row

# Colours that stay apart for the colour-blind too (Okabe & Ito); grey for what is noise.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
_NOISE = "#999999"


def figure(rows: Sequence[Row]) -> Figure:
    """Bars start at 1.0, which is "as fast as": up where onepass is faster, down where it is slower. The axis
    is logarithmic, so twice as fast and half as fast are equally long."""
    rows = [row for row in rows if row.ratio is not None]
    if not rows:
        raise ValueError("plot: no row has a ratio, there is nothing to draw")
    threads = sorted({row.threads for row in rows})
    # The null run last, whatever the order of the rows: it is the one that is not a peer.
    names = sorted(dict.fromkeys(row.contestant for row in rows), key=NULL.__eq__)
    workloads = list(dict.fromkeys(row.workload for row in rows))
    size = (max(6.0, 2.0 + 2.0 * len(workloads)), 1.0 + 3.4 * len(threads))
    made = Figure(figsize=size, layout="constrained")
    panels = made.subplots(len(threads), 1, squeeze=False, sharey=True)[:, 0]
    for axes, count in zip(panels, threads, strict=True):
        _panel(axes, [row for row in rows if row.threads == count], workloads, names)
        on_gpu = all(row.clock == "cuda_event" for row in rows)
        title = "time on the GPU" if on_gpu else f"{count} thread{'s' if count > 1 else ''}"
        axes.set_title(title, loc="left", fontsize=10)
    bars = {b.get_label(): b for axes in panels for b in axes.containers if isinstance(b, BarContainer)}
    made.legend(handles=list(bars.values()), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    kinds = " / ".join(dict.fromkeys(f"{row.optimizer} {row.dtype}" for row in rows))
    made.suptitle(f"{kinds} on {rows[0].device}", fontsize=11)
    return made


def _panel(axes: Axes, rows: Sequence[Row], workloads: Sequence[str], names: Sequence[str]) -> None:
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        here = [row for row in rows if row.contestant == name]
        x = [workloads.index(row.workload) + (i - (len(names) - 1) / 2) * width for row in here]
        if here:
            _bars(axes, here, x, width, _NOISE if name == NULL else _COLOURS[i % len(_COLOURS)])
    axes.axhline(1.0, color="black", linewidth=1)
    axes.set_xticks(range(len(workloads)), workloads)
    axes.set_xlim(-0.5, len(workloads) - 0.5)
    axes.set_yscale("log")
    axes.margins(y=0.15)  # room for the figures above the bars
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(FixedLocator(ticks(low, high)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.set_ylabel("onepass is faster by")
    axes.spines[["top", "right"]].set_visible(False)


def ticks(low: float, high: float) -> list[float]:
    """Round numbers for an axis from low to high: powers of ten alone would leave most of ours with one."""
    if high / low < 4:
        return [float(y) for y in MaxNLocator(8).tick_values(low, high) if low <= y <= high]
    return [y for e in range(-3, 6) for y in (10.0**e, 2 * 10.0**e, 5 * 10.0**e) if low <= y <= high]


def _bars(axes: Axes, rows: Sequence[Row], x: Sequence[float], width: float, colour: str) -> None:
    spreads = np.array([(row.ratio, row.ratio_p25, row.ratio_p75) for row in rows], dtype=float)
    ratios, p25, p75 = spreads.T
    label = "null run (noise)" if rows[0].contestant == NULL else rows[0].contestant
    bars = axes.bar(
        x,
        ratios - 1.0,
        width,
        bottom=1.0,
        color=colour,
        label=label,
        yerr=(ratios - p25, p75 - ratios),
        error_kw={"elinewidth": 1, "ecolor": "#444444"},
    )
    axes.bar_label(bars, [f"{r:.2f}" if r < 10 else f"{r:.0f}" for r in ratios], fontsize=8, padding=2)


def save(path: Path, rows: Sequence[Row]) -> None:
    """Draws into a file (.png, .svg or .pdf). A failure leaves an old file as it was."""
    made = figure(rows)
    with replacing(path) as temporary:
        made.savefig(temporary, format=path.suffix.removeprefix("."), dpi=150)
