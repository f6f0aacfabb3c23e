"""The sweep over fake quantization: who takes part, what is left behind, and what is drawn."""

import dataclasses
from pathlib import Path

import pytest
import torch
from onepass import backends
from onepass.bench import (
    cli,
    fake_quant,
    fake_quant_jobs,
    fake_quant_plot,
    fake_quant_rows,
    main,
    peers,
    venues,
)
from onepass.bench.fake_quant_jobs import DIRECTIONS, NULL, OURS, SCALES, TORCH, Job
from test_bench_gpu import FakeGpu, Here, no_bar

SHORT = ["--rounds", "3", "--seconds", "0.01"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[fake_quant_rows.Row]:
    folder = tmp_path_factory.mktemp("fake_quant")
    file, picture = folder / "rows.jsonl", folder / "picture.png"
    asked = ["fake_quant", "--shape", "512x768", "--json", str(file), "--plot", str(picture)]
    assert main([*asked, *SHORT]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    return fake_quant_rows.read_rows(file)


def test_everybody_has_a_row(rows: list[fake_quant_rows.Row]):
    jobs = [(scale, direction) for scale in SCALES for direction in DIRECTIONS]
    wanted = [(*job, name) for job in jobs for name in (OURS, TORCH, NULL)]
    assert [(r.scale, r.direction, r.contestant) for r in rows] == wanted


def test_rows_say_what_was_done(rows: list[fake_quant_rows.Row]):
    for row in rows:
        least = {"forward": 8, "both": 20 if "learned" in row.scale else 16}[row.direction]
        assert row.gb_per_s == pytest.approx(least * 512 * 768 / row.ms / 1e6)
        assert row.baseline == {OURS: None, TORCH: OURS, NULL: TORCH}[row.contestant]
        assert fake_quant_rows.Row.from_json(row.to_json()) == row
    assert all(fake_quant_rows.docs().values())


@pytest.mark.parametrize(
    "change, message",
    (
        ({"schema": 9}, "schema is 9, expected 1"),
        ({"clock": "sundial"}, "clock has to be"),
        ({"ratio": 2.0}, "baseline and ratio have to be null together"),
        ({"shape": 8}, "shape"),
    ),
)
def test_what_is_no_row_is_refused(rows: list[fake_quant_rows.Row], change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(rows[0], **change)
    with pytest.raises(ValueError, match="missing or unknown fields"):
        fake_quant_rows.Row.from_json('{"schema": 1}')


@pytest.mark.parametrize("scale", SCALES)
def test_both_compute_the_same(scale: str):
    forward = [Job("512x768", scale, "forward").build(name)() for name in (OURS, TORCH)]
    ours, theirs = (t[0] if isinstance(t, tuple) else t for t in forward)
    assert isinstance(ours, torch.Tensor) and torch.equal(ours, theirs)
    got, want = (Job("512x768", scale, "both").build(name)() for name in (OURS, TORCH))
    if "learned" not in scale:
        assert torch.equal(got[0], want)
        return
    _, dx, dscale, _ = want
    assert torch.equal(got[0], dx)
    torch.testing.assert_close(got[1].view(-1), dscale.view(-1), rtol=1e-3, atol=1e-3 * dscale.abs().max())


def test_rows_of_a_gpu(monkeypatch: pytest.MonkeyPatch):
    """A made-up one, on which every step takes longer than the one before it; each backend that has kernels
    runs in its turns only."""
    before, gpu, marks, seen = backends.backend_of("cpu"), FakeGpu(), iter(range(10**6)), []
    gpu.mark = lambda: 1e-5 * sum(range(next(marks)))
    monkeypatch.setattr(venues, "of", lambda device: Here(device="cpu", gpu=gpu))
    monkeypatch.setattr(peers, "serving", lambda op, device: [before, "reference"])
    onepass = Job._onepass

    def spying(self: Job, *given: torch.Tensor) -> fake_quant_jobs.Step:
        step = onepass(self, *given)
        return lambda: (seen.append(backends.backend_of("cpu")), step())

    monkeypatch.setattr(Job, "_onepass", spying)
    asked = [
        "fake_quant",
        "--device",
        "cuda",
        "--shape",
        "512x768",
        "--scale",
        "learned row",
        "--rounds",
        "3",
    ]
    forward, both = fake_quant.sweep(cli.parser().parse_args(asked), no_bar)
    for block in (forward, both):
        assert [row.contestant for row in block.rows] == [OURS, f"{OURS}-reference", TORCH, NULL]
        assert [row.backend for row in block.rows[:2]] == [before, "reference"]
        assert {(row.clock, row.device, row.isa) for row in block.rows} == {("cuda_event", "A GPU", "sm_90")}
        assert [row.baseline for row in block.rows] == [None, OURS, OURS, TORCH]
    assert set(seen) == {before, "reference"} and backends.backend_of("cpu") == before


def test_without_memory_nothing_is_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr("onepass.bench.machine.free_memory", lambda: 1000)
    assert main(["fake_quant", "--shape", "512x768", *SHORT]) == 1
    assert "onepass is left out" in capsys.readouterr().out


def test_nothing_to_draw(tmp_path: Path):
    with pytest.raises(ValueError, match="nothing to draw"):
        fake_quant_plot.save(tmp_path / "a.png", [])
    assert not list(tmp_path.iterdir())


def test_a_job_moves_the_fewest_bytes():
    assert Job("4096x4096", "row", "forward").bytes() == 8 * 4096 * 4096
    assert all(m * n > 0 for m, n in fake_quant_jobs.SHAPES.values())
