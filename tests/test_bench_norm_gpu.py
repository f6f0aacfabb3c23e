"""The benchmark of normalizations on a GPU that is made up: who takes part, what they share, what fits."""

import dataclasses
import types
from pathlib import Path

import pytest
import torch
from conftest import need
from onepass import backends
from onepass.bench import (
    allocator,
    cli,
    gpu_peers,
    machine,
    main,
    norm,
    norm_apex,
    norm_jobs,
    norm_peers,
    norm_rows,
    venues,
)
from onepass.bench.norm_rows import Row
from test_bench_gpu import FakeGpu, Here, no_bar
from torch import Tensor


def _sweep(*more: str) -> list[norm.Block]:
    options = ["--device", "cuda", "--shape", "512x7", "--fusion", "bn+add+relu", "--peers", "torch"]
    args = cli.parser().parse_args(["norm", *options, "--batch", "2", "--rounds", "3", *more])
    return list(norm.sweep(args, no_bar))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    """A device on which every step takes longer than the one before it."""
    fake = FakeGpu()
    marks = iter(range(10**6))
    fake.mark = lambda: 1e-5 * sum(range(next(marks)))
    monkeypatch.setattr(venues, "of", lambda device: Here(device="cpu", gpu=fake))
    monkeypatch.setattr(allocator, "use", lambda name: pytest.fail("a GPU has memory of its own"))
    return fake


def test_rows_of_a_gpu(gpu: FakeGpu, capsys: pytest.CaptureFixture[str]):
    need("rich")
    blocks = _sweep("--layout", "nhwc")
    assert [block.rows[0].dtype for block in blocks] == ["bfloat16", "float32"]
    for block in blocks:
        names = dict.fromkeys(row.contestant for row in block.rows)
        assert list(names) == ["onepass", "torch", "torch, in place", "limit", "null"]
        for row in block.rows:
            assert Row.from_json(row.to_json()) == row
            assert (row.clock, row.device, row.isa, row.allocator) == (
                "cuda_event",
                "A GPU",
                "sm_90",
                "torch",
            )
            assert row.ms_wall is not None and row.share_of_limit is not None
        limits = [row for row in block.rows if row.contestant == "limit"]
        assert [row.share_of_limit for row in limits] == [1.0] * 3
    norm.show(blocks[0])
    text = capsys.readouterr().out
    assert "GPU ms" in text and "host ms" in text and "A GPU" in text


def test_what_is_measured_where_nothing_is_asked_for(monkeypatch: pytest.MonkeyPatch):
    seen: list[norm_jobs.Job] = []
    monkeypatch.setattr(norm, "_block", lambda job, *rest: seen.append(job))
    monkeypatch.setattr(venues, "of", lambda device: None)
    monkeypatch.setattr(allocator, "use", lambda name: None)
    for device, batch, dtypes in (
        ("cpu", 16, ["float32", "bfloat16"]),
        ("cuda", 256, ["bfloat16", "float32"]),
    ):
        seen.clear()
        list(norm.sweep(cli.parser().parse_args(["norm", "--device", device]), no_bar))
        assert {job.batch for job in seen} == {batch} and len(seen) == 12 * 2 * 2 * 2
        assert list(dict.fromkeys(job.dtype for job in seen)) == dtypes


def test_images_are_shared_and_statistics_are_not():
    job = norm_jobs.Job("512x7", 2, "nchw", "float32", "bn+add+relu")
    build = norm_peers.Builder(job, "cpu", on_gpu=True)
    made: list[norm_jobs.Tensors] = []
    tensors = norm_jobs.Tensors
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(norm_peers, "Tensors", lambda *args: made.append(tensors(*args)) or made[-1])
        for name in ("onepass", "torch"):
            build(name)
    first, second = made
    assert first.x is second.x and first.z is second.z and first.dy is second.dy
    assert first.mean is not second.mean and first.weight is not second.weight


@pytest.mark.parametrize(
    ("cuda", "served", "there"),
    (
        ((), (), ["reference"]),
        ((), ("triton",), ["triton"]),
        ((), ("cpp", "triton"), ["triton"]),  # the C++ kernels that are there serve other ops
        (("CPU", "CUDA"), ("cpp", "triton"), ["cpp", "triton"]),
    ),
)
def test_every_backend_with_kernels_takes_part(cuda, served, there, monkeypatch: pytest.MonkeyPatch):
    op = dataclasses.replace(norm_peers.BY_NAME["batch_norm_fwd"], cpp=cuda)
    monkeypatch.setattr(norm_peers, "BY_NAME", {"batch_norm_fwd": op})
    monkeypatch.setattr(backends, "serves", lambda backend, device: backend in (*served, "reference"))
    assert norm_peers.serving("cuda") == there
    job = norm_jobs.Job("512x7", 2, "nchw", "float32", "bn+relu")
    names = norm_peers.contestants(job, ["torch"], "cuda", True)
    ours = {name: norm_peers.backend(name, "cuda") for name in names if norm_peers.backend(name, "cuda")}
    assert list(ours) == ["onepass", *(f"onepass-{b}" for b in there[1:])] and list(ours.values()) == there


