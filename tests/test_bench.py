"""The benchmark harness: what it times, how ratios come about, and what it leaves behind."""

import dataclasses
import gc
import json
import math
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from onepass import backends
from onepass.bench import (
    AREAS,
    cli,
    clock,
    files,
    jobs,
    machine,
    main,
    markdown,
    peers,
    phases,
    plot,
    report,
    rows,
    workloads,
)
from onepass.ops import BY_NAME, OPS

ROW = rows.Row(
    schema=rows.SCHEMA,
    time="2026-01-02T03:04:05+00:00",
    area="optim",
    device="a processor",
    isa="avx2",
    backend="cpp",
    threads=1,
    python="3.11.7",
    torch="2.13.0",
    onepass="0.1.0",
    commit=None,
    workload="50x4096",
    tensors=50,
    elements=204_800,
    optimizer="adamw",
    phase=None,
    dtype="float32",
    moments="float32",
    contestant="torch-fused",
    part=None,
    baseline="onepass",
    clock="thread_cpu",
    rounds=9,
    batch=20,
    ms=1.5,
    ms_p25=1.25,
    ms_p75=1.75,
    ms_thread_cpu=1.5,
    ms_wall=1.5,
    ratio=1.25,
    ratio_p25=1.0,
    ratio_p75=1.5,
    ratio_wall=1.25,
    bytes_per_element=28,
    gb_per_s=3.8,
    share_of_limit=0.5,
)
TINY = ["optim", "--workload", "50x4096", "--rounds", "3", "--seconds", "0.1"]
SMALL = workloads.Workload("small", "", lambda: [(3,), (2, 2)])
ADAMW = jobs.Job(SMALL, "adamw")


