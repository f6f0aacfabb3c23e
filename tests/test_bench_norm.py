"""The benchmark of normalizations: what is timed, rows, summary, picture; the allocator that is asked for."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import need
from onepass import backends
from onepass.bench import allocator, main, norm, norm_jobs, norm_report, norm_rows
from onepass.bench.norm_rows import Row

needs_cpp = pytest.mark.skipif(not backends.compiled(), reason="the C++ kernels are not built")
QUICK = ["norm", "--shape", "512x7", "--batch", "2", "--seconds", "0.05", "--rounds", "3"]


def _row(**changes: object) -> Row:
    made = {
        "schema": norm_rows.SCHEMA, "time": "2026-01-01T00:00:00+00:00", "area": "norm", "device": "d",
        "isa": None, "backend": "cpp", "threads": 1, "python": "3", "torch": "2", "onepass": "0",
        "commit": None,
        "shape": "16x64x56x56", "layout": "nchw", "dtype": "float32", "fusion": "bn+relu",
        "direction": "both",
        "allocator": "kept", "contestant": "torch", "baseline": "onepass", "clock": "thread_cpu", "rounds": 3,
        "ms": 2.0, "ms_p25": 2.0, "ms_p75": 2.0, "ratio": 2.0, "ratio_p25": 2.0, "ratio_p75": 2.0,
        "gb_per_s": 1.0, "share_of_limit": None,
    }  # fmt: skip
    return Row(**{**made, **changes})


# --- what is timed ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("fusion", norm_jobs.FUSIONS)
@pytest.mark.parametrize("layout", norm_jobs.LAYOUTS)
def test_both_sides_do_the_same(fusion: str, layout: str):
    tensors = norm_jobs.Tensors(norm_jobs.Job("512x7", 2, layout, "float32", fusion))
    mine, its = tensors.onepass(), tensors.torch()
    torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-5)
    assert mine.stride() == its.stride()
    grads = [torch.autograd.grad(y, tensors.wanted, tensors.dy) for y in (mine, its)]
    for got, want in zip(*grads, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_bytes_of_two_passes():
    job = norm_jobs.Job("64x56", 16, "nchw", "bfloat16", "bn+relu")
    assert (job.bytes("forward"), job.bytes("backward")) == (6, 10)
    job = dataclasses.replace(job, fusion="bn+add+relu", dtype="float32")
    assert (job.bytes("forward"), job.bytes("backward")) == (16, 24)
    assert job.elements() == 16 * 64 * 56 * 56


def test_shapes_are_those_of_resnet50():
    """53 normalizations in 12 shapes, by the blocks of each stage."""
    assert len(norm_jobs.SHAPES) == 12
    blocks, across, found = (3, 4, 6, 3), 56, {(64, 112)}
    for stage, count in enumerate(blocks):
        width = 64 * 2**stage
        for block in range(count):
            entry = across * 2 if block == 0 and stage else across
            found |= {(width, entry), (width, across), (4 * width, across)}
        across //= 2
    assert set(norm_jobs.SHAPES.values()) == found


@needs_cpp
def test_what_the_limit_reads_has_been_written():
    """Pages that were not are one page, which no memory has to give."""
    tensors = norm_jobs.Tensors(norm_jobs.Job("512x7", 2, "nchw", "float32", "bn"))
    for step in norm._limits(tensors).values():
        read = [c.cell_contents for c in step.__closure__ if isinstance(c.cell_contents, torch.Tensor)]
        assert len(read) >= 2 and all(torch.equal(t, tensors.dy) for t in read)


@needs_cpp
def test_limit_reads_twice_and_writes_the_sum():
    a, b, to = (torch.randn(3 * 4096) for _ in range(3))
    backends.two_read_probe([a, b], to)
    assert torch.equal(to, a + b)
    backends.two_read_probe([a], to)
    assert torch.equal(to, a)


# --- a run ------------------------------------------------------------------------------------------------
@needs_cpp
def test_a_run_leaves_rows_and_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for tool in ("rich", "matplotlib"):
        need(tool)
    options = ["--fusion", "bn+relu", "--layout", "nhwc", "--dtype", "float32"]
    path, picture = tmp_path / "rows.jsonl", tmp_path / "picture.png"
    assert main([*QUICK, *options, "--json", str(path), "--plot", str(picture)]) == 0
    rows = norm_rows.read_rows(path)
    assert {r.contestant for r in rows} == {"onepass", "torch", "null", "limit"}
    assert {r.direction for r in rows} == {"forward", "backward", "both"}
    for row in rows:
        assert row.shape == "2x512x7x7" and row.rounds >= 3 and row.ms > 0
        assert (row.baseline is None) == (row.contestant in ("onepass", "limit"))
    both = {r.contestant: r.ms for r in rows if r.direction == "both"}
    parts = {r.contestant: 0.0 for r in rows}
    for row in rows:
        parts[row.contestant] += row.ms * (row.direction != "both")
    assert all(both[name] == pytest.approx(parts[name], rel=0.5) for name in both)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "onepass is faster by" in capsys.readouterr().out


@pytest.mark.slow
def test_torch_compile_takes_part(tmp_path: Path):
    need("g++")
    path = tmp_path / "rows.jsonl"
    options = ["--fusion", "bn+add+relu", "--layout", "nchw", "--dtype", "float32"]
    assert main([*QUICK, *options, "--peers", "torch.compile", "--json", str(path)]) == 0
    assert "torch.compile" in {row.contestant for row in norm_rows.read_rows(path)}


# --- rows -------------------------------------------------------------------------------------------------
def test_rows_survive_json():
    row = _row()
    assert Row.from_json(row.to_json()) == row
    assert set(norm_rows.docs()) == set(json.loads(row.to_json()))


@pytest.mark.parametrize("changes", ({"ms": float("nan")}, {"ratio": None}, {"threads": 0}, {"shape": ""}))
def test_rows_refuse_nonsense(changes: dict):
    with pytest.raises(ValueError, match="row: "):
        _row(**changes)


def test_summary_has_geometric_means_and_the_worst_layer():
    rows = [
        _row(ratio=r, ratio_p25=r, ratio_p75=r, shape=shape, direction=direction)
        for direction in ("forward", "backward", "both")
        for shape, r in (("a", 2.0), ("b", 8.0))
    ]
    assert norm_report.geometric_mean([2.0, 8.0]) == pytest.approx(4.0)
    line = norm_report.summary(rows).splitlines()[-1]
    assert line == "| float32 | nchw | bn+relu | 4.00 | 4.00 | 4.00 | 2.00 (a) |"


# --- the allocator ----------------------------------------------------------------------------------------
_FAULTS = """
import resource, sys, torch
from onepass.bench import allocator
allocator.use(sys.argv[1])
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.empty(48 << 20, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


@pytest.mark.parametrize("name, most", ((allocator.DEFAULT, 10**9), (allocator.KEPT, 500)))
def test_kept_memory_costs_no_page_faults(name: str, most: int):
    """Of five blocks of 48 MB, one after another, each written."""
    run = subprocess.run([sys.executable, "-c", _FAULTS, name], capture_output=True, text=True, check=True)
    faults = int(run.stdout)
    assert (faults > 5000) == (name == allocator.DEFAULT) and faults <= most


def test_there_is_no_way_back(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(allocator, "_now", allocator.KEPT)
    with pytest.raises(OSError, match="has been told to keep"):
        allocator.use(allocator.DEFAULT)


def test_an_allocator_that_is_not_glibcs_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(allocator.platform, "libc_ver", lambda: ("musl", "1"))
    monkeypatch.setattr(allocator, "_now", allocator.DEFAULT)
    with pytest.raises(OSError, match="only glibc's"):
        allocator.use(allocator.KEPT)
    assert norm.OURS == "onepass"
