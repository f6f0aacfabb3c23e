"""The CUDA kernels of the 8-bit product's gradients and what launches them, executed thread by thread on the
CPU, with tiles of every size: docs/emulator.md."""

import itertools
from collections.abc import Iterator
from typing import Any

import emulated_int8_bwd as emulated
import emulator
import pytest
import torch
from conftest import need_emulator
from emulated_int8 import MANY
from emulated_int8_bwd import NAMES, OP, gradients, made_ready, multiprocessors
from onepass.reference.int8_backward import _quantize
from onepass.testing import CASES, Case
from test_cuda_emulated_int8 import misaligned, whole
from torch import Tensor

SANITIZED = ("plain", "one_product", "even", "many_rows", "batched", "no_depth", "no_rows", "no_outputs")
SANITIZED += ("unsigned", "zero_points", "by_chance_and_batched", "of_weight_alone", "to_another_dtype")
RACES = ("many_rows", "by_chance_and_batched")  # the same under TSan, which takes seconds a case
SEEDS = (None, 0, -1, 2**33 + 5, -(2**63))
QUICK = [case for case in CASES[OP.name] if not case.name.startswith("more_")]  # of a long depth
each_cut = pytest.mark.parametrize("cut", ("small", "middle", "large"))
each_name = pytest.mark.parametrize("which", NAMES)


@pytest.fixture(scope="module")
def built() -> tuple[Any, emulator.Emulator]:
    need_emulator()
    return emulated.built("plain")


@pytest.fixture
def cuda(built: tuple[Any, emulator.Emulator]) -> Iterator[tuple[Any, emulator.Emulator]]:
    yield built
    _, switches = built
    switches.set_order("forward")
    switches.set_multiprocessors(3)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def zeros_of(m: int, reach: int, seed: int = 2) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(-reach, reach, (m, 1), generator=rng, dtype=torch.int32)


def even(m: int, n: int, seed: int = 0) -> Tensor:
    """Whole numbers with 127 in each row and column, whose scale is 1: nothing is rounded."""
    g, ahead = whole(m, n, seed=seed).float(), torch.arange(max(m, n))
    g[ahead % m, ahead % n] = 127
    return g


# --- values -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "case, dtype",
    [
        pytest.param(
            case,
            dtype,
            id=f"{case.name}-{str(dtype).removeprefix('torch.')}",
            marks=[] if case in QUICK else [pytest.mark.slow],
        )
        for case in CASES[OP.name]
        for dtype in case.dtypes
    ],
)
def test_agrees_with_the_reference(cuda, case: Case, dtype: torch.dtype):
    module, switches = cuda
    for device in (1, MANY):
        switches.set_multiprocessors(device)
        found = emulated.mismatches(module, case, dtype)
        assert not found, "\n".join(map(str, found))


@pytest.mark.parametrize("order", ("reverse", "shuffled"))
@pytest.mark.parametrize("names", (("many_rows",), pytest.param(None, marks=pytest.mark.slow)), ids=str)
def test_the_order_of_threads_and_blocks_does_not_matter(cuda, order: str, names: tuple[str, ...] | None):
    module, switches = cuda
    switches.set_order(order, seed=1)
    for case in QUICK:
        for dtype in case.dtypes if names is None or case.name in names else ():
            found = emulated.mismatches(module, case, dtype)
            assert not found, "\n".join(map(str, found))


# --- lines in 8 bits and the other factor turned ----------------------------------------------------------
def _agrees(module: Any, which: str, call: dict[str, Any]) -> None:
    """All that the first launch leaves has the reference's bits."""
    g, x, weight = (call[name] for name in ("grad_output", "input", "weight"))
    of_rows = which == "grad_input"
    factor, right = (call.get("weight_scale"), weight) if of_rows else (call.get("input_scale"), x)
    lines = g.float() if of_rows else g.float().T
    scaled = lines if factor is None else lines * factor.reshape(1, -1)
    q, scales = _quantize(scaled.contiguous(), call["seed"], 0 if of_rows else 1)
    got, depth = made_ready(module, which, call), lines.shape[1]
    torch.testing.assert_close(got.scales, scales.flatten(), rtol=0, atol=0, equal_nan=True)
    assert torch.equal(got.q[:, :depth].float(), q.float()) and not got.q[:, depth:].any()
    half = 128 if right.dtype == torch.uint8 else 0
    assert torch.equal(got.turned[:, :depth].int(), right.T.int() - half)
    if got.starts is not None:
        lack = half - call.get("input_zero_point", torch.zeros(1, 1)).long()
        assert torch.equal(got.starts, (q.long() * lack.reshape(1, -1)).sum(1))


