"""The rows that the sweep over normalizations leaves behind: one JSON object a line, one row a contestant and
direction."""

import dataclasses
import json
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .rows import CLOCKS, _check_type

SCHEMA = 2  # grows whenever a field changes its meaning or leaves


def _of_today(fields: Any) -> Any:
    """A row of schema 1 as one of today's: its torch was in place; its limit knew of no residual, and its
    bytes of no mask."""
    if not isinstance(fields, dict) or fields.get("schema") != 1:
        return fields
    names = {name: "torch, in place" if fields[name] == "torch" else fields[name] for name in _NAMING}
    unlike = dict.fromkeys(("gb_per_s", "share_of_limit")) if "add" in fields["fusion"] else {}
    return {**fields, **names, **unlike, "schema": SCHEMA, "ms_wall": None}


_NAMING = ("contestant", "baseline")


def _doc(text: str) -> Any:
    return dataclasses.field(metadata={"doc": text})


@dataclass(frozen=True, kw_only=True)
class Row:
    """One contestant, forward or backward, on one layer at one thread count. `docs()` explains the fields."""

    schema: int = _doc(f"version of this schema, now {SCHEMA}")
    time: str = _doc("when the row was made, UTC, ISO 8601")
    area: str = _doc('the sweep: "norm"')
    device: str = _doc("model name of the processor, or of the GPU")
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
    shape: str = _doc("of the input: images x channels x rows x columns")
    layout: str = _doc("nchw or nhwc (channels_last)")
    dtype: str = _doc("of input and output; parameters are float32")
    fusion: str = _doc("bn, bn+relu or bn+add+relu: what onepass does in one call")
    direction: str = _doc("forward, backward or both; both: their sum, round by round")
    allocator: str = _doc(
        "kept: freed memory is used again; default: the C library's own way; on a GPU torch: torch's own"
    )
    contestant: str = _doc(
        'onepass, onepass-BACKEND, "torch", "torch, in place" (its sum and ReLU), torch.compile, apex, null '
        "(torch again) or limit (the streams of two passes, on a GPU a copy of as many bytes)"
    )
    baseline: str | None = _doc("whom `ratio` compares with: onepass, for null torch; null where none")
    clock: str = _doc(
        "of ms and ratio: on the CPU thread_cpu with one thread, wall with more; on a GPU cuda_event"
    )
    rounds: int = _doc("interleaved rounds that were timed")
    ms: float = _doc("milliseconds by `clock`: median of the rounds")
    ms_p25: float = _doc("its 25th percentile")
    ms_p75: float = _doc("its 75th percentile")
    ms_wall: float | None = _doc(
        "median milliseconds of wall time; on a GPU what the host takes to issue it; null in rows of schema 1"
    )
    ratio: float | None = _doc("median over rounds of this contestant's time by the baseline's")
    ratio_p25: float | None = _doc("its 25th percentile")
    ratio_p75: float | None = _doc("its 75th percentile")
    gb_per_s: float | None = _doc(
        "bytes of two passes by ms, in 1e9 a second; null in schema 1 for limit and residuals"
    )
    share_of_limit: float | None = _doc(
        "median over rounds of the limit's time by this contestant's; null where no limit was run, and in "
        "schema 1 with a residual"
    )

    def __post_init__(self) -> None:
        for name, wanted in typing.get_type_hints(Row).items():
            _check_type(name, getattr(self, name), wanted)
        if (self.baseline is None) != (self.ratio is None):
            raise ValueError("row: baseline and ratio have to be null together")
        if self.schema != SCHEMA:
            raise ValueError(f"row: schema is {self.schema}, expected {SCHEMA}")
        if self.clock not in CLOCKS:
            raise ValueError(f"row: clock has to be {' or '.join(CLOCKS)}, came as {self.clock!r}")

    @classmethod
    def from_json(cls, line: str) -> "Row":
        """Raises ValueError for anything that is not a row of this schema, or of the first one."""
        fields = _of_today(json.loads(line))
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


def read_rows(path: Path) -> list[Row]:
    return [Row.from_json(line) for line in path.read_text().splitlines() if line]
