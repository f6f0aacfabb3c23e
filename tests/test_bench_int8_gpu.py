"""The benchmark of the 8-bit product on a made-up GPU: who takes part, what they compute, what is said."""

import sys
import types
from pathlib import Path

import pytest
import torch
from conftest import need
from onepass import backends
from onepass.bench import (
    cli,
    int8,
    int8_gpu,
    int8_jobs,
    int8_rows,
    machine,
    main,
    peers,
    venues,
)
from onepass.bench.int8_gpu import Job
from onepass.bench.int8_rows import Row
from test_bench_gpu import FakeGpu, Here, no_bar
from torch import Tensor

LINEAR, WEIGHT_ONLY, GRADIENTS = int8_gpu.PEERS
SHAPE = "768x768"


def _sweep(*more: str) -> list[int8.Block]:
    args = cli.parser().parse_args(["int8", "--device", "cuda", "--weight", SHAPE, "--rounds", "3", *more])
    return list(int8.sweep(args, no_bar))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    """A device on which every step takes longer than the one before it."""
    fake = FakeGpu()
    marks = iter(range(10**6))
    fake.mark = lambda: 1e-5 * sum(range(next(marks)))
    monkeypatch.setattr(venues, "of", lambda device: Here(device="cpu", gpu=fake))
    return fake


def _served(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(backends, "serves", lambda backend, device: backend in (*names, "reference"))


# --- rows -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", int8_gpu.DTYPES)
def test_rows_of_a_gpu(dtype: str, gpu: FakeGpu, capsys: pytest.CaptureFixture[str]):
    need("rich")
    blocks = _sweep("--rows", "1", "32", "--dtype", dtype, "--peers", "_int_mm", "int_mm")
    ours, by_chance = f"onepass, {dtype}", f"onepass, by chance, {dtype}"
    assert [[row.contestant for row in block.rows] for block in blocks] == [
        [ours, "limit", dtype, "null"],
        [ours, dtype, "_int_mm", f"int_mm, {dtype}", "null"],
        [ours, "limit", dtype, "null"],
        [ours, dtype, "null"],
        *[[ours, by_chance, dtype, "null"]] * 2,
    ]
    for row in (row for block in blocks for row in block.rows):
        assert Row.from_json(row.to_json()) == row
        assert (row.clock, row.device, row.isa) == ("cuda_event", "A GPU", "sm_90")
        assert row.ms_wall is not None and row.gb_per_s == pytest.approx(768 * 768 / row.ms / 1e6)
        assert row.baseline == {ours: None, by_chance: None, "limit": None, "null": dtype}.get(
            row.contestant, ours
        )
        assert (row.share_of_limit is None) == (row.m > 1 or row.op == GRADIENTS)
        assert row.share_of_limit == 1.0 or row.contestant != "limit"
    int8.show(blocks[0])
    text = capsys.readouterr().out
    assert "GPU us" in text and "host us" in text and "A GPU" in text and dtype in blocks[0].title


def test_what_is_measured_where_nothing_is_asked_for(monkeypatch: pytest.MonkeyPatch):
    seen: list[int8_jobs.Job] = []
    monkeypatch.setattr(int8, "_block", lambda job, *rest: seen.append(job))
    where = {"cpu": venues.Cpu(), "cuda": Here(gpu=FakeGpu())}
    monkeypatch.setattr(venues, "of", where.get)
    for device, rows in (("cpu", [1, 8, 64, 512, 4096]), ("cuda", [1, 16, 256, 4096])):
        seen.clear()
        list(int8.sweep(cli.parser().parse_args(["int8", "--device", device]), no_bar))
        ops = int8_jobs.RACES if device == "cpu" else int8_gpu.PEERS
        jobs = [(op, weight, m) for op in ops for weight in int8_jobs.WEIGHTS for m in rows]
        assert [(job.op, job.weight, job.m) for job in seen] == jobs
        assert {getattr(job, "dtype", None) for job in seen} == {"bfloat16" if device == "cuda" else None}


def test_a_picture_of_a_gpu(gpu: FakeGpu):
    need("matplotlib")
    from onepass.bench import int8_plot  # not at the top: a machine with a GPU may have no matplotlib

    blocks = _sweep("--rows", "1", "32", "--op", LINEAR, "--dtype", *int8_gpu.DTYPES, "--peers", "_int_mm")
    (panel,) = int8_plot.figure([row for block in blocks for row in block.rows]).axes
    drawn = {line.get_label(): len(line.get_xdata()) for line in panel.lines}
    ours = {f"onepass, {dtype}": 2 for dtype in int8_gpu.DTYPES}
    assert drawn == ours | dict.fromkeys(int8_gpu.DTYPES, 2) | {"limit": 3, "_int_mm": 3}


# --- who takes part ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("op", "served", "ours"),
    (
        (LINEAR, (), {"onepass": "reference"}),
        (LINEAR, ("triton",), {"onepass": "triton"}),
        (LINEAR, ("cpp", "triton"), {"onepass": "cpp", "onepass-triton": "triton"}),
        (WEIGHT_ONLY, ("cpp", "triton"), {"onepass": "cpp", "onepass-triton": "triton"}),
        (GRADIENTS, ("cpp", "triton"), {"onepass": "cpp", "onepass-triton": "triton"}),
    ),
)
def test_every_backend_with_kernels_takes_part(op, served, ours, monkeypatch: pytest.MonkeyPatch):
    _served(monkeypatch, *served)
    job = Job(16, SHAPE, op)
    names = job.names(int8.USUAL["cuda"])
    assert {int8_gpu.kind(n): job.served(n) for n in names if n.startswith("onepass")} == ours
    others = [n for n in names[1:-1] if not n.startswith(int8_gpu.CHANCE)]
    assert {job.baseline(n) for n in others} == {names[0]} and job.baseline(names[-1]) == "bfloat16"
    theirs = {
        LINEAR: ["_int_mm", "int_mm, bfloat16", "torchao, bfloat16", "bitsandbytes, bfloat16"],
        WEIGHT_ONLY: ["weight only, bfloat16"],
        GRADIENTS: [],
    }
    assert [n for n in names if not n.startswith("onepass")] == ["bfloat16", *theirs[op], "null"]


