"""The sweep over the 8-bit product on the screen: a table a block."""

import sys
from typing import Any

from .int8_rows import Row

_WIDTH = 132  # columns where there is no terminal to ask
_STYLES = {"onepass": "bold", "null": "dim", "limit": "dim"}


def show(block: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    table = Table(title=block.title, title_justify="left", title_style="bold")
    table.add_column("contestant", no_wrap=True)
    on_gpu = any(row.clock == "cuda_event" for row in block.rows)
    us, host = ("GPU us", ["host us"]) if on_gpu else ("us", [])
    for name in (us, "spread", "onepass is faster by", "GOP/s", "GB/s", "share of limit", *host):
        table.add_column(name, justify="right", no_wrap=True)
    for row in block.rows:
        cells = _cells(row)
        style = _STYLES.get(row.contestant.partition(", ")[0])
        table.add_row(*(cells if on_gpu else cells[:-1]), style=style)
    if block.rows:
        console.print(table)
    else:
        console.print(block.title, style="bold", markup=False)
    for line in block.notes:
        console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
    console.print()


def _cells(row: Row) -> list[str]:
    from .report import significant  # needs rich, which is an extra

    return [
        row.contestant,
        significant(1e3 * row.ms),
        f"{significant(1e3 * row.ms_p25)}-{significant(1e3 * row.ms_p75)}",
        "" if row.ratio is None else f"{row.ratio:.2f} x [{row.ratio_p25:.2f}-{row.ratio_p75:.2f}]",
        f"{row.gops:.0f}",
        f"{row.gb_per_s:.1f}" if row.m == 1 else "",
        "" if row.share_of_limit is None else f"{row.share_of_limit:.3f}",
        "" if row.ms_wall is None else significant(1e3 * row.ms_wall),
    ]
