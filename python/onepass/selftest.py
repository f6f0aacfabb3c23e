"""`python -m onepass selftest`: every op, on every backend that runs here, against the reference."""

import argparse
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from .ops import OPS, Op
from .testing import CASES, Case, Variant, expected, variants, verify
from .testing.cases import FLOATS

SHOWN = 40  # failures listed one by one


@dataclass(frozen=True)
class Trial:
    op: Op
    case: Case
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{self.op.name} {self.case.name} {name_of(self.dtype)}"


@dataclass
class Tally:
    """How many trials were run and went wrong, by (op, variant) and dtype."""

    run: Counter = field(default_factory=Counter)
    wrong: Counter = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def trials(ops: list[str], cases: list[str], dtypes: list[str]) -> list[Trial]:
    """The trials whose op, case and dtype are among those named; an empty list names all."""
    return [
        Trial(op, case, dtype)
        for op in OPS
        for case in CASES[op.name]
        for dtype in case.dtypes
        if (not ops or op.name in ops)
        and (not cases or case.name in cases)
        and (not dtypes or name_of(dtype) in dtypes)
    ]


def attempt(trial: Trial, variant: Variant, device: str, seed: int, want: dict) -> list[str]:
    """What is wrong with one trial on one variant, a line each."""
    try:
        with variant.use():
            mismatches = verify(trial.op, trial.case, trial.dtype, device, seed, want)
    except Exception as error:  # an op that raises is a failure to list, not the end of the test
        return [f"{trial} on {variant}: raised {type(error).__name__}: {error}"]
    return [f"{trial} on {variant}: {m.argument} {m.message}" for m in mismatches]


def run(todo: list[Trial], served: list[Variant], device: str, seed: int, tick: Callable[[], None]) -> Tally:
    """Runs every trial on every variant; tick() after each."""
    tally = Tally()
    for trial in todo:
        want = None
        try:
            want = expected(trial.op, trial.case, seed, trial.dtype, device)
        except Exception as error:  # listed once, counted against every variant
            tally.failures.append(f"{trial}: the reference raised {type(error).__name__}: {error}")
        for variant in (v for v in served if v.takes(trial.case, trial.dtype, device)):
            key = trial.op.name, str(variant), trial.dtype
            lines = [] if want is None else attempt(trial, variant, device, seed, want)
            tally.run[key] += 1
            tally.wrong[key] += want is None or bool(lines)
            tally.failures += lines
            tick()
    return tally


def summary(tally: Tally) -> Table:
    dtypes = [dtype for dtype in FLOATS if any(key[2] == dtype for key in tally.run)]
    table = Table(title="Cases that agree with the reference", title_justify="left", title_style="bold")
    table.add_column("op")
    table.add_column("backend")
    for dtype in dtypes:
        table.add_column(name_of(dtype), justify="right")
    for op, variant in dict.fromkeys(key[:2] for key in tally.run):
        cells = []
        for dtype in dtypes:
            wrong, of = tally.wrong[op, variant, dtype], tally.run[op, variant, dtype]
            if of == 0:
                cells.append("-")
                continue
            cells.append(f"[bold red]{of - wrong} of {of}" if wrong else f"[green]{of} of {of}")
        table.add_row(op, variant, *cells)
    return table


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m onepass selftest", description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument(
        "--op", action="append", default=[], choices=[op.name for op in OPS], help="only this"
    )
    parser.add_argument("--case", action="append", default=[], help="only this case")
    parser.add_argument("--dtype", action="append", default=[], choices=[name_of(d) for d in FLOATS])
    parser.add_argument("--seed", type=int, default=0, help="of the inputs (default 0)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    console = Console()
    if args.device != "cpu" and not (args.device == "cuda" and torch.cuda.is_available()):
        console.print(f"onepass selftest: there is no device {args.device!r} here")
        return 2
    todo, served = trials(args.op, args.case, args.dtype), variants(args.device)
    if not todo:
        console.print(f"onepass selftest: no case is named {', '.join(map(repr, args.case))}")
        return 2
    columns = (TextColumn("selftest"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task(
            "selftest", total=sum(v.takes(t.case, t.dtype, args.device) for t in todo for v in served)
        )
        tally = run(todo, served, args.device, args.seed, lambda: progress.advance(bar))
    console.print(summary(tally))
    for line in tally.failures[:SHOWN]:
        console.print(f"[red]failed[/] {escape(line)}", soft_wrap=True)
    if len(tally.failures) > SHOWN:
        console.print(f"... and {len(tally.failures) - SHOWN} more")
    return 1 if tally.failures else 0