# Rows below, at and above what a warp takes on; a block's columns and their stages; whole turns and not.
LINES = {
    "grad_input": ((1, 1), (33, 30), (3, 1024), (3, 1028), (2, 2051)),
    "grad_weight": ((1, 1), (65, 33), (64, 32), (130, 50), (200, 4)),
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("which, m, n", [(which, *shape) for which in LINES for shape in LINES[which]])
def test_lines_are_rounded_as_the_reference_does(cuda, which: str, m: int, n: int, seed: int | None):
    for i, dtype in enumerate((torch.float32, torch.bfloat16, torch.float16)):
        signed, scales = i > 0, i != 1
        x, weight = whole(m, 5, signed=signed), whole(n, 5, seed=1, low=-128)
        call = {"grad_output": random(m, n).to(dtype), "input": x, "weight": weight, "seed": seed}
        if scales:
            call |= {"input_scale": random(m, 1, seed=3), "weight_scale": random(n, seed=4)}
        if dtype != torch.bfloat16:
            call |= {"input_zero_point": zeros_of(m, 2**31)}
        _agrees(cuda[0], which, call)
        _agrees(cuda[0], which, {**call, "grad_output": misaligned(call["grad_output"])})


@each_name
def test_the_other_factor_is_turned(cuda, which: str):
    """In squares below, at and above their size, in rows of whole pieces and not."""
    for depth, outputs in itertools.product((1, 15, 64, 130), (1, 63, 64, 80)):
        m, n = (4, depth) if which == "grad_input" else (depth, 4)
        for signed in (True, False):
            x = whole(m, outputs, signed=signed, low=-128)
            call = {
                "grad_output": even(m, n),
                "input": x,
                "weight": whole(n, outputs, low=-128),
                "seed": None,
            }
            _agrees(cuda[0], which, call)
            moved = {"input": misaligned(x), "weight": misaligned(call["weight"])}
            _agrees(cuda[0], which, {**call, **moved})


@each_name
def test_inf_and_nan_are_of_their_lines_alone(cuda, which: str):
    g = random(70, 40)
    g[3, 5], g[9, 7], g[60, 20] = float("inf"), float("-inf"), float("nan")
    call = {"grad_output": g, "input": whole(70, 9), "weight": whole(40, 9), "seed": 1}
    _agrees(cuda[0], which, call)
    index = NAMES.index(which)
    found = gradients(cuda[0], g, call["input"], call["weight"], which)[index].isnan()
    lines = [3, 9, 60] if which == "grad_input" else [5, 7, 20]
    assert found[lines].all() and int(found.sum()) == 3 * 9


# --- exact products ---------------------------------------------------------------------------------------
# Lines, outputs and depth below, at and above the widths of tiles, stages and pieces.
SHAPES = [(1, 1, 1), (9, 31, 16), (16, 32, 128), (17, 33, 129), (65, 70, 48), (100, 3, 300), (127, 129, 31)]


@each_cut
@pytest.mark.parametrize("lines, outputs, depth", [*SHAPES, (130, 130, 144)])
def test_sums_are_exact(cuda, cut: str, lines: int, outputs: int, depth: int):
    """Of both gradients, and float32 holds them: nothing is rounded. Zero points are near and far."""
    module, switches = cuda
    count = multiprocessors(module, cut, lines, outputs)
    if count is None:
        assert cut == "middle" and lines <= 64 and outputs <= 64
        return
    switches.set_multiprocessors(count)
    g, weight = even(lines, depth), whole(depth, outputs, seed=1, low=-128)
    got, _ = gradients(module, g, whole(lines, outputs), weight, "grad_input")
    assert torch.equal(got, (g.long() @ weight.long()).float())
    for signed, reach in ((True, 0), (True, 2**31), (False, 0), (False, 300)):
        zero = zeros_of(depth, reach) if reach else None
        x = whole(depth, outputs, signed=signed, low=-128)
        shifted = x.long() - (0 if zero is None else zero)
        options = {} if zero is None else {"input_zero_point": zero}
        _, got = gradients(module, g.T, x, whole(lines, outputs), "grad_weight", **options)
        assert torch.equal(got, (g.long() @ shifted).float())


@pytest.mark.parametrize("cut", ("small", pytest.param("middle", marks=pytest.mark.slow)))
@pytest.mark.parametrize(
    "depth, signed, far",
    [
        (65_536, True, False),
        pytest.param(65_536, False, False, marks=pytest.mark.slow),
        (65_537, False, False),
        pytest.param(140_000, True, False, marks=pytest.mark.slow),
        pytest.param(140_000, False, True, marks=pytest.mark.slow),
    ],
)
def test_sums_of_extremes_are_exact_however_long(cuda, cut: str, depth: int, signed: bool, far: bool):
    """The largest that an int32 has to hold, and beyond it pieces, which are added up in 64 bits."""
    module, switches = cuda
    outputs = 70 if cut == "middle" else 3
    count = multiprocessors(module, cut, 2, outputs)
    assert count is not None
    switches.set_multiprocessors(count)
    x = torch.full((depth, outputs), -128 if signed else 0).to(torch.int8 if signed else torch.uint8)
    x[:, 1] = 127 if signed else 255
    zero = torch.tensor(2**31 - 1 if far else 0 if signed else 255, dtype=torch.int32)
    g, weight = torch.full((depth, 2), 127.0), whole(2, outputs)
    _, got = gradients(module, g, x, weight, "grad_weight", input_zero_point=zero)
    assert torch.equal(got, (g.T.long() @ (x.long() - zero)).float())


# --- memory -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("which", ("grad_output", "input", "weight", "input_scale", "weight_scale", *NAMES))
def test_misaligned_memory(cuda, which: str):
    """Of sizes that would move in 16-byte pieces, had the tensor begun where such a piece does."""
    m, n, k = 48, 80, 64
    call = {"grad_output": random(m, n), "input": whole(m, k), "weight": whole(n, k, seed=1), "seed": 3}
    call |= {"input_scale": random(m, 1, seed=2), "weight_scale": random(n, seed=3)}
    want = {"grad_input": torch.zeros(m, k), "grad_weight": torch.zeros(n, k)}
    emulated.launch(cuda[0], call, want)
    got = {name: torch.full_like(t, 77) for name, t in want.items()}
    for given in (call, got):
        if which in given:
            given[which] = misaligned(given[which])
    emulated.launch(cuda[0], call, got)
    assert all(torch.equal(got[name], want[name]) for name in NAMES)


@pytest.mark.parametrize("m", (1, 70))
def test_a_gradient_is_two_launches(cuda, m: int):
    g, x, weight = random(m, 30), whole(m, 20), whole(30, 20)
    for only, launches in (("", 4), *((name, 2) for name in NAMES)):
        cuda[1].reset_counts()
        gradients(cuda[0], g, x, weight, only, seed=1)
        assert cuda[1].launches == launches and cuda[1].copies == 0


@pytest.mark.parametrize("m, n, k", ((0, 5, 7), (5, 0, 7), (9, 5, 0)))
def test_empty(cuda, m: int, n: int, k: int):
    """Without products there are zeros; without outputs no launch."""
    cuda[1].reset_counts()
    got = gradients(cuda[0], torch.ones(m, n), whole(m, k), whole(n, k))
    assert not any(map(torch.any, got)) and cuda[1].launches == 2 * sum(t.numel() > 0 for t in got)


# --- sanitizers -------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("mode, concurrent", (("asan", False), ("tsan", False), ("tsan", True)))
def test_no_sanitizer_finds_anything(mode: str, concurrent: bool):
    """Out of bounds, misaligned, races between threads; with concurrent blocks, races between these."""
    need_emulator()
    code = "import runpy; runpy.run_module('emulated_int8_bwd', run_name='__main__')"
    names = RACES if mode == "tsan" else SANITIZED
    report = emulator.run_python(code, mode, [mode, str(concurrent), *names])
    assert not report.flagged, report.errors
    cases = [case for case in CASES[OP.name] if case.name in names]
    assert f"{2 * sum(len(case.dtypes) for case in cases)} cases" in report.output
