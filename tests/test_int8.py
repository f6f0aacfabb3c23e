"""The 8-bit matrix product: exact sums for any shape, and how far a linear layer in 8 bits is from floats."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onepass.testing import variants
from onepass.testing.threads import threads
from torch import Tensor
from torch.nn import functional

OPS = torch.ops.onepass
VARIANTS = [v for v in variants("cpu") if v.backend != "triton"]
each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)


def _whole(*shape: int, low: int = -127, high: int = 127, seed: int = 0, extreme: bool = False) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    dtype = torch.uint8 if high > 127 else torch.int8
    if extreme:
        return torch.tensor([low, high], dtype=dtype)[torch.randint(2, shape, generator=rng)]
    return torch.randint(low, high + 1, shape, generator=rng, dtype=dtype)


def _exact(x: Tensor, weight: Tensor) -> Tensor:
    return (x.long() @ weight.long().T).int()


# --- exact sums -------------------------------------------------------------------------------------------
@each_variant
@pytest.mark.parametrize("k", (1, 4, 130, 1027, 16_384))
@pytest.mark.parametrize("signed", (True, False))
@pytest.mark.parametrize("extreme", (True, False))
def test_sums_are_exact(variant, k: int, signed: bool, extreme: bool):
    """Of 255 * 127 * 2 only half fits the 16 bits in which AVX2 adds two products."""
    x = _whole(14, k, extreme=extreme) if signed else _whole(14, k, low=0, high=255, extreme=extreme)
    weight = _whole(35, k, seed=1, extreme=extreme)
    with variant.use():
        packed = OPS.int8_pack(weight)
        for w in (packed, weight):
            for rows in (14, 1):
                assert torch.equal(OPS.int8_mm(x[:rows], w, dtype=torch.int32), _exact(x[:rows], weight))


@each_variant
def test_an_input_of_minus_128_is_exact(variant):
    x, weight = torch.full((5, 4096), -128, dtype=torch.int8), torch.full((17, 4096), 127, dtype=torch.int8)
    weight[::2] = -127
    with variant.use():
        assert torch.equal(OPS.int8_mm(x, weight, dtype=torch.int32), _exact(x, weight))


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 300),
    st.integers(0, 300),
    st.integers(0, 300),
    st.booleans(),
    st.sampled_from(VARIANTS),
    st.integers(0, 99),
)
def test_any_shape_is_exact(m: int, n: int, k: int, signed: bool, variant, seed: int):
    x = _whole(m, k, seed=seed) if signed else _whole(m, k, low=0, high=255, seed=seed)
    weight = _whole(n, k, seed=seed + 1)
    zero_point = torch.randint(-300, 300, (m, 1), dtype=torch.int32)
    with variant.use():
        packed = OPS.int8_pack(weight)
        got = OPS.int8_mm(x, packed, dtype=torch.int32, input_zero_point=zero_point)
        assert torch.equal(OPS.int8_unpack(packed, n, k), weight)
    assert torch.equal(got, ((x.long() - zero_point) @ weight.long().T).int())


@each_variant
def test_packed_weights_are_the_same_for_all(variant):
    weight = _whole(70, 131)
    with variant.use():
        packed = OPS.int8_pack(weight)
    assert torch.equal(packed, OPS.int8_pack(weight))
    assert packed.numel() == 64 + 80 * 4 + 5 * 33 * 64


@each_variant
@pytest.mark.parametrize("m", (1, 3, 50, 300))
def test_same_bits_for_any_number_of_threads(variant, m: int):
    x, weight, scale = torch.randn(m, 515), OPS.int8_pack(_whole(333, 515)), torch.rand(333)
    with variant.use():
        outcomes = []
        for count in (1, 2, 3, 8):
            with threads(count):
                outcomes.append(OPS.int8_linear(x, weight, scale, act="silu"))
    assert all(torch.equal(outcome, outcomes[0]) for outcome in outcomes)


@each_variant
def test_a_row_does_not_depend_on_the_others(variant):
    """However many there are: the heights of tiles, and with them the kernels, follow m."""
    x, weight, scale = torch.randn(29, 200), OPS.int8_pack(_whole(50, 200)), torch.rand(50)
    with variant.use():
        whole = OPS.int8_linear(x, weight, scale)
        for m in (1, 2, 5, 13):
            assert torch.equal(OPS.int8_linear(x[:m], weight, scale), whole[:m])


# --- the linear layer -------------------------------------------------------------------------------------
@each_variant
@pytest.mark.parametrize("symmetric", (True, False))
@pytest.mark.parametrize("bits", (7, 8))
@pytest.mark.parametrize("act", (None, "relu", "gelu", "silu"))
def test_linear_is_quantize_and_product(variant, symmetric: bool, bits: int, act: str | None):
    x, weight, scale, bias = torch.randn(23, 90), _whole(41, 90), torch.rand(41) * 0.01, torch.randn(41)
    with variant.use():
        got = OPS.int8_linear(x, weight, scale, bias, symmetric=symmetric, bits=bits, act=act)
        q, input_scale, zero_point = OPS.quantize(x, symmetric=symmetric, bits=bits)
        want = OPS.int8_mm(q, weight, input_scale, scale, zero_point, bias, act=act)
    assert torch.equal(got, want)


def _error(y: Tensor, want: Tensor) -> float:
    return ((y - want).norm() / want.norm()).item()


def _torchs(x: Tensor, weight: Tensor) -> Tensor:
    """torch's dynamic quantization, with its defaults."""
    layer = torch.nn.Linear(*weight.shape[::-1], bias=False)
    layer.weight.data = weight
    model = torch.ao.quantization.quantize_dynamic(torch.nn.Sequential(layer), {torch.nn.Linear}, torch.qint8)
    return model(x)


