"""Outputs of the 8-bit product that are quantized again: bits of `quantize`; layers that stay in 8 bits."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onepass.testing import CASES, variants
from onepass.testing.threads import threads
from torch import Tensor
from torch.nn import functional

OPS = torch.ops.onepass
VARIANTS = [v for v in variants("cpu") if v.backend != "triton"]
each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)
each_zero_point = pytest.mark.parametrize("zero_point", (None, 0, 99, 255), ids=str)
ACTS = (None, "relu", "gelu", "silu")
# Of panels and tiles: below, at and above their widths; one row, few rows, many.
SHAPES = [(3, 1, 1), (3, 100, 301), (4, 16, 40), (9, 37, 70), (16, 48, 64), (53, 19, 33), (200, 130, 300)]


def _call(m: int, n: int, k: int, seed: int = 0, signed: bool = True, spoil: bool = True) -> dict[str, Any]:
    """spoil: a row has no scale that is a number, one an infinite one."""
    rng = torch.Generator().manual_seed(seed)
    rows = torch.rand(m, 1, generator=rng) * 0.02
    if spoil:
        rows[1], rows[2] = float("nan"), float("inf")
    low, high, dtype = (-127, 128, torch.int8) if signed else (0, 256, torch.uint8)
    return {
        "input": torch.randint(low, high, (m, k), generator=rng, dtype=dtype),
        "weight": torch.randint(-127, 128, (n, k), generator=rng, dtype=torch.int8),
        "input_scale": rows,
        "weight_scale": torch.rand(n, generator=rng) * 0.02,
        "input_zero_point": None
        if signed
        else torch.randint(0, 256, (m, 1), generator=rng, dtype=torch.int32),
        "bias": torch.randn(n, generator=rng),
    }


def _grid(scale: float, zero_point: int | None) -> dict[str, Any]:
    """The arguments that ask for 8 bits again."""
    return {
        "dtype": torch.int8 if zero_point is None else torch.uint8,
        "output_scale": torch.tensor(scale),
        "output_zero_point": None if zero_point is None else torch.tensor(zero_point, dtype=torch.int32),
    }


def _in_two_steps(call: dict[str, Any], grid: dict[str, Any]) -> Tensor:
    """The same product in float32, and `quantize` behind it."""
    given = {"group_size": 0, "symmetric": grid["dtype"] == torch.int8}
    return OPS.quantize(OPS.int8_mm(**call), grid["output_scale"], grid["output_zero_point"], **given)[0]


# --- bits -------------------------------------------------------------------------------------------------
@each_variant
@each_zero_point
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("m, n, k", SHAPES)
def test_bits_are_those_of_quantize(variant, m: int, n: int, k: int, act: str | None, zero_point: int | None):
    """For weights as they are and packed; about a third of the outputs is cut off at an end."""
    for signed in (True, False):
        call = {**_call(m, n, k, signed=signed), "act": act}
        with variant.use():
            size = OPS.int8_mm(**call).nan_to_num(0, 0, 0).abs().mean()
            grid = _grid(float(size) / 100 + 1e-6, zero_point)
            for weight in (call["weight"], OPS.int8_pack(call["weight"])):
                call["weight"] = weight
                got = OPS.int8_mm(**call, **grid)
                assert got.dtype == grid["dtype"] and torch.equal(got, _in_two_steps(call, grid))
        assert bool((got[1] == (zero_point or 0)).all()), "NaN is zero"


@each_variant
@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 70),
    st.integers(0, 70),
    st.integers(0, 70),
    st.sampled_from(ACTS),
    st.none() | st.integers(0, 255),
    st.floats(-3, 3),
    st.integers(0, 99),
)
def test_any_shape(
    variant, m: int, n: int, k: int, act: str | None, zero_point: int | None, size: float, seed: int
):
    call = {**_call(m, n, k, seed, spoil=False, signed=seed % 2 == 0), "act": act}
    grid = _grid(10**size, zero_point)
    with variant.use():
        assert torch.equal(OPS.int8_mm(**call, **grid), _in_two_steps(call, grid))


@each_variant
@each_zero_point
@pytest.mark.parametrize("scale", (float("nan"), float("inf"), 0.0, -0.5, 1e-45, 1e-38, 3e38))
def test_scales_that_are_no_scales(variant, scale: float, zero_point: int | None):
    """What becomes of them is what `quantize` makes of them: 0 / 0 is NaN, and NaN is zero."""
    call, grid = _call(9, 37, 70), _grid(scale, zero_point)
    call["bias"][5], call["weight_scale"][5] = 0, 0
    with variant.use():
        assert torch.equal(OPS.int8_mm(**call, **grid), _in_two_steps(call, grid))


@each_variant
@each_zero_point
def test_ties_go_to_even_and_ends_are_kept(variant, zero_point: int | None):
    sums = torch.arange(-127, 128, dtype=torch.int8)[:, None].expand(-1, 20)
    eye = torch.eye(20, dtype=torch.int8)
    low, high = (-127, 127) if zero_point is None else (0, 255)
    for scale in (2.0, 0.25):
        with variant.use():
            got = OPS.int8_mm(sums, eye, **_grid(scale, zero_point))
        want = (torch.round(sums / scale) + (zero_point or 0)).clamp(low, high)
        assert torch.equal(got, want.to(got.dtype))


# --- arguments --------------------------------------------------------------------------------------------
@each_variant
def test_a_grid_of_one_dimension_or_none_and_from_within_a_tensor(variant):
    call = _call(9, 37, 70)
    scales, zeros = torch.tensor([1.0, 0.37, 2.0]), torch.tensor([1, 99, 2], dtype=torch.int32)
    grids = [(scales[1], zeros[1]), (scales[1:2], zeros[1:2]), (scales[::2][:1] * 0 + 0.37, zeros[1])]
    empty = torch.empty(0, dtype=torch.int32)
    with variant.use():
        for scale, zero in grids:
            got = OPS.int8_mm(**call, dtype=torch.uint8, output_scale=scale, output_zero_point=zero)
            assert torch.equal(got, _in_two_steps(call, _grid(0.37, 99)))
            got = OPS.int8_mm(**call, dtype=torch.int8, output_scale=scale, output_zero_point=empty)
            assert torch.equal(got, _in_two_steps(call, _grid(0.37, None)))


@each_variant
def test_memory_of_any_layout_and_rows_in_batches(variant):
    call = _call(24, 37, 70)
    turned = {
        **call,
        "input": call["input"].t().contiguous().t(),
        "weight": call["weight"].t().contiguous().t(),
    }
    batched = {
        **call,
        "input": call["input"].view(2, 3, 4, 70),
        "input_scale": call["input_scale"].view(2, 3, 4, 1),
    }
    with variant.use():
        want = OPS.int8_mm(**call, **_grid(0.37, 99))
        assert torch.equal(OPS.int8_mm(**turned, **_grid(0.37, 99)), want)
        assert torch.equal(OPS.int8_mm(**batched, **_grid(0.37, 99)), want.view(2, 3, 4, 37))


@each_variant
def test_same_bits_for_any_number_of_threads(variant):
    call = {**_call(210, 333, 515), "act": "silu"}
    outcomes = []
    with variant.use():
        for count in (1, 2, 3, 8):
            with threads(count):
                outcomes.append(OPS.int8_mm(**call, **_grid(0.37, 99)))
    assert all(torch.equal(outcome, outcomes[0]) for outcome in outcomes)


@pytest.mark.parametrize("m", (1, 200))
def test_no_tensor_of_real_outputs_is_made(m: int):
    """What the op takes from the allocator: a byte an output, and what does not grow with both m and n."""
    call = _call(m, 512, 64, spoil=False)
    call["weight"] = OPS.int8_pack(call["weight"])
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        OPS.int8_mm(**call, **_grid(0.37, None))
    taken = sum(max(0, e.self_cpu_memory_usage) for e in profile.events())
    assert m * 512 <= taken < 1.5 * m * 512


@pytest.mark.parametrize("name", ("to_8_bits_plain", "to_8_bits_unsigned"))
def test_opcheck_and_compile(name: str):
    call = next(case for case in CASES["int8_mm"] if case.name == name)(0, torch.float32)
    torch.library.opcheck(OPS.int8_mm.default, (), call)
    torch._dynamo.reset()
    compiled = torch.compile(lambda: OPS.int8_mm(**call), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(), OPS.int8_mm(**call))


# --- layers that stay in 8 bits ---------------------------------------------------------------------------
@each_variant
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("symmetric", (True, False))
def test_two_layers_that_stay_in_8_bits(variant, act: str | None, symmetric: bool):
    """Beside the same two layers in float64, whose hidden numbers are not rounded: each is off by half a step
    at most, which the second layer multiplies."""
    first, second = _call(33, 70, 90, spoil=False), _call(33, 40, 70, seed=1)
    weights = [call["weight"].double() * call["weight_scale"][:, None] for call in (first, second)]
    hidden = first["input"].double() * first["input_scale"] @ weights[0].T + first["bias"]
    hidden = hidden if act is None else getattr(functional, act)(hidden)
    with variant.use():
        _, scale, zero_point = OPS.quantize(hidden.float(), group_size=0, symmetric=symmetric)
        grid = {"output_scale": scale, "output_zero_point": zero_point}
        h = OPS.int8_mm(**first, act=act, dtype=torch.int8 if symmetric else torch.uint8, **grid)
        y = OPS.int8_mm(h, second["weight"], scale, second["weight_scale"], zero_point, second["bias"])
    want = hidden @ weights[1].T + second["bias"]
    # What is cut off beside half a step: the range reaches to a rounding of its ends.
    half = 0.5 * float(scale) * (1 + 1e-4) + 1e-6 * hidden.abs().max()
    allowed = half * weights[1].abs().sum(1) + 1e-6 * (hidden.abs() @ weights[1].abs().T + 1)
    assert bool(((y - want).abs() <= allowed).all())
    assert float((y - want).norm() / want.norm()) < 0.02
