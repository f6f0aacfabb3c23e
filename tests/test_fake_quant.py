"""Fake quantization: bit for bit what quantize and dequantize make, and its gradients against autograd."""

import os
import subprocess
import sys

import pytest
import torch
from conftest import need
from hypothesis import given, settings
from hypothesis import strategies as st
from onepass.backends import target
from onepass.ops import BY_NAME
from onepass.testing import variants
from onepass.testing.threads import threads
from torch import Tensor

OPS = torch.ops.onepass
REAL = (torch.float32, torch.bfloat16, torch.float16)
each_variant = pytest.mark.parametrize("variant", variants("cpu"), ids=str)
each_dtype = pytest.mark.parametrize("dtype", REAL, ids=str)
each_sign = pytest.mark.parametrize("symmetric", (True, False), ids=("symmetric", "asymmetric"))
each_bits = pytest.mark.parametrize("bits", (7, 8))
each_group = pytest.mark.parametrize("group_size", (-1, 0, 1, 3, 16, 19, 64))
_forward, _backward = (target(BY_NAME[name].reference) for name in ("fake_quant_fwd", "fake_quant_bwd"))
_BAD = (float("nan"), float("inf"), float("-inf"), 1e30, -1e30)


def _x(*shape: int, seed: int = 0, std: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * std


def _given(x: Tensor, group_size: int, symmetric: bool, bits: int) -> tuple[Tensor, Tensor | None]:
    """Scales by which some values are cut off."""
    _, scale, zero_point = OPS.quantize(x, group_size=group_size, symmetric=symmetric, bits=bits)
    return scale.nan_to_num(nan=0.03) * 0.6, None if symmetric else zero_point


def _bits_of(t: Tensor) -> Tensor:
    """As integers; of NaN there is one only."""
    t = torch.where(t.isnan(), torch.nan, t)
    return t.contiguous().view(torch.int32 if t.dtype == torch.float32 else torch.int16)


def _unpacked(mask: Tensor, like: Tensor) -> Tensor:
    bits = mask[:, None] >> torch.arange(8, dtype=torch.uint8) & 1
    return bits.flatten()[: like.numel()].view(like.shape).bool()


def _skip_unless_rounded(variant, dtype: torch.dtype) -> None:
    if variant.backend == "triton" and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter cuts bfloat16 off")


# --- forward ----------------------------------------------------------------------------------------------
@each_variant
@each_dtype
@each_group
@each_bits
@each_sign
@pytest.mark.parametrize("known", (False, True), ids=("found", "given"))
def test_bit_equal_to_quantize_and_dequantize(
    variant, dtype: torch.dtype, group_size: int, bits: int, symmetric: bool, known: bool
):
    _skip_unless_rounded(variant, dtype)
    x = _x(21, 83)
    x[3, 5:10] = torch.tensor(_BAD)
    x = x.to(dtype)
    options = {"group_size": group_size, "symmetric": symmetric, "bits": bits}
    grid = _given(x, **options) if known else (None, None)
    with variant.use():
        values, *kept = OPS.quantize(x, *grid, **options)
        want = OPS.dequantize(values, *kept, group_size=group_size, dtype=dtype)
        output, mask, *ours = OPS.fake_quant_fwd(x, *grid, **options)
    assert output.dtype == dtype and torch.equal(_bits_of(output), _bits_of(want))
    assert torch.equal(_bits_of(ours[0]), _bits_of(kept[0])) and torch.equal(ours[1], kept[1])
    assert torch.equal(mask, _forward(x, *grid, **options)[1])


@each_variant
@each_sign
def test_mask_is_where_torchs_fake_quantize_passes_gradients(variant, symmetric: bool):
    """Half a step beyond the range, too, where ties go to even."""
    x = torch.cat([_x(20, 203), torch.arange(-260, 261, dtype=torch.float32).div(2)[None, :203] * 0.02])
    x = torch.cat([x, torch.arange(-150, 150, 0.5)[None, -203:] * 0.5])
    scale = torch.full((22, 1), 0.02)
    scale[21] = 0.5
    zero_point = None if symmetric else torch.randint(0, 256, (22, 1), dtype=torch.int32)
    zeros = torch.zeros(22, dtype=torch.int32) if symmetric else zero_point.view(-1)
    low, high = (-127, 127) if symmetric else (0, 255)
    leaf = x.clone().requires_grad_()
    want = torch.fake_quantize_per_channel_affine(leaf, scale.view(-1), zeros, 0, low, high)
    want.backward(torch.ones_like(x))
    with variant.use():
        output, mask, _, _ = OPS.fake_quant_fwd(x, scale, zero_point, symmetric=symmetric)
    assert torch.equal(output, want.detach())
    inside = _unpacked(mask, x)
    assert torch.equal(inside.float(), leaf.grad) and 0 < inside.sum() < x.numel()


@each_variant
def test_what_is_not_a_number_is_not_inside(variant):
    x = torch.tensor([[0.3, *_BAD, 0.1, 0.2, -0.1], [1.0] * 9])
    with variant.use():
        output, mask, _, _ = OPS.fake_quant_fwd(x, torch.tensor([[0.25], [float("nan")]]))
        found, nothing, _, _ = OPS.fake_quant_fwd(x[:1])
    assert output[0].tolist() == [0.25, 0, 31.75, -31.75, 31.75, -31.75, 0, 0.25, 0]
    assert output[1].isnan().all() and found.isnan().all()
    assert mask.tolist() == [0b11000001, 0b00000001, 0] and nothing.tolist() == [0, 0]


@each_variant
@each_dtype
def test_memory_that_begins_anywhere(variant, dtype: torch.dtype):
    x = _x(5 * 72 + 3).to(dtype)[3:].view(5, 72)
    with variant.use():
        got, want = OPS.fake_quant_fwd(x), OPS.fake_quant_fwd(x.clone())
        grads = OPS.fake_quant_bwd(x, got[1], x, got[2])
        wanted = OPS.fake_quant_bwd(x.clone(), want[1], x.clone(), want[2])
    assert all(map(torch.equal, (*got, *grads), (*want, *wanted)))


# --- gradients --------------------------------------------------------------------------------------------
def _straight_through(x: Tensor, scale: Tensor, zero_point: Tensor | None, low: int, high: int) -> Tensor:
    """The formula in float64 for autograd, rows as groups: rounding passes gradients on, cutting off does
    not. Which q is nearest is decided in float32."""
    zero = 0 if zero_point is None else zero_point
    nearest = (x.detach().float() * (1 / scale.detach().float())).round() + zero
    inside, q = (nearest >= low) & (nearest <= high), nearest.nan_to_num(nan=0.0).clamp(low, high)
    moving = torch.where(inside, x / scale, (q - zero).double())
    return (moving + (q - zero - moving).detach()) * scale


@each_variant
@each_dtype
@each_sign
@each_bits
@pytest.mark.parametrize("columns", (5, 203, 4096, 17_001))
def test_gradients_are_autograds_of_the_formula(
    variant, dtype: torch.dtype, symmetric: bool, bits: int, columns: int
):
    _skip_unless_rounded(variant, dtype)
    x, grad = _x(7, columns).to(dtype), _x(7, columns, seed=1).to(dtype)
    scale, zero_point = _given(x, -1, symmetric, bits)
    options = {"symmetric": symmetric, "bits": bits}
    with variant.use():
        _, mask, _, _ = OPS.fake_quant_fwd(x, scale, zero_point, **options)
        dx, dscale = OPS.fake_quant_bwd(grad, mask, x, scale, zero_point, **options)
        alone, none = OPS.fake_quant_bwd(grad, mask, **options)
    half = 2 ** (bits - 1) - 1
    low, high = (-half, half) if symmetric else (0, 2**bits - 1)
    leaves = x.double().requires_grad_(), scale.double().requires_grad_()
    _straight_through(*leaves, zero_point, low, high).backward(grad.double())
    assert dx.dtype == dtype and torch.equal(dx.double(), leaves[0].grad)
    assert torch.equal(alone, dx) and none.shape == (0,)
    assert dscale.dtype == torch.float32 and dscale.shape == scale.shape
    want = leaves[1].grad
    assert (dscale - want).norm() <= 1e-6 * want.norm()


@each_variant
@each_dtype
@each_group
@each_sign
def test_any_group_has_its_gradient(variant, dtype: torch.dtype, group_size: int, symmetric: bool):
    """1e-6 of what is summed, in float64."""
    _skip_unless_rounded(variant, dtype)
    x, grad = _x(21, 83).to(dtype), _x(21, 83, seed=1).to(dtype)
    options = {"group_size": group_size, "symmetric": symmetric}
    scale, zero_point = _given(x, **options, bits=8)
    with variant.use():
        mask = OPS.fake_quant_fwd(x, scale, zero_point, **options)[1]
        dx, dscale = OPS.fake_quant_bwd(grad, mask, x, scale, zero_point, **options)
    wanted, sums = _backward(grad, mask, x, scale, zero_point, **options)
    sizes = _backward(grad.abs(), mask, x, scale, zero_point, **options)[1].abs()
    assert torch.equal(dx, wanted) and torch.equal(dx, torch.where(_unpacked(mask, x), grad, 0.0))
    assert (dscale - sums).norm() <= 1e-6 * sums.norm()
    assert ((dscale - sums).abs() <= 1e-6 * torch.maximum(sizes, sums.abs().mean())).all()


@each_variant
@each_dtype
def test_what_is_cut_off_has_a_gradient_of_zero_whatever_comes(variant, dtype: torch.dtype):
    grad = torch.tensor(_BAD[:3] * 7, dtype=dtype).view(3, 7)
    mask = torch.tensor([0b10110001, 0, 0b11101], dtype=torch.uint8)
    with variant.use():
        dx, _ = OPS.fake_quant_bwd(grad, mask)
    inside = _unpacked(mask, grad)
    assert torch.equal(_bits_of(dx), _bits_of(torch.where(inside, grad, 0.0)))
    assert (dx[~inside].view(torch.int32 if dtype == torch.float32 else torch.int16) == 0).all()


# --- any shape, any layout, any number of threads ---------------------------------------------------------
@st.composite
def _call(draw) -> tuple[Tensor, dict, bool]:
    shape = draw(st.lists(st.integers(0, 40), min_size=0, max_size=4))
    x = _x(*shape, std=draw(st.sampled_from((1e-3, 1.0, 1e4))), seed=draw(st.integers(0, 99)))
    if x.numel() > 0 and draw(st.booleans()):
        x.view(-1)[draw(st.integers(0, x.numel() - 1))] = draw(st.sampled_from(_BAD))
    kind = draw(st.sampled_from(("dense", "turned", "step", "expanded")))
    if kind == "turned" and x.dim() > 1:
        x = x.transpose(0, 1)
    if kind == "step" and x.dim() > 0:
        x = x.repeat_interleave(2, -1)[..., ::2]
    if kind == "expanded" and x.dim() > 0:
        x = x[..., :1].expand(x.shape)
    options = {
        "group_size": draw(st.sampled_from((-1, 0, 1, 3, 16, 19))),
        "symmetric": draw(st.booleans()),
        "bits": draw(st.sampled_from((7, 8))),
    }
    return x.to(draw(st.sampled_from((torch.float32, torch.bfloat16)))), options, draw(st.booleans())


@settings(max_examples=200, deadline=None)
@given(_call())
def test_any_shape_and_layout_is_bit_equal_to_the_reference(call):
    x, options, known = call
    grid = _given(x, **options) if known else (None, None)
    got, want = OPS.fake_quant_fwd(x, *grid, **options), _forward(x, *grid, **options)
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
    ours, theirs = OPS.fake_quant_bwd(x, got[1], **options)[0], _backward(x, got[1], **options)[0]
    assert ours.is_contiguous()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


@each_sign
@each_dtype
@pytest.mark.parametrize(
    "shape, group_size",
    (
        ((301, 1003), -1),
        ((301, 1003), 64),
        ((301, 1003), 0),
        ((3, 90_001), -1),
        ((2, 100_003), 40_001),
        ((65, 4095), 7),
    ),
)
def test_same_bits_for_any_number_of_threads(
    symmetric: bool, dtype: torch.dtype, shape: tuple[int, ...], group_size: int
):
    x, first = _x(*shape).to(dtype), None
    options = {"group_size": group_size, "symmetric": symmetric}
    grid = _given(x, **options, bits=8)
    for count in (1, 2, 3, 8):
        with threads(count):
            got = [*OPS.fake_quant_fwd(x, **options), *OPS.fake_quant_fwd(x, *grid, **options)]
            got += OPS.fake_quant_bwd(x, got[5], x, *grid, **options)
        first = first or got
        assert all(map(torch.equal, got, first))
    want = [*_forward(x, **options), *_forward(x, *grid, **options)]
    assert all(map(torch.equal, first, want))


@pytest.mark.parametrize("variant", [v for v in variants("cpu") if v.backend == "triton"], ids=str)
@pytest.mark.parametrize("shape, group_size", (((9, 64), -1), ((9, 83), 19), ((9, 83), 0)))
def test_offsets_of_64_bits(variant, monkeypatch, shape: tuple[int, int], group_size: int):
    """As tensors of 2^31 elements have."""
    import triton.language as tl

    x, options = _x(*shape), {"group_size": group_size, "symmetric": False}
    grid = _given(x, **options, bits=8)

    def run() -> list[Tensor]:
        with variant.use():
            got = [*OPS.fake_quant_fwd(x, **options), *OPS.fake_quant_fwd(x, *grid, **options)]
            return [
                *got,
                *OPS.fake_quant_bwd(x, got[5], x, *grid, **options),
                OPS.fake_quant_bwd(x, got[5])[0],
            ]

    want = run()
    monkeypatch.setattr("onepass.kernels.fake_quant._index", lambda numel: tl.int64)
    assert all(map(torch.equal, run(), want))


# --- in Triton's interpreter ------------------------------------------------------------------------------
@pytest.mark.slow
def test_the_same_under_the_interpreter():
    """Which has to be chosen before Triton is imported."""
    need("triton")
    command = [sys.executable, "-m", "pytest", __file__, "-p", "no:cacheprovider", "-k", "triton"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-3000:]
