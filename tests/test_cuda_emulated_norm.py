"""The CUDA kernels of normalizations and what launches them, executed thread by thread on the CPU, as devices
run them that have clusters, cooperative launches, both or neither: docs/emulator.md."""

from collections.abc import Iterator
from typing import Any

import emulated_norm
import emulator
import pytest
import torch
from conftest import need_emulator
from emulated_norm import (
    BWD,
    CLUSTERS,
    DEVICES,
    FWD,
    NORMS,
    SLICES,
    TOGETHER,
    TWO_LAUNCHES,
    channels_last,
    made,
)
from onepass.ops import Op
from onepass.testing import CASES, Case
from onepass.testing.verify import expected

# One of each kind in `make test`; all of them in `make test-slow`.
QUICK = ("plain", "relu", "leaky_relu", "silu", "residual_relu", "residual_silu", "rows", "few_pixels")
QUICK += ("average", "nan", "misaligned", "empty", "some_channels", "half_parameters", "alone", "relu_given")
QUICK += tuple(f"{name}_last" for name in QUICK)
SANITIZED = ("relu", "residual_relu", "residual_silu", "few_pixels", "misaligned")
SANITIZED += tuple(f"{name}_last" for name in SANITIZED)
SANITIZED += (
    "nan",
    "average",
    "rows",
    "empty",
    "one_channel",
    "one_pixel_last",
    "half_parameters",
    "no_affine",
)
SANITIZED += ("alone",)
RACES = ("few_pixels", "one_pixel_last")  # the same under TSan, which takes a second a case


def _rows() -> Iterator[Any]:
    for op in NORMS:
        for case in CASES[op.name]:
            for dtype in case.dtypes:
                quick = case.name in QUICK and dtype in (torch.float32, torch.bfloat16)
                name = f"{op.name}-{case.name}-{str(dtype).removeprefix('torch.')}"
                yield pytest.param(op, case, dtype, id=name, marks=() if quick else pytest.mark.slow)


@pytest.fixture(scope="module")
def built() -> tuple[Any, emulator.Emulator]:
    need_emulator()
    return emulated_norm.built("plain")


@pytest.fixture
def cuda(built: tuple[Any, emulator.Emulator]) -> Iterator[tuple[Any, emulator.Emulator]]:
    yield built
    _, emulated = built
    emulated.set_order("forward")
    emulated.set_multiprocessors(3)
    emulated_norm.use(emulated, CLUSTERS)


# --- values -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("op, case, dtype", list(_rows()))
def test_agrees_with_the_reference(cuda, op: Op, case: Case, dtype: torch.dtype):
    found = emulated_norm.mismatches(cuda[0], op, case, dtype)
    assert not found, "\n".join(map(str, found))


@pytest.mark.slow
@pytest.mark.parametrize(
    "device, order",
    (("two launches", "forward"), ("two launches", "reverse"), ("slices", "forward"), ("slices", "shuffled")),
)
def test_neither_the_device_nor_the_order_of_threads_and_blocks_matters(cuda, device: str, order: str):
    module, emulated = cuda
    emulated.set_order(order, seed=1)
    emulated_norm.use(emulated, DEVICES[device])
    for op in NORMS:
        for case in CASES[op.name]:
            for dtype in case.dtypes:
                found = emulated_norm.mismatches(module, op, case, dtype)
                assert not found, "\n".join(map(str, found))


# --- how a call is cut up ---------------------------------------------------------------------------------
def _whole_plan(module: Any, op: Op, case: Case, dtype: torch.dtype) -> dict[str, int]:
    x = case(0, dtype)["input"]
    last = x.stride(1) == 1
    sizes = (x.shape[0], x.shape[1], x[0, 0].numel())
    return module.plan(*sizes, last, bf16=dtype == torch.bfloat16, grads=op is BWD, whole=True)


