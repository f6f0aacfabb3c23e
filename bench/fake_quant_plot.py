"""A picture of the sweep over fake quantization: GB/s of each contestant, a group of bars a job."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .fake_quant_jobs import NULL
from .fake_quant_rows import Row
from .files import replacing
from .int8_plot import _COLOURS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figure(rows: Sequence[Row]) -> "Figure":
    from matplotlib.figure import Figure

    rows = [row for row in rows if row.contestant != NULL]
    if not rows:
        raise ValueError("plot: there are no rows, there is nothing to draw")
    jobs = list(dict.fromkeys((r.shape, r.scale, r.direction, r.threads) for r in rows))
    names = list(dict.fromkeys(r.contestant for r in rows))
    made = Figure(figsize=(3.0 + 1.1 * len(jobs), 4.5), layout="constrained")
    axes, width = made.subplots(), 0.8 / len(names)
    for i, name in enumerate(names):
        mine = [r for r in rows if r.contestant == name]
        places = [jobs.index((r.shape, r.scale, r.direction, r.threads)) + i * width for r in mine]
        axes.bar(places, [r.gb_per_s for r in mine], width, color=_COLOURS[i], label=name)
    axes.set_xticks([i + 0.4 - width / 2 for i in range(len(jobs))], ["\n".join(map(str, j)) for j in jobs])
    axes.set_ylabel("GB/s")
    axes.legend(frameon=False)
    axes.set_title(f"fake quantization on {rows[0].device}", loc="left", fontsize=11)
    return made


def save(path: Path, rows: Sequence[Row]) -> None:
    with replacing(path) as new:
        figure(rows).savefig(new, dpi=150, format=path.suffix[1:])
