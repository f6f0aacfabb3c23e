"""The CUDA kernels and what launches them, executed thread by thread on the CPU: docs/emulator.md."""

import copy
from collections.abc import Iterator
from typing import Any

import emulated_optim
import emulator
import pytest
import torch
from conftest import need_emulator
from emulated_optim import SERVED
from onepass.ops import BY_NAME, Op
from onepass.reference.grads import clip_grads_, grad_stats
from onepass.reference.optim import adamw_
from onepass.testing import CASES, Case
from onepass.testing.optim_cases import optimizer

QUICK = (torch.float32, torch.bfloat16)
ROWS = [
    pytest.param(
        op,
        case,
        dtype,
        id=f"{op.name}-{case.name}-{str(dtype).removeprefix('torch.')}",
        marks=() if dtype in QUICK else pytest.mark.slow,
    )
    for op in SERVED
    for case in CASES[op.name]
    for dtype in case.dtypes
]
# Where a sanitizer has something to find: every path of the kernels, and few elements.
SANITIZED = ("groups", "odd_sizes", "empty_and_0_dim", "sliced", "misaligned", "skipped_and_zeroed")
SANITIZED += ("amsgrad", "momentum", "centered_momentum", "phase", "phase_sliced", "phase_misaligned")
SANITIZED += ("bf16_states", "bf16_states_phase", "grad_misaligned", "grad_transposed", "grad_one_value")
SANITIZED += ("inf_and_nan", "clipped", "mixed", "only_empty", "plain", "scaled", "overflow", "grows")
SANITIZED += ("float32_grads", "float32_grads_phase", "float32_grads_zeroed", "float32_grads_misaligned")
SANITIZED += ("sum_misaligned", "grad_sliced")
OPTIMIZERS = [op for op in SERVED if op.hyper]
ADAMW = BY_NAME["adamw_"]


@pytest.fixture(scope="module")
def cuda() -> Iterator[tuple[Any, emulator.Emulator]]:
    need_emulator()
    module, emulated = emulated_optim.built("plain")
    yield module, emulated
    emulated.set_order("forward")


def _call(count: int, numel: int = 3, groups: int = 2, **settings: Any) -> dict[str, Any]:
    """A call of AdamW with so many tensors; the last one without elements."""
    shapes = [(numel + i % 5,) for i in range(count - 1)] + [(0,)]
    rows = [{"lr": 1e-2 / (1 + g), "weight_decay": 0.1 * g, **settings} for g in range(groups)]
    return optimizer(
        torch.Generator().manual_seed(count), torch.float32, "cpu", op="adamw_", shapes=shapes, rows=rows
    )