# Shared memory of a block, in KB, a shape, and how many blocks then keep a channel, forward and backward.
# Planes that begin at a group, and others: those have a mask only in a launch that keeps nothing.
IN_CLUSTERS = [
    (227, (3, 6, 8, 16), 1, 1),
    (16, (3, 6, 8, 16), 1, 1),
    (16, (4, 6, 21, 16), 1, 2),
    (16, (5, 6, 33, 16), 2, 4),
    (16, (5, 7, 45, 32), 8, 8),
    (16, (9, 6, 13, 13), 1, 2),
    (16, (18, 6, 13, 13), 2, 4),
]
# The same where channels are innermost: a shape, its slices and how many of these three blocks keep at once,
# forward and backward.
IN_SLICES = [
    (227, (3, 64, 8, 16), (1, 1), (1, 1)),
    (227, (3, 128, 8, 8), (2, 2), (2, 2)),
    (34, (3, 72, 8, 8), (2, 1), (3, 1)),
    (34, (3, 192, 8, 8), (3, 1), (6, 1)),
    (34, (1, 192, 4, 8), (3, 3), (3, 3)),
    (34, (2, 320, 4, 8), (5, 3), (5, 1)),
]


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("act, residual", ((None, False), ("relu", False), ("relu", True), ("silu", True)))
@pytest.mark.parametrize("kilobytes, shape, forward, backward", IN_CLUSTERS)
def test_a_cluster_of_any_size_keeps_a_channel(
    cuda, kilobytes: int, shape: tuple[int, ...], forward: int, backward: int, act, residual, dtype
):
    module, emulated = cuda
    emulated.set_max_shared_memory(kilobytes << 10)
    for op, parts in ((FWD, forward), (BWD, backward)):
        case = made(op, shape=shape, act=act, residual=residual)
        masked = op is FWD and residual and act == "relu" and shape[2] * shape[3] % 8
        if dtype == torch.float32:
            plan = _whole_plan(module, op, case, dtype)
            assert plan["kept"] and plan["parts"] == parts
        emulated.reset_counts()
        found = emulated_norm.mismatches(module, op, case, dtype)
        assert not found, "\n".join(map(str, found))
        assert emulated.launches == (2 if masked else 1)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("act, residual", ((None, False), ("relu", False), ("relu", True), ("silu", True)))
@pytest.mark.parametrize("kilobytes, shape, forward, backward", IN_SLICES)
def test_the_device_keeps_slices_as_it_has_room(
    cuda, kilobytes: int, shape: tuple[int, ...], forward, backward, act, residual, dtype
):
    module, emulated = cuda
    emulated_norm.use(emulated, SLICES)
    emulated.set_max_shared_memory(kilobytes << 10)
    for op, wanted in ((FWD, forward), (BWD, backward)):
        case = made(op, shape=shape, act=act, residual=residual, layout=channels_last)
        if dtype == torch.float32:
            plan = _whole_plan(module, op, case, dtype)
            assert plan["kept"] and (plan["units"], plan["at_once"]) == wanted
        emulated.reset_counts()
        found = emulated_norm.mismatches(module, op, case, dtype)
        assert not found, "\n".join(map(str, found))
        assert emulated.launches == 1


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", (lambda t: t, channels_last), ids=("nchw", "nhwc"))
def test_at_most_two_launches_each_way(cuda, device: str, layout):
    """Whatever the device: one where something is kept. A cumulative average wants the count of batches,
    which is raised in the second launch."""
    module, emulated = cuda
    emulated_norm.use(emulated, DEVICES[device])
    kept = device == "slices" or (device == "clusters" and layout is not channels_last)
    for op in (FWD, BWD):
        for average in (False, True):
            settings = {"momentum": None if average else 0.1} if op is FWD else {}
            case = made(op, shape=(3, 16, 8, 8), layout=layout, act="relu", **settings)
            emulated.reset_counts()
            assert not emulated_norm.mismatches(module, op, case, torch.float32)
            assert emulated.launches == (1 if kept and not (average and op is FWD) else 2)


# --- bytes ------------------------------------------------------------------------------------------------
# Bytes that are loaded and stored for each float32 element: in two launches, and where they are kept. A mask
# is counted apart from these: an eighth of a byte.
BYTES = [
    (FWD, "relu", False, (8, 4), (4, 4)),
    (FWD, "relu", True, (12, 4), (8, 4)),
    (BWD, "relu", False, (16, 4), (8, 4)),
    (BWD, "relu", True, (16, 8), (8, 8)),
    (BWD, "silu", True, (24, 8), (16, 8)),
]


