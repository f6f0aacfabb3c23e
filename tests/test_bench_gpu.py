"""The benchmarks' GPU side without a GPU: a made-up device, made-up steps, made-up programs for gpu.sh."""

import argparse
import contextlib
import dataclasses
import itertools
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from onepass import backends
from onepass.bench import (
    cli,
    clock,
    gpu_clock,
    gpu_peers,
    jobs,
    machine,
    main,
    markdown,
    norm_jobs,
    optim,
    peers,
    report,
    rows,
    venues,
    workloads,
)
from onepass.bench.norm_peers import COMPILED

ROOT = Path(__file__).resolve().parent.parent
ADAMW = jobs.Job(workloads.Workload("small", "", lambda: [(3,), (2, 2)]), "adamw")


class FakeGpu:
    """A device whose time only its work spends, and a host whose time only issuing spends."""

    def __init__(self, cache_bytes: int = 1000) -> None:
        self.cache_bytes = cache_bytes
        self.device = self.host = 0.0
        self.log: list[str] = []
        self.leads: list[float] = []
        self.timer = clock.Timer(thread_cpu=lambda: self.host / 2, wall=lambda: self.host)

    def flush(self) -> None:
        self.log.append("flush")
        self.device += 0.125

    def lead(self, seconds: float) -> None:
        self.log.append("lead")
        self.leads.append(seconds)
        self.device += seconds

    def mark(self) -> float:
        self.log.append("mark")
        return self.device

    def seconds(self, start: float, end: float) -> float:
        return end - start

    def sync(self) -> None:
        self.log.append("sync")

    def contestant(
        self, name: str, seconds: Callable[[int], float], host: float = 0.0, **more: object
    ) -> peers.Contestant:
        calls = 0

        def step() -> None:
            nonlocal calls
            self.log.append(name)
            self.device += seconds(calls)
            self.host += host
            calls += 1

        return peers.Contestant(name, step, "float32", 28, **more)


def race(gpu: FakeGpu, *field: peers.Contestant, rounds: int = 3) -> dict[str, clock.Laps]:
    return gpu_clock.race({c.name: c for c in field}, rounds=rounds, seconds=1e9, gpu=gpu)


# --- the clock ------------------------------------------------------------------------------------------


def test_only_the_step_is_timed_after_a_flush_and_a_lead() -> None:
    gpu = FakeGpu()
    laps = race(gpu, gpu.contestant("a", lambda call: 0.25))["a"]
    assert laps.cuda_event == [0.25] * 3 and laps.batch == 1
    turn = ["a", "flush", "lead", "mark", "a", "mark", "sync", "sync", *gpu_clock.HOST_STEPS * ["a"], "sync"]
    assert gpu.log[-3 * len(turn) :] == 3 * turn


def test_contestants_take_turns_and_ratios_are_of_one_round() -> None:
    gpu = FakeGpu()
    # The device grows slower with every step that it does, for both alike.
    laps = race(
        gpu,
        gpu.contestant("a", lambda call: 1.0 + call),
        gpu.contestant("b", lambda call: 2.0 + 2 * call),
        rounds=8,
    )
    ratio = clock.ratio(laps["b"], laps["a"], "cuda_event")
    assert (ratio.p25, ratio.median, ratio.p75) == (2.0, 2.0, 2.0)
    timed = [name for before, name in zip(gpu.log, gpu.log[1:], strict=False) if before == "mark"]
    timed = [name for name in timed if name in "ab"][2:]  # two of the calibration
    assert timed == [name for turn in range(8) for name in clock.order("ab", turn)]


def test_host_time_is_apart_from_device_time() -> None:
    gpu = FakeGpu()
    laps = race(gpu, gpu.contestant("a", lambda call: 0.5, host=1e-3))["a"]
    assert laps.by("wall") == pytest.approx([1e-3] * 3)
    assert laps.by("thread_cpu") == pytest.approx([5e-4] * 3)
    assert laps.by("cuda_event") == pytest.approx([0.5] * 3)


