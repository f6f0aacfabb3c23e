"""The benchmark of normalizations on the CPU: what is timed, a run, the allocator that is asked for."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import need
from onepass import backends
from onepass.bench import (
    allocator,
    cli,
    main,
    norm,
    norm_jobs,
    norm_peers,
    norm_rows,
    venues,
)
from test_bench_gpu import no_bar
from torch import Tensor

needs_cpp = pytest.mark.skipif(not backends.compiled(), reason="the C++ kernels are not built")
QUICK = ["norm", "--shape", "512x7", "--batch", "2", "--seconds", "0.05", "--rounds", "3"]


# --- what is timed ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("fusion", norm_jobs.FUSIONS)
@pytest.mark.parametrize("layout", norm_jobs.LAYOUTS)
def test_both_sides_do_the_same(fusion: str, layout: str):
    tensors = norm_jobs.Tensors(norm_jobs.Job("512x7", 2, layout, "float32", fusion))
    mine, *others = tensors.onepass(), tensors.torch(), tensors.torch_in_place()
    grads = torch.autograd.grad(mine, tensors.wanted, tensors.dy)
    for its in others:
        torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-5)
        assert mine.stride() == its.stride()
        for got, want in zip(
            grads, torch.autograd.grad(its, tensors.wanted, tensors.dy, retain_graph=True), strict=True
        ):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_bytes_of_two_passes():
    job = norm_jobs.Job("64x56", 16, "nchw", "bfloat16", "bn+relu")
    n = job.elements()
    assert n == 16 * 64 * 56 * 56
    assert (job.bytes("forward"), job.bytes("backward"), job.bytes("both")) == (6 * n, 10 * n, 16 * n)
    job = dataclasses.replace(job, fusion="bn+add+relu", dtype="float32")  # with a mask of one bit
    assert (job.bytes("forward"), job.bytes("backward")) == (16 * n + n // 8, 24 * n + n // 4)


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


def test_one_way_of_torch_is_in_place():
    """Its sum and its ReLU come to lie where the normalized image did."""
    tensors = norm_jobs.Tensors(norm_jobs.Job("512x7", 2, "nchw", "float32", "bn+add+relu"))
    made: list[Tensor] = []  # kept, as freed memory would be used again

    class Storages(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            made.append(result[0] if isinstance(result, tuple) else result)
            return result

    for way, images in ((tensors.torch, 3), (tensors.torch_in_place, 1)):
        made.clear()
        with Storages():
            way()
        assert len({t.data_ptr() for t in made if t.shape == tensors.x.shape}) == images


@needs_cpp
@pytest.mark.parametrize("fusion", norm_jobs.FUSIONS)
@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_limit_moves_what_two_passes_move(fusion: str, dtype: str, monkeypatch: pytest.MonkeyPatch):
    """From memory that has been written: pages that were not are one page, which no memory has to give."""
    job = norm_jobs.Job("512x7", 2, "nhwc", dtype, fusion)
    moved: list[int] = []

    def probe(first: list[Tensor], second: list[Tensor], outputs: list[Tensor]) -> None:
        assert first[0] is second[0] and (len(outputs) == 1 or len(second) == 2)
        assert all(t.count_nonzero() > 0.9 * t.numel() for t in (*first, *second))
        assert len({t.data_ptr() for t in (*second, *outputs)}) == len(second) + len(outputs)
        moved.append(sum(t.numel() * t.itemsize for t in (*first, *second, *outputs)))

    monkeypatch.setattr(backends, "two_read_probe", probe)
    steps = norm_peers._probes(job)
    for step in steps.values():
        step()
    for found, direction in zip(moved, steps, strict=True):
        assert job.bytes(direction) - 4 * job.streams(direction) < found <= job.bytes(direction)


@needs_cpp
@pytest.mark.parametrize("isa", backends.isas())
@pytest.mark.parametrize("threads", (1, 2))
def test_limit_writes_the_sum(isa: str, threads: int, monkeypatch: pytest.MonkeyPatch):
    """Below and above the size at which results go past the caches."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for n in (3 * 4096, 300 * 4096):
            a, b, c, *results = (torch.randn(n) for _ in range(5))
            with backends.use_isa(isa):
                backends.two_read_probe([a, b], [a, c], results[:1])
                assert torch.equal(results[0], a + c)
                backends.two_read_probe([a], [a], results[1:])
                assert torch.equal(results[1], a)
                backends.two_read_probe([a], [a, b], results)
                assert all(torch.equal(result, a + b) for result in results)
    finally:
        torch.set_num_threads(before)


