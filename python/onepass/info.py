"""`python -m onepass info`: versions, what is built, what runs here, and which backend serves which op."""

import argparse
import json
import os
import platform
from typing import Any

import torch

from . import __version__, backends
from .ops import OPS, Op

DEVICES = ("cpu", "cuda")


def collect() -> dict[str, Any]:
    """All that is shown, as JSON-ready values. Does not initialise CUDA."""
    return {
        "versions": {
            "onepass": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
        },
        "compiled": _compiled(),
        "cuda": backends.without_cuda or "built and loaded",
        "instruction_sets": _instruction_sets(),
        "devices": {device: _device(device) for device in DEVICES},
        "threads": {"torch": torch.get_num_threads(), "processors": os.cpu_count()},
        "ops": [_op(op) for op in OPS],
    }


def _compiled() -> dict[str, str] | None:
    """Compiler and torch that the C++ kernels were built with; None where they are not built."""
    return None if backends._C is None else dict(backends._C.build_info())


def _instruction_sets() -> list[dict[str, Any]]:
    if backends._C is None:
        return []
    in_use = backends.isa()
    return [
        {"name": name, "runs_here": runs, "opt_in": opt_in, "in_use": name == in_use}
        for name, runs, opt_in in backends._C.isas()
    ]


def _device(device: str) -> dict[str, Any]:
    return {
        "available": device == "cpu" or torch.cuda.is_available(),
        "backend": backends.backend_of(device),
        "backends": [b for b in backends.BACKENDS if backends.serves(b, device)],
    }


def _op(op: Op) -> dict[str, Any]:
    return {
        "op": op.name,
        "doc": op.doc,
        "bytes_per_element": op.bytes_per_element,
        "backends": {device: _backends(op, device) for device in DEVICES},
    }


def _backends(op: Op, device: str) -> list[str]:
    """The backends that have this op for this type of device and can be used here, best first."""
    has = {"cpp": device.upper() in op.cpp, "triton": bool(op.triton), "reference": True}
    return [b for b in backends.BACKENDS if has[b] and backends.serves(b, device)]


def show(info: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console()
    console.print(_build_table(info))
    console.print(_support_table(info["ops"]))


def _build_table(info: dict[str, Any]) -> Any:
    from rich.table import Table

    table = Table(title="onepass", show_header=False, title_justify="left", title_style="bold")
    for name, version in info["versions"].items():
        table.add_row(name, version)
    compiled = info["compiled"]
    built = f"compiler {compiled['compiler']}, torch {compiled['torch']}" if compiled else "not built"
    table.add_row("C++ kernels", built)
    table.add_row("CUDA kernels", info["cuda"])
    table.add_row("instruction sets", "\n".join(map(_isa_line, info["instruction_sets"])) or "none")
    for device, entry in info["devices"].items():
        there = "" if entry["available"] else "  (no such device here)"
        others = ", ".join(b for b in entry["backends"] if b != entry["backend"])
        table.add_row(device, f"{entry['backend']}{f', then {others}' if others else ''}{there}")
    threads = info["threads"]
    table.add_row("threads", f"{threads['torch']} of {threads['processors']} processors")
    return table


def _isa_line(isa: dict[str, Any]) -> str:
    notes = [
        "in use" if isa["in_use"] else "",
        "" if isa["runs_here"] else "does not run on this processor",
        f"only when ONEPASS_ISA={isa['name']} asks for it" if isa["opt_in"] else "",
    ]
    text = ", ".join(note for note in notes if note)
    return f"{isa['name']}{': ' if text else ''}{text}"


def _support_table(ops: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    table = Table(title="Ops", title_justify="left", title_style="bold")
    for column in ("op", "what it does", *DEVICES):
        table.add_column(column, no_wrap=column == "op")
    table.add_column("bytes per\nfp32 element", justify="right")
    for row in ops:
        served = [", ".join(row["backends"][device]) for device in DEVICES]
        table.add_row(row["op"], row["doc"], *served, str(row["bytes_per_element"] or "-"))
    return table


def support_markdown() -> str:
    """The support table of README.md: what the op table says, whatever is built here."""
    lines = ["| op | what it does | CPU | CUDA | bytes per fp32 element |", "|---|---|---|---|---|"]
    for op in OPS:
        cpu, cuda = (["C++"] if key in op.cpp else [] for key in ("CPU", "CUDA"))
        cuda += ["Triton"] if op.triton else []
        served = [", ".join([*backends, "reference"]) for backends in (cpu, cuda)]
        lines.append(f"| `{op.name}` | {op.doc} | {' | '.join(served)} | {op.bytes_per_element or '-'} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m onepass info", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--markdown", action="store_true", help="print the support table for README.md")
    args = parser.parse_args(argv)
    if args.markdown:
        print(support_markdown())
        return 0
    info = collect()
    if args.json:
        print(json.dumps(info, indent=2))
    else:
        show(info)
    return 0
