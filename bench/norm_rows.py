"""The rows that the sweep over normalizations leaves behind: one JSON object a line, one row a contestant and
direction."""

from dataclasses import dataclass
from typing import Any

from .row import JsonRow, doc

SCHEMA = 2  # grows whenever a field changes its meaning or leaves


_NAMING = ("contestant", "baseline")


@dataclass(frozen=True, kw_only=True)
class Row(JsonRow):
    """One contestant, forward or backward, on one layer at one thread count. `docs()` explains the fields."""

    schema: int = doc(f"version of this schema, now {SCHEMA}")
    time: str = doc("when the row was made, UTC, ISO 8601")
    area: str = doc('the sweep: "norm"')
    device: str = doc("model name of the processor, or of the GPU")
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
    shape: str = doc("of the input: images x channels x rows x columns")
    layout: str = doc("nchw or nhwc (channels_last)")
    dtype: str = doc("of input and output; parameters are float32")
    fusion: str = doc("bn, bn+relu or bn+add+relu: what onepass does in one call")
    direction: str = doc("forward, backward or both; both: their sum, round by round")
    allocator: str = doc(
        "kept: freed memory is used again; default: the C library's own way; on a GPU torch: torch's own"
    )
    contestant: str = doc(
        'onepass, onepass-BACKEND, "torch", "torch, in place" (its sum and ReLU), torch.compile, apex, null '
        "(torch again) or limit (the streams of two passes, on a GPU a copy of as many bytes)"
    )
    baseline: str | None = doc("whom `ratio` compares with: onepass, for null torch; null where none")
    clock: str = doc(
        "of ms and ratio: on the CPU thread_cpu with one thread, wall with more; on a GPU cuda_event"
    )
    rounds: int = doc("interleaved rounds that were timed")
    ms: float = doc("milliseconds by `clock`: median of the rounds")
    ms_p25: float = doc("its 25th percentile")
    ms_p75: float = doc("its 75th percentile")
    ms_wall: float | None = doc(
        "median milliseconds of wall time; on a GPU what the host takes to issue it; null in rows of schema 1"
    )
    ratio: float | None = doc("median over rounds of this contestant's time by the baseline's")
    ratio_p25: float | None = doc("its 25th percentile")
    ratio_p75: float | None = doc("its 75th percentile")
    gb_per_s: float | None = doc(
        "bytes of two passes by ms, in 1e9 a second; null in schema 1 for limit and residuals"
    )
    share_of_limit: float | None = doc(
        "median over rounds of the limit's time by this contestant's; null where no limit was run, and in "
        "schema 1 with a residual"
    )

    def __post_init__(self) -> None:
        self.check(SCHEMA, "baseline", "ratio")

    @classmethod
    def of_today(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """In schema 1 torch was in place; its limit knew of no residual, and its bytes of no mask."""
        if fields.get("schema") != 1:
            return fields
        names = {name: "torch, in place" if fields[name] == "torch" else fields[name] for name in _NAMING}
        unlike = dict.fromkeys(("gb_per_s", "share_of_limit")) if "add" in fields["fusion"] else {}
        return {**fields, **names, **unlike, "schema": SCHEMA, "ms_wall": None}


docs, read_rows = Row.docs, Row.read
