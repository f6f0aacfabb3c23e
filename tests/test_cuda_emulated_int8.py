"""The CUDA kernels of quantization and of the 8-bit product and what launches them, executed thread by thread
on the CPU, with tiles of every size: docs/emulator.md."""

import itertools
from collections.abc import Iterator
from typing import Any

import emulated_int8
import emulator
import pytest
import torch
from conftest import need_emulator
from emulated_int8 import (
    CUTS,
    DEQUANTIZE,
    LINEAR,
    MANY,
    MM,
    OPS,
    QUANTIZE,
    WEIGHT_ONLY,
    multiprocessors,
    sums,
)
from onepass import backends
from onepass.ops import Op
from onepass.testing import CASES, Case
from onepass.testing.verify import expected
from torch import Tensor

SANITIZED = ("plain", "tensor", "groups", "unsigned", "narrow", "empty_rows", "given_and_spoilt", "one_row")
SANITIZED += ("threads_tensor", "one_product", "even", "many_rows", "deep", "no_depth", "no_rows", "gelu")
SANITIZED += ("raw_unsigned", "even_rows", "misaligned", "to_8_bits_plain", "to_8_bits_unsigned_even")
RACES = ("unsigned", "many_rows")  # the same under TSan, which takes a second a case

quantize = backends.target(QUANTIZE.reference)
each_cut = pytest.mark.parametrize("cut", CUTS)


@pytest.fixture(scope="module")
def built() -> tuple[Any, emulator.Emulator]:
    need_emulator()
    return emulated_int8.built("plain")


@pytest.fixture
def cuda(built: tuple[Any, emulator.Emulator]) -> Iterator[tuple[Any, emulator.Emulator]]:
    yield built
    _, emulated = built
    emulated.set_order("forward")
    emulated.set_multiprocessors(3)


def use(cuda: tuple[Any, emulator.Emulator], cut: str, m: int, n: int) -> Any:
    """The module, on a device that goes about [m, n] this way."""
    module, emulated = cuda
    count = multiprocessors(module, cut, m, n)
    assert count is not None, f"no device cuts {m} x {n} into {cut}"
    emulated.set_multiprocessors(count)
    return module


def whole(*shape: int, seed: int = 0, signed: bool = True, extreme: bool = False, low: int = -127) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    low, high, dtype = (low, 127, torch.int8) if signed else (0, 255, torch.uint8)
    if extreme:
        return torch.tensor([low, high], dtype=dtype)[torch.randint(2, shape, generator=rng)]
    return torch.randint(low, high + 1, shape, generator=rng, dtype=dtype)


def exact(x: Tensor, weight: Tensor, zero_point: Tensor | None = None) -> Tensor:
    left = x.long() if zero_point is None else x.long() - zero_point
    return (left @ weight.long().T).int()


# --- values -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "op, case, dtype",
    [
        pytest.param(op, case, dtype, id=f"{op.name}-{case.name}-{str(dtype).removeprefix('torch.')}")
        for op in OPS
        for case in CASES[op.name]
        for dtype in case.dtypes
    ],
)
def test_agrees_with_the_reference(cuda, op: Op, case: Case, dtype: torch.dtype):
    module, emulated = cuda
    some_tiles = op in (MM, LINEAR, WEIGHT_ONLY) and not case.name.startswith("raw_extreme")
    for device in (1, 3, MANY) if some_tiles else (3,):
        emulated.set_multiprocessors(device)
        found = emulated_int8.mismatches(module, op, case, dtype)
        assert not found, "\n".join(map(str, found))


@pytest.mark.slow
@pytest.mark.parametrize("order", ("reverse", "shuffled"))
def test_the_order_of_threads_and_blocks_does_not_matter(cuda, order: str):
    module, emulated = cuda
    emulated.set_order(order, seed=1)
    for op in OPS:
        for case in CASES[op.name]:
            for dtype in case.dtypes:
                found = emulated_int8.mismatches(module, op, case, dtype)
                assert not found, "\n".join(map(str, found))


# --- bits of quantization ---------------------------------------------------------------------------------
@pytest.mark.parametrize("op", (QUANTIZE, DEQUANTIZE), ids=lambda op: op.name)
def test_quantization_has_the_references_bits(cuda, op: Op):
    """Not only within a tolerance: every q, scale, zero_point and number that is made of them."""
    names = ("values", "scales", "zero_points") if op is QUANTIZE else ("results",)
    for case in CASES[op.name]:
        for dtype in case.dtypes:
            want = expected(op, case, 0, dtype, "cpu")
            got = emulated_int8.run(cuda[0], op, case(0, dtype), want)
            for name in names:
                assert torch.equal(got[name].isnan(), want[name].isnan()), (case.name, dtype, name)
                same = got[name].nan_to_num(nan=0.0) == want[name].nan_to_num(nan=0.0)
                assert bool(same.all()), (case.name, dtype, name)


