"""The demo's picture: loss, loss scale and skipped steps, accuracy, time of a step, with every run in each;
then bytes and latency in 8 bits."""

import itertools
from collections.abc import Iterator
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Wide pale lines below, thin strong ones on top, so that curves which coincide can all be seen; in colours
# that people with colour blindness tell apart. More runs begin again at the first.
STYLES = (
    {"color": "#b3b3b3", "linewidth": 5.0},
    {"color": "#56b4e9", "linewidth": 2.6},
    {"color": "#c43c00", "linewidth": 1.1},
)
# Of the ways in 8 bits, which are no runs: other colours, float32 the palest.
WAY_COLORS = ("#d0d0d0", "#009e73", "#cc79a7")
GOOD = 90.0  # percent: where the accuracy axis starts once every run ends above it


def draw(summary: dict[str, Any]) -> Figure:
    amp = summary["settings"]["amp"]
    draws = [_draw_losses, *([_draw_scales] if amp == "fp16" else []), _draw_accuracies, _draw_times]
    widths = [*(1.0 if each is _draw_times else 1.25 for each in draws), 1.25]
    figure = Figure(figsize=(3.8 * len(widths) + 1.6, 4.4), dpi=130, layout="constrained")
    panels = figure.subplots(1, len(widths), width_ratios=widths)
    for each, axes in zip(draws, panels, strict=False):
        each(axes, summary["runs"])
    _draw_quantized(panels[-1], summary["quantized"])
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        f"The same CNN ({summary['parameters']:,} parameters), the same batches of handwritten digits"
        f"{f', {amp} autocast' if amp else ''}",
        fontsize=12,
    )
    return figure


def _styled(runs: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    return zip(runs, itertools.cycle(STYLES), strict=False)


def _draw_losses(axes: Axes, runs: list[dict[str, Any]]) -> None:
    for run, style in _styled(runs):
        axes.semilogy(range(1, len(run["losses"]) + 1), run["losses"], label=run["name"], **style)
    axes.set(title="Training loss", xlabel="step", ylabel="cross-entropy")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="upper right")


def _draw_scales(axes: Axes, runs: list[dict[str, Any]]) -> None:
    """A cross where a step was skipped."""
    for run, style in _styled(runs):
        scales = run["scales"]
        axes.step(range(1, len(scales) + 1), scales, where="mid", **style)
        marks = {"marker": "x", "markersize": 4 + style["linewidth"], "linestyle": "none"}
        skipped = run["skipped_steps"]
        label = "skipped step" if skipped and run is runs[-1] else None
        axes.plot(skipped, [scales[t - 1] for t in skipped], color=style["color"], label=label, **marks)
    axes.set_yscale("log", base=2)
    axes.set(title="Loss scale", xlabel="step", ylabel="scale")
    axes.grid(alpha=0.25)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, loc="best")


def _draw_accuracies(axes: Axes, runs: list[dict[str, Any]]) -> None:
    for run, style in _styled(runs):
        accuracies = run["accuracies_percent"]
        epochs = range(1, len(accuracies) + 1)
        axes.plot(epochs, accuracies, marker="o", markersize=3 + style["linewidth"], **style)
    if min(run["accuracy_percent"] for run in runs) > GOOD:
        axes.set_ylim(GOOD, 100.2)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(title="Test accuracy", xlabel="epoch", ylabel="percent")
    axes.grid(alpha=0.25)


def _draw_times(axes: Axes, runs: list[dict[str, Any]]) -> None:
    for place, (run, style) in enumerate(_styled(runs)):
        bars = axes.barh(place, run["step_ms_median"], height=0.55, color=style["color"])
        axes.bar_label(bars, fmt="%.2f", padding=4)
    axes.set_yticks(range(len(runs)), [run["name"] for run in runs])
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set(title="One optimizer step", xlabel="median, milliseconds")


def _draw_quantized(axes: Axes, ways: list[dict[str, Any]]) -> None:
    """Each bar is a part of the first way's, so that bytes and milliseconds share an axis; the figure beside
    it says which."""
    figures = [(part, figure) for part in ("network", "linear_layers") for figure in ways[0][part]]
    height = 0.8 / len(ways)
    for k, way in enumerate(ways):
        places = [row + (k - (len(ways) - 1) / 2) * height for row in range(len(figures))]
        values = [way[part][figure] for part, figure in figures]
        shares = [way[part][figure] / ways[0][part][figure] for part, figure in figures]
        color = WAY_COLORS[k % len(WAY_COLORS)]
        bars = axes.barh(places, shares, height=height, color=color, label=way["name"])
        labels = [_short(figure, value) for (_, figure), value in zip(figures, values, strict=True)]
        axes.bar_label(bars, labels, padding=3, fontsize=7)
    axes.set_yticks(range(len(figures)), [_title(part, figure) for part, figure in figures])
    axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.set(title="In 8 bits", xlabel=f"times {ways[0]['name']}'s")
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=len(ways), fontsize=8)


def _title(part: str, figure: str) -> str:
    """("linear_layers", "batch_1_ms_median") to two lines: linear layers, batch 1."""
    return f"{part}\n{figure.removesuffix('_ms_median')}".replace("_", " ")


def _short(figure: str, value: float) -> str:
    return f"{value / 1000:,.0f} kB" if figure == "bytes" else f"{value:.3g} ms"
