"""Quantization and the 8-bit product on a GPU: exact sums, bits, launches. test_gpu.py compares the ops.

test_unit_vectors_find_each_number_of_the_weight comes first in bench/gpu.sh: it tells whether the fragments
of the tensor core lie as csrc/cuda/mma.cuh has them, which no test without a GPU can.
"""

import pytest
import torch
from gpu_helpers import DEVICE, each_variant, kernels_of, marks, no_sync, on_a_side_stream
from onepass import backends
from onepass.ops import BY_NAME
from onepass.testing import CASES, Variant
from torch import Tensor

pytestmark = marks
OPS = torch.ops.onepass
PACKED = "weight is packed, which only kernels of the CPU read: give the torch.int8 weight"


def _multiprocessors() -> int:
    return torch.cuda.get_device_properties(0).multi_processor_count if DEVICE == "cuda" else 1


# m and n, by multiprocessors, that are cut up in each way of csrc/cuda/int8_launch.cpp.
CUTS = {
    "rows": lambda count: (8, 40),
    "small": lambda count: (128, 130),
    "middle": lambda count: (64, 64 * count),
    "large": lambda count: (128, 128 * count),
}
each_cut = pytest.mark.parametrize("cut", CUTS)


def whole(*shape: int, seed: int = 0, signed: bool = True, extreme: bool = False) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    low, high, dtype = (-127, 127, torch.int8) if signed else (0, 255, torch.uint8)
    if extreme:
        return torch.tensor([low, high], dtype=dtype)[torch.randint(2, shape, generator=rng)].to(DEVICE)
    return torch.randint(low, high + 1, shape, generator=rng, dtype=dtype).to(DEVICE)


def exact(x: Tensor, weight: Tensor, zero_point: Tensor | None = None) -> Tensor:
    """In float64, which has room for these sums."""
    left = x.double() if zero_point is None else x.double() - zero_point
    return (left @ weight.double().T).int()


# --- sums ---------------------------------------------------------------------------------------------------
@each_variant
@each_cut
def test_unit_vectors_find_each_number_of_the_weight(variant: Variant, cut: str):
    """Row i of x is 1 at one k and 0 elsewhere: y[i] is that column of the weight."""
    m, n = CUTS[cut](_multiprocessors())
    weight = whole(n, 160)
    for first in range(0, 160, m):
        at = (torch.arange(m, device=DEVICE) * 37 + first) % 160
        x = torch.zeros(m, 160, dtype=torch.int8, device=DEVICE)
        x[torch.arange(m, device=DEVICE), at] = 1
        with variant.use():
            found = OPS.int8_mm(x, weight, dtype=torch.int32)
        assert torch.equal(found, weight[:, at].T.int())


@each_variant
@each_cut
@pytest.mark.parametrize("k", (1, 31, 128, 144, 1027, 16_384))
@pytest.mark.parametrize("signed", (True, False))
def test_sums_are_exact(variant: Variant, cut: str, k: int, signed: bool):
    m, n = CUTS[cut](_multiprocessors())
    n = n if k < 16_384 else min(n, 2048)
    zero_point = torch.randint(-300, 300, (m, 1), dtype=torch.int32).to(DEVICE)
    for extreme, zeros in ((True, None), (False, zero_point)):
        x, weight = whole(m, k, signed=signed, extreme=extreme), whole(n, k, seed=1, extreme=extreme)
        with variant.use():
            found = OPS.int8_mm(x, weight, input_zero_point=zeros, dtype=torch.int32)
        assert torch.equal(found, exact(x, weight, zeros))


@each_variant
def test_random_shapes_are_exact(variant: Variant):
    rng = torch.Generator().manual_seed(0)
    for seed in range(200):
        m, n, k = torch.randint(1, 301, (3,), generator=rng).tolist()
        x, weight = whole(m, k, seed=seed, signed=seed % 2 == 0), whole(n, k, seed=seed + 1)
        with variant.use():
            found = OPS.int8_mm(x, weight, dtype=torch.int32)
        assert torch.equal(found, exact(x, weight)), (m, n, k)


