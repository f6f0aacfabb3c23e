"""The rows that a benchmark leaves behind: one JSON object a line, one row a contestant."""

import dataclasses
import json
import math
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from .files import replacing

SCHEMA = 2  # grows whenever a field changes its meaning or leaves
CLOCKS = ("thread_cpu", "wall", "cuda_event")


def _doc(text: str) -> Any:
    return dataclasses.field(metadata={"doc": text})


@dataclass(frozen=True, kw_only=True)
class Row:
    """One contestant on one workload at one thread count. `doc(name)` tells what a field means."""

    schema: int = _doc(f"version of this schema, now {SCHEMA}")
    time: str = _doc("when the row was made, UTC, ISO 8601")
    area: str = _doc('the sweep: "optim" or "amp"')
    device: str = _doc("model name of the processor, or of the GPU that took the steps")
    isa: str | None = _doc(
        "instruction set of onepass's compiled kernels, on a GPU the GPU's (sm_90); null where not built"
    )
    backend: str = _doc("what serves onepass, in a row of onepass-BACKEND this: cpp, triton or reference")
    threads: int = _doc("torch.get_num_threads() during the run")
    python: str = _doc("version of Python")
    torch: str = _doc("version of torch")
    onepass: str = _doc("version of onepass")
    commit: str | None = _doc(
        'short git hash, "-dirty" after changes to tracked files; null outside a checkout'
    )
    workload: str = _doc("name of the workload")
    tensors: int = _doc("number of parameters")
    elements: int = _doc("elements in all parameters together")
    optimizer: str = _doc("name of the optimizer, with torch's default hyperparameters")
    phase: str | None = _doc(
        "set-to-none or zeroed: the whole phase; scaled, scaled-explicit or accumulate, of the area amp: see "
        "bench/scaling.py; null for the step alone"
    )
    dtype: str = _doc("of parameters and gradients")
    moments: str | None = _doc("dtype in which this contestant keeps its states; null where it has none")
    contestant: str = _doc(
        "onepass, onepass-BACKEND, torch-fused, torch-foreach, torch-loop, null, limit or host"
    )
    part: str | None = _doc("the part of a phase that was timed alone; null for all of it")
    baseline: str | None = _doc(
        "whom `ratio` compares with: onepass, for null the first of torch's; null where none"
    )
    clock: str = _doc(
        "of ms and ratio: on the CPU thread_cpu with one thread, wall with more; on a GPU cuda_event"
    )
    rounds: int = _doc("interleaved rounds that were timed")
    batch: int = _doc("consecutive steps of this contestant in each round")
    ms: float = _doc("milliseconds per step by `clock`: median of the rounds")
    ms_p25: float = _doc("its 25th percentile")
    ms_p75: float = _doc("its 75th percentile")
    ms_thread_cpu: float = _doc("median milliseconds per step of CPU time of the calling thread alone")
    ms_wall: float = _doc(
        "median milliseconds per step of wall time; on a GPU what the host takes to issue a step"
    )
    ratio: float | None = _doc(
        "median over rounds of this contestant's time by the baseline's: how many times faster "
        "the baseline is; null for the baseline itself, for limit, for host and for parts"
    )
    ratio_p25: float | None = _doc("its 25th percentile")
    ratio_p75: float | None = _doc("its 75th percentile")
    ratio_wall: float | None = _doc("the median ratio by wall time, whatever `clock` is")
    bytes_per_element: int | None = _doc(
        "the least that has to be moved for an element, at this contestant's dtypes; null for host"
    )
    gb_per_s: float | None = _doc("elements * bytes_per_element / ms, in 1e9 bytes a second; null for host")
    share_of_limit: float | None = _doc(
        "median over rounds of this contestant's bytes a second by those of limit; null without limit"
    )

    def __post_init__(self) -> None:
        validate(self)

    @classmethod
    def from_json(cls, line: str) -> "Row":
        """Raises ValueError for anything that is not a row of this schema."""
        fields = json.loads(line)
        names = {f.name for f in dataclasses.fields(cls)}
        if not isinstance(fields, dict) or fields.keys() != names:
            odd = sorted(names ^ set(fields)) if isinstance(fields, dict) else line
            raise ValueError(f"row: missing or unknown fields: {odd}")
        return cls(**fields)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), allow_nan=False)


def docs() -> dict[str, str]:
    """What each field of a row means."""
    return {f.name: f.metadata["doc"] for f in dataclasses.fields(Row)}


def _check_type(name: str, value: object, wanted: Any) -> None:
    kinds = typing.get_args(wanted) if isinstance(wanted, types.UnionType) else (wanted,)
    if type(value) not in kinds:
        names = " or ".join("null" if k is types.NoneType else k.__name__ for k in kinds)
        raise ValueError(f"row: {name} has to be {names}, came as {value!r}")
    if isinstance(value, float) and not (math.isfinite(value) and value >= 0):
        raise ValueError(f"row: {name} has to be a finite number >= 0, came as {value!r}")
    if isinstance(value, int) and value < 1:
        raise ValueError(f"row: {name} has to be at least 1, came as {value!r}")
    if value == "":
        raise ValueError(f"row: {name} is empty")


def validate(row: Row) -> None:
    """Raises ValueError, naming the field, for a row that does not keep to the schema."""
    for name, wanted in typing.get_type_hints(Row).items():
        _check_type(name, getattr(row, name), wanted)
    if row.schema != SCHEMA:
        raise ValueError(f"row: schema is {row.schema}, expected {SCHEMA}")
    offset = datetime.fromisoformat(row.time).utcoffset()
    if offset is None or offset.total_seconds() != 0:
        raise ValueError(f"row: time has to be in UTC with its offset, came as {row.time!r}")
    if row.clock not in CLOCKS:
        raise ValueError(f"row: clock has to be {' or '.join(CLOCKS)}, came as {row.clock!r}")
    for low, middle, high in (("ms_p25", "ms", "ms_p75"), ("ratio_p25", "ratio", "ratio_p75")):
        values = [getattr(row, name) for name in (low, middle, high)]
        if None in values and values != [None, None, None]:
            raise ValueError(f"row: {low}, {middle} and {high} have to be null together")
        if None not in values and values != sorted(values):
            raise ValueError(f"row: {low} <= {middle} <= {high} does not hold: {values}")
    if (row.baseline is None) != (row.ratio is None) or (row.ratio_wall is None) != (row.ratio is None):
        raise ValueError("row: baseline, ratio and ratio_wall have to be null together")


def read_rows(path: Path) -> list[Row]:
    return [Row.from_json(line) for line in path.read_text().splitlines() if line]


def append_rows(path: Path, rows: Sequence[Row]) -> None:
    """Adds rows to a file, which is made if it is not there. A failure leaves the old file as it was."""
    old = path.read_text() if path.exists() else ""
    if old and not old.endswith("\n"):
        old += "\n"
    with replacing(path) as temporary:
        temporary.write_text(old + "".join(row.to_json() + "\n" for row in rows))