@pytest.mark.parametrize("layout", (lambda t: t, channels_last), ids=("nchw", "nhwc"))
@pytest.mark.parametrize("op, act, residual, twice, kept", BYTES)
def test_bytes_of_an_element(cuda, op: Op, act: str, residual: bool, twice, kept, layout):
    module, emulated = cuda
    case = made(op, shape=(2, 64, 8, 8), act=act, residual=residual, layout=layout)
    numel = 2 * 64 * 8 * 8
    for device, wanted in ((TWO_LAUNCHES, twice), (SLICES, kept)):
        emulated_norm.use(emulated, device)
        emulated.reset_counts()
        assert not emulated_norm.mismatches(module, op, case, torch.float32)
        partial_sums = _partial_sums(module, op, case, device)
        assert emulated.loaded_bytes == wanted[0] * numel + partial_sums
        assert emulated.stored_bytes == wanted[1] * numel


def _partial_sums(module: Any, op: Op, case: Case, device: tuple[int, int]) -> int:
    """Bytes that the last block of a unit reads of the others: two doubles a channel of each."""
    x = case(0, torch.float32)["input"]
    last = x.stride(1) == 1
    if device != TWO_LAUNCHES and not last:
        return 0  # they are in the cluster's shared memory
    sizes = (x.shape[0], x.shape[1], x[0, 0].numel())
    parts = module.plan(*sizes, last, grads=op is BWD, whole=device != TWO_LAUNCHES)["parts"]
    return 16 * x.shape[1] * parts if parts > 1 else 0


# --- bits -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("op", (FWD, BWD), ids=lambda op: op.name)
@pytest.mark.parametrize("layout", (lambda t: t, channels_last), ids=("nchw", "nhwc"))
@pytest.mark.parametrize("device", DEVICES)
def test_the_order_of_threads_changes_no_bit(cuda, device: str, layout, op: Op):
    """Nor does the number of multiprocessors, where nothing is kept."""
    module, emulated = cuda
    emulated_norm.use(emulated, DEVICES[device])
    case = made(op, shape=(5, 16, 24, 24), act="relu", residual=op is FWD, layout=layout, mean=3.0)
    want = expected(op, case, 0, torch.float32, "cpu")
    found = []
    for multiprocessors, order in ((3, "forward"), (3, "reverse"), (7, "shuffled")):
        emulated.set_multiprocessors(multiprocessors if device == "two launches" else 3)
        emulated.set_order(order, seed=1)
        found.append(emulated_norm.run(module, op, case(0, torch.float32), want))
    names = [name for name, value in want.items() if isinstance(value, torch.Tensor)]
    for other in found[1:]:
        assert all(torch.equal(found[0][name], other[name]) for name in names)


# --- sizes ------------------------------------------------------------------------------------------------
HUGE = [(2**20, 64, 2**14), (1, 1, 2**36), (2**31, 8, 1), (2**16, 2**14, 49), (1, 2**20, 2**12)]


@pytest.mark.parametrize("last", (False, True))
@pytest.mark.parametrize("images, channels, pixels", HUGE)
def test_more_than_2_to_31_elements_are_planned_in_64_bits(cuda, images, channels, pixels, last: bool):
    """A grid has room for the blocks, and no thread sums up more than 1024 groups in single precision."""
    for whole in (False, True):
        plan = cuda[0].plan(images, channels, pixels, last, whole=whole)
        assert 0 < plan["at_once"] * plan["parts"] < 2**31
        assert plan["at_once"] <= plan["units"] and plan["units"] * plan["width"] >= channels
        assert 0 < plan["stride"] <= images * channels * pixels or plan["kept"]
        turns = images * pixels if last else images * -(-pixels // 8)
        rows = 256 // (plan["width"] // 8) if last else 256
        assert -(-turns // plan["parts"]) <= 1024 * rows


# --- sanitizers -------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("mode, concurrent", (("asan", False), ("tsan", False), ("tsan", True)))
def test_no_sanitizer_finds_anything(mode: str, concurrent: bool):
    """Out of bounds, misaligned, races between threads; with concurrent blocks, races between these."""
    need_emulator()
    code = "import runpy; runpy.run_module('emulated_norm', run_name='__main__')"
    names = RACES if mode == "tsan" else SANITIZED
    report = emulator.run_python(code, mode, [mode, str(concurrent), *names])
    assert not report.flagged, report.errors
    cases = [case for op in NORMS for case in CASES[op.name] if case.name in names]
    count = 2 * sum(len(case.dtypes) for case in cases) + 2 * len(TOGETHER)
    assert f"{count} cases" in report.output