# --- bits ---------------------------------------------------------------------------------------------------
@each_variant
@pytest.mark.parametrize("name", ("quantize", "dequantize"))
def test_quantization_has_the_bits_of_the_cpus_reference(variant: Variant, name: str):
    reference = backends.target(BY_NAME[name].reference)
    for case in CASES[name]:
        for dtype in case.dtypes:
            want = reference(**case(0, dtype))
            with variant.use():
                got = getattr(OPS, name)(**case(0, dtype, DEVICE))
            pairs = zip(got, want, strict=True) if isinstance(want, tuple) else [(got, want)]
            for ours, theirs in pairs:
                assert torch.equal(ours.cpu().nan_to_num(nan=1e30), theirs.nan_to_num(nan=1e30)), case.name


@each_variant
def test_a_row_does_not_depend_on_the_others(variant: Variant):
    """However many there are, and whatever kernel that calls for."""
    x, weight = torch.randn(300, 256, device=DEVICE), whole(192, 256)
    scale, bias = torch.rand(192, device=DEVICE), torch.randn(192, device=DEVICE)
    with variant.use():
        want = OPS.int8_linear(x, weight, scale, bias, act="gelu")
        for m in (1, 2, 3, 8, 9, 33, 100):
            assert torch.equal(OPS.int8_linear(x[:m], weight, scale, bias, act="gelu"), want[:m])


@each_variant
@each_cut
@pytest.mark.parametrize("zero_point", (None, 99), ids=str)
@pytest.mark.parametrize("act", (None, "relu", "gelu", "silu"))
def test_8_bits_again_are_those_of_quantize(
    variant: Variant, cut: str, act: str | None, zero_point: int | None
):
    """What it makes of the same product in float32, NaN and inf among it."""
    m, n = CUTS[cut](_multiprocessors())
    rows, scale = torch.rand(m, 1, device=DEVICE) * 0.01, torch.tensor(0.37, device=DEVICE)
    rows[1], rows[2] = float("nan"), float("inf")
    call = {"input": whole(m, 70), "weight": whole(n, 70, seed=1), "input_scale": rows, "act": act}
    call |= {"weight_scale": torch.rand(n, device=DEVICE), "bias": torch.randn(n, device=DEVICE)}
    symmetric = zero_point is None
    zero = None if symmetric else torch.tensor(zero_point, dtype=torch.int32, device=DEVICE)
    grid = {"output_scale": scale, "output_zero_point": zero}
    with variant.use():
        got = OPS.int8_mm(**call, dtype=torch.int8 if symmetric else torch.uint8, **grid)
        want = OPS.quantize(OPS.int8_mm(**call), scale, zero, group_size=0, symmetric=symmetric)[0]
    assert torch.equal(got, want)


# --- about CUDA itself --------------------------------------------------------------------------------------
@each_variant
@pytest.mark.skipif(DEVICE != "cuda", reason="about CUDA itself")
@pytest.mark.parametrize("m", (1, 64))
def test_two_kernels_and_no_wait(variant: Variant, m: int):
    if not kernels_of(lambda: torch.ones(3, device=DEVICE).add_(1)):
        pytest.skip("torch.profiler sees no kernels on this machine")
    x, weight, scale = torch.randn(m, 256, device=DEVICE), whole(192, 256), torch.rand(192, device=DEVICE)
    with variant.use():
        OPS.int8_linear(x, weight, scale, symmetric=False)
        assert len(kernels_of(lambda: OPS.int8_linear(x, weight, scale, symmetric=False))) <= 2
        with no_sync():
            OPS.int8_linear(x, weight, scale, symmetric=False)


@each_variant
@pytest.mark.skipif(DEVICE != "cuda", reason="about CUDA itself")
@pytest.mark.parametrize("m", (1, 64))
def test_replays_are_eager_calls(variant: Variant, m: int):
    x, weight, scale = torch.randn(m, 256, device=DEVICE), whole(192, 256), torch.rand(192, device=DEVICE)
    with variant.use():
        on_a_side_stream(lambda: OPS.int8_linear(x, weight, scale))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = OPS.int8_linear(x, weight, scale)
        for _ in range(3):
            x.copy_(torch.randn(m, 256))
            graph.replay()
            assert torch.equal(found, OPS.int8_linear(x, weight, scale))


@each_variant
@pytest.mark.skipif(DEVICE != "cuda", reason="about CUDA itself")
def test_packed_weights_are_refused(variant: Variant):
    packed = OPS.int8_pack(torch.ones(3, 6, dtype=torch.int8)).to(DEVICE)
    with variant.use(), pytest.raises(RuntimeError, match=PACKED):
        OPS.int8_linear(torch.ones(4, 6, device=DEVICE), packed, torch.ones(3, device=DEVICE))
