"""The command line: python -m onepass bench <area> [options]."""

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

from .files import why_not_writable
from .venues import why_not

# area: (module of this package, one line of doc). The module has add_arguments(parser) and
# sweep(args, progress), which yields blocks; and show(block), where its blocks have a form of their own.
AREAS = {
    "optim": ("optim", "optimizer steps against torch's own"),
    "amp": ("amp", "steps under a GradScaler, and sums of gradients, against torch's"),
    "norm": ("norm", "batch normalization, its residual and activation, against torch's"),
    "int8": ("int8", "linear layers in 8 bits against torch's, in 8 bits and in floats"),
    "fake_quant": ("fake_quant", "fake quantization, forward and both ways, against torch's"),
}
_PLOTS = {
    "norm": "norm_plot",
    "int8": "int8_plot",
    "fake_quant": "fake_quant_plot",
}  # the modules that draw, where it is not "plot"
_PICTURES = (".png", ".svg", ".pdf")


def _at_least_one(text: str) -> int:
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value


def _file(*suffixes: str) -> Callable[[str], Path]:
    def parse(text: str) -> Path:
        path = Path(text)
        wrong = why_not_writable(path)
        if suffixes and path.suffix not in suffixes:
            wrong = f"{text!r} has to end in {', '.join(suffixes)}"
        if wrong:
            raise argparse.ArgumentTypeError(wrong)
        return path

    return parse


def _common() -> argparse.ArgumentParser:
    """The options that every area has."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--threads", nargs="+", type=_at_least_one, default=[1], metavar="N", help="thread counts; default: 1"
    )
    common.add_argument(
        "--rounds",
        type=_at_least_one,
        default=50,
        metavar="N",
        help="interleaved rounds at most; default: 50",
    )
    common.add_argument(
        "--seconds",
        type=_seconds,
        default=15.0,
        metavar="S",
        help="for the rounds of a workload at one thread count, warm-up not counted; default: 15",
    )
    common.add_argument("--json", type=_file(), metavar="FILE", help="append the rows, a JSON object a line")
    common.add_argument("--plot", type=_file(*_PICTURES), metavar="FILE.png", help="draw the ratios")
    return common


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m onepass bench", description="Times onepass and its peers side by side in one process."
    )
    areas = top.add_subparsers(dest="area", required=True, metavar="|".join(AREAS))
    for name, (module, doc) in AREAS.items():
        area = areas.add_parser(name, help=doc, description=doc, parents=[_common()])
        importlib.import_module(f".{module}", __package__).add_arguments(area)
    return top


def _missing(*modules: str) -> list[str]:
    return [m for m in modules if importlib.util.find_spec(m) is None]


def main(argv: list[str]) -> int:
    """Runs the benchmark that argv asks for and returns the exit code: 0, 1 if nothing could be measured, 2
    for wrong arguments or missing packages (by SystemExit) or a missing GPU, 130 if interrupted."""
    top = parser()
    args = top.parse_args(argv)
    missing = _missing("rich", *(["matplotlib"] if args.plot else []))
    if missing:
        top.error(f"{' and '.join(missing)} not installed: pip install 'onepass[cli]'")
    if wrong := why_not(getattr(args, "device", "cpu")):
        print(f"onepass bench: {wrong}", file=sys.stderr)
        return 2
    try:
        return _run(args)
    except KeyboardInterrupt:
        print("onepass bench: interrupted; the rows of finished blocks are written", file=sys.stderr)
        return 130


def _run(args: argparse.Namespace) -> int:
    from . import report  # needs rich, which is an extra: only once we know it is there
    from .rows import append_rows

    module = importlib.import_module(f".{AREAS[args.area][0]}", __package__)
    show = getattr(module, "show", report.show)
    rows = []
    for block in module.sweep(args, report.progress):
        show(block)
        rows += block.rows
        if args.json and block.rows:  # block by block: what is measured is not lost to a later failure
            append_rows(args.json, block.rows)
    if args.plot and rows:
        importlib.import_module(f".{_PLOTS.get(args.area, 'plot')}", __package__).save(args.plot, rows)
    return 0 if rows else 1
