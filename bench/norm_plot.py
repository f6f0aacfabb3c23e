"""A picture of the sweep over normalizations: bars per layer, a panel per dtype and layout."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from .files import replacing
from .norm_report import ratios
from .norm_rows import Row
from .plot import _COLOURS


def figure(rows: Sequence[Row]) -> Figure:
    """How many times as long torch takes, forward and backward together; 1.0 is as fast as."""
    found = ratios(rows)
    if not found:
        raise ValueError("plot: no row has a ratio, there is nothing to draw")
    panels = list(dict.fromkeys((dtype, layout) for dtype, layout, _ in found))
    fusions = list(dict.fromkeys(fusion for _, _, fusion in found))
    drawn = Figure(figsize=(12, 3.2 * len(panels)), layout="constrained")
    for axes, panel in zip(np.atleast_1d(drawn.subplots(len(panels), 1, sharex=True)), panels, strict=True):
        shapes = list(dict.fromkeys(row.shape for key in found if key[:2] == panel for row in found[key]))
        width = 0.8 / len(fusions)
        for i, fusion in enumerate(fusions):
            by_shape = {row.shape: row.ratio or 0.0 for row in found.get((*panel, fusion), [])}
            places = np.arange(len(shapes)) + (i - (len(fusions) - 1) / 2) * width
            heights = [by_shape.get(shape, 0.0) for shape in shapes]
            axes.bar(places, heights, width, label=fusion, color=_COLOURS[i % len(_COLOURS)])
        axes.axhline(1.0, color="black", linewidth=0.8)
        axes.set_xticks(np.arange(len(shapes)), shapes, rotation=30)
        axes.set_ylabel("torch / onepass")
        axes.set_title(" ".join(panel))
        axes.legend(frameon=False)
    return drawn


def save(path: Path, rows: Sequence[Row]) -> None:
    drawn = figure(rows)
    with replacing(path) as temporary:
        drawn.savefig(temporary, format=path.suffix.removeprefix("."), dpi=150)
