"""The demo's picture: loss, loss scale and skipped steps, accuracy, time of a step; every run in each."""

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
GOOD = 90.0  # percent: where the accuracy axis starts once every run ends above it


def draw(summary: dict[str, Any]) -> Figure:
    amp = summary["settings"]["amp"]
    draws = [_draw_losses, *([_draw_scales] if amp == "fp16" else []), _draw_accuracies, _draw_times]
    widths = [1.0 if each is _draw_times else 1.25 for each in draws]
    figure = Figure(figsize=(3.8 * len(draws) + 1.6, 4.4), dpi=130, layout="constrained")
    for each, axes in zip(draws, figure.subplots(1, len(draws), width_ratios=widths), strict=True):
        each(axes, summary["runs"])
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
