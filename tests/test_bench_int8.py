"""The sweep over the 8-bit product: who takes part, what is left behind, and what is drawn."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch
from onepass.bench import int8_jobs, int8_plot, int8_rows, main
from onepass.bench.int8_jobs import (
    BFLOAT16,
    CHANCE,
    FLOAT32,
    HALF,
    INT_MM,
    LIMIT,
    NULL,
    ONEDNN,
    OURS,
    SEVEN,
    WEIGHT_ONLY,
    WEIGHT_ONLY_HALF,
    X86,
    Job,
    Layer,
)

SHORT = ["--rounds", "3", "--seconds", "0.01"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[int8_rows.Row]:
    folder = tmp_path_factory.mktemp("int8")
    file, picture = folder / "rows.jsonl", folder / "picture.png"
    peers = ["--peers", "x86", "onednn", "float32", "bfloat16", "weight only, bfloat16", "torchao"]
    asked = ["int8", "--rows", "1", "8", "--weight", "768x768", "--json", str(file), "--plot", str(picture)]
    assert main([*asked, *peers, *SHORT]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    return int8_rows.read_rows(file)


def test_everybody_has_a_row(rows: list[int8_rows.Row]):
    def names(m: int, op: str) -> list[str]:
        return [r.contestant for r in rows if (r.m, r.op) == (m, op) and r.contestant != "torchao"]

    for m in (1, 8):
        assert names(m, "int8_linear") == [OURS, SEVEN, LIMIT, X86, ONEDNN, FLOAT32, BFLOAT16, NULL]
        limit = [LIMIT] if m == 1 else []  # that reads all weights: floats have none of products
        peers = [FLOAT32, BFLOAT16, WEIGHT_ONLY_HALF]
        assert names(m, "int8_weight_only_mm") == [OURS, HALF, *limit, *peers, NULL]
        assert names(m, "int8_mm_bwd") == [OURS, CHANCE, FLOAT32, BFLOAT16, NULL]


def test_rows_say_what_was_done(rows: list[int8_rows.Row]):
    for row in rows:
        products = 2 if row.op == "int8_mm_bwd" else 1
        assert row.gops == pytest.approx(products * 2 * row.m * 768 * 768 / row.ms / 1e6)
        assert row.baseline == _baseline(row)
        no_limit = row.op == "int8_mm_bwd" or (row.op == "int8_weight_only_mm" and row.m == 8)
        assert (row.share_of_limit is None) == no_limit
        assert row.share_of_limit is None or row.share_of_limit > 0
        assert int8_rows.Row.from_json(row.to_json()) == row
    assert all(int8_rows.docs().values())


def test_rows_of_before_are_read(rows: list[int8_rows.Row]):
    fields = json.loads(rows[0].to_json())
    assert fields.pop("ms_wall") > 0
    assert int8_rows.Row.from_json(json.dumps(fields)) == dataclasses.replace(rows[0], ms_wall=None)
    committed = int8_rows.read_rows(Path(__file__).parent.parent / "bench/results/int8-granite-rapids.jsonl")
    assert committed and {row.ms_wall for row in committed} == {None}


def _baseline(row: int8_rows.Row) -> str | None:
    fixed = {OURS: None, SEVEN: None, HALF: None, CHANCE: None, LIMIT: None}
    if row.op == "int8_linear":
        return {**fixed, NULL: X86}.get(row.contestant, OURS)
    others = OURS if row.op == "int8_mm_bwd" else HALF
    return {**fixed, NULL: FLOAT32, FLOAT32: OURS}.get(row.contestant, others)


@pytest.mark.parametrize(
    "change, message",
    (
        ({"schema": 9}, "schema is 9, expected 1"),
        ({"clock": "sundial"}, "clock has to be"),
        ({"ratio": 2.0}, "baseline and ratio have to be null together"),
        ({"m": "8"}, "m"),
    ),
)
def test_what_is_no_row_is_refused(rows: list[int8_rows.Row], change: dict, message: str):
    with pytest.raises((ValueError, TypeError), match=message):
        dataclasses.replace(rows[0], **change)
    with pytest.raises(ValueError, match="missing or unknown fields"):
        int8_rows.Row.from_json('{"schema": 1}')


@pytest.mark.parametrize(
    "op, name, off",
    (
        ("int8_linear", OURS, 0.03),
        ("int8_linear", SEVEN, 0.05),
        ("int8_linear", X86, 0.05),
        ("int8_linear", ONEDNN, 0.05),
        ("int8_linear", INT_MM, 0.03),
        ("int8_weight_only_mm", OURS, 0.01),
        ("int8_weight_only_mm", HALF, 0.01),
        ("int8_weight_only_mm", WEIGHT_ONLY, 0.01),
        ("int8_weight_only_mm", WEIGHT_ONLY_HALF, 0.02),
    ),
)
def test_all_compute_the_same_layer(op: str, name: str, off: float):
    layer = Layer(Job(8, "768x768", op))
    want = layer.build(FLOAT32)()
    got = layer.build(name)()
    assert isinstance(got, torch.Tensor) and isinstance(want, torch.Tensor)
    assert (got - want).norm() <= off * want.norm()


@pytest.mark.parametrize("name, off", ((OURS, 0.02), (CHANCE, 0.03), (BFLOAT16, 0.01)))
def test_all_compute_the_same_gradients(name: str, off: float):
    layer = Layer(Job(8, "768x768", "int8_mm_bwd"))
    want, got = layer.build(FLOAT32)(), layer.build(name)()
    assert isinstance(got, tuple) and isinstance(want, tuple)
    for ours, theirs in zip(got, want, strict=True):
        assert (ours - theirs).norm() <= off * theirs.norm()


def test_who_cannot_be_had_is_left_out(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    assert main(["int8", "--rows", "1", "--weight", "768x768", "--peers", "torchao", *SHORT]) == 0
    assert "torchao is left out: torchao is not installed" in capsys.readouterr().out


def test_who_is_known_elsewhere_is_said(capsys: pytest.CaptureFixture):
    assert main(["int8", "--rows", "1", "--weight", "768x768", "--peers", "_int_mm", "x86", *SHORT]) == 0
    said = capsys.readouterr().out
    assert "_int_mm is left out: it is no peer here" in said and "x86 is left out" not in said


def test_without_memory_nothing_is_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr("onepass.bench.machine.free_memory", lambda: 1000)
    assert main(["int8", "--rows", "1", "--weight", "768x768", *SHORT]) == 1
    assert "onepass itself cannot run it here" in capsys.readouterr().out


def test_nothing_to_draw(tmp_path: Path):
    with pytest.raises(ValueError, match="nothing to draw"):
        int8_plot.save(tmp_path / "a.png", [])
    assert not list(tmp_path.iterdir())


def test_the_limit_is_as_much_work():
    job = Job(64, "768x768")
    assert job.operations() == 2 * 64 * 768 * 768
    assert all(job.needs(name) > 4 * 768 * 768 for name in int8_jobs.PEERS)
