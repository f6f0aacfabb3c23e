"""The rows that the sweep over fake quantization leaves: one JSON object a line, one row a contestant."""

from dataclasses import dataclass

from .row import JsonRow, doc

SCHEMA = 1  # grows whenever a field changes its meaning or leaves


@dataclass(frozen=True, kw_only=True)
class Row(JsonRow):
    """One contestant on one tensor at one thread count. `docs()` explains the fields."""

    schema: int = doc(f"version of this schema, now {SCHEMA}")
    time: str = doc("when the row was made, UTC, ISO 8601")
    area: str = doc('the sweep: "fake_quant"')
    device: str = doc("model name of the processor or the GPU")
    isa: str | None = doc(
        "instruction set of onepass's compiled kernels, or sm_ of the GPU; null where not built"
    )
    backend: str = doc("what serves onepass: cpp, triton or reference")
    threads: int = doc("torch.get_num_threads() during the run")
    python: str = doc("version of Python")
    torch: str = doc("version of torch")
    onepass: str = doc("version of onepass")
    commit: str | None = doc(
        'short git hash, "-dirty" after changes to tracked files; null outside a checkout'
    )
    shape: str = doc("rows x columns, float32")
    scale: str = doc("tensor (one for all), row (one each); learned: with its gradient, where both ways are")
    direction: str = doc("forward, or both: backward behind it")
    contestant: str = doc(
        "onepass, onepass-triton by another backend; torch: what its autograd calls; null (torch again)"
    )
    baseline: str | None = doc("whom `ratio` compares with: onepass, for null torch; null where none")
    clock: str = doc("of ms and ratio: thread_cpu with one thread, wall with more, cuda_event on a GPU")
    rounds: int = doc("interleaved rounds that were timed")
    ms: float = doc("milliseconds by `clock`: median of the rounds")
    ms_p25: float = doc("its 25th percentile")
    ms_p75: float = doc("its 75th percentile")
    ratio: float | None = doc("median over rounds of this contestant's time by the baseline's")
    ratio_p25: float | None = doc("its 25th percentile")
    ratio_p75: float | None = doc("its 75th percentile")
    gb_per_s: float = doc("the fewest bytes that have to be moved / ms, in 1e9 bytes a second")

    def __post_init__(self) -> None:
        self.check(SCHEMA, "baseline", "ratio")


docs, read_rows = Row.docs, Row.read
