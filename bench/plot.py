"""A picture of the ratios: bars per job and peer, a panel per thread count; and of phases, part by part."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .files import replacing
from .peers import NULL
from .rows import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours that stay apart for the colour-blind too (Okabe & Ito); grey for what is noise.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
_NOISE = "#999999"


def _names(rows: Sequence[Row]) -> Callable[[Row], str]:
    """What a row was about, in the words in which it differs from others."""
    words = ("workload", "optimizer", "dtype", "phase")
    vary = [word for word in words if len({getattr(row, word) for row in rows}) > 1]
    vary = vary or ["workload"]
    return lambda row: "\n".join(str(getattr(row, word) or "step") for word in vary)


def figure(rows: Sequence[Row]) -> "Figure":
    """Bars start at 1.0, which is "as fast as": up where onepass is faster, down where it is slower. The axis
    is logarithmic, so twice as fast and half as fast are equally long. Below, where phases were timed, each
    contestant's parts, one on the other: what they take alone."""
    from matplotlib.container import BarContainer
    from matplotlib.figure import Figure

    compared = [row for row in rows if row.ratio is not None]
    if not compared:
        raise ValueError("plot: no row has a ratio, there is nothing to draw")
    name = _names(rows)
    threads = sorted({row.threads for row in compared})
    pieces = [row for row in rows if row.part is not None]
    # The null run last, whatever the order of the rows: it is the one that is not a peer.
    peers = sorted(dict.fromkeys(row.contestant for row in compared), key=NULL.__eq__)
    jobs = list(dict.fromkeys(name(row) for row in compared))
    count = len(threads) + bool(pieces)
    made = Figure(figsize=(max(6.0, 2.0 + 2.0 * len(jobs)), 1.0 + 3.4 * count), layout="constrained")
    panels = made.subplots(count, 1, squeeze=False)[:, 0]
    for axes, number in zip(panels, threads, strict=False):
        axes.sharey(panels[0])
        _panel(axes, [row for row in compared if row.threads == number], name, jobs, peers)
        on_gpu = all(row.clock == "cuda_event" for row in compared)
        title = "time on the GPU" if on_gpu else f"{number} thread{'s' if number > 1 else ''}"
        axes.set_title(title, loc="left", fontsize=10)
    bars = {b.get_label(): b for axes in panels for b in axes.containers if isinstance(b, BarContainer)}
    if pieces:
        _stacked(panels[-1], [row for row in pieces if row.threads == threads[0]], name)
    made.legend(handles=list(bars.values()), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    kinds = " / ".join(dict.fromkeys(f"{row.optimizer} {row.dtype}" for row in compared))
    made.suptitle(f"{kinds} on {rows[0].device}", fontsize=11)
    return made


def _stacked(axes: "Axes", rows: Sequence[Row], name: Callable[[Row], str]) -> None:
    """A bar a job and contestant: milliseconds, part on part."""
    lines = list(dict.fromkeys((name(row), row.contestant) for row in rows))
    parts = list(dict.fromkeys(str(row.part) for row in rows))
    ends = [0.0] * len(lines)
    drawn = {}
    for row in rows:
        at, part = lines.index((name(row), row.contestant)), str(row.part)
        colour = _COLOURS[parts.index(part) % len(_COLOURS)]
        drawn[part] = axes.barh(at, row.ms, left=ends[at], color=colour, edgecolor="white")
        ends[at] += row.ms
    axes.set_yticks(range(len(lines)), [f"{contestant}\n{job}" for job, contestant in lines], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("ms, each part alone")
    axes.set_title("the phase, part by part", loc="left", fontsize=10)
    axes.legend(drawn.values(), drawn.keys(), fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def _panel(
    axes: "Axes", rows: Sequence[Row], name: Callable[[Row], str], jobs: Sequence[str], peers: Sequence[str]
) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    width = 0.8 / len(peers)
    for i, peer in enumerate(peers):
        here = [row for row in rows if row.contestant == peer]
        x = [jobs.index(name(row)) + (i - (len(peers) - 1) / 2) * width for row in here]
        if here:
            _bars(axes, here, x, width, _NOISE if peer == NULL else _COLOURS[i % len(_COLOURS)])
    axes.axhline(1.0, color="black", linewidth=1)
    axes.set_xticks(range(len(jobs)), jobs)
    axes.set_xlim(-0.5, len(jobs) - 0.5)
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
    from matplotlib.ticker import MaxNLocator

    if high / low < 4:
        return [float(y) for y in MaxNLocator(8).tick_values(low, high) if low <= y <= high]
    return [y for e in range(-3, 6) for y in (10.0**e, 2 * 10.0**e, 5 * 10.0**e) if low <= y <= high]


def _bars(axes: "Axes", rows: Sequence[Row], x: Sequence[float], width: float, colour: str) -> None:
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