@pytest.mark.parametrize(
    "values, symmetric, bound",
    (
        ("gauss", True, 0.6),
        ("outlier channels", True, 0.4),
        ("token scales", True, 0.4),
        ("relu", False, 1.0),
    ),
)
@pytest.mark.filterwarnings("ignore")
def test_error_beside_torchs_dynamic_default(values: str, symmetric: bool, bound: float):
    rng = torch.Generator().manual_seed(0)
    x, weight = torch.randn(256, 512, generator=rng), torch.randn(384, 512, generator=rng) / 512**0.5
    if values == "outlier channels":
        x[:, ::97] *= 30
    if values == "token scales":
        x *= torch.logspace(-2, 1, 256)[:, None]
    if values == "relu":
        x = x.relu()
    q, scale, _ = OPS.quantize(weight)
    want = functional.linear(x.double(), weight.double())
    ours = OPS.int8_linear(x, q, scale, symmetric=symmetric)
    relative = lambda y: ((y - want).norm(dim=1) / want.norm(dim=1)).mean().item()  # noqa: E731
    print(f"{values}: {relative(ours):.4f}, torch {relative(_torchs(x, weight)):.4f}")
    assert relative(ours) <= bound * relative(_torchs(x, weight))


@each_variant
def test_rows_with_inf_or_nan_become_nan_and_zeros_are_exact(variant):
    x, weight, bias = torch.randn(5, 60), _whole(20, 60), torch.randn(20)
    x[1, 7], x[2, 9], x[3] = float("nan"), float("-inf"), 0
    with variant.use():
        y = OPS.int8_linear(x, weight, torch.rand(20), bias)
    assert y[[1, 2]].isnan().all() and not y[[0, 3, 4]].isnan().any()
    assert torch.equal(y[3], bias)


@each_variant
def test_scales_whose_product_comes_first_would_overflow(variant):
    x, scale = torch.full((1, 4), 1e38), torch.full((1,), 1e-3 / 127)
    with variant.use():
        y = OPS.int8_linear(x, torch.full((1, 4), 127, dtype=torch.int8), scale)
    assert y.item() == pytest.approx(4e35, rel=1e-5)


@pytest.mark.slow
def test_more_rows_than_are_kept_at_a_time():
    x, weight = torch.randn(2_100, 9_000), _whole(17, 9_000)
    scale, packed = torch.rand(17), OPS.int8_pack(weight)
    got = OPS.int8_linear(x, packed, scale)
    for first in range(0, 2_100, 700):
        assert torch.equal(got[first : first + 700], OPS.int8_linear(x[first : first + 700], packed, scale))


@each_variant
def test_bfloat16_beyond_float16(variant):
    x = torch.tensor([[1e5, -3e38, 2e30, 0.0]], dtype=torch.bfloat16)
    with variant.use():
        y = OPS.int8_linear(x, torch.tensor([[1, 1, 1, 1]], dtype=torch.int8), torch.ones(1))
    assert y.item() == pytest.approx(-3e38, rel=0.01)