# --- a run ------------------------------------------------------------------------------------------------
@needs_cpp
def test_a_run_leaves_rows_and_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for tool in ("rich", "matplotlib"):
        need(tool)
    options = ["--fusion", "bn+relu", "--layout", "nhwc", "--dtype", "float32"]
    path, picture = tmp_path / "rows.jsonl", tmp_path / "picture.png"
    assert main([*QUICK, *options, "--json", str(path), "--plot", str(picture)]) == 0
    rows = norm_rows.read_rows(path)
    assert {r.contestant for r in rows} == {"onepass", "torch", "torch, in place", "null", "limit"}
    assert {r.share_of_limit for r in rows if r.contestant == "limit"} == {1.0}
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


def test_where_nothing_follows_torch_has_one_way():
    job = norm_jobs.Job("512x7", 2, "nchw", "float32", "bn")
    names = norm_peers.contestants(job, ["torch"], "cpu", False)
    assert names[:2] == ["onepass", "torch"] and "torch, in place" not in names


def test_who_cannot_take_part_is_named():
    job = norm_jobs.Job("512x7", 2, "nhwc", "float32", "bn+relu")
    field, notes = norm._enter(job, ["torch", "apex"], venues.Cpu())
    assert "apex" not in {contestant.name for contestant in field.values()}
    assert notes == ["apex is left out: it is not installed"]


def test_both_allocators_in_one_run(monkeypatch: pytest.MonkeyPatch):
    """In the order in which that can be done, and each in its rows."""
    told: list[str] = []
    monkeypatch.setattr(allocator, "use", told.append)
    options = ["--allocator", "kept", "default", "--layout", "nhwc", "--dtype", "float32", "--fusion", "bn"]
    blocks = list(norm.sweep(cli.parser().parse_args([*QUICK, *options]), no_bar))
    assert told == ["default", "kept"]
    assert [{row.allocator for row in block.rows} for block in blocks] == [{"default"}, {"kept"}]
    assert [block.title.split()[-1] for block in blocks] == ["default", "kept"]


@pytest.mark.slow
def test_torch_compile_takes_part(tmp_path: Path):
    need("g++")
    path = tmp_path / "rows.jsonl"
    options = ["--fusion", "bn+add+relu", "--layout", "nchw", "--dtype", "float32"]
    assert main([*QUICK, *options, "--peers", "torch.compile", "--json", str(path)]) == 0
    assert "torch.compile" in {row.contestant for row in norm_rows.read_rows(path)}


# --- the allocator ----------------------------------------------------------------------------------------
_FAULTS = """
import resource, torch
from onepass.bench import allocator
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.empty(48 << 20, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
for name in (allocator.DEFAULT, allocator.KEPT):
    allocator.use(name)
    faults()
    print(faults())
"""


def test_kept_memory_costs_no_page_faults():
    """Of five blocks of 48 MB, one after another, each written."""
    run = subprocess.run([sys.executable, "-c", _FAULTS], capture_output=True, text=True, check=True)
    by_default, kept = map(int, run.stdout.split())
    assert by_default > 5000 and kept <= 500


def test_there_is_no_way_back(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(allocator, "_now", allocator.KEPT)
    with pytest.raises(OSError, match="has been told to keep"):
        allocator.use(allocator.DEFAULT)


def test_an_allocator_that_is_not_glibcs_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(allocator.platform, "libc_ver", lambda: ("musl", "1"))
    monkeypatch.setattr(allocator, "_now", allocator.DEFAULT)
    with pytest.raises(OSError, match="only glibc's"):
        allocator.use(allocator.KEPT)
