"""Committed rows as the table of README.md: python -m onepass.bench.markdown bench/results/FILE.jsonl"""

import sys
from collections.abc import Sequence
from pathlib import Path

from .peers import NULL, OURS
from .rows import Row, read_rows

PEERS = ("torch-fused", "torch-foreach", "torch-loop")


def _cell(row: Row | None) -> str:
    if row is None or row.ratio is None:
        return "-"
    digits = 2 if row.ratio < 10 else 1
    return f"{row.ratio:.{digits}f} x"


def table(rows: Sequence[Row]) -> str:
    """One line a workload and thread count: how many times faster onepass is than each peer, and its share of
    the read-modify-write limit. A later row takes the place of an earlier one of the same kind."""
    found = {(row.workload, row.threads, row.contestant): row for row in rows}
    lines = [
        "| workload | threads | "
        + " | ".join(f"over {peer}" for peer in PEERS)
        + " | null run | GB/s | share |",
        "|---|---|" + "---|" * (len(PEERS) + 3),
    ]
    for workload, threads in dict.fromkeys((row.workload, row.threads) for row in rows):
        ours = found[workload, threads, OURS]
        null = found.get((workload, threads, NULL))
        cells = [_cell(found.get((workload, threads, peer))) for peer in PEERS]
        noise = "-" if null is None else f"{null.ratio_p25:.2f}-{null.ratio_p75:.2f}"
        share = "-" if ours.share_of_limit is None else f"{ours.share_of_limit:.2f}"
        lines.append(
            f"| {workload} | {threads} | {' | '.join(cells)} | {noise} | {ours.gb_per_s:.0f} | {share} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(read_rows(Path(sys.argv[1]))))
