"""The rows that a benchmark leaves behind: one JSON object a line, one row a contestant."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from .files import replacing
from .row import JsonRow, doc

SCHEMA = 2  # grows whenever a field changes its meaning or leaves


@dataclass(frozen=True, kw_only=True)
class Row(JsonRow):
    """One contestant on one workload at one thread count. `doc(name)` tells what a field means."""

    schema: int = doc(f"version of this schema, now {SCHEMA}")
    time: str = doc("when the row was made, UTC, ISO 8601")
    area: str = doc('the sweep: "optim" or "amp"')
    device: str = doc("model name of the processor, or of the GPU that took the steps")
    isa: str | None = doc(
        "instruction set of onepass's compiled kernels, on a GPU the GPU's (sm_90); null where not built"
    )
    backend: str = doc("what serves onepass, in a row of onepass-BACKEND this: cpp, triton or reference")
    threads: int = doc("torch.get_num_threads() during the run")
    python: str = doc("version of Python")
    torch: str = doc("version of torch")
    onepass: str = doc("version of onepass")
    commit: str | None = doc(
        'short git hash, "-dirty" after changes to tracked files; null outside a checkout'
    )
    workload: str = doc("name of the workload")
    tensors: int = doc("number of parameters")
    elements: int = doc("elements in all parameters together")
    optimizer: str = doc("name of the optimizer, with torch's default hyperparameters")
    phase: str | None = doc(
        "set-to-none or zeroed: the whole phase; scaled, scaled-explicit or accumulate, of the area amp: see "
        "bench/scaling.py; null for the step alone"
    )
    dtype: str = doc("of parameters and gradients")
    moments: str | None = doc("dtype in which this contestant keeps its states; null where it has none")
    contestant: str = doc(
        "onepass, onepass-BACKEND, torch-fused, torch-foreach, torch-loop, null, limit or host"
    )
    part: str | None = doc("the part of a phase that was timed alone; null for all of it")
    baseline: str | None = doc(
        "whom `ratio` compares with: onepass, for null the first of torch's; null where none"
    )
    clock: str = doc(
        "of ms and ratio: on the CPU thread_cpu with one thread, wall with more; on a GPU cuda_event"
    )
    rounds: int = doc("interleaved rounds that were timed")
    batch: int = doc("consecutive steps of this contestant in each round")
    ms: float = doc("milliseconds per step by `clock`: median of the rounds")
    ms_p25: float = doc("its 25th percentile")
    ms_p75: float = doc("its 75th percentile")
    ms_thread_cpu: float = doc("median milliseconds per step of CPU time of the calling thread alone")
    ms_wall: float = doc(
        "median milliseconds per step of wall time; on a GPU what the host takes to issue a step"
    )
    ratio: float | None = doc(
        "median over rounds of this contestant's time by the baseline's: how many times faster "
        "the baseline is; null for the baseline itself, for limit, for host and for parts"
    )
    ratio_p25: float | None = doc("its 25th percentile")
    ratio_p75: float | None = doc("its 75th percentile")
    ratio_wall: float | None = doc("the median ratio by wall time, whatever `clock` is")
    bytes_per_element: int | None = doc(
        "the least that has to be moved for an element, at this contestant's dtypes; null for host"
    )
    gb_per_s: float | None = doc("elements * bytes_per_element / ms, in 1e9 bytes a second; null for host")
    share_of_limit: float | None = doc(
        "median over rounds of this contestant's bytes a second by those of limit; null without limit"
    )

    def __post_init__(self) -> None:
        self.check(SCHEMA, "baseline", "ratio", "ratio_wall")
        _check_time_and_order(self)


def _check_time_and_order(row: Row) -> None:
    offset = datetime.fromisoformat(row.time).utcoffset()
    if offset is None or offset.total_seconds() != 0:
        raise ValueError(f"row: time has to be in UTC with its offset, came as {row.time!r}")
    for low, middle, high in (("ms_p25", "ms", "ms_p75"), ("ratio_p25", "ratio", "ratio_p75")):
        values = [getattr(row, name) for name in (low, middle, high)]
        if None in values and values != [None, None, None]:
            raise ValueError(f"row: {low}, {middle} and {high} have to be null together")
        if None not in values and values != sorted(values):
            raise ValueError(f"row: {low} <= {middle} <= {high} does not hold: {values}")


docs, read_rows = Row.docs, Row.read


def append_rows(path: Path, rows: Sequence[Row]) -> None:
    """Adds rows to a file, which is made if it is not there. A failure leaves the old file as it was."""
    old = path.read_text() if path.exists() else ""
    if old and not old.endswith("\n"):
        old += "\n"
    with replacing(path) as temporary:
        temporary.write_text(old + "".join(row.to_json() + "\n" for row in rows))
