"""The CUDA kernels and what launches them, executed thread by thread on the CPU: docs/emulator.md."""

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import emulated_optim
import emulator
import pytest
import torch
from conftest import need_emulator
from onepass.ops import OPS, Op
from onepass.reference.optim import adamw_
from onepass.testing import CASES, Case
from onepass.testing.cases import adam

ROWS = [
    pytest.param(op, case, dtype, id=f"{op.name}-{case.name}-{str(dtype).removeprefix('torch.')}")
    for op in OPS
    for case in CASES[op.name]
    for dtype in case.dtypes
]
# Where a sanitizer has something to find: every path of the kernel, and few elements.
SANITIZED = ("plain", "amsgrad", "groups", "odd_sizes", "empty_and_0_dim", "skipped")
SANITIZED += ("misaligned", "grad_misaligned", "sliced", "grad_transposed", "grad_one_value")


@pytest.fixture(scope="module")
def cuda() -> Iterator[tuple[Any, emulator.Emulator]]:
    need_emulator()
    module, emulated = emulated_optim.built("plain")
    yield module, emulated
    emulated.set_order("forward")


def _call(count: int, numel: int = 3, groups: int = 2) -> dict[str, Any]:
    """So many tensors; the last one without elements."""
    shapes = [(numel + i % 5,) for i in range(count - 1)] + [(0,)]
    rows = [{"lr": 1e-2 / (1 + g), "weight_decay": 0.1 * g} for g in range(groups)]
    return adam(torch.Generator().manual_seed(count), torch.float32, "cpu", shapes=shapes, rows=rows)


def _assert_close(got: dict[str, Any], want: dict[str, Any]) -> None:
    for name in ("params", "exp_avgs", "exp_avg_sqs", "steps"):
        for ours, theirs in zip(got[name], want[name], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


# --- values -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("op, case, dtype", ROWS)
def test_agrees_with_the_reference(cuda, op: Op, case: Case, dtype: torch.dtype):
    found = emulated_optim.mismatches(cuda[0], op, case, dtype)
    assert not found, "\n".join(map(str, found))


@pytest.mark.slow
@pytest.mark.parametrize("order", ("reverse", "shuffled"))
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_the_order_of_threads_and_blocks_does_not_matter(cuda, op: Op, order: str):
    module, emulated = cuda
    emulated.set_order(order, seed=1)
    for case in CASES[op.name]:
        for dtype in case.dtypes:
            found = emulated_optim.mismatches(module, op, case, dtype)
            assert not found, "\n".join(map(str, found))


def test_hyperparameters_on_the_device(cuda):
    got = _call(5)
    want = copy.deepcopy(got)
    emulated_optim.step(cuda[0], "adamw_", got, hyper_on_device=True)
    adamw_(**want)
    _assert_close(got, want)


# --- launches and copies ----------------------------------------------------------------------------------
# 496 and 4064 gradient pointers fit into a kernel's arguments, csrc/cuda/table.h.
@pytest.mark.parametrize("count", (1, 2, 496, 497, 4000, 4064, 4065, 5000))
def test_one_launch_for_any_number_of_tensors_and_groups(cuda, count: int):
    module, emulated = cuda
    got = _call(count, groups=min(count, 7))
    want = copy.deepcopy(got)
    emulated.reset_counts()
    emulated_optim.step(module, "adamw_", got)
    assert emulated.launches == 1
    adamw_(**want)
    _assert_close(got, want)


def test_one_launch_a_dtype(cuda):
    module, emulated = cuda
    dtypes, shapes = (torch.float32, torch.bfloat16), [(5,), (7,)]
    one, two = (adam(torch.Generator(), dtype, "cpu", shapes=shapes) for dtype in dtypes)
    joined = {k: one[k] + two[k] if isinstance(one[k], list) else one[k] for k in one}
    emulated.reset_counts()
    emulated_optim.step(module, "adam_", joined)
    assert emulated.launches == 2


def test_the_table_is_copied_when_it_changes_and_not_when_gradients_move(cuda):
    module, emulated = cuda
    call = adam(torch.Generator(), torch.float32, "cpu")

    def copies() -> int:
        emulated.reset_counts()
        emulated_optim.step(module, "adamw_", call)
        return emulated.copies

    assert copies() == 1
    assert copies() == 0
    call["grads"] = [g.clone() for g in call["grads"]]
    assert copies() == 0
    call["hyper"][0, 0] *= 2
    assert copies() == 1
    call["exp_avgs"][1] = call["exp_avgs"][1].clone()
    assert copies() == 1
    assert copies() == 0


def test_a_staging_buffer_is_not_written_before_it_was_copied(cuda):
    """The emulated stream runs only when it is waited for: until then tables queue up."""
    module, emulated = cuda
    got, lrs = _call(6), torch.linspace(1e-3, 1e-2, 13)
    want, kept = copy.deepcopy(got), []
    for lr in lrs:
        got["hyper"] = got["hyper"].clone()
        got["hyper"][:, 0] = want["hyper"][:, 0] = lr
        kept.append(got["hyper"])
        emulated_optim.step(module, "adamw_", got, wait=False)
        adamw_(**want)
    emulated.synchronize()
    _assert_close(got, want)


def test_tensors_of_more_than_2_to_31_elements_are_planned_in_64_bits(cuda):
    numels = [2**31 - 1, 2**33 + 5, 0, 1, 2**40]
    tiles = [-(-n // 4096) for n in numels]
    assert cuda[0].first_tiles(numels) == [sum(tiles[:i]) for i in range(len(tiles) + 1)]


# --- sanitizers -------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("mode, concurrent", (("asan", False), ("tsan", False), ("tsan", True)))
def test_no_sanitizer_finds_anything(mode: str, concurrent: bool):
    """Out of bounds, misaligned, races between threads; with concurrent blocks, races between these."""
    need_emulator()
    code = "import runpy; runpy.run_module('emulated_optim', run_name='__main__')"
    run = partial(emulator.run_python, code, mode)
    report = run([mode, str(concurrent), *SANITIZED])
    assert not report.flagged, report.errors
    cases = [case for op in OPS for case in CASES[op.name] if case.name in SANITIZED]
    assert f"{sum(len(case.dtypes) for case in cases)} cases" in report.output
