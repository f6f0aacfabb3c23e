"""Rows of layers in 8 bits as a table in Markdown: python -m onepass.bench.int8_report FILE.jsonl"""

import sys
from collections.abc import Sequence
from pathlib import Path

from .int8_jobs import FLOAT32, ONEDNN, OURS, SEVEN, X86
from .int8_rows import Row, read_rows

_HEADS = ("rows", "outputs x inputs", "us", "over x86, onednn", "7 bits over them", "over float32", "GOP/s")


def summary(rows: Sequence[Row]) -> str:
    """int8_linear beside torch's quantized engines, the faster of both, and its float32: by medians."""
    layers: dict[tuple[int, int, int], dict[str, Row]] = {}
    for row in rows:
        if row.op == "int8_linear":
            layers.setdefault((row.n, row.k, row.m), {})[row.contestant] = row
    lines = [_cells(m, n, k, found) for (n, k, m), found in layers.items()]
    head, *rest = (f"| {' | '.join(cells)} |" for cells in (_HEADS, *lines))
    return "\n".join([head, f"|{'---|' * len(_HEADS)}", *rest])


def _cells(m: int, n: int, k: int, found: dict[str, Row]) -> list[str]:
    ours, engine = found[OURS], min(found[X86].ms, found[ONEDNN].ms)
    times = [engine / ours.ms, engine / found[SEVEN].ms, found[FLOAT32].ms / ours.ms]
    return [str(m), f"{n}x{k}", f"{1e3 * ours.ms:.0f}", *(f"{t:.2f}" for t in times), f"{ours.gops:.0f}"]


if __name__ == "__main__":
    print(summary(read_rows(Path(sys.argv[1]))))