def test_a_copy_moves_what_two_passes_move(monkeypatch: pytest.MonkeyPatch):
    job = norm_jobs.Job("512x7", 2, "nchw", "bfloat16", "bn+add+relu")
    monkeypatch.setattr(gpu_peers, "CHUNK", 100_000)
    copied: list[int] = []
    monkeypatch.setattr(Tensor, "copy_", lambda self, source: copied.append(self.numel()))
    for direction, step in norm_peers._copies(job, "cpu").items():
        copied.clear()
        step()
        assert job.bytes(direction) - 2 < 2 * sum(copied) <= job.bytes(direction)


def test_what_does_not_fit_is_said(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch):
    image = 2 * 512 * 7 * 7 * 4
    for images, left in ((16, ["null"]), (9, ["onepass"])):
        monkeypatch.setattr(machine, "free_memory", lambda n=images: n * image)
        (block,) = _sweep("--dtype", "float32", "--layout", "nchw")
        assert [note for note in block.notes if note.startswith(left[0])], block.notes
        assert bool(block.rows) == (images == 16)


def test_a_contestant_that_fails_is_left_out(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch):
    def fail(self: norm_jobs.Tensors) -> Tensor:
        raise RuntimeError("no such kernel\nand more")

    monkeypatch.setattr(norm_jobs.Tensors, "torch", fail)
    (block,) = _sweep("--dtype", "float32", "--layout", "nchw")
    assert {row.contestant for row in block.rows} == {"onepass", "torch, in place", "limit"}
    assert "torch is left out: no such kernel" in block.notes
    assert "null is left out: there is no torch to compare it with" in block.notes


class _Apex(torch.nn.BatchNorm2d):
    """What is called as apex.parallel.SyncBatchNorm is."""

    wrong = 0.0

    def __init__(self, channels: int, channel_last: bool, fuse_relu: bool) -> None:
        super().__init__(channels)
        self.fuse_relu = fuse_relu
        assert channel_last

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        assert x.is_contiguous()
        y = super().forward(x.permute(0, 3, 1, 2)) + self.wrong
        y = y if z is None else y + z.permute(0, 3, 1, 2)
        return (torch.relu(y) if self.fuse_relu else y).permute(0, 2, 3, 1)


@pytest.mark.parametrize("wrong", (0.0, 0.5))
@pytest.mark.parametrize("fusion", norm_jobs.FUSIONS)
def test_apex_takes_part_if_it_is_right(fusion: str, wrong: float, monkeypatch: pytest.MonkeyPatch):
    parallel = types.SimpleNamespace(SyncBatchNorm=type("Apex", (_Apex,), {"wrong": wrong}))
    monkeypatch.setattr(norm_apex.importlib, "import_module", lambda name: {"apex.parallel": parallel}[name])
    job = norm_jobs.Job("512x7", 2, "nhwc", "float32", fusion)
    norm_apex._failure.cache_clear()
    why = norm_apex._failure(job, "cpu")
    assert (why is None) == (wrong == 0.0) and (why is None or "on a small layer" in why)
    norm_apex._failure.cache_clear()


def test_apex_is_left_out_with_a_reason(monkeypatch: pytest.MonkeyPatch):
    job = norm_jobs.Job("512x7", 2, "nchw", "float32", "bn+relu")
    monkeypatch.setattr(norm_apex.importlib.util, "find_spec", lambda name: True)
    assert "channels-last" in norm_apex.why_not(job, "cuda") and "CUDA" in norm_apex.why_not(job, "cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here")
def test_end_to_end_on_the_gpu(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    options = ["--device", "cuda", "--shape", "512x7", "--fusion", "bn+add+relu", "--dtype", "bfloat16"]
    assert main(["norm", *options, "--rounds", "3", "--json", str(path)]) == 0
    rows = norm_rows.read_rows(path)
    names = {"onepass", "torch", "torch, in place", "torch.compile", "null", "limit"}
    assert names <= {row.contestant for row in rows}
    assert {(row.clock, row.device) for row in rows} == {("cuda_event", torch.cuda.get_device_name())}
    assert all(0 < row.gb_per_s < 50_000 and row.share_of_limit for row in rows)
