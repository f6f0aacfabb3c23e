"""Real numbers by 8-bit weights on a GPU: exact sums, errors, bits, launches. test_gpu.py compares the ops.

test_unit_vectors_find_each_number_of_the_weight comes first in bench/gpu.sh, as in test_gpu_int8.py.
"""

import pytest
import torch
from gpu_helpers import DEVICE, each_variant, kernels_of, marks, no_sync, on_a_side_stream
from onepass.testing import Variant
from test_gpu_int8 import CUTS, PACKED, each_cut, whole
from test_gpu_int8 import _multiprocessors as multiprocessors
from torch import Tensor

pytestmark = marks
OPS = torch.ops.onepass
REAL = (torch.float32, torch.bfloat16, torch.float16)
each_dtype = pytest.mark.parametrize("dtype", REAL, ids=str)
on_cuda = pytest.mark.skipif(DEVICE != "cuda", reason="about CUDA itself")


def layer(m: int, n: int, k: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """x, weight, scale, bias."""
    x, scale, bias = torch.randn(m, k), torch.rand(n) * 0.01, torch.randn(n)
    return x.to(DEVICE, dtype), whole(n, k), scale.to(DEVICE), bias.to(DEVICE)


# --- values -------------------------------------------------------------------------------------------------
@each_variant
@each_cut
@each_dtype
def test_unit_vectors_find_each_number_of_the_weight(variant: Variant, cut: str, dtype: torch.dtype):
    """Row i of x is 1 at one k and 0 elsewhere: y[i] is that column of the weight."""
    m, n = CUTS[cut](multiprocessors())
    weight = whole(n, 160)
    for first in range(0, 160, m):
        at = (torch.arange(m, device=DEVICE) * 37 + first) % 160
        x = torch.zeros(m, 160, dtype=dtype, device=DEVICE)
        x[torch.arange(m, device=DEVICE), at] = 1
        with variant.use():
            found = OPS.int8_weight_only_mm(x, weight, torch.ones(n, device=DEVICE))
        assert torch.equal(found, weight[:, at].T.to(dtype))


@each_variant
@each_cut
@each_dtype
@pytest.mark.parametrize("k", (1, 31, 64, 144, 1027))
def test_sums_are_exact_where_floats_are(variant: Variant, cut: str, dtype: torch.dtype, k: int):
    m, n = CUTS[cut](multiprocessors())
    x, weight = torch.randint(-8, 9, (m, k)).to(DEVICE), whole(n, k)
    want = ((x.double() @ weight.double().T) * 2**-5).to(dtype)
    with variant.use():
        found = OPS.int8_weight_only_mm(x.to(dtype), weight, torch.full((n,), 2**-5, device=DEVICE))
    assert torch.equal(found, want)


@each_variant
@each_dtype
def test_random_shapes_are_exact_where_floats_are(variant: Variant, dtype: torch.dtype):
    rng = torch.Generator().manual_seed(0)
    for seed in range(100):
        m, n, k = torch.randint(1, 301, (3,), generator=rng).tolist()
        x, weight = torch.randint(-8, 9, (m, k), generator=rng).to(DEVICE), whole(n, k, seed=seed)
        with variant.use():
            found = OPS.int8_weight_only_mm(x.to(dtype), weight, torch.tensor(2**-5, device=DEVICE))
        assert torch.equal(found, (x.double() @ weight.double().T * 2**-5).to(dtype)), (m, n, k)


@each_variant
@each_dtype
@pytest.mark.parametrize("m", (1, 4, 16, 64, 1000))
def test_error_is_that_of_float32_sums(variant: Variant, dtype: torch.dtype, m: int):
    """As of float32, so of halves, also beyond float16 where the dtype is."""
    x, weight, scale, bias = layer(m, 300, 1000, dtype)
    x *= 1 if dtype == torch.float16 else 1e6
    want = x.double() @ weight.double().T * scale + bias
    terms = x.double().abs() @ weight.double().abs().T * scale + bias.abs()
    with variant.use():
        got = OPS.int8_weight_only_mm(x, weight, scale, bias).double()
    assert bool(((got - want).abs() <= 2e-6 * terms + torch.finfo(dtype).eps * 0.5001 * want.abs()).all())


@each_variant
@each_cut
@each_dtype
def test_inf_and_nan_spread_as_in_a_product_of_floats(variant: Variant, cut: str, dtype: torch.dtype):
    m, n = CUTS[cut](multiprocessors())
    x, weight, scale, _ = layer(m, n, 61, dtype)
    weight[4] = 0
    x[0, 7], x[m // 2, 60], x[m - 1, 3] = float("inf"), float("-inf"), float("nan")
    want = x.double() @ weight.double().T
    with variant.use():
        got = OPS.int8_weight_only_mm(x, weight, scale)
    assert torch.equal(got.isnan(), want.isnan()) and torch.equal(got.isinf(), want.isinf())


# --- bits ---------------------------------------------------------------------------------------------------
@each_variant
@each_dtype
@pytest.mark.parametrize("k", (256, 261))
def test_same_bits_from_run_to_run_and_of_few_rows(variant: Variant, dtype: torch.dtype, k: int):
    x, *behind = layer(300, 192, k, dtype)
    with variant.use():
        for m in (8, 300):
            want = OPS.int8_weight_only_mm(x[:m], *behind, act="gelu")
            assert all(
                torch.equal(OPS.int8_weight_only_mm(x[:m], *behind, act="gelu"), want) for _ in range(3)
            )
        if variant.backend == "cpp":
            few = OPS.int8_weight_only_mm(x[:8], *behind)
            for m in range(1, 8):
                assert torch.equal(OPS.int8_weight_only_mm(x[:m], *behind), few[:m])


# --- about CUDA itself --------------------------------------------------------------------------------------
@each_variant
@on_cuda
@pytest.mark.parametrize("m", (1, 64))
def test_one_kernel_and_no_wait(variant: Variant, m: int):
    if not kernels_of(lambda: torch.ones(3, device=DEVICE).add_(1)):
        pytest.skip("torch.profiler sees no kernels on this machine")
    given = layer(m, 192, 256, torch.bfloat16)
    with variant.use():
        OPS.int8_weight_only_mm(*given)
        assert len(kernels_of(lambda: OPS.int8_weight_only_mm(*given))) == 1
        with no_sync():
            OPS.int8_weight_only_mm(*given)


@each_variant
@on_cuda
@pytest.mark.parametrize("m", (1, 64))
def test_replays_are_eager_calls(variant: Variant, m: int):
    x, *behind = layer(m, 192, 256, torch.bfloat16)
    with variant.use():
        on_a_side_stream(lambda: OPS.int8_weight_only_mm(x, *behind))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = OPS.int8_weight_only_mm(x, *behind)
        for _ in range(3):
            x.copy_(torch.randn(m, 256))
            graph.replay()
            assert torch.equal(found, OPS.int8_weight_only_mm(x, *behind))


@each_variant
@on_cuda
def test_packed_weights_are_refused(variant: Variant):
    packed = OPS.int8_pack(torch.ones(3, 6, dtype=torch.int8)).to(DEVICE)
    with variant.use(), pytest.raises(RuntimeError, match=PACKED):
        OPS.int8_weight_only_mm(torch.ones(4, 6, device=DEVICE), packed, torch.ones(3, device=DEVICE))