# Elements of a group: what a warp takes on and one more, what a block takes of a whole tensor and one more.
@pytest.mark.parametrize("shape", ((5, 1024), (5, 1025), (1, 16384), (1, 16385), (3, 20_003), (1, 70_001)))
@pytest.mark.parametrize("symmetric", (True, False))
@pytest.mark.parametrize("off", (0, 1), ids=("aligned", "misaligned"))
def test_long_groups(cuda, shape: tuple[int, int], symmetric: bool, off: int):
    x = torch.randn(shape[0] * shape[1] + off, generator=torch.Generator().manual_seed(0))[off:].view(shape)
    settings = {"group_size": -1, "symmetric": symmetric, "bits": 8}
    want = dict(zip(("values", "scales", "zero_points"), quantize(x, **settings), strict=True))
    call = {"input": x, "scale": None, "zero_point": None, **settings}
    cuda[1].reset_counts()
    got = emulated_int8.run(cuda[0], QUANTIZE, call, want)
    assert all(torch.equal(got[name], want[name]) for name in want)
    assert cuda[1].launches == (2 if shape[0] == 1 and shape[1] > 16384 else 1)


# --- 8 bits again -----------------------------------------------------------------------------------------
@each_cut
@pytest.mark.parametrize("act", (None, "relu", "gelu", "silu"))
@pytest.mark.parametrize("zero_point", (None, 0, 99), ids=str)
def test_8_bits_again_are_those_of_quantize(cuda, cut: str, act: str | None, zero_point: int | None):
    """What it makes of the same product in float32, NaN and inf among it, in rows of whole eights or not."""
    m, ns = (8, (40, 37)) if cut == "rows" else (70, (72, 69))
    for n in ns:
        module, rng = use(cuda, cut, m, n), torch.Generator().manual_seed(n)
        rows, grid = torch.rand(m, 1, generator=rng) * 0.01, {"output_scale": torch.tensor(0.37)}
        rows[1], rows[2] = float("nan"), float("inf")
        call = {"input": whole(m, 70), "weight": whole(n, 70, seed=1), "input_scale": rows, "act": act}
        call |= {"weight_scale": torch.rand(n, generator=rng), "bias": torch.randn(n, generator=rng)}
        real, dtype = torch.empty(m, n), torch.int8 if zero_point is None else torch.uint8
        emulated_int8.RUN["int8_mm"](module, call, {"results": real})
        if zero_point is not None:
            grid["output_zero_point"] = torch.tensor(zero_point, dtype=torch.int32)
        want = quantize(real, *grid.values(), group_size=0, symmetric=zero_point is None)[0]
        assert want.dtype == dtype and len(want.unique()) > 20
        for got in (torch.full((m, n), 7, dtype=dtype), misaligned(torch.full((m, n), 7, dtype=dtype))):
            emulated_int8.RUN["int8_mm"](module, {**call, **grid}, {"results": got})
            assert torch.equal(got, want) and bool((got[1] == (zero_point or 0)).all())


# --- exact sums -------------------------------------------------------------------------------------------
# m, n, k below, at and above the widths of tiles, stages and pieces, odd and even.
SHAPES = [(1, 1, 1), (8, 33, 127), (9, 31, 16), (16, 32, 128), (17, 33, 129), (64, 64, 256), (65, 70, 48)]
SHAPES += [(100, 3, 300), (3, 300, 272), (127, 129, 31), (130, 130, 144), (300, 7, 17), (211, 140, 299)]


@each_cut
@pytest.mark.parametrize("m, n, k", SHAPES)
def test_sums_are_exact(cuda, cut: str, m: int, n: int, k: int):
    """Of signed and unsigned numbers, of all of them and of the ends of their ranges, with zero points."""
    count = multiprocessors(cuda[0], cut, m, n)
    if count is None:
        assert (cut == "rows") != (m <= 8) or (cut == "middle" and m <= 64 and n <= 64)
        return
    cuda[1].set_multiprocessors(count)
    zero_point = torch.randint(
        -300, 300, (m, 1), generator=torch.Generator().manual_seed(2), dtype=torch.int32
    )
    for signed, extreme, zeros in itertools.product((True, False), (True, False), (None, zero_point)):
        x, weight = (
            whole(m, k, signed=signed, extreme=extreme, low=-128),
            whole(n, k, seed=1, extreme=extreme),
        )
        assert torch.equal(sums(cuda[0], x, weight, zeros), exact(x, weight, zeros))


def test_random_shapes_are_exact(cuda):
    """Shapes of 1..300 each, whatever cut a device of one, of some or of many multiprocessors takes."""
    rng = torch.Generator().manual_seed(0)
    for seed in range(40):
        m, n, k = torch.randint(1, 301, (3,), generator=rng).tolist()
        m = m % 12 + 1 if seed % 4 == 0 else m
        cuda[1].set_multiprocessors((1, 6, MANY)[seed % 3])
        x, weight = whole(m, k, seed=seed, signed=seed % 2 == 0), whole(n, k, seed=seed + 1)
        zeros = torch.randint(-300, 300, (m, 1), generator=rng, dtype=torch.int32) if seed % 5 else None
        assert torch.equal(sums(cuda[0], x, weight, zeros), exact(x, weight, zeros)), (m, n, k, seed)


