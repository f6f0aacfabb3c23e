"""The sweep over normalizations on the screen, and as a summary: geometric means over the layers."""

import math
import statistics
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from .norm_rows import Row

_WIDTH = 132  # columns where there is no terminal to ask


def show(block: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    from .report import significant

    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    table = Table(title=block.title, title_justify="left", title_style="bold")
    table.add_column("contestant", no_wrap=True)
    for name in ("direction", "ms", "spread", "onepass is faster by", "GB/s", "share of limit"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in block.rows:
        table.add_row(
            row.contestant,
            row.direction,
            significant(row.ms),
            f"{significant(row.ms_p25)}-{significant(row.ms_p75)}",
            "" if row.ratio is None else f"{row.ratio:.2f} x [{row.ratio_p25:.2f}-{row.ratio_p75:.2f}]",
            "" if row.gb_per_s is None else f"{row.gb_per_s:.1f}",
            "" if row.share_of_limit is None else f"{row.share_of_limit:.3f}",
            style={"onepass": "bold", "null": "dim", "limit": "dim"}.get(row.contestant),
        )
    console.print(table)
    for line in block.notes:
        console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
    console.print()


def geometric_mean(values: Iterable[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, values)))


def ratios(
    rows: Sequence[Row], contestant: str = "torch", direction: str = "both"
) -> dict[tuple[str, ...], list[Row]]:
    """(dtype, layout, fusion): the rows of a contestant over all layers."""
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        if row.contestant == contestant and row.direction == direction:
            found.setdefault((row.dtype, row.layout, row.fusion), []).append(row)
    return found


def summary(rows: Sequence[Row]) -> str:
    """A table in Markdown: geometric means over the layers of how many times as long torch takes."""
    lines = [
        "| dtype | layout | what | forward | backward | both | worst layer |",
        "|---|---|---|---|---|---|---|",
    ]
    for key, both in ratios(rows).items():
        means = [
            geometric_mean(row.ratio or 1 for row in ratios(rows, direction=d)[key])
            for d in ("forward", "backward", "both")
        ]
        worst = min(both, key=lambda row: row.ratio or 1)
        cells = [*key, *(f"{m:.2f}" for m in means), f"{worst.ratio:.2f} ({worst.shape})"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
