"""What the benchmark of normalizations leaves behind: rows, tables, the picture."""

import dataclasses
import json

import pytest
from conftest import need
from onepass.bench import (
    norm_plot,
    norm_report,
    norm_rows,
)
from onepass.bench.norm_rows import Row


def _row(**changes: object) -> Row:
    made = {
        "schema": norm_rows.SCHEMA, "time": "2026-01-01T00:00:00+00:00", "area": "norm", "device": "d",
        "isa": None, "backend": "cpp", "threads": 1, "python": "3", "torch": "2", "onepass": "0",
        "commit": None,
        "shape": "16x64x56x56", "layout": "nchw", "dtype": "float32", "fusion": "bn+relu",
        "direction": "both",
        "allocator": "kept", "contestant": "torch", "baseline": "onepass", "clock": "thread_cpu", "rounds": 3,
        "ms": 2.0, "ms_p25": 2.0, "ms_p75": 2.0, "ms_wall": 2.0,
        "ratio": 2.0, "ratio_p25": 2.0, "ratio_p75": 2.0,
        "gb_per_s": 1.0, "share_of_limit": None,
    }  # fmt: skip
    return Row(**{**made, **changes})


def test_rows_of_the_first_schema_are_read():
    """Their torch was in place; their limit knew of no residual; nobody had noted wall time."""
    old = json.loads(_row(share_of_limit=0.5, fusion="bn+add+relu").to_json()) | {"schema": 1}
    del old["ms_wall"]
    row = Row.from_json(json.dumps(old))
    assert (row.schema, row.contestant, row.baseline) == (norm_rows.SCHEMA, "torch, in place", "onepass")
    assert row.ms_wall is None and row.share_of_limit is None
    row = Row.from_json(json.dumps(old | {"contestant": "null", "baseline": "torch", "fusion": "bn+relu"}))
    assert (row.contestant, row.baseline, row.share_of_limit) == ("null", "torch, in place", 0.5)


def test_rows_survive_json():
    row = _row()
    assert Row.from_json(row.to_json()) == row
    assert set(norm_rows.docs()) == set(json.loads(row.to_json()))


@pytest.mark.parametrize(
    "changes", ({"ms": float("nan")}, {"ratio": None}, {"threads": 0}, {"shape": ""}, {"schema": 1})
)
def test_rows_refuse_nonsense(changes: dict):
    with pytest.raises(ValueError, match="row: "):
        _row(**changes)


def _rows_of(*contestants: str, ratios: tuple[float, ...] = (2.0, 8.0)) -> list[Row]:
    return [
        _row(contestant=c, ratio=r, ratio_p25=r, ratio_p75=r, shape=shape, direction=direction)
        for c in contestants
        for direction in ("forward", "backward", "both")
        for shape, r in zip("abcd", ratios, strict=False)
    ]


def _ours() -> list[Row]:
    none = dict.fromkeys(("baseline", "ratio", "ratio_p25", "ratio_p75"))
    return [dataclasses.replace(r, **{**none, "contestant": "onepass"}) for r in _rows_of("onepass")]


def test_summary_has_geometric_means_and_the_worst_layer():
    assert norm_report.geometric_mean([2.0, 8.0]) == pytest.approx(4.0)
    for contestant in ("torch", "torch, in place"):
        head, _, line = norm_report.summary([*_ours(), *_rows_of(contestant)]).splitlines()
        assert line == "| float32 | nchw | bn+relu | 4.00 | 4.00 | 4.00 | 2.00 (a) |"
        assert "over" not in head


def test_summary_has_a_line_for_each_way_and_for_who_took_part_in_all_layers():
    some = _rows_of("torch.compile", ratios=(3.0,))
    rows = [
        *_ours(),
        *_rows_of("onepass-triton", "torch"),
        *_rows_of("torch, in place", ratios=(1.0, 4.0)),
        *some,
    ]
    head, rule, *lines = norm_report.summary(rows).splitlines()
    assert "| what | over | forward |" in head and rule.count("|") == head.count("|")
    assert [line.split(" | ")[3] for line in lines] == ["torch", "torch, in place", "onepass-triton"]
    assert lines[1].endswith("| 2.00 | 2.00 | 2.00 | 1.00 (a) |")
    again = [*rows, *_rows_of("torch", ratios=(18.0,))]  # measured again: the later row counts
    assert norm_report.summary(again).splitlines()[2].endswith("| 12.00 | 12.00 | 12.00 | 8.00 (b) |")


def test_summary_keeps_apart_what_was_measured_otherwise():
    rows = [*_ours(), *_rows_of("torch")]
    rows += [dataclasses.replace(row, allocator="default", ratio=row.ratio and 3 * row.ratio) for row in rows]
    head, _, *lines = norm_report.summary(rows).splitlines()
    assert head.startswith("| memory | dtype |")
    assert [line.split(" | ")[0] for line in lines] == ["| kept", "| default"]
    assert [line.split(" | ")[4] for line in lines] == ["4.00", "12.00"]


def test_who_did_some_layers_alone_has_a_line_for_each():
    rows = [*_ours(), *_rows_of("torch"), *_rows_of("torch.compile", ratios=(3.0,))]
    assert norm_report.layers(rows[: -len(_rows_of("torch.compile", ratios=(3.0,)))]) == ""
    _, _, *lines = norm_report.layers(rows).splitlines()
    assert lines == ["| float32 | nchw | bn+relu | a | torch.compile | 3.00 | 3.00 | 3.00 |"]


def test_shares_are_of_all_layers_and_of_the_large_ones():
    def ours(shape: str, share: float | None) -> list[Row]:
        none = dict.fromkeys(("baseline", "ratio", "ratio_p25", "ratio_p75"))
        row = _row(
            **none, contestant="onepass", shape=shape, share_of_limit=share, gb_per_s=10.0 * (share or 1.0)
        )
        return [dataclasses.replace(row, direction=d) for d in ("forward", "backward")]

    rows = [*ours("16x64x56x56", 0.8), *ours("16x2048x7x7", 0.2)]
    assert norm_report.shares(rows).splitlines()[2].endswith(2 * " | 4.0 | 0.40 | 0.80" + " |")
    rows = [*ours("16x64x56x56", 0.8), *ours("16x2048x7x7", None)]  # not the mean of those that are known
    assert norm_report.shares(rows).splitlines()[2].endswith(2 * " | 8.9 | - | 0.80" + " |")


def test_the_picture_shows_every_peer_and_the_limit():
    need("matplotlib")
    rows = [*_ours(), *_rows_of("torch", "torch, in place")]
    limits = [dataclasses.replace(row, contestant="limit") for row in _ours()]
    for extra, names in ((limits, ["onepass", "limit"]), ([], ["onepass"])):
        ratios, rates = norm_plot.figure([*rows, *extra]).axes
        assert ratios.get_legend_handles_labels()[1] == ["torch", "torch, in place"]
        assert rates.get_legend_handles_labels()[1] == names
        assert [bar.get_height() for bar in ratios.containers[0]] == [2.0, 8.0]
    with pytest.raises(ValueError, match="nothing to draw"):
        norm_plot.figure(_ours())