@each_cut
def test_the_largest_sums_fit(cuda, cut: str):
    """Unsigned numbers at their end, and -128 in both operands, which no check of this device refuses."""
    (m, n), deepest = {
        "rows": ((4, 9), 65_536),
        "small": ((9, 5), 65_536),
        "middle": ((9, 70), 8_192),
        "large": ((9, 5), 8_192),
    }[cut]
    module = use(cuda, cut, m, n)
    for k, x, w in ((deepest, 255, 127), (deepest, 255, -127), (4_096, -128, -128), (1_027, 255, -128)):
        ones = torch.full((m, k), x, dtype=torch.int8 if x < 0 else torch.uint8)
        weight = torch.full((n, k), w, dtype=torch.int8)
        weight[::2] //= 2
        assert torch.equal(sums(module, ones, weight), exact(ones, weight))


@each_cut
def test_unit_vectors_find_each_number_of_the_weight(cuda, cut: str):
    """Row i of x is 1 at one k and 0 elsewhere: y[i] is that column of the weight, which a wrong place of any
    fragment would not give. All 128 k of a stage, by all rows of a tile."""
    m, n = (8, 40) if cut == "rows" else (128, 130)
    module = use(cuda, cut, m, n)
    weight = whole(n, 160)
    for first in range(0, 160, m):
        at = (torch.arange(m) * 37 + first) % 160
        x = torch.zeros(m, 160, dtype=torch.int8)
        x[torch.arange(m), at] = 1
        assert torch.equal(sums(module, x, weight), weight[:, at].T.int())


# --- memory -----------------------------------------------------------------------------------------------
def misaligned(t: Tensor) -> Tensor:
    return torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape)


@each_cut
@pytest.mark.parametrize("which", ("input", "weight", "weight_scale", "bias", "results"))
def test_misaligned_memory(cuda, cut: str, which: str):
    """Of sizes that would move in 16-byte pieces, had the tensor begun where such a piece does."""
    m, n, k = (8, 40, 64) if cut == "rows" else (70, 72, 64)
    module = use(cuda, cut, m, n)
    rng = torch.Generator().manual_seed(0)
    call: dict[str, Any] = {
        "input": whole(m, k),
        "weight": whole(n, k, seed=1),
        "input_scale": torch.rand(m, 1, generator=rng),
        "weight_scale": torch.rand(n, generator=rng),
        "input_zero_point": None,
        "bias": torch.randn(n, generator=rng),
        "act": "relu",
    }
    want = backends.target(MM.reference)(**call)
    out = {"results": torch.full((m, n), 77.0)}
    for given in (call, out):
        if which in given:
            given[which] = misaligned(given[which])
    emulated_int8.RUN["int8_mm"](module, call, out)
    torch.testing.assert_close(out["results"], want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("m", (1, 4, 64))
def test_a_linear_layer_is_two_launches(cuda, m: int):
    case = next(case for case in CASES["int8_linear"] if case.name == "plain")
    call = {**case(0, torch.float32), "input": torch.randn(m, 70)}
    want = {"results": backends.target(LINEAR.reference)(**call)}
    cuda[1].reset_counts()
    emulated_int8.run(cuda[0], LINEAR, call, want)
    assert cuda[1].launches == 2 and cuda[1].copies == 0


@pytest.mark.parametrize("m, n, count, cut", [
    (1, 4096, 132, "rows"), (8, 11008, 132, "rows"), (9, 4096, 132, "small"), (64, 4096, 132, "small"),
    (256, 4096, 132, "middle"), (512, 4096, 132, "middle"), (1024, 4096, 132, "large"),
    (4096, 11008, 132, "large"), (2**31, 1, 132, "large"), (9, 2**31, 132, "large"),
])  # fmt: skip
def test_how_a_product_is_cut_up(cuda, m: int, n: int, count: int, cut: str):
    assert CUTS[cuda[0].cut(m, n, count)] == cut


# --- sanitizers -------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("mode, concurrent", (("asan", False), ("tsan", False), ("tsan", True)))
def test_no_sanitizer_finds_anything(mode: str, concurrent: bool):
    """Out of bounds, misaligned, races between threads; with concurrent blocks, races between these."""
    need_emulator()
    code = "import runpy; runpy.run_module('emulated_int8', run_name='__main__')"
    names = RACES if mode == "tsan" else SANITIZED
    report = emulator.run_python(code, mode, [mode, str(concurrent), *names])
    assert not report.flagged, report.errors
    cases = [case for op in OPS for case in CASES[op.name] if case.name in names]
    assert f"{3 * sum(len(case.dtypes) for case in cases) + 1} cases" in report.output