class FakeClock:
    """Time that only steps spend: `seconds(call)` for the call-th step, half as much by the CPU clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timer = clock.Timer(thread_cpu=lambda: self.now / 2, wall=lambda: self.now)

    def step(self, seconds: Callable[[int], float]) -> clock.Step:
        calls = 0

        def step() -> None:
            nonlocal calls
            self.now += seconds(calls)
            calls += 1

        return step


# --- workloads ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "tensors", "elements"),
    [
        ("resnet50", 161, 25_557_032),
        ("gpt2", 148, 124_439_808),
        ("20M", 1, 20_000_000),
        ("tiny2000", 2000, 515_052),
        ("50x4096", 50, 204_800),
        ("1B", 1, 10**9),
        ("llama", 291, 2_693_696_000),
    ],
)
def test_workload_shapes(name: str, tensors: int, elements: int) -> None:
    workload = workloads.WORKLOADS[name]
    assert len(workload.shapes()) == tensors
    assert workload.elements() == elements == sum(math.prod(shape) for shape in workload.shapes())


def test_tiny_tensors_keep_to_their_sizes() -> None:
    sizes = [size for (size,) in workloads.WORKLOADS["tiny2000"].shapes()]
    assert min(sizes) == 1 and max(sizes) == 512


# --- the clock ------------------------------------------------------------------------------------------


def test_ratio_is_the_median_of_the_ratios_of_single_rounds() -> None:
    # One step a batch. The machine slows down from round to round, and each contestant has a bad round of its
    # own; the ratio of the medians would be 5.
    base, over = [1.0, 2.0, 9.0, 4.0, 5.0], [2.0, 20.0, 6.0, 8.0, 10.0]
    fake, warm_up = FakeClock(), clock.WARM_UP_STEPS + 1  # and one to calibrate
    laps = clock.race(
        {
            "base": fake.step(lambda call: base[call - warm_up] if call >= warm_up else 1.0),
            "over": fake.step(lambda call: over[call - warm_up] if call >= warm_up else 1.0),
        },
        rounds=5,
        seconds=1e9,
        timer=fake.timer,
    )
    assert laps["base"].wall == pytest.approx(base)
    assert laps["over"].thread_cpu == pytest.approx([x / 2 for x in over])
    by_round = sorted(o / b for o, b in zip(over, base, strict=True))
    expected = clock.Spread(median=by_round[2], p25=by_round[1], p75=by_round[3])
    for kind in ("wall", "thread_cpu"):
        assert dataclasses.astuple(clock.ratio(laps["over"], laps["base"], kind)) == pytest.approx(
            dataclasses.astuple(expected)
        )


@pytest.mark.parametrize(("seconds", "batch"), [(1.0, 1), (0.02, 1), (0.007, 3), (1e-4, 200)])
def test_batch_lasts_about_twenty_milliseconds(seconds: float, batch: int) -> None:
    fake = FakeClock()
    assert clock.calibrate(fake.step(lambda call: seconds), fake.timer) == pytest.approx(batch, abs=1)


@pytest.mark.parametrize(("seconds", "expected"), [(0.5, clock.MIN_ROUNDS), (7.5, 8), (1e9, 40)])
def test_rounds_end_with_the_budget(seconds: float, expected: int) -> None:
    fake, parts = FakeClock(), []
    laps = clock.race(
        {"only": fake.step(lambda call: 1.0)}, rounds=40, seconds=seconds, timer=fake.timer, tick=parts.append
    )
    assert len(laps["only"].wall) == len(parts) == expected
    assert parts == sorted(parts) and parts[-1] == 1.0


def test_each_contestant_comes_first_equally_often() -> None:
    names = list("abcd")
    turns = [clock.order(names, turn) for turn in range(2 * len(names))]
    assert all(sorted(turn) == names for turn in turns)
    assert all(sum(turn[0] == name for turn in turns) == 2 for name in names)


def test_collector_is_off_in_the_rounds_and_on_again_after_a_failure() -> None:
    fake, seen = FakeClock(), []

    def step() -> None:
        fake.now += 1.0
        seen.append(gc.isenabled())
        if len(seen) > 5:
            raise RuntimeError("stop")

    assert gc.isenabled()
    with pytest.raises(RuntimeError, match="stop"):
        clock.race({"only": step}, rounds=9, seconds=1e9, timer=fake.timer)
    assert seen == [True, True, True, False, False, False]
    assert gc.isenabled()


def test_headline_clock() -> None:
    assert [clock.headline(threads) for threads in (1, 2)] == ["thread_cpu", "wall"]


# --- bytes and memory -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", jobs.OPTIMIZERS)
def test_bytes_are_those_that_the_op_declares(name: str) -> None:
    kind = jobs.OPTIMIZERS[name]
    op, measure = BY_NAME[kind.op], BY_NAME["grad_stats"].bytes_moved()
    optional = len(kind.states) - op.required
    step, zeroed = op.bytes_moved(optional), op.bytes_moved(optional, grads_written=True)
    assert jobs.Job(SMALL, name).bytes("onepass") == step
    assert jobs.Job(SMALL, name, phase="set-to-none").bytes("onepass") == measure + step
    assert jobs.Job(SMALL, name, phase="zeroed").bytes("onepass") == measure + zeroed


@pytest.mark.parametrize(
    ("dtype", "state", "ours", "torchs"),
    [
        (torch.float32, "fp32", 28, 28),
        (torch.bfloat16, "fp32", 22, 14),
        (torch.bfloat16, "bf16", 14, 14),
        (torch.float32, "bf16", 20, 28),
        (torch.float64, "fp32", 56, 56),
    ],
)
def test_bytes_follow_from_the_dtypes(dtype: torch.dtype, state: str, ours: int, torchs: int) -> None:
    job = jobs.Job(SMALL, "adamw", dtype, state)
    assert (job.bytes("onepass"), job.bytes("torch-fused")) == (ours, torchs)
    assert job.bytes("null") == torchs and job.bytes("onepass-triton") == ours


@pytest.mark.parametrize("optimizer", jobs.OPTIMIZERS)
@pytest.mark.parametrize("state", jobs.STATES)
def test_contestants_keep_what_their_job_says(optimizer: str, state: str) -> None:
    job = jobs.Job(SMALL, optimizer, torch.bfloat16, state)
    for name in (jobs.OURS, *job.against(peers.PEERS)):
        made = phases.make(name, job, peers.parameters(SMALL, torch.bfloat16))
        made.step()
        kept = {k: v for k, v in next(iter(made.state.values()), {}).items() if k != "step" and v is not None}
        assert tuple(kept) == job.kind.states
        assert {v.dtype for v in kept.values()} <= {job.moments(name)}


# --- phases ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", jobs.PHASES)
def test_all_contestants_do_the_same_phase(phase: str) -> None:
    job, grads = jobs.Job(SMALL, "adam", phase=phase), {}
    after = {}
    for name in (jobs.OURS, *peers.PEERS):
        params = peers.parameters(SMALL, torch.float32)
        for p in params:
            p.grad.mul_(50.0)  # far above MAX_GRAD_NORM
        made = phases.make(name, job, params)
        whole, *pieces = phases.parts(name, job, made)
        whole.step()
        after[name] = torch.cat([p.detach().flatten() for p in params])
        grads[name] = torch.cat([p.grad.flatten() for p in params])
        assert [piece.name for piece in pieces] == {
            jobs.OURS: ["grad_stats", "step"],
        }.get(name, ["unscale", "clip", "step", *(["zero"] if phase == "zeroed" else [])])
    for name in peers.PEERS:
        torch.testing.assert_close(after[name], after[jobs.OURS])
    assert all((g == 0).all() == (phase == "zeroed") for g in grads.values())


def test_parts_are_pieces_of_the_whole() -> None:
    job = jobs.Job(SMALL, "adam", phase="zeroed")
    params = peers.parameters(SMALL, torch.float32)
    made = phases.make(jobs.OURS, job, params)
    _, stats, step = phases.parts(jobs.OURS, job, made)
    before = [p.detach().clone() for p in params]
    stats.step()
    assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))
    contestant = peers.contestant(jobs.OURS, job, step)
    with contestant.turn():
        assert made.max_grad_norm is None and all((p.grad == 0.5).all() for p in params)
        contestant.step()
        assert all((p.grad == 0).all() for p in params)
    assert made.max_grad_norm == jobs.MAX_GRAD_NORM
    assert (stats.bytes_per_element, step.bytes_per_element, job.bytes(jobs.OURS)) == (4, 32, 36)


def test_host_runs_onepass_without_its_kernels() -> None:
    if not backends.compiled():
        pytest.skip("nothing is compiled here")
    build = peers.Builder(ADAMW, peers.PEERS)
    (ours,) = build(jobs.OURS)
    (host,) = build(peers.HOST)
    isa, p = backends.isa(), ours.step.__self__.param_groups[0]["params"][0]
    before = p.detach().clone()
    with host.turn():
        host.step()
    assert torch.equal(p, before) and backends.isa() == isa
    ours.step()
    assert not torch.equal(p, before)


def test_memory_decides_who_takes_part() -> None:
    wanted = {"onepass": 40, "torch-fused": 40, "limit": 30, "null": 5}
    names, notes = peers.fit(wanted, 100)
    assert names == ["onepass", "torch-fused", "null"]
    assert len(notes) == 1 and notes[0].startswith("limit is left out: it takes")
    assert peers.fit(wanted, None) == (list(wanted), [])


def test_free_memory_is_believable() -> None:
    free = machine.free_memory()
    assert free is None or 1e6 < free < 1e15


# --- rows and files -------------------------------------------------------------------------------------


def test_rows_round_trip(tmp_path: Path) -> None:
    alone = dataclasses.replace(
        ROW, contestant="onepass", baseline=None, ratio=None, ratio_p25=None, ratio_p75=None, ratio_wall=None
    )
    path = tmp_path / "rows.jsonl"
    rows.append_rows(path, [ROW])
    rows.append_rows(path, [alone, ROW])
    assert rows.read_rows(path) == [ROW, alone, ROW]
    assert all(json.loads(line)["schema"] == rows.SCHEMA for line in path.read_text().splitlines())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threads": 1.0}, "threads has to be int"),
        ({"threads": True}, "threads has to be int"),
        ({"batch": 0}, "batch has to be at least 1"),
        ({"ms_wall": math.nan}, "ms_wall has to be a finite number"),
        ({"isa": 3}, "isa has to be str or null"),
        ({"device": ""}, "device is empty"),
        ({"clock": "sundial"}, "clock has to be thread_cpu or wall or cuda_event"),
        ({"schema": rows.SCHEMA + 1}, "schema is"),
        ({"time": "2026-01-02T03:04:05"}, "time has to be in UTC"),
        ({"ms_p25": 9.0}, "ms_p25 <= ms <= ms_p75 does not hold"),
        ({"ratio_p75": None}, "null together"),
        ({"baseline": None}, "null together"),
    ],
)
def test_rows_are_validated(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(ROW, **change)


def test_a_line_with_another_set_of_fields_is_no_row() -> None:
    fields = json.loads(ROW.to_json())
    with pytest.raises(ValueError, match="extra"):
        rows.Row.from_json(json.dumps({**fields, "extra": 1}))
    with pytest.raises(ValueError, match="elements"):
        rows.Row.from_json(json.dumps({k: v for k, v in fields.items() if k != "elements"}))
    with pytest.raises(ValueError, match="row:"):
        rows.Row.from_json("[1, 2]")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl"
    rows.append_rows(path, [ROW])
    before = path.read_bytes()

    def full_disk(*args: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full_disk)
        with pytest.raises(OSError, match="no space"):
            rows.append_rows(path, [ROW])
    assert path.read_bytes() == before
    with pytest.raises(ZeroDivisionError), files.replacing(path) as temporary:
        temporary.write_text("half a li")
        1 / 0  # noqa: B018
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["rows.jsonl"]


def test_replacing_keeps_permissions_and_links(tmp_path: Path) -> None:
    path, link = tmp_path / "rows.jsonl", tmp_path / "link"
    path.write_text("old")
    path.chmod(0o640)
    link.symlink_to(path)
    with files.replacing(link) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new" and link.is_symlink() and path.stat().st_mode & 0o777 == 0o640


def test_readme_tells_every_field_and_workload() -> None:
    text = (Path(__file__).parents[1] / "bench" / "README.md").read_text()
    for name, doc in rows.docs().items():
        assert f"| `{name}` |" in text and f"| {doc} |" in text, name
    for workload in workloads.WORKLOADS.values():
        assert f"| `{workload.name}` | {len(workload.shapes())} | {workload.elements():,} |" in text


# --- the command line -----------------------------------------------------------------------------------


def test_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, picture = tmp_path / "rows.jsonl", tmp_path / "out.png"
    assert main([*TINY, "--json", str(out), "--plot", str(picture)]) == 0
    written = rows.read_rows(out)
    assert [row.contestant for row in written] == peers.contestants(ADAMW, peers.PEERS)
    for row in written:
        if row.contestant != "host":
            assert row.gb_per_s == pytest.approx(row.elements * row.bytes_per_element / row.ms / 1e6)
        assert (row.share_of_limit is None) == (backends._C is None or row.contestant == "host")
        compared = {"onepass": None, "limit": None, "host": None, "null": "torch-fused"}
        assert row.baseline == compared.get(row.contestant, "onepass")
    assert picture.read_bytes().startswith(b"\x89PNG")
    text = capsys.readouterr().out
    assert "50x4096 · adamw float32 · 1 thread" in text
    assert "two equal torch-fused optimizers" in text and "torch-foreach" in text


def test_a_block_per_thread_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # No real race: with a core busy elsewhere, two OpenMP threads can take seconds for it.
    during = []

    def race(steps: dict[str, clock.Step], **options: object) -> dict[str, clock.Laps]:
        during.append(torch.get_num_threads())
        return {name: clock.Laps(1, thread_cpu=[1.0], wall=[2.0]) for name in steps}

    monkeypatch.setattr(clock, "race", race)
    out, before = tmp_path / "rows.jsonl", torch.get_num_threads()
    assert main([*TINY, "--threads", "1", "2", "1", "--json", str(out)]) == 0
    assert during == [1, 2] and torch.get_num_threads() == before
    written = rows.read_rows(out)
    assert [row.contestant for row in written] == 2 * peers.contestants(ADAMW, peers.PEERS)
    assert {(row.threads, row.clock, row.ms) for row in written} == {(1, "thread_cpu", 1e3), (2, "wall", 2e3)}
    assert {(row.ms_thread_cpu, row.ms_wall) for row in written} == {(1e3, 2e3)}


def test_phases_and_optimizers_without_a_peer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, picture = tmp_path / "rows.jsonl", tmp_path / "out.png"
    argv = [*TINY, "--optimizer", "rmsprop", "lion", "--phase", "set-to-none", "zeroed"]
    argv += ["--peers", "torch-fused", "torch-foreach", "--json", str(out), "--plot", str(picture)]
    assert main(argv) == 0
    text = capsys.readouterr().out
    assert "50x4096 · rmsprop float32 · phase, zeroed · 1 thread" in text
    assert "torch-fused is left out: torch has no such RMSprop" in text
    assert "two equal torch-foreach optimizers" in text and "grad_stats" in text and "unscale" in text
    written = rows.read_rows(out)
    assert {row.contestant for row in written if row.optimizer == "lion"} <= {"onepass", "limit", "host"}
    assert {row.baseline for row in written if row.contestant == "null"} == {"torch-foreach"}
    assert {row.part for row in written if row.contestant == "onepass"} == {None, "grad_stats", "step"}
    table = markdown.phases(written)
    assert "| rmsprop | zeroed | 50x4096 | float32 | 1 | - |" in table and table.count("grad_stats") == 4
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_half_precision_without_the_compiled_part(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "_C", None)
    assert main([*TINY, "--optimizer", "adam", "--dtype", "bfloat16", "--peers", "torch-fused"]) == 0
    text = capsys.readouterr().out
    assert "no share of the limit: the compiled part" in text
    assert "torch keeps the moments in bfloat16 (14 bytes an element), onepass in float32 (22 bytes)" in text
    assert "torch-loop" not in text


def test_too_little_memory_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "free_memory", lambda: 1000)
    assert main(TINY) == 1
    text = capsys.readouterr().out
    assert "torch-loop is left out: it takes" in text
    assert "50x4096 is left out: onepass itself cannot run it here" in text


def test_a_peer_that_refuses_is_left_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    build = peers.Builder.__call__

    def refusing(self: peers.Builder, name: str) -> list[peers.Contestant]:
        if name == jobs.FUSED:
            raise RuntimeError("fused=True is not for you\nand more")
        return build(self, name)

    monkeypatch.setattr(peers.Builder, "__call__", refusing)
    assert main([*TINY, "--peers", "torch-fused"]) == 0
    text = capsys.readouterr().out
    assert "torch-fused is left out: fused=True is not for you" in text
    assert "null is left out: there is no torch-fused to compare it with" in text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["optim", "--workload", "resnet51"], "argument --workload: invalid choice: 'resnet51'"),
        (["optim", "--peers", "apex"], "argument --peers: invalid choice: 'apex'"),
        (["optim", "--threads", "0"], "argument --threads: '0' is not a whole number of at least 1"),
        (["optim", "--seconds", "nan"], "argument --seconds: 'nan' is not a number of seconds above 0"),
        (
            ["optim", "--json", "/no/such/f"],
            "argument --json: the folder /no/such does not exist",
        ),
        (["optim", "--plot", "out.jpeg2"], "argument --plot: 'out.jpeg2' has to end in .png, .svg, .pdf"),
        (["gardening"], "invalid choice: 'gardening'"),
    ],
)
def test_wrong_arguments(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    text = " ".join(capsys.readouterr().err.split())
    assert message in text
    if "--workload" in argv:
        assert all(repr(name) in text for name in workloads.WORKLOADS)


def test_cpu_sh_asks_for_what_there_is() -> None:
    script = (Path(__file__).parents[1] / "bench" / "cpu.sh").read_text()
    calls = [shlex.split(line)[1:] for line in script.splitlines() if line.startswith("bench ")]
    asked = [cli.parser().parse_args(call) for call in calls]
    steps = [args for args in asked if args.area != "norm"]
    assert {name for args in steps for name in args.optimizer} >= set(jobs.OPTIMIZERS) - {"adam"}
    assert any(args.phase == list(jobs.PHASES) for args in steps)
    assert any(args.phase == jobs.AMP_PHASES for args in steps)
    assert any(args.area == "norm" for args in asked)


def test_missing_packages_are_named_before_anything_is_timed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stop:
        main([*TINY, "--plot", str(tmp_path / "out.png")])
    assert stop.value.code == 2
    assert "rich and matplotlib not installed" in capsys.readouterr().err


def test_every_op_names_an_area() -> None:
    assert {op.bench for op in OPS} <= set(AREAS)


# --- table and picture ----------------------------------------------------------------------------------


def test_numbers_have_three_significant_digits() -> None:
    numbers = [1234.5, 123.4, 12.34, 1.234, 0.1234, 0.01234, 0.001234]
    shown = ["1234", "123", "12.3", "1.23", "0.123", "0.0123", "0.00123"]
    assert [report.significant(x) for x in numbers] == shown


def test_noise_is_the_farther_quartile() -> None:
    null = dataclasses.replace(ROW, contestant="null", ratio_p25=0.9, ratio=1.01, ratio_p75=1.04)
    assert report.noise(null) == pytest.approx(0.1)


def test_picture_has_a_panel_per_thread_count_and_a_bar_per_ratio() -> None:
    made = [
        dataclasses.replace(ROW, threads=threads, workload=workload, contestant=contestant)
        for threads in (1, 2)
        for workload in ("20M", "gpt2", "50x4096")
        for contestant in ("torch-fused", "null")
    ]
    drawn = plot.figure(made)
    assert [axes.get_title(loc="left") for axes in drawn.axes] == ["1 thread", "2 threads"]
    for axes in drawn.axes:
        assert len(axes.patches) == 6
        assert [label.get_text() for label in axes.get_xticklabels()] == ["20M", "gpt2", "50x4096"]
        assert any(list(line.get_ydata()) == [1.0, 1.0] for line in axes.lines)
    with pytest.raises(ValueError, match="nothing to draw"):
        plot.figure([])


@pytest.mark.parametrize(("low", "high"), [(0.93, 1.25), (0.9, 50.0), (0.2, 1.1)])
def test_axes_have_ticks_to_read_by(low: float, high: float) -> None:
    ticks = plot.ticks(low, high)
    assert len(ticks) >= 3 and 1.0 in ticks and ticks == sorted(ticks)