@pytest.mark.parametrize(("host", "lead"), [(0.0, 20e-6), (1e-3, 1.52e-3), (1.0, gpu_clock.MAX_LEAD)])
def test_lead_covers_what_the_host_takes(host: float, lead: float) -> None:
    gpu = FakeGpu()
    race(gpu, gpu.contestant("a", lambda call: 0.5, host=host))
    assert gpu.leads == pytest.approx([lead] * len(gpu.leads))


@pytest.mark.parametrize(("seconds", "batch"), [(1.0, 1), (1e-3, 10), (1e-6, gpu_clock.MAX_BATCH)])
def test_batch_lasts_about_ten_milliseconds(seconds: float, batch: int) -> None:
    gpu = FakeGpu()
    pace = gpu_clock.calibrate(gpu.contestant("a", lambda call: seconds), gpu)
    assert pace.batch == batch


def test_a_backend_is_first_only_in_its_turn_and_every_instance_warms_up() -> None:
    gpu, seen = FakeGpu(), []
    ours = gpu.contestant("ours", lambda call: 0.5, backend="reference", instances=3)
    step, ours.step = ours.step, lambda: (seen.append(backends.backend_of("cpu")), step())
    before = backends.backend_of("cpu")
    torchs = gpu.contestant("torch", lambda call: 0.5)
    race(gpu, ours, torchs)
    assert set(seen) == {"reference"} and backends.backend_of("cpu") == before
    assert gpu.log[:6] == 6 * ["ours"]
    flush = gpu.log.index("flush", gpu.log.index("sync", len(gpu.log) // 2))
    assert gpu.log[flush + 1] == "lead"


# --- the field ------------------------------------------------------------------------------------------


def test_sets_that_fit_into_the_cache_are_rotated() -> None:
    assert [gpu_peers.instances(size, 1000) for size in (2000, 1001, 1000, 600, 10)] == [1, 1, 3, 3, 4]
    seen: list[str] = []
    step = gpu_peers.turning([lambda: seen.append("a"), lambda: seen.append("b"), lambda: seen.append("c")])
    for _ in range(4):
        step()
    assert seen == ["a", "b", "c", "a"]


def _served(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    there = (*names, "reference")
    monkeypatch.setattr(backends, "serves", lambda backend, device: backend in there)


@pytest.mark.parametrize(
    ("served", "ours"),
    [
        ((), {"onepass": "reference"}),
        (("triton",), {"onepass": "triton"}),
        (("cpp",), {"onepass": "cpp"}),
        (("cpp", "triton"), {"onepass": "cpp", "onepass-triton": "triton"}),
    ],
)
def test_every_backend_with_kernels_takes_part(
    served: tuple[str, ...], ours: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _served(monkeypatch, *served)
    names = gpu_peers.contestants(ADAMW, gpu_peers.USUAL)
    assert set(names) - set(ours) == {"torch-fused", "torch-foreach", "limit", "null"}
    assert {name: gpu_peers.backend(name) for name in names if gpu_peers.backend(name)} == ours
    assert names[0] == "onepass" and names.index("torch-fused") < names.index("null")


def test_shared_memory_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    _served(monkeypatch, "cpp", "triton")
    billion = jobs.Job(workloads.WORKLOADS["1B"], "adamw")
    names = gpu_peers.contestants(billion, gpu_peers.USUAL)
    giga = {n: size / 1e9 for n, size in gpu_peers.needs(names, billion).items()}
    two_chunks = 2 * gpu_peers.CHUNK / 1e9
    expected = {"onepass": 16, "limit": two_chunks, "torch-foreach": 8}
    assert giga == pytest.approx({name: expected.get(name, 0) for name in names})
    halves = dataclasses.replace(billion, dtype=torch.bfloat16)
    half = {n: size / 1e9 for n, size in gpu_peers.needs(names, halves).items()}
    expected = {"onepass": 12, "torch-fused": 4, "limit": two_chunks, "torch-foreach": 4}
    assert half == pytest.approx({name: expected.get(name, 0) for name in names})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_contestants_share_what_is_of_one_dtype(dtype: torch.dtype) -> None:
    job = dataclasses.replace(ADAMW, dtype=dtype)
    (pool,) = gpu_peers.pools(job, 1, "cpu")
    ours, fused, foreach = (pool.optimizer(n, job) for n in ("onepass", "torch-fused", "torch-foreach"))
    p = pool.params[0]
    moments = [o.state[p]["exp_avg"] for o in (ours, fused, foreach)]
    assert moments[1] is moments[2] or moments[1].data_ptr() == moments[2].data_ptr()
    assert (moments[0].data_ptr() == moments[1].data_ptr()) == (dtype == torch.float32)
    assert len({o.state[p]["step"].data_ptr() for o in (ours, fused, foreach)}) == 3
    before = p.detach().clone()
    foreach.step()
    assert not torch.equal(before, p)


def test_copy_moves_every_byte_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_peers, "CHUNK", 64)
    copied: list[int] = []
    monkeypatch.setattr(torch.Tensor, "copy_", lambda self, source: copied.append(self.numel()))
    gpu_peers.copying(140, *gpu_peers.buffers(140, "cpu"))()
    assert copied == [64, 64, 12]
    gpu_peers.copying(40, *gpu_peers.buffers(140, "cpu"))()
    assert copied[3:] == [40]


# --- the sweep ------------------------------------------------------------------------------------------


class Here(venues.Cuda):
    """The GPU's sweep, with the CPU as its device."""

    def model(self) -> str:
        return "A GPU"

    def isa(self) -> str | None:
        return "sm_90"

    def free_memory(self) -> int | None:
        return machine.free_memory()


@contextlib.contextmanager
def no_bar(title: str) -> Iterator[Callable[[float], None]]:
    yield lambda done: None


def sweep(**options: object) -> list[optim.Block]:
    given = {"workload": ["50x4096"], "optimizer": ["adamw"], "phase": None, "dtype": "float32"}
    given |= {"state": "fp32", "peers": None, "threads": [1]}
    args = argparse.Namespace(**{**given, "device": "cuda", "rounds": 3, "seconds": 9.0, **options})
    return list(optim.sweep(args, no_bar))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    """A device on which every step takes longer than the one before it."""
    fake = FakeGpu(cache_bytes=10**9)
    marks = iter(range(10**6))
    fake.mark = lambda: 1e-5 * sum(range(next(marks)))  # type: ignore[method-assign]
    fake.timer = clock.Timer()
    monkeypatch.setattr(venues, "of", lambda device: Here(device="cpu", gpu=fake))
    return fake


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_of_a_gpu(gpu: FakeGpu, dtype: str, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = sweep(dtype=dtype)
    assert [row.contestant for row in block.rows] == [
        "onepass",
        "torch-fused",
        "limit",
        "null",
        "torch-foreach",
    ]
    for row in block.rows:
        assert rows.Row.from_json(row.to_json()) == row
        assert (row.clock, row.device, row.isa) == ("cuda_event", "A GPU", "sm_90")
        assert row.gb_per_s == pytest.approx(row.elements * row.bytes_per_element / row.ms / 1e6)
        assert row.share_of_limit is not None and row.ms_wall > 0
    limit = block.rows[2]
    assert (limit.bytes_per_element, limit.share_of_limit) == (28, 1.0)
    report.show(block)
    text = capsys.readouterr().out
    assert "GPU ms/step" in text and "host ms/step" in text and "limit: copy" in text and "A GPU" in text


@pytest.mark.parametrize(
    "optimizer",
    ("adamw", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sgd", "rmsprop", "lion"))),
)
def test_phases_of_a_gpu(gpu: FakeGpu, optimizer: str) -> None:
    zeroed, kept = sweep(optimizer=[optimizer], phase=["zeroed", "set-to-none"])
    for block in (zeroed, kept):
        ours = [row for row in block.rows if row.contestant == "onepass"]
        assert [row.part for row in ours] == [None, "grad_stats", "step"]
        assert ours[0].bytes_per_element == sum(row.bytes_per_element for row in ours[1:])
        first = [row for row in block.rows if row.contestant == jobs.FUSED and row.part is not None]
        assert len(first) == (0 if optimizer in ("rmsprop", "lion") else 4 if block is zeroed else 3)
    assert "phase, zeroed" in zeroed.title and len(markdown.phases(zeroed.rows + kept.rows).splitlines()) == 4


def test_second_backend_has_a_row_of_its_own(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    contestants = gpu_peers.contestants
    monkeypatch.setattr(
        gpu_peers, "contestants", lambda *args: [*contestants(*args), f"{peers.OURS}-reference"]
    )
    (block,) = sweep(peers=["torch-fused"])
    second = block.rows[-1]
    assert (second.contestant, second.backend, second.baseline) == (
        "onepass-reference",
        "reference",
        "onepass",
    )
    assert block.rows[0].backend == backends.backend_of("cpu")


def test_what_does_not_fit_is_said(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "free_memory", lambda: 10**9)
    (block,) = sweep(workload=["1B"])
    assert not block.rows
    assert "onepass is left out: it takes 16.0 GB" in block.notes[0]


def test_each_device_has_its_workloads() -> None:
    assert workloads.usual("cpu") == ["resnet50", "gpt2", "20M", "tiny2000", "50x4096"]
    assert workloads.usual("cuda") == ["resnet50", "gpt2", "tiny2000", "1B", "llama"]


def test_no_gpu_is_said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["optim", "--device", "cuda"]) == 2
    assert "onepass bench: there is no CUDA device here" in capsys.readouterr().err


def test_table_of_a_gpu(gpu: FakeGpu) -> None:
    made = [row for dtype in ("float32", "bfloat16") for block in sweep(dtype=dtype) for row in block.rows]
    head, rule, *lines = markdown.steps(made).splitlines()
    assert head.startswith("| optimizer | workload | dtype | threads | ms | host ms | over torch-fused |")
    assert [line.split(" | ")[2] for line in lines] == ["float32", "bfloat16, float32 states"]
    assert {line.count("|") for line in (head, rule, *lines)} == {13}


def test_memory_that_went_meanwhile_is_said(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    def pools(*args: object) -> list[gpu_peers.Pool]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\nand more")

    monkeypatch.setattr(gpu_peers, "pools", pools)
    (block,) = sweep()
    assert not block.rows
    assert block.notes[0] == "onepass is left out: CUDA out of memory. Tried to allocate"
    assert block.notes[-1] == "50x4096 is left out: onepass itself cannot run it here"


# --- on a GPU -------------------------------------------------------------------------------------------

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here")


@pytest.mark.gpu
@on_gpu
def test_end_to_end_on_the_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rows.jsonl"
    argv = ["optim", "--device", "cuda", "--rounds", "3", "--json", str(out)]
    assert main([*argv, "--workload", "50x4096", "--workload", "resnet50"]) == 0
    written = rows.read_rows(out)
    assert {"onepass", "torch-fused", "null", "limit", "torch-foreach"} <= {r.contestant for r in written}
    assert {(r.clock, r.device) for r in written} == {("cuda_event", torch.cuda.get_device_name())}
    assert all(0 < r.gb_per_s < 20_000 and r.share_of_limit for r in written), capsys.readouterr().out


@pytest.mark.gpu
@on_gpu
def test_lead_lasts_about_as_long_as_asked() -> None:
    gpu = gpu_clock.Gpu()
    assert gpu._measured_lead(0.01) == pytest.approx(0.01, rel=0.5)


@pytest.mark.gpu
@on_gpu
def test_flush_is_outside_the_timed_step_and_nothing_waits() -> None:
    gpu, p = gpu_clock.Gpu(), torch.zeros(10, device="cuda")
    contestant = peers.Contestant("add", lambda: p.add_(1), None, 8)
    laps = race(gpu, contestant)["add"]  # type: ignore[arg-type]
    assert max(laps.cuda_event) < 1e-3 and laps.batch == gpu_clock.MAX_BATCH


# --- gpu.sh ---------------------------------------------------------------------------------------------

BENCHES = ["bench-resnet50-float32", "bench-1B-float32"]
BENCHES += ["bench-norm-nhwc-bfloat16", "bench-norm-nchw-bfloat16"]
BENCHES += ["bench-int8-linear", "bench-int8-weight-only", "bench-int8-gradients", "bench-norm-compile"]
BENCHES += [f"bench-{w}-float32" for w in ("gpt2", "tiny2000", "llama")]
BENCHES += [f"bench-phase-{w}" for w in ("resnet50", "gpt2", "llama")]
BENCHES += ["bench-norm-nhwc-float32", "bench-norm-nchw-float32"]
BENCHES += ["bench-int8-shapes", "bench-fake-quant", "bench-amp-resnet50", "bench-optimizers"]
BENCHES += [f"bench-{w}-bfloat16" for w in ("resnet50", "1B", "gpt2", "llama")]
BENCHES += ["bench-int8-float16"]
STAGES = ["build", "info", "mma-layout", "selftest-cuda", "gpu-tests", "sanitizer-memcheck"]
STAGES += ["sanitizer-racecheck", "selftest-cpu", "cpu-tests", *BENCHES]

PROGRAM = """#!/bin/bash
echo "$(basename "$0") $*" >>"$CALLS"
case "$(basename "$0") $*" in
    *--query-gpu*) echo "Fake GPU, 1.0" ;;
    $HANG) sleep 60 ;;
    $FAIL) echo "it broke"; exit 3 ;;
    *--json*) while [ "$1" != --json ]; do shift; done; echo "{}" >>"$2" ;;
esac
"""


class Machine:
    """A PATH of made-up programs, and gpu.sh run there."""

    def __init__(self, folder: Path) -> None:
        self.programs, self.out, self.tmp = folder / "bin", folder / "out", folder / "tmp"
        self.calls = folder / "calls"
        for path in (self.programs, self.tmp):
            path.mkdir()
        for name in ("python3", "pip", "nvcc", "nvidia-smi", "compute-sanitizer"):
            (self.programs / name).write_text(PROGRAM)
            (self.programs / name).chmod(0o755)

    def run(self, fail: str = "-", hang: str = "-", **environment: str) -> int:
        path = f"{self.programs}:/usr/bin:/bin"
        settings = {
            "PATH": path,
            "TMPDIR": str(self.tmp),
            "CALLS": str(self.calls),
            "FAIL": fail,
            "HANG": hang,
        }
        script = [str(ROOT / "bench/gpu.sh"), str(self.out)]
        done = subprocess.run(
            script, env={**settings, **environment}, capture_output=True, text=True, timeout=60
        )
        assert done.stdout == self.summary(), done.stderr
        assert list(self.tmp.iterdir()) == []
        assert len(list(self.out.iterdir())) <= 8
        return done.returncode

    def summary(self) -> str:
        return (self.out / "summary.txt").read_text()

    def verdicts(self) -> dict[str, str]:
        """What became of each stage."""
        known = ("ok", "FAILED", "CUT", "LEFT OUT")
        lines = [
            (word, line[len(word) :].split())
            for line in self.summary().splitlines()
            for word in known
            if line.startswith(word + " ")
        ]
        return {words[0]: verdict for verdict, words in lines}


@pytest.fixture
def host(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_every_stage_is_run_in_turn(host: Machine) -> None:
    assert host.run() == 0
    assert list(host.verdicts().items()) == [(stage, "ok") for stage in STAGES]
    assert (host.out / "rows.jsonl").read_text() == len(BENCHES) * "{}\n"
    calls = host.calls.read_text()
    assert "--no-build-isolation --no-deps --no-index --target" in calls and "-m gpu" in calls
    assert "Fake GPU" in host.summary() and "exit code 0" in host.summary()
    assert len(list(host.out.iterdir())) == 8
    assert host.run() == 0  # again, into the same folder
    assert (host.out / "rows.jsonl").read_text() == len(BENCHES) * "{}\n"


def test_benchmarks_are_asked_for_what_there_is(host: Machine) -> None:
    host.run()
    calls = [line.split()[4:] for line in host.calls.read_text().splitlines() if " onepass bench " in line]
    asked = [cli.parser().parse_args(call) for call in calls]
    assert len(asked) == len(BENCHES) and all(args.device == "cuda" for args in asked)
    norms = [(*args.layout, *args.dtype) for args in asked if args.area == "norm"]
    assert sorted(set(norms)) == sorted(itertools.product(norm_jobs.LAYOUTS, ("bfloat16", "float32")))
    assert any(COMPILED in args.peers for args in asked if args.area == "norm")
    layers = [(*args.op, *args.dtype, *args.weight) for args in asked if args.area == "int8"]
    assert layers == [
        ("int8_linear", "bfloat16", "4096x4096"),
        ("int8_weight_only_mm", "bfloat16", "4096x4096"),
        ("int8_mm_bwd", "bfloat16", "4096x4096"),
        ("int8_linear", "bfloat16", "768x768", "11008x4096"),
        ("int8_linear", "float16", "4096x4096"),
    ]
    # The first of them meets everybody, with every number of rows.
    assert [args.peers for args in asked if args.area == "int8"][:2] == [None, None]
    assert {args.rows for args in asked if args.area == "int8"} == {None}


def test_a_stage_that_fails_does_not_stop_the_next(host: Machine) -> None:
    assert host.run(fail="*-m?gpu*") == 1
    assert host.verdicts() == {stage: "FAILED" if stage == "gpu-tests" else "ok" for stage in STAGES}
    assert "exit code 3" in host.summary()
    assert "it broke" in (host.out / "03-gpu-tests.log").read_text()


def test_without_the_compiled_part_the_rest_is_tried(host: Machine) -> None:
    (host.programs / "python3").write_text(
        PROGRAM.replace("$FAIL)", '*--target*) [ "${ONEPASS_BUILD:-1}" = 0 ] ;;\n    $FAIL)')
    )
    assert host.run() == 1
    assert host.verdicts() == {"build": "FAILED", "build-python-only": "ok"} | dict.fromkeys(STAGES[1:], "ok")
    assert "compiled kernels were not there" in host.summary()


def test_a_stage_that_hangs_is_cut(host: Machine) -> None:
    assert host.run(hang="python3*selftest --device*", ONEPASS_GPU_STAGE_SECONDS="3") == 1
    assert host.verdicts() == {stage: "CUT" if stage == "selftest-cuda" else "ok" for stage in STAGES}


def test_the_deadline_is_kept_and_what_is_left_out_is_said(host: Machine) -> None:
    begin = time.monotonic()
    # The first benchmark that hangs takes all that is left.
    assert host.run(hang="*bench*", ONEPASS_GPU_SECONDS="8", ONEPASS_GPU_BENCH_SECONDS="0") == 1
    assert time.monotonic() - begin < 16
    verdicts = host.verdicts()
    assert list(verdicts) == STAGES
    assert verdicts["bench-resnet50-float32"] == "CUT"
    assert {verdicts[bench] for bench in BENCHES[1:]} == {"LEFT OUT"}


def test_time_is_kept_for_the_benchmarks(host: Machine) -> None:
    assert host.run(hang="*-m?gpu*", ONEPASS_GPU_SECONDS="15", ONEPASS_GPU_BENCH_SECONDS="10") == 1
    verdicts = host.verdicts()
    assert verdicts["gpu-tests"] == "CUT" and verdicts["cpu-tests"] == "LEFT OUT"
    assert {verdicts[bench] for bench in BENCHES} == {"ok"}


def test_a_machine_without_the_sanitizer_says_so(host: Machine) -> None:
    (host.programs / "compute-sanitizer").unlink()
    assert host.run() == 1
    assert host.verdicts()["sanitizer-memcheck"] == "LEFT OUT"
    assert "compute-sanitizer is not installed" in host.summary()


def test_an_interrupted_run_leaves_nothing_behind(host: Machine) -> None:
    path = f"{host.programs}:/usr/bin:/bin"
    settings = {
        "PATH": path,
        "TMPDIR": str(host.tmp),
        "CALLS": str(host.calls),
        "FAIL": "-",
        "HANG": "*info*",
    }
    running = subprocess.Popen(
        [str(ROOT / "bench/gpu.sh"), str(host.out)], env=settings, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 20
    while not (host.calls.exists() and "onepass info" in host.calls.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    running.terminate()
    assert running.wait(timeout=20) == 143
    assert list(host.tmp.iterdir()) == []


def test_gpu_sh_wants_a_folder() -> None:
    done = subprocess.run([str(ROOT / "bench/gpu.sh")], capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 2 and "usage" in done.stderr
