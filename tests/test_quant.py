"""Quantization to 8 bits: against torch's fake_quantize, its own bounds, and any shape, stride and value."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onepass.backends import target
from onepass.ops import BY_NAME
from onepass.testing import variants
from onepass.testing.threads import threads
from torch import Tensor

OPS = torch.ops.onepass
VARIANTS = variants("cpu")
each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)
each_sign = pytest.mark.parametrize("symmetric", (True, False))
_reference = target(BY_NAME["quantize"].reference)


def _x(*shape: int, std: float = 1.0, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * std


# --- against torch ----------------------------------------------------------------------------------------
@each_variant
@each_sign
def test_given_scales_as_torchs_fake_quantize(variant, symmetric: bool):
    x, scale = _x(37, 203), torch.rand(37, 1) * 0.02 + 0.01
    zero_point = None if symmetric else torch.randint(0, 256, (37, 1), dtype=torch.int32)
    zeros = torch.zeros(37, dtype=torch.int32) if symmetric else zero_point.view(-1)
    low, high = (-127, 127) if symmetric else (0, 255)
    want = torch.fake_quantize_per_channel_affine(x, scale.view(-1), zeros, 0, low, high)
    with variant.use():
        q, scales, kept = OPS.quantize(x, scale, zero_point, symmetric=symmetric)
        got = OPS.dequantize(q, scales, kept)
    assert torch.equal(got, want)
    assert torch.equal(scales, scale)


@each_variant
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16))
@pytest.mark.parametrize("bits", (7, 8))
@pytest.mark.parametrize("group_size", (-1, 0, 13))
def test_the_finest_symmetric_scale(variant, dtype: torch.dtype, bits: int, group_size: int):
    """The largest size of a group gets the highest level, and nothing is off by more than half a step."""
    x = _x(11, 65).to(dtype)
    with variant.use():
        q, scale, zero_point = OPS.quantize(x, group_size=group_size, bits=bits)
        back = OPS.dequantize(q, scale, group_size=group_size)
    top = 2 ** (bits - 1) - 1
    assert q.dtype == torch.int8 and zero_point.numel() == 0
    assert q.abs().max() == top and q.min() >= -top
    step = scale.expand(11, -1) if group_size == -1 else scale
    step = step.repeat_interleave(13, -1) if group_size == 13 else step
    assert ((back - x.float()).abs() <= step * (0.5 + 2**-16)).all()
    groups = {-1: x.unsqueeze(1), 0: x.reshape(1, 1, -1), 13: x.view(11, 5, 13)}[group_size]
    assert torch.equal(scale.flatten(), (groups.float().abs().amax(-1) / top).flatten())


@each_variant
@pytest.mark.parametrize("offset", (0.0, 3.0, -3.0, 100.0))
def test_zero_is_exact_in_an_asymmetric_range(variant, offset: float):
    x = _x(9, 70) + offset
    x[:, 5] = 0
    with variant.use():
        q, scale, zero_point = OPS.quantize(x, symmetric=False)
        back = OPS.dequantize(q, scale, zero_point)
    assert q.dtype == torch.uint8 and zero_point.shape == scale.shape == (9, 1)
    assert (back[:, 5] == 0).all()
    assert ((back - x).abs() <= scale * 1.01).all()


@each_variant
@each_sign
def test_what_is_quantized_again_stays_as_it_is(variant, symmetric: bool):
    with variant.use():
        q, scale, zero_point = OPS.quantize(_x(20, 90), symmetric=symmetric)
        back = OPS.dequantize(q, scale, zero_point)
        again = OPS.quantize(back, scale, None if symmetric else zero_point, symmetric=symmetric)[0]
    assert torch.equal(again, q)


# --- what is not a number ---------------------------------------------------------------------------------
@each_variant
@each_sign
@pytest.mark.parametrize("bad", (float("nan"), float("inf"), float("-inf")))
def test_a_group_with_inf_or_nan_becomes_nan(variant, symmetric: bool, bad: float):
    """As a float product with such a row would, and no other row does."""
    x = _x(4, 50)
    x[2, 31] = bad
    with variant.use():
        q, scale, zero_point = OPS.quantize(x, symmetric=symmetric)
        back = OPS.dequantize(q, scale, zero_point)
    assert back[2].isnan().all() and not back[[0, 1, 3]].isnan().any()
    assert torch.equal(back[[0, 1, 3]], OPS.dequantize(*OPS.quantize(x[[0, 1, 3]], symmetric=symmetric)))


@each_variant
@each_sign
def test_given_scales_cut_off_what_is_beyond(variant, symmetric: bool):
    x = torch.tensor([[float("nan"), float("inf"), float("-inf"), 1e30, -1e30, 0.0]])
    zero_point = None if symmetric else torch.tensor([[100]], dtype=torch.int32)
    with variant.use():
        q = OPS.quantize(x, torch.tensor([[0.5]]), zero_point, symmetric=symmetric)[0]
    assert q.tolist() == [[0, 127, -127, 127, -127, 0] if symmetric else [100, 255, 0, 255, 0, 100]]


@each_variant
@each_sign
@pytest.mark.parametrize("std", (0.0, 1e-40, 1e-38, 1e38))
def test_zeros_denormals_and_huge_values(variant, symmetric: bool, std: float):
    x = (_x(6, 40).clamp(-3, 3) * std).contiguous()
    with variant.use():
        q, scale, zero_point = OPS.quantize(x, symmetric=symmetric)
        back = OPS.dequantize(q, scale, zero_point)
    assert scale.isfinite().all() and (scale > 0).all()
    assert ((back.double() - x.double()).abs() <= scale.double() * 1.01).all()
    assert std > 0 or (q == zero_point if not symmetric else q == 0).all()


# --- any shape, any layout --------------------------------------------------------------------------------
@st.composite
def _call(draw) -> tuple[Tensor, int, bool, int]:
    shape = draw(st.lists(st.integers(0, 40), min_size=0, max_size=4))
    x = _x(*shape, std=draw(st.sampled_from((1e-3, 1.0, 1e4))), seed=draw(st.integers(0, 99)))
    if x.numel() > 0 and draw(st.booleans()):
        x.view(-1)[draw(st.integers(0, x.numel() - 1))] = draw(st.sampled_from((float("nan"), 1e30, -7e5)))
    kind = draw(st.sampled_from(("dense", "turned", "step", "expanded")))
    if kind == "turned" and x.dim() > 1:
        x = x.transpose(0, 1)
    if kind == "step" and x.dim() > 0:
        x = x.repeat_interleave(2, -1)[..., ::2]
    if kind == "expanded" and x.dim() > 0:
        x = x[..., :1].expand(x.shape)
    dtype = draw(st.sampled_from((torch.float32, torch.bfloat16)))
    return (
        x.to(dtype),
        draw(st.sampled_from((-1, 0, 1, 3, 16))),
        draw(st.booleans()),
        draw(st.sampled_from((7, 8))),
    )


@settings(max_examples=200, deadline=None)
@given(_call())
def test_any_shape_and_layout_is_bit_equal_to_the_reference(call):
    x, group_size, symmetric, bits = call
    options = {"group_size": group_size, "symmetric": symmetric, "bits": bits}
    got, want = OPS.quantize(x, **options), _reference(x, **options)
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
    back = OPS.dequantize(*got, group_size=group_size)
    assert back.shape == x.shape
    torch.testing.assert_close(
        back,
        target(BY_NAME["dequantize"].reference)(*want, group_size=group_size),
        rtol=0,
        atol=0,
        equal_nan=True,
    )


@each_sign
@pytest.mark.parametrize("group_size", (-1, 0, 64))
def test_same_bits_for_any_number_of_threads(symmetric: bool, group_size: int):
    x, first = _x(301, 1003), None
    for count in (1, 2, 3, 8):
        with threads(count):
            got = OPS.quantize(x, group_size=group_size, symmetric=symmetric)
        first = first or got
        assert all(map(torch.equal, got, first))
