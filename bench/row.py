"""What the rows of all sweeps have in common: one JSON object a line, every field explained and checked."""

import dataclasses
import json
import math
import types
import typing
from pathlib import Path
from typing import Any, Self

CLOCKS = ("thread_cpu", "wall", "cuda_event")


def doc(text: str) -> Any:
    """A field that means this."""
    return dataclasses.field(metadata={"doc": text})


class JsonRow:
    """Base of a frozen dataclass, with schema and clock among its fields, that calls `check` when made."""

    schema: int
    clock: str

    @classmethod
    def of_today(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """A row of an older schema as one of today's."""
        return fields

    @classmethod
    def from_json(cls, line: str) -> Self:
        """Raises ValueError for anything that is not a row of this schema, or of one that of_today knows."""
        fields = json.loads(line)
        if not isinstance(fields, dict):
            raise ValueError(f"row: missing or unknown fields: {line}")
        fields, names = cls.of_today(fields), set(cls.docs())
        if fields.keys() != names:
            raise ValueError(f"row: missing or unknown fields: {sorted(names ^ set(fields))}")
        return cls(**fields)

    def to_json(self) -> str:
        return json.dumps({name: getattr(self, name) for name in self.docs()}, allow_nan=False)

    @classmethod
    def docs(cls) -> dict[str, str]:
        """What each field means."""
        return {f.name: f.metadata["doc"] for f in dataclasses.fields(typing.cast(Any, cls))}

    @classmethod
    def read(cls, path: Path) -> list[Self]:
        """The rows of a file."""
        return [cls.from_json(line) for line in path.read_text().splitlines() if line]

    def check(self, schema: int, *together: str) -> None:
        """Raises ValueError, naming the field. together: fields that are null together."""
        wanted = typing.get_type_hints(type(self))
        for name in self.docs():
            _check_type(name, getattr(self, name), wanted[name])
        if self.schema != schema:
            raise ValueError(f"row: schema is {self.schema}, expected {schema}")
        if self.clock not in CLOCKS:
            raise ValueError(f"row: clock has to be {' or '.join(CLOCKS)}, came as {self.clock!r}")
        if len({getattr(self, name) is None for name in together}) > 1:
            *some, last = together
            raise ValueError(f"row: {', '.join(some)} and {last} have to be null together")


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
