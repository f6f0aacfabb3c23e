"""The result on the screen: a table a block, and a progress bar while it is being measured."""

import contextlib
import sys
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from .jobs import OURS
from .optim import Block
from .peers import HOST, LIMIT, NULL
from .rows import Row

_CLOCKS = {"thread_cpu": "CPU ms/step", "wall": "wall ms/step", "cuda_event": "GPU ms/step"}
_WIDTH = 132  # columns where there is no terminal to ask


def significant(x: float) -> str:
    """Three significant digits, never in powers of ten: 0.0123, 1.23, 12.3, 123, 1234."""
    digits = next((d for d, top in enumerate((100, 10, 1, 0.1, 0.01)) if x >= top), 5)
    return f"{x:.{digits}f}"


def _label(row: Row) -> str:
    if row.part is not None:
        return f"  {row.part}"
    labels = {
        NULL: f"null run: {row.baseline} again",
        LIMIT: f"limit: {'copy' if row.clock == 'cuda_event' else 'read-modify-write'}",
        HOST: "host: kernels that return at once",
    }
    return labels.get(row.contestant, row.contestant)


def _ratio(row: Row) -> Text:
    if row.ratio is None:
        return Text()
    text = f"{row.ratio:.2f} x [{row.ratio_p25:.2f}-{row.ratio_p75:.2f}]"
    return Text(f"noise: {text}" if row.contestant == NULL else text)


def _style(row: Row) -> str | None:
    if row.part is not None or row.contestant in (NULL, HOST):
        return "dim"
    return "bold" if row.contestant == OURS else None


def table(block: Block) -> Table:
    """The rows of a block: times in milliseconds per step, spreads from the 25th to the 75th percentile."""
    clock = block.rows[0].clock
    on_gpu = clock == "cuda_event"
    made = Table(title=block.title, title_justify="left", title_style="bold")
    made.add_column("contestant", no_wrap=True)
    host = ["host ms/step"] if on_gpu else []
    for name in (_CLOCKS[clock], "spread", "onepass is faster by", "GB/s", "share of limit", *host):
        made.add_column(name, justify="right", no_wrap=True)
    for row in block.rows:
        made.add_row(
            _label(row),
            significant(row.ms),
            f"{significant(row.ms_p25)}-{significant(row.ms_p75)}",
            _ratio(row),
            "" if row.gb_per_s is None else f"{row.gb_per_s:.1f}",
            "" if row.share_of_limit is None else f"{row.share_of_limit:.3f}",
            *([significant(row.ms_wall)] if on_gpu else []),
            style=_style(row),
        )
    return made


def noise(null: Row) -> float:
    """How far the farther quartile of the null run's ratio lies from 1: no smaller difference is one."""
    assert null.ratio_p25 is not None and null.ratio_p75 is not None
    return max(abs(null.ratio_p25 - 1), abs(null.ratio_p75 - 1))


def legend(block: Block) -> list[str]:
    """The lines below a table."""
    rows = block.rows
    if not rows:
        return block.notes
    rounds = f"medians of {rows[0].rounds} interleaved rounds [25th-75th percentile]"
    lines = [f"{rows[0].tensors} tensors, {rows[0].elements:,} elements; {rounds}"]
    null = next((row for row in rows if row.contestant == NULL), None)
    if null is not None:
        lines.append(
            f"null run: two equal {null.baseline} optimizers against each other; a ratio within "
            f"{100 * noise(null):.0f} % of 1.00 means nothing in this run"
        )
    host = next((row for row in rows if row.contestant == HOST), None)
    if host is not None:
        lines.append(f"host: {1e3 * host.ms / host.tensors:.3f} us a tensor")
    return lines + block.notes


def show(block: Block, console: Console | None = None) -> None:
    console = console or Console(width=None if sys.stdout.isatty() else _WIDTH)
    if block.rows:
        console.print(table(block))
    else:
        console.print(block.title, style="bold", markup=False)
    for line in legend(block):
        console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
    console.print()


@contextlib.contextmanager
def progress(title: str) -> Iterator[Callable[[float], None]]:
    """A bar on stderr if that is a terminal; gives the function that moves it to a part of 0..1."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
        auto_refresh=False,  # no second thread that wakes up in the middle of a timed batch
    )
    with bar:
        task = bar.add_task(title, total=1.0)
        yield lambda done: bar.update(task, completed=done, refresh=True)