def _assert_close(got: dict[str, Any], want: dict[str, Any]) -> None:
    for name in ("params", "grads", "exp_avgs", "exp_avg_sqs", "steps"):
        for ours, theirs in zip(got[name], want[name], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


# --- values -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("op, case, dtype", ROWS)
def test_agrees_with_the_reference(cuda, op: Op, case: Case, dtype: torch.dtype):
    found = emulated_optim.mismatches(cuda[0], op, case, dtype)
    assert not found, "\n".join(map(str, found))


@pytest.mark.slow
@pytest.mark.parametrize("order", ("reverse", "shuffled"))
@pytest.mark.parametrize("op", SERVED, ids=lambda op: op.name)
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
    emulated_optim.step(cuda[0], ADAMW, got, hyper_on_device=True)
    adamw_(**want)
    _assert_close(got, want)


def test_an_op_without_a_cuda_kernel_is_refused(cuda):
    with pytest.raises(RuntimeError, match="adam_as_torch_: has no CUDA kernel"):
        emulated_optim.step(cuda[0], BY_NAME["adam_as_torch_"], _call(2))


# --- launches and copies ----------------------------------------------------------------------------------
# 496 and 4064 gradient pointers fit into a kernel's arguments, csrc/cuda/table.h.
@pytest.mark.parametrize("count", (1, 2, 496, 497, 4000, 4064, 4065, 5000))
def test_one_launch_for_any_number_of_tensors_and_groups(cuda, count: int):
    module, emulated = cuda
    got = _call(count, groups=min(count, 7))
    want = copy.deepcopy(got)
    emulated.reset_counts()
    emulated_optim.step(module, ADAMW, got)
    assert emulated.launches == 1
    adamw_(**want)
    _assert_close(got, want)


@pytest.mark.parametrize("count", (1, 161, 497, 4000))
@pytest.mark.parametrize("groups", (1, 40))
def test_the_whole_phase_takes_two_launches(cuda, count: int, groups: int):
    """Norm, clipping, decay, step, average of weights, zeroing and counters, of any number of groups."""
    module, emulated = cuda
    got = _call(count, groups=min(groups, count), max_grad_norm=0.5)
    got |= {"emas": [p.clone() for p in got["params"]], "grads_after": 1, "grad_scale": torch.tensor(4.0)}
    want = copy.deepcopy(got)
    emulated.reset_counts()
    got["stats"] = emulated_optim.grad_stats(module, got["grads"], got["grad_scale"])
    emulated_optim.step(module, ADAMW, got)
    assert emulated.launches == 2
    want["stats"] = grad_stats(want["grads"], grad_scale=want["grad_scale"])
    adamw_(**want)
    _assert_close(got, want)


@pytest.mark.parametrize("write_grads", (False, True))
@pytest.mark.parametrize("skipped", (False, True))
def test_bytes_of_a_scaled_and_clipped_step(cuda, write_grads: bool, skipped: bool):
    """Gradients are read twice, for their norm and by the step, and not written unless that is asked for. A
    step that is skipped reads them once."""
    module, emulated = cuda
    got, numel = _call(3, numel=4096, groups=1, max_grad_norm=0.5), 4096 + 4097
    got |= {"grad_scale": torch.tensor(4.0), "grads_after": 2 * write_grads}
    if skipped:
        got["grads"][1][7] = float("inf")
    emulated.reset_counts()
    got["stats"] = emulated_optim.grad_stats(module, got["grads"], got["grad_scale"])
    assert 0 <= emulated.loaded_bytes - 4 * (numel - 1) <= 16 * 864  # and the blocks' sums
    assert emulated.stored_bytes == 0
    emulated.reset_counts()
    emulated_optim.step(module, ADAMW, got)
    loads, stores = (0, 0) if skipped else (16, 16 if write_grads else 12)
    assert emulated.loaded_bytes == loads * (numel - 1)  # the odd element moves alone
    assert emulated.stored_bytes == stores * (numel - 1)


@pytest.mark.parametrize("dtype, loads, stores", ((torch.float32, 8, 4), (torch.bfloat16, 6, 4)))
def test_bytes_of_a_sum_of_gradients(cuda, dtype: torch.dtype, loads: int, stores: int):
    module, emulated = cuda
    sums, grads = [torch.zeros(8192)], [torch.ones(8192, dtype=dtype)]
    emulated.reset_counts()
    emulated_optim.accumulate_(module, sums, grads, None)
    assert (emulated.loaded_bytes, emulated.stored_bytes) == (loads * 8192, stores * 8192)
    assert emulated.launches == 1 and (sums[0] == 1).all()


@pytest.mark.parametrize("scale, stores", ((4.0, 4), (1.0, 0)))
def test_bytes_of_unscaling(cuda, scale: float, stores: int):
    module, emulated = cuda
    grads = [torch.ones(8192)]
    emulated.reset_counts()
    stats = emulated_optim.unscale_(module, grads, torch.tensor(scale))
    assert 0 <= emulated.loaded_bytes - 4 * 8192 <= 16 * 864
    assert emulated.stored_bytes == stores * 8192 and emulated.launches == 1
    assert stats.tolist() == [8192**0.5 / scale, 0.0]


def _joined(*calls: dict[str, Any]) -> dict[str, Any]:
    """One call of all their tensors."""
    joined = dict(calls[0])
    for call in calls[1:]:
        joined |= {k: joined[k] + v for k, v in call.items() if isinstance(v, list)}
    return joined


@pytest.mark.parametrize("op", OPTIMIZERS, ids=lambda op: op.name)
def test_one_launch_for_each_dtype_of_parameters_and_of_states(cuda, op: Op):
    module, emulated = cuda
    kinds = [(torch.float32, False), (torch.float32, True), (torch.bfloat16, False), (torch.float32, False)]
    calls = [
        optimizer(torch.Generator(), dtype, "cpu", op=op.name, shapes=[(5,), (7,)], bf16_states=bf16)
        for dtype, bf16 in kinds
    ]
    emulated.reset_counts()
    emulated_optim.step(module, op, _joined(*calls))
    assert emulated.launches == (3 if op.required else 2)


def test_the_table_is_copied_when_it_changes_and_not_when_gradients_move(cuda):
    module, emulated = cuda
    call = optimizer(torch.Generator(), torch.float32, "cpu", op="adamw_")

    def copies() -> int:
        emulated.reset_counts()
        emulated_optim.step(module, ADAMW, call)
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
        emulated_optim.step(module, ADAMW, got, wait=False)
        adamw_(**want)
    emulated.synchronize()
    _assert_close(got, want)


def test_tensors_of_more_than_2_to_31_elements_are_planned_in_64_bits(cuda):
    numels = [2**31 - 1, 2**33 + 5, 0, 1, 2**40]
    tiles = [-(-n // 4096) for n in numels]
    assert cuda[0].first_tiles(numels) == [sum(tiles[:i]) for i in range(len(tiles) + 1)]


# --- gradients alone --------------------------------------------------------------------------------------
def _grads(count: int, size: float = 1.0) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(count)
    dtypes = (torch.float32, torch.float64, torch.bfloat16)
    shapes = [(1 + i % 11,) for i in range(count - 1)] + [(20_011,)]
    return [(torch.randn(s, generator=rng) * size).to(dtypes[i % 3]) for i, s in enumerate(shapes)]


@pytest.mark.parametrize("count", (1, 496, 497, 4064, 4065, 5000))
def test_one_launch_for_gradients_of_all_dtypes(cuda, count: int):
    module, emulated = cuda
    got = _grads(count)
    want = copy.deepcopy(got)
    emulated.reset_counts()
    stats = emulated_optim.grad_stats(module, got)
    assert emulated.launches == 1
    torch.testing.assert_close(stats, grad_stats(want), rtol=1e-14, atol=0.0)
    emulated_optim.clip_grads_(module, got, stats, 1.5)
    assert emulated.launches == 2
    clip_grads_(want, stats, 1.5)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("size", (1e-30, 1e25))
def test_squares_that_float32_does_not_hold(cuda, size: float):
    grads = _grads(7, size)
    stats = emulated_optim.grad_stats(cuda[0], grads)
    torch.testing.assert_close(stats, grad_stats(grads), rtol=1e-14, atol=0.0)


@pytest.mark.parametrize("bad", (float("inf"), float("-inf"), float("nan")))
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16, torch.float16))
def test_one_value_that_is_not_finite_is_seen_wherever_it_is(cuda, bad: float, dtype: torch.dtype):
    for at in (0, 1, 4095, 4096, 9000, 9004):
        grads = [torch.ones(3), torch.zeros(9005, dtype=dtype)[:9005], torch.ones(5)]
        grads[1][at] = bad
        assert emulated_optim.grad_stats(cuda[0], grads)[1] == 1


def test_overflow_of_float64_squares_is_not_taken_for_inf(cuda):
    grads = [torch.ones(9), torch.full((5,), 1e200, dtype=torch.float64), torch.ones(4)]
    assert emulated_optim.grad_stats(cuda[0], grads).tolist() == [float("inf"), 0.0]


def test_the_norm_has_the_same_bits_on_any_device_and_in_any_order(cuda):
    module, emulated = cuda
    grads = [torch.randn(n, generator=torch.Generator().manual_seed(n)) for n in (70_001, 5, 300_000)]
    found = set()
    try:
        for multiprocessors, order in ((3, "forward"), (1, "reverse"), (7, "shuffled")):
            emulated.set_multiprocessors(multiprocessors)
            emulated.set_order(order, seed=1)
            found.add(emulated_optim.grad_stats(module, grads)[0].item())
    finally:
        emulated.set_multiprocessors(3)
        emulated.set_order("forward")
    assert len(found) == 1


def test_the_table_of_gradients_is_not_copied_when_they_move(cuda):
    module, emulated = cuda
    grads = _grads(100)
    emulated_optim.grad_stats(module, grads)
    emulated.reset_counts()
    emulated_optim.grad_stats(module, [g.clone() for g in grads])
    assert emulated.copies == 0


# --- sanitizers -------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("mode, concurrent", (("asan", False), ("tsan", False), ("tsan", True)))
def test_no_sanitizer_finds_anything(mode: str, concurrent: bool):
    """Out of bounds, misaligned, races between threads; with concurrent blocks, races between these."""
    need_emulator()
    code = "import runpy; runpy.run_module('emulated_optim', run_name='__main__')"
    report = emulator.run_python(code, mode, [mode, str(concurrent), *SANITIZED])
    assert not report.flagged, report.errors
    cases = [case for op in SERVED for case in CASES[op.name] if case.name in SANITIZED]
    assert f"{sum(len(case.dtypes) for case in cases)} cases" in report.output
