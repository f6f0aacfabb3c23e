"""The rows that the sweep over the 8-bit product leaves: one JSON object a line, one row a contestant."""

from dataclasses import dataclass
from typing import Any

from .row import JsonRow, doc

SCHEMA = 1  # grows whenever a field changes its meaning or leaves


@dataclass(frozen=True, kw_only=True)
class Row(JsonRow):
    """One contestant on one layer at one thread count. `docs()` explains the fields."""

    schema: int = doc(f"version of this schema, now {SCHEMA}")
    time: str = doc("when the row was made, UTC, ISO 8601")
    area: str = doc('the sweep: "int8"')
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
    op: str = doc("what is timed of onepass: int8_linear or int8_weight_only_mm")
    m: int = doc("rows of the input")
    n: int = doc("outputs")
    k: int = doc("inputs")
    contestant: str = doc(
        '"onepass" (exact; weights alone: of float32), "onepass, 7 bits", "onepass, bfloat16"; x86 and '
        "onednn: torch's dynamically quantized linear; float32 and bfloat16: torch's linear; int_mm: the "
        "unfused chain around torch._int_mm; weight only, of float32 or bfloat16: torch._weight_int8pack_mm; "
        "torchao, bitsandbytes; null (x86 again, or float32); limit (one row: all weights read, else: "
        "products that stay in the first cache). On a GPU the dtype of rows stands behind each name, "
        "onepass-BACKEND is another backend, _int_mm the product alone, null torch's linear again, limit a "
        "copy that moves as many bytes as the weights have, of one row only"
    )
    baseline: str | None = doc(
        "whom `ratio` compares with: onepass, of the same dtype, for null the peer; null where none"
    )
    clock: str = doc(
        "of ms and ratio: on the CPU thread_cpu with one thread, wall with more; on a GPU cuda_event"
    )
    rounds: int = doc("interleaved rounds that were timed")
    ms: float = doc("milliseconds by `clock`: median of the rounds")
    ms_p25: float = doc("its 25th percentile")
    ms_p75: float = doc("its 75th percentile")
    ms_wall: float | None = doc(
        "median milliseconds of wall time; on a GPU what the host takes to issue it; null in older rows"
    )
    ratio: float | None = doc("median over rounds of this contestant's time by the baseline's")
    ratio_p25: float | None = doc("its 25th percentile")
    ratio_p75: float | None = doc("its 75th percentile")
    gops: float = doc("multiplications and additions by ms, in 1e9 a second")
    gb_per_s: float = doc("bytes of 8-bit weights by ms, in 1e9 a second")
    share_of_limit: float | None = doc(
        "median over rounds of the limit's time by this contestant's; null where no limit was run"
    )

    def __post_init__(self) -> None:
        self.check(SCHEMA, "baseline", "ratio")

    @classmethod
    def of_today(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """The first ones had no ms_wall."""
        return {"ms_wall": None, **fields}


docs, read_rows = Row.docs, Row.read