def test_a_second_backend_runs_in_its_turns_only(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch):
    before, seen = backends.backend_of("cpu"), []
    monkeypatch.setattr(peers, "serving", lambda op, device: [before, "reference"])
    onepass = int8_gpu.Layer._onepass

    def spying(self: int8_gpu.Layer, dtype: torch.dtype) -> int8_jobs.Step:
        step = onepass(self, dtype)
        return lambda: (seen.append(backends.backend_of("cpu")), step())

    monkeypatch.setattr(int8_gpu.Layer, "_onepass", spying)
    (block,) = _sweep("--rows", "2", "--op", LINEAR, "--peers", "int_mm")
    found = {row.contestant: row.backend for row in block.rows}
    assert found["onepass, bfloat16"] == before and found["onepass-reference, bfloat16"] == "reference"
    assert set(seen) == {before, "reference"} and backends.backend_of("cpu") == before


@pytest.mark.parametrize("m, weight", ((16, SHAPE), (17, "12x768"), (17, "768x12")))
def test_what_torchs_product_does_not_serve(m: int, weight: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(int8_jobs.WEIGHTS, weight, tuple(map(int, weight.split("x"))))
    layer = int8_gpu.Layer(Job(m, weight, device="cpu"))
    for name in (int8_gpu.PRODUCT, "int_mm, bfloat16"):
        with pytest.raises(RuntimeError, match=f"multiples of 8, not {m} by {weight}"):
            layer.build(name)


def test_who_is_left_out_is_said(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch):
    def broken(*rest: object) -> None:
        raise ValueError("no such layer\nand more")

    module = types.SimpleNamespace(Int8DynamicActivationInt8WeightConfig=object, quantize_=broken)
    monkeypatch.setitem(sys.modules, "torchao.quantization", module)
    monkeypatch.setitem(sys.modules, "bitsandbytes.nn", None)
    (block,) = _sweep("--rows", "1", "--op", LINEAR, "--peers", "x86", *int8.USUAL["cuda"])
    assert [note.partition(" is left out: ")[::2] for note in block.notes] == [
        ("x86", "it is no peer here"),
        ("_int_mm", "torch._int_mm wants more than 16 rows and multiples of 8, not 1 by 768x768"),
        ("int_mm, bfloat16", "torch._int_mm wants more than 16 rows and multiples of 8, not 1 by 768x768"),
        ("torchao, bfloat16", "ValueError in torchao: no such layer"),
        block.notes[4].partition(" is left out: ")[::2],
    ]
    assert block.notes[4].startswith("bitsandbytes, bfloat16 is left out: bitsandbytes is not installed")


def test_what_fails_takes_who_is_compared_with_it_along(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch):
    def fail(self: int8_gpu.Layer, dtype: torch.dtype) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\nand more")

    said = "is left out: CUDA out of memory. Tried to allocate"
    with monkeypatch.context() as patch:
        patch.setattr(int8_gpu.Layer, "_float", fail)
        (block,) = _sweep("--rows", "1", "--op", LINEAR, "--peers", "int_mm")
    assert [row.contestant for row in block.rows] == ["onepass, bfloat16", "limit"]
    assert {f"bfloat16 {said}", "null is left out: there is no bfloat16 to compare it with"} <= {*block.notes}
    monkeypatch.setattr(int8_gpu.Layer, "_onepass", fail)
    (block,) = _sweep("--rows", "1", "--op", LINEAR)
    assert not block.rows and block.notes[0] == f"onepass, bfloat16 {said}"
    assert "onepass itself cannot run it here" in block.notes[-1]


def test_what_does_not_fit_is_said(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch):
    size = Job(1, SHAPE).needs("onepass")
    for free, left in ((3.5 * size, "null"), (size, "onepass, bfloat16")):
        monkeypatch.setattr(machine, "free_memory", lambda free=free: int(free))
        (block,) = _sweep("--rows", "1", "--op", LINEAR, "--peers", "int_mm")
        assert any(note.startswith(f"{left} is left out: it takes") for note in block.notes), block.notes
        assert bool(block.rows) == (left == "null")


# --- what they compute ------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", int8_gpu.DTYPES)
@pytest.mark.parametrize(
    "op, kind, off",
    (
        (LINEAR, "onepass", 0.03),
        (LINEAR, "int_mm", 0.03),
        (WEIGHT_ONLY, "onepass", 0.01),
        (WEIGHT_ONLY, "weight only", 0.01),
    ),
)
def test_all_compute_the_same_layer(op: str, kind: str, off: float, dtype: str):
    job = Job(24, SHAPE, op, dtype, "cpu")
    layer = job.layer()
    got, want = layer.build(job.named(kind))(), layer.build("null")()
    assert isinstance(got, Tensor) and isinstance(want, Tensor) and got.dtype == want.dtype
    assert got.dtype == int8_gpu.DTYPES[dtype]
    assert (got.float() - want.float()).norm() <= off * want.float().norm()


def test_the_product_alone_is_of_whole_numbers():
    layer = int8_gpu.Layer(Job(24, SHAPE, device="cpu"))
    q, _, _ = torch.ops.onepass.quantize(layer.x)
    found = layer.build(int8_gpu.PRODUCT)()
    assert isinstance(found, Tensor) and torch.equal(found, (q.double() @ layer.q.double().T).int())


def test_the_limit_moves_what_the_weights_have(monkeypatch: pytest.MonkeyPatch):
    copied: list[int] = []
    step = int8_gpu.Layer(Job(1, SHAPE, device="cpu")).build("limit")
    monkeypatch.setattr(Tensor, "copy_", lambda self, source: copied.append(self.numel()))
    step()
    assert 2 * sum(copied) == 768 * 768


# --- on a GPU ---------------------------------------------------------------------------------------------
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here")
def test_end_to_end_on_the_gpu(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    options = ["--device", "cuda", "--weight", SHAPE, "--rows", "1", "256", "--seconds", "0.1"]
    assert main(["int8", *options, "--rounds", "3", "--json", str(path)]) == 0
    rows = int8_rows.read_rows(path)
    wanted = {"onepass, bfloat16", "bfloat16", "_int_mm", "int_mm, bfloat16", "null", "limit"}
    assert wanted <= {row.contestant for row in rows}
    assert {(row.clock, row.device) for row in rows} == {("cuda_event", torch.cuda.get_device_name())}
    assert all(row.ms > 0 and (row.share_of_limit is None) == (row.m > 1) for row in rows)
