"""The CUDA kernels of fake quantization and what launches them, executed thread by thread on the CPU:
docs/emulator.md."""

import itertools
from collections.abc import Iterator
from typing import Any

import emulated_fake_quant
import emulator
import pytest
import torch
from conftest import need_emulator
from emulated_fake_quant import BWD, FWD, OPS, assert_both_ways, both_ways, randn, run
from onepass import backends
from onepass.ops import Op
from onepass.testing import CASES, Case
from onepass.testing.verify import expected, result_names
from torch import Tensor

# A group for each kind of team, in a byte with others and not, given and found; tensors in parts.
SANITIZED = ("plain", "tensor", "groups", "unsigned_groups", "narrow", "empty_rows", "across_bytes", "single")
SANITIZED += (
    "given_across_bytes_unsigned",
    "misaligned",
    "given_misaligned",
    "given_tensor",
    "given_and_spoilt",
)
SANITIZED += ("learned_plain", "learned_groups", "learned_across_bytes_unsigned", "learned_misaligned")
SANITIZED += ("threads_tensor", "learned_empty_rows", "learned_long_rows")
RACES = ("groups", "across_bytes", "learned_across_bytes")  # the same under TSan, which takes a second a case

each_sign = pytest.mark.parametrize("symmetric", (True, False), ids=("symmetric", "asymmetric"))
CASES_OF_OPS = [
    pytest.param(op, case, dtype, id=f"{op.name}-{case.name}-{str(dtype).removeprefix('torch.')}")
    for op in OPS
    for case in CASES[op.name]
    for dtype in case.dtypes
]


@pytest.fixture(scope="module")
def built() -> tuple[Any, emulator.Emulator]:
    need_emulator()
    return emulated_fake_quant.built("plain")


@pytest.fixture
def cuda(built: tuple[Any, emulator.Emulator]) -> Iterator[tuple[Any, emulator.Emulator]]:
    yield built
    built[1].set_order("forward")


def same(got: Tensor, want: Tensor) -> bool:
    """Bit for bit; of NaN there is one only."""
    got, want = (torch.where(t.isnan(), torch.nan, t).reshape(-1).view(torch.uint8) for t in (got, want))
    return torch.equal(got, want)


# --- values -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("op, case, dtype", CASES_OF_OPS)
def test_agrees_with_the_reference(cuda, op: Op, case: Case, dtype: torch.dtype):
    found = emulated_fake_quant.mismatches(cuda[0], op, case, dtype)
    assert not found, "\n".join(map(str, found))


