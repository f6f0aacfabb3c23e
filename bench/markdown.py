"""Committed rows as the tables of README.md: python -m onepass.bench.markdown bench/results/FILE.jsonl"""

import sys
from collections.abc import Sequence
from pathlib import Path

from .jobs import ACCUMULATE, FOREACH, FUSED, LOOP, OURS
from .peers import HOST, NULL
from .report import significant
from .rows import Row, read_rows

PEERS = (FUSED, FOREACH, LOOP)
GPU_PEERS = (FUSED, FOREACH, f"{OURS}-triton")
Found = dict[str, Row]  # the rows of a block, by contestant, its parts by "contestant: part"


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


def _blocks(rows: Sequence[Row]) -> list[Found]:
    """A later row takes the place of an earlier one of its kind."""
    by: dict[tuple[object, ...], Found] = {}
    states = {}
    for row in rows:  # onepass comes first in its block: what it keeps names the block
        if row.contestant == OURS and row.part is None:
            states = {"moments": row.moments}
        key = (row.optimizer, row.phase, row.workload, row.dtype, states["moments"], row.threads)
        name = row.contestant if row.part is None else f"{row.contestant}: {row.part}"
        by.setdefault(key, {})[name] = row
    return list(by.values())


def _own(ours: Row) -> list[str]:
    """What a line is about."""
    states = "" if ours.moments in (ours.dtype, None) else f", {ours.moments} states"
    return [ours.workload, ours.dtype + states, str(ours.threads)]


def _host(found: Found) -> str:
    """What the host takes for a tensor."""
    if HOST not in found:
        return "-"
    return f"{1e3 * found[HOST].ms / found[HOST].tensors:.2f} us"


def steps(rows: Sequence[Row]) -> str:
    """One line an optimizer, workload, dtype and thread count: how many times faster onepass's step is than
    each peer's, and its share of the limit."""
    on_gpu = rows[0].clock == "cuda_event"
    peers = GPU_PEERS if on_gpu else PEERS
    figures = ["ms", "host ms"] if on_gpu else ["ms", "host a tensor"]
    over = [f"over {peer}" for peer in peers]
    lines = [["optimizer", "workload", "dtype", "threads", *figures, *over, "null run", "GB/s", "share"]]
    for found in _blocks([row for row in rows if row.phase is None]):
        ours = found[OURS]
        figures = [significant(ours.ms), significant(ours.ms_wall) if on_gpu else _host(found)]
        share = "-" if ours.share_of_limit is None else f"{ours.share_of_limit:.2f}"
        cells = [_times(found.get(peer)) for peer in peers]
        rest = [_noise(found.get(NULL)), f"{ours.gb_per_s:.0f}", share]
        lines.append([ours.optimizer, *_own(ours), *figures, *cells, *rest])
    return _lines(*lines)


def _parts(found: Found, contestant: str) -> str:
    """In ms: all of it, and what each part takes alone."""
    if contestant not in found:
        return "-"
    parts = [row for row in found.values() if row.contestant == contestant and row.part is not None]
    alone = " + ".join(f"{row.part} {significant(row.ms)}" for row in parts)
    return f"{significant(found[contestant].ms)} ({alone})"


def phases(rows: Sequence[Row]) -> str:
    """One line a phase, workload, dtype and thread count."""
    over = [f"over {peer}" for peer in (FUSED, FOREACH)]
    head = ["optimizer", "gradients", "workload", "dtype", "threads", *over, "share"]
    lines = [[*head, "onepass, ms", f"{FUSED}, ms"]]
    for found in _blocks([row for row in rows if row.area == "optim" and row.phase is not None]):
        ours = found[OURS]
        share = "-" if ours.share_of_limit is None else f"{ours.share_of_limit:.2f}"
        cells = [_times(found.get(peer)) for peer in (FUSED, FOREACH)]
        times = [_parts(found, OURS), _parts(found, FUSED)]
        lines.append([ours.optimizer, str(ours.phase), *_own(ours), *cells, share, *times])
    return _lines(*lines)


def amp(rows: Sequence[Row]) -> str:
    """One line for what is done under a GradScaler, and for sums over micro-batches."""
    head = ["what", "workload", "dtype", "threads", "ms", *(f"over {peer}" for peer in PEERS), "null run"]
    lines = [[*head, "share"]]
    for found in _blocks([row for row in rows if row.area == "amp"]):
        ours = found[OURS]
        share = "-" if ours.share_of_limit is None else f"{ours.share_of_limit:.2f}"
        cells = [_times(found.get(peer)) for peer in PEERS]
        what = str(ours.phase) if ours.phase == ACCUMULATE else f"{ours.optimizer}, {ours.phase}"
        lines.append([what, *_own(ours), significant(ours.ms), *cells, _noise(found.get(NULL)), share])
    return _lines(*lines)


if __name__ == "__main__":
    rows = read_rows(Path(sys.argv[1]))
    print(steps(rows), phases(rows), amp(rows), sep="\n\n")
