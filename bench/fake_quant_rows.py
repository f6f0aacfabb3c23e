"""The rows that the sweep over fake quantization leaves: one JSON object a line, one row a contestant."""

import dataclasses
import json
import typing
from dataclasses import dataclass
from pathlib import Path

from .int8_rows import _doc
from .rows import CLOCKS, _check_type

SCHEMA = 1  # grows whenever a field changes its meaning or leaves


@dataclass(frozen=True, kw_only=True)
class Row:
    """One contestant on one tensor at one thread count. `docs()` explains the fields."""

    schema: int = _doc(f"version of this schema, now {SCHEMA}")
    time: str = _doc("when the row was made, UTC, ISO 8601")
    area: str = _doc('the sweep: "fake_quant"')
    device: str = _doc("model name of the processor")
    isa: str | None = _doc("instruction set of onepass's compiled kernels; null where not built")
    backend: str = _doc("what serves onepass: cpp or reference")
    threads: int = _doc("torch.get_num_threads() during the run")
    python: str = _doc("version of Python")
    torch: str = _doc("version of torch")
    onepass: str = _doc("version of onepass")
    commit: str | None = _doc(
        'short git hash, "-dirty" after changes to tracked files; null outside a checkout'
    )
    shape: str = _doc("rows x columns, float32")
    scale: str = _doc("tensor (one for all), row (one each); learned: with its gradient, where both ways are")
    direction: str = _doc("forward, or both: backward behind it")
    contestant: str = _doc("onepass; torch: the ops that its autograd calls; null (torch again)")
    baseline: str | None = _doc("whom `ratio` compares with: onepass, for null torch; null where none")
    clock: str = _doc("of ms and ratio: thread_cpu with one thread, wall with more")
    rounds: int = _doc("interleaved rounds that were timed")
    ms: float = _doc("milliseconds by `clock`: median of the rounds")
    ms_p25: float = _doc("its 25th percentile")
    ms_p75: float = _doc("its 75th percentile")
    ratio: float | None = _doc("median over rounds of this contestant's time by the baseline's")
    ratio_p25: float | None = _doc("its 25th percentile")
    ratio_p75: float | None = _doc("its 75th percentile")
    gb_per_s: float = _doc("the fewest bytes that have to be moved / ms, in 1e9 bytes a second")

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


def read_rows(path: Path) -> list[Row]:
    return [Row.from_json(line) for line in path.read_text().splitlines() if line]
