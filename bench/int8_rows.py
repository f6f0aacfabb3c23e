"""The rows that the sweep over the 8-bit product leaves: one JSON object a line, one row a contestant."""

import dataclasses
import json
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .rows import CLOCKS, _check_type

SCHEMA = 1  # grows whenever a field changes its meaning or leaves


def _doc(text: str) -> Any:
    return dataclasses.field(metadata={"doc": text})


@dataclass(frozen=True, kw_only=True)
class Row:
    """One contestant on one layer at one thread count. `docs()` explains the fields."""

    schema: int = _doc(f"version of this schema, now {SCHEMA}")
    time: str = _doc("when the row was made, UTC, ISO 8601")
    area: str = _doc('the sweep: "int8"')
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
    op: str = _doc("what is timed of onepass: int8_linear or int8_weight_only_mm")
    m: int = _doc("rows of the input")
    n: int = _doc("outputs")
    k: int = _doc("inputs")
    contestant: str = _doc(
        '"onepass" (exact; weights alone: of float32), "onepass, 7 bits", "onepass, bfloat16"; x86 and '
        "onednn: torch's dynamically quantized linear; float32 and bfloat16: torch's linear; int_mm: the "
        "unfused chain around torch._int_mm; weight only, of float32 or bfloat16: torch._weight_int8pack_mm; "
        "torchao, bitsandbytes; null (x86 again, or float32); limit (one row: all weights read, else: "
        "products that stay in the first cache). On a GPU the dtype of rows stands behind each name, "
        "onepass-BACKEND is another backend, _int_mm the product alone, null torch's linear again, limit a "
        "copy that moves as many bytes as the weights have, of one row only"
    )
    baseline: str | None = _doc(
        "whom `ratio` compares with: onepass, of the same dtype, for null the peer; null where none"
    )
    clock: str = _doc(
        "of ms and ratio: on the CPU thread_cpu with one thread, wall with more; on a GPU cuda_event"
    )
    rounds: int = _doc("interleaved rounds that were timed")
    ms: float = _doc("milliseconds by `clock`: median of the rounds")
    ms_p25: float = _doc("its 25th percentile")
    ms_p75: float = _doc("its 75th percentile")
    ms_wall: float | None = _doc(
        "median milliseconds of wall time; on a GPU what the host takes to issue it; null in older rows"
    )
    ratio: float | None = _doc("median over rounds of this contestant's time by the baseline's")
    ratio_p25: float | None = _doc("its 25th percentile")
    ratio_p75: float | None = _doc("its 75th percentile")
    gops: float = _doc("multiplications and additions by ms, in 1e9 a second")
    gb_per_s: float = _doc("bytes of 8-bit weights by ms, in 1e9 a second")
    share_of_limit: float | None = _doc(
        "median over rounds of the limit's time by this contestant's; null where no limit was run"
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
        """Raises ValueError for anything that is not a row of this schema. The first ones had no ms_wall."""
        fields = json.loads(line)
        if isinstance(fields, dict):
            fields.setdefault("ms_wall", None)
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
