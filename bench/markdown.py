"""Committed rows as the table of README.md: python -m onepass.bench.markdown bench/results/FILE.jsonl"""

import sys
from collections.abc import Sequence
from pathlib import Path

from .peers import NULL, OURS
from .report import significant
from .rows import Row, read_rows

PEERS = ("torch-fused", "torch-foreach", "torch-loop")
GPU_PEERS = ("torch-fused", "torch-foreach", f"{OURS}-triton")


def _times(row: Row | None) -> str:
    if row is None or row.ratio is None:
        return "-"
    digits = 2 if row.ratio < 10 else 1
    return f"{row.ratio:.{digits}f} x"


def _noise(null: Row | None) -> str:
    return "-" if null is None else f"{null.ratio_p25:.2f}-{null.ratio_p75:.2f}"


def _lines(*rows: Sequence[str]) -> str:
    head, *body = [f"| {' | '.join(cells)} |" for cells in rows]
    return "\n".join([head, f"|{'---|' * len(rows[0])}", *body])


def table(rows: Sequence[Row]) -> str:
    """One line a workload and thread count, on a GPU a workload and dtype: how many times faster onepass is
    than each peer, and its share of the limit. A later row takes the place of an earlier one of its kind."""
    on_gpu = rows[0].clock == "cuda_event"
    peers = GPU_PEERS if on_gpu else PEERS
    by: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        key = row.workload, row.dtype if on_gpu else str(row.threads)
        by.setdefault(key, {})[row.contestant] = row
    own = ["ms", "host ms"] if on_gpu else []
    over = [f"over {peer}" for peer in peers]
    lines = [["workload", "dtype" if on_gpu else "threads", *own, *over, "null run", "GB/s", "share"]]
    for key, found in by.items():
        ours = found[OURS]
        own = [significant(ours.ms), significant(ours.ms_wall)] if on_gpu else []
        share = "-" if ours.share_of_limit is None else f"{ours.share_of_limit:.2f}"
        cells = [_times(found.get(peer)) for peer in peers]
        lines.append([*key, *own, *cells, _noise(found.get(NULL)), f"{ours.gb_per_s:.0f}", share])
    return _lines(*lines)


if __name__ == "__main__":
    print(table(read_rows(Path(sys.argv[1]))))