@pytest.mark.parametrize("op, case, dtype", CASES_OF_OPS)
def test_has_the_references_bits(cuda, op: Op, case: Case, dtype: torch.dtype):
    """Not only within a tolerance: all but sums. So forward is what quantize and dequantize make."""
    want = expected(op, case, 0, dtype, "cpu")
    got = run(cuda[0], op, case(0, dtype), want)
    for name in result_names(op):
        assert name == "grad_scale" or same(got[name], want[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("order", ("reverse", "shuffled"))
def test_the_order_of_threads_and_blocks_does_not_matter(cuda, order: str):
    module, emulated = cuda
    emulated.set_order(order, seed=1)
    for op in OPS:
        for case in CASES[op.name]:
            for dtype in case.dtypes:
                found = emulated_fake_quant.mismatches(module, op, case, dtype)
                assert not found, "\n".join(map(str, found))


# --- groups -----------------------------------------------------------------------------------------------
# Elements of a group: what eight lanes, a warp, a block take on, of several groups and of a whole tensor; one
# more each; and a width by which groups begin and end with a byte of the mask.
LENGTHS = ((9, 64), (9, 128), (9, 129), (5, 136), (3, 1024), (3, 1025), (3, 1032), (1, 16_384), (1, 16_385))
LENGTHS += ((3, 20_003), (2, 20_000), (1, 70_001))


@each_sign
@pytest.mark.parametrize("shape", LENGTHS)
@pytest.mark.parametrize("off", (0, 1), ids=("aligned", "misaligned"))
def test_groups_of_any_length(cuda, shape: tuple[int, int], symmetric: bool, off: int):
    options = {"group_size": -1, "symmetric": symmetric, "bits": 8}
    x, grad = randn(*shape, off=off), randn(*shape, seed=1, off=off)
    cuda[1].reset_counts()
    found = both_ways(cuda[0], x, grad, **options)
    assert_both_ways(found)
    rows, columns = shape
    in_two = columns > 16_384 if rows == 1 else columns % 8 > 0
    assert cuda[1].launches == 1 + in_two + 1 + (columns > 16_384) and cuda[1].copies == 0
    grid = dict((name, got) for name, got, _ in found)
    given = grid["scales"] * 0.6, None if symmetric else grid["zero_points"]
    cuda[1].reset_counts()
    assert_both_ways(both_ways(cuda[0], x, grad, given, **options))
    assert cuda[1].launches == 1 + 1 + (columns > 16_384)


@each_sign
@pytest.mark.parametrize("shape", ((7, 3), (5, 64), (3, 83), (2, 200), (61,)))
def test_groups_of_any_size(cuda, shape: tuple[int, ...], symmetric: bool):
    """That begin and end anywhere in a row, in a byte of the mask, in a turn of a thread."""
    x, grad = randn(*shape), randn(*shape, seed=1)
    for size, bits in itertools.product((1, 2, 3, 7, 8, 9, 16, 40, 64, 100, 2**40), (7, 8)):
        options = {"group_size": size, "symmetric": symmetric, "bits": bits}
        found = both_ways(cuda[0], x, grad, **options)
        assert_both_ways(found)
        grid = dict((name, got) for name, got, _ in found)
        given = grid["scales"] * 0.6, None if symmetric else grid["zero_points"]
        assert_both_ways(both_ways(cuda[0], x, grad, given, **options))


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("which", ("input", "grad_output", "output", "grad_input"))
def test_misaligned_memory(cuda, dtype: torch.dtype, which: str):
    """Of a width that would move in 16-byte pieces, had the tensor begun where such a piece does."""
    options = {"group_size": 8, "symmetric": True, "bits": 8}
    x, grad = randn(6, 64).to(dtype), randn(6, 64, seed=1).to(dtype)
    reference = backends.target(FWD.reference)
    output, mask, scales, zeros = reference(x, **options)
    grads = backends.target(BWD.reference)(grad, mask, x, scales, **options)
    want = dict(zip(result_names(BWD), grads, strict=True))
    want |= {"output": output, "mask": mask, "scales": scales, "zero_points": zeros}
    memory = {"input": x, "grad_output": grad, **{name: torch.full_like(t, 77) for name, t in want.items()}}
    memory[which] = torch.cat([memory[which].new_zeros(1), memory[which].flatten()])[1:].view(6, 64)
    call = {**memory, "scale": None, "zero_point": None, **options}
    emulated_fake_quant.RUN[FWD](cuda[0], call, memory)
    emulated_fake_quant.RUN[BWD](cuda[0], {**call, "scale": memory["scales"]}, memory)
    assert all(same(memory[name], t) for name, t in want.items() if name != "grad_scale")
    torch.testing.assert_close(memory["grad_scale"], want["grad_scale"], rtol=1e-6, atol=1e-6)


# --- sums -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", ((9, 100), (3, 1000), (3, 5000), (2, 40_001), (1, 70_001)))
def test_sums_have_the_same_bits_in_any_order_of_threads(cuda, shape: tuple[int, int]):
    module, emulated = cuda
    x, grad, found = randn(*shape), randn(*shape, seed=1), []
    for order, count in (("forward", 3), ("reverse", 1), ("shuffled", 100)):
        emulated.set_order(order, seed=1)
        emulated.set_multiprocessors(count)
        found.append(both_ways(module, x, grad, group_size=-1, symmetric=True, bits=8)[-1][1])
    emulated.set_multiprocessors(3)
    assert all(torch.equal(found[0], other) for other in found)


def test_gradients_alone_are_one_launch(cuda):
    want = {"grad_input": torch.zeros(3, 40_001), "grad_scale": torch.zeros(0)}
    call = {"grad_output": randn(3, 40_001), "mask": torch.full((15_001,), 255, dtype=torch.uint8)}
    options = {"group_size": 0, "symmetric": True, "bits": 8}
    cuda[1].reset_counts()
    got = run(cuda[0], BWD, {**call, **dict.fromkeys(("input", "scale", "zero_point")), **options}, want)
    assert torch.equal(got["grad_input"], call["grad_output"]) and cuda[1].launches == 1


# --- sanitizers -------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("mode, concurrent", (("asan", False), ("tsan", False), ("tsan", True)))
def test_no_sanitizer_finds_anything(mode: str, concurrent: bool):
    """Out of bounds, misaligned, races between threads; with concurrent blocks, races between these."""
    need_emulator()
    code = "import runpy; runpy.run_module('emulated_fake_quant', run_name='__main__')"
    names = RACES if mode == "tsan" else SANITIZED
    report = emulator.run_python(code, mode, [mode, str(concurrent), *names])
    assert not report.flagged, report.errors
    cases = [case for op in OPS for case in CASES[op.name] if case.name in names]
    assert f"{sum(len(case.dtypes) for case in cases) + 1} cases" in report.output
