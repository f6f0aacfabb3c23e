"""Real numbers by 8-bit weights: exact where floats are, any shape; the same bits however a call is cut."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onepass.testing import variants
from onepass.testing.threads import threads
from torch import Tensor
from torch.nn import functional

OPS = torch.ops.onepass
REAL = (torch.float32, torch.bfloat16, torch.float16)
VARIANTS = [v for v in variants("cpu") if v.backend != "triton"]
COMPILED = [v for v in VARIANTS if v.backend == "cpp"]
each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)
each_compiled = pytest.mark.parametrize("variant", COMPILED, ids=str)


def _rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _weight(n: int, k: int, seed: int = 1) -> Tensor:
    return torch.randint(-127, 128, (n, k), generator=_rng(seed), dtype=torch.int8)


def _x(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=_rng(seed))


# --- values -----------------------------------------------------------------------------------------------
@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 300),
    st.integers(0, 300),
    st.integers(0, 300),
    st.booleans(),
    st.sampled_from(VARIANTS),
    st.integers(0, 99),
)
def test_any_shape_is_exact_where_floats_are(m: int, n: int, k: int, packed: bool, variant, seed: int):
    """Sums of small whole numbers have room in a float32, in any order."""
    x = torch.randint(-8, 9, (m, k), generator=_rng(seed))
    weight, scale = _weight(n, k, seed), torch.full((n,), 0.25)
    with variant.use():
        got = OPS.int8_weight_only_mm(x.float(), OPS.int8_pack(weight) if packed else weight, scale)
    assert torch.equal(got, (x @ weight.long().T).float() * 0.25)


@each_variant
@pytest.mark.parametrize("act", (None, "relu", "gelu", "silu"))
@pytest.mark.parametrize("m, n, k", ((1, 35, 2_051), (2, 17, 64), (3, 16, 261), (5, 33, 300), (61, 50, 999)))
def test_error_is_that_of_float32_sums(variant, act: str | None, m: int, n: int, k: int):
    """Of every fourth product, and a few roundings behind them; no activation has a slope above 1.2."""
    x, weight, scale, bias = _x(m, k), _weight(n, k), torch.rand(n, generator=_rng(2)), _x(n, seed=3)
    behind = {None: lambda y: y, **{name: getattr(functional, name) for name in ("relu", "gelu", "silu")}}
    want = behind[act](x.double() @ weight.double().T * scale + bias)
    size = x.double().abs() @ weight.double().abs().T * scale + bias.abs()
    with variant.use():
        got = OPS.int8_weight_only_mm(x, weight, scale, bias, act=act)
    assert ((got - want).abs() <= 1.2 * (k / 4 + 8) * 2**-24 * size).all()


@each_compiled
@pytest.mark.parametrize("dtype", REAL[1:])
@pytest.mark.parametrize("m, k", ((1, 70), (4, 64), (30, 301)))
def test_halves_are_multiplied_as_floats_and_rounded_once(variant, dtype: torch.dtype, m: int, k: int):
    x, weight, scale, bias = _x(m, k).to(dtype), _weight(37, k), torch.full((37,), 0.01), _x(37)
    with variant.use():
        got = OPS.int8_weight_only_mm(x, weight, scale, bias, act="silu")
        want = OPS.int8_weight_only_mm(x.float(), weight, scale, bias, act="silu")
    assert got.dtype == dtype and torch.equal(got, want.to(dtype))


@each_variant
@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("m", (1, 3, 9))
def test_inf_and_nan_spread_as_in_a_product_of_floats(variant, dtype: torch.dtype, m: int):
    """Also to where a weight is 0, and not to outputs and k that fill a panel up."""
    x, weight = _x(m, 61).to(dtype), _weight(20, 61)
    weight[4], weight[5, 7] = 0, 0
    x[0, 7], x[m // 2, 60], x[m - 1, 3] = float("inf"), float("-inf"), float("nan")
    want = functional.linear(x.double(), weight.double()) * 0.01
    with variant.use():
        got = OPS.int8_weight_only_mm(x, weight, torch.tensor(0.01)).double()
    assert torch.equal(got.isnan(), want.isnan()) and torch.equal(got.isinf(), want.isinf())
    assert torch.equal(got.sign()[want.isinf()], want.sign()[want.isinf()])
    assert got.isnan()[m - 1].all()


@each_compiled
def test_sums_overflow_before_they_are_scaled(variant):
    x, weight = torch.tensor([[2e36], [3e36]], dtype=torch.bfloat16), torch.tensor([[127]], dtype=torch.int8)
    with variant.use():
        y = OPS.int8_weight_only_mm(x, weight, torch.tensor(1 / 127))
    assert y[0].item() == pytest.approx(2e36, rel=0.01) and y[1].isinf()


@each_variant
def test_without_products_there_is_the_bias(variant):
    weight, bias = _weight(20, 0), _x(20)
    with variant.use():
        y = OPS.int8_weight_only_mm(torch.ones(3, 0), weight, torch.ones(20), bias)
        none = OPS.int8_weight_only_mm(torch.ones(0, 7), _weight(20, 7), torch.ones(20), bias)
    assert torch.equal(y, bias.expand(3, -1)) and none.shape == (0, 20)


# --- the same bits ----------------------------------------------------------------------------------------
@each_variant
@pytest.mark.parametrize("m", (1, 3, 50, 300))
@pytest.mark.parametrize("dtype", REAL)
def test_for_any_number_of_threads(variant, m: int, dtype: torch.dtype):
    x, weight, scale = _x(m, 515).to(dtype), OPS.int8_pack(_weight(333, 515)), torch.rand(333)
    with variant.use():
        outcomes = []
        for count in (1, 2, 3, 8):
            with threads(count):
                outcomes.append(OPS.int8_weight_only_mm(x, weight, scale, act="silu"))
    assert all(torch.equal(outcome, outcomes[0]) for outcome in outcomes)


@each_compiled
@pytest.mark.parametrize("k", (200, 261, 1_500))
def test_a_row_does_not_depend_on_the_others(variant, k: int):
    """Few rows take another path than many: their sums are rounded in the same order."""
    x, weight, scale = _x(29, k), OPS.int8_pack(_weight(50, k)), torch.rand(50)
    with variant.use():
        whole = OPS.int8_weight_only_mm(x, weight, scale)
        for m in (1, 2, 3, 4, 6, 7, 13):
            assert torch.equal(OPS.int8_weight_only_mm(x[:m], weight, scale), whole[:m])


@each_variant
@pytest.mark.parametrize("k", (64, 70))
def test_wherever_the_input_lies(variant, k: int):
    """float32 rows of whole fours are read where they are, others through a copy."""
    buffer, weight, scale = _x(9 * (k + 1) + 1), _weight(20, k), torch.rand(20)
    views = (
        buffer[1 : 1 + 9 * k].view(9, k),
        buffer[: 9 * k].view(k, 9).t(),
        buffer[: 9 * (k + 1)].view(9, k + 1)[:, 1:],
        buffer[:1].expand(9, k),
        buffer[: 9 * k].view(3, 3, k),
    )
    with variant.use():
        for x in views:
            want = OPS.int8_weight_only_mm(x.clone(memory_format=torch.contiguous_format), weight, scale)
            assert torch.equal(OPS.int8_weight_only_mm(x, weight, scale), want)
            assert torch.equal(OPS.int8_weight_only_mm(x, OPS.int8_pack(weight), scale), want)


@each_compiled
@pytest.mark.slow
def test_more_rows_than_are_kept_at_a_time(variant):
    x, weight = _x(2_100, 9_001).bfloat16(), _weight(17, 9_001)
    scale, packed = torch.rand(17), OPS.int8_pack(weight)
    with variant.use():
        got = OPS.int8_weight_only_mm(x, packed, scale)
        for first in range(0, 2_100, 700):
            some = OPS.int8_weight_only_mm(x[first : first + 700], packed, scale)
            assert torch.equal(got[first : first + 700], some)
