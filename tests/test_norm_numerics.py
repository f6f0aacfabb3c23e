"""Batch normalization against float64: how far statistics, results and masks are off, and what inf and NaN
do."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onepass.nn import functional as ours
from onepass.norm_checks import dense_image
from onepass.ops import BY_NAME
from onepass.testing import variants
from onepass.testing.threads import threads
from torch import Tensor
from torch.nn import functional

OPS = torch.ops.onepass
VARIANTS = [v for v in variants("cpu") if v.backend != "triton" or BY_NAME["batch_norm_fwd"].triton]
each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
each_layout = pytest.mark.parametrize("layout", LAYOUTS)


def _images(shape: tuple[int, ...], mean: float = 0.0, std: float = 1.0, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=rng, dtype=torch.float64) * std + mean


def _exact(
    x: Tensor, z: Tensor | None = None, weight: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """The pre-activation in float64."""
    across = [d for d in range(x.dim()) if d != 1]
    x = x.double()
    centred = x - x.mean(across, keepdim=True)
    v = centred / (centred.square().mean(across, keepdim=True) + 1e-5).sqrt()
    shape = (1, -1, *[1] * (x.dim() - 2))
    v = v if weight is None else v * weight.double().view(shape) + bias.double().view(shape)
    return v if z is None else v + z.double()


def _forward(
    x: Tensor, z: Tensor | None = None, act: str | None = None, **more
) -> tuple[Tensor, Tensor, Tensor]:
    return OPS.batch_norm_fwd(x, z, None, None, None, None, None, act=act, **more)


# --- accuracy ---------------------------------------------------------------------------------------------
SHAPES = ((8, 64, 28, 28), (8, 32, 60, 60), (8, 128, 14, 14), (16, 256, 7, 7), (3, 5, 17, 19))


def _errors(forward, shape: tuple[int, ...], offset: float, layout: str) -> tuple[float, float, float]:
    """By how much a normalization misses y, the variance (relatively) and the mean (in deviations)."""
    x = _images(shape, mean=3 * offset, std=3.0).float().contiguous(memory_format=LAYOUTS[layout])
    mean, variance = torch.zeros(shape[1]), torch.zeros(shape[1])
    y = forward(x, mean, variance)
    channels = x.double().movedim(1, 0).flatten(1)
    exact = channels.var(1)
    return (
        (y.double() - _exact(x)).abs().max().item(),
        ((variance.double() - exact).abs() / exact).max().item(),
        (mean.double() - channels.mean(1)).abs().max().item() / 3,
    )


def _ours(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return OPS.batch_norm_fwd(x, None, None, None, mean, variance, None, momentum=1.0)[0]


def _torchs(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return functional.batch_norm(x, mean, variance, training=True, momentum=1.0)


def _worst(forward, offset: float, layout: str) -> list[float]:
    return [max(each) for each in zip(*(_errors(forward, s, offset, layout) for s in SHAPES), strict=True)]


@each_variant
@each_layout
@pytest.mark.parametrize("offset", (0.0, 0.1, 1.0, 2.0, 3.0, 4.1, 6.0, 10.0, 1e2, 1e3, 1e4))
def test_mean_far_from_zero(variant, layout: str, offset: float):
    """At a mean of 1e4 deviations torch's y is off by 9e-4 (NCHW) and 1.5e-2 (NHWC). The largest error over
    all shapes is compared: in a single small tensor luck decides whose half of an ulp is the larger one."""
    with variant.use():
        y, deviation, mean = _worst(_ours, offset, layout)
    torchs = _worst(_torchs, offset, layout)
    rounded_product = 2.5e-7 * (str(variant) == "cpp/baseline")  # has no fused multiply-add; torch does
    assert y <= min(5e-6, torchs[0] + rounded_product)
    assert deviation <= min(2e-6, torchs[1])
    assert mean <= 4e-7 + 1e-7 * offset  # channels innermost are summed in float, 512 pixels at a time


@each_variant
@each_layout
@pytest.mark.parametrize("offset", (0.0, 1e2, 1e4))
def test_running_mean_far_from_zero(variant, layout: str, offset: float):
    x = _images((8, 6, 40, 40), mean=offset, std=3.0).float().contiguous(memory_format=LAYOUTS[layout])
    mean = torch.zeros(6)
    with variant.use():
        _ours(x, mean, torch.zeros(6))
    assert ((mean.double() - x.double().mean((0, 2, 3))).abs()).max() <= 1e-7 * (1 + offset)


@each_variant
@each_layout
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_half_output_is_rounded_once(variant, layout: str, dtype: torch.dtype):
    """Within a unit in the last place of the exact result wherever that exceeds 1e-3."""
    if variant.backend == "triton" and dtype == torch.bfloat16:
        pytest.skip("the interpreter cuts bfloat16 off")
    x, z = (
        _images((6, 8, 20, 20), seed=s).to(dtype).contiguous(memory_format=LAYOUTS[layout]) for s in (0, 1)
    )
    exact = _exact(x, z)
    with variant.use():
        y = _forward(x, z)[0]
    far = exact.abs() > 1e-3
    unit = torch.finfo(dtype).eps * exact.abs()
    assert ((y.double() - exact).abs() <= unit)[far].all()
    assert (y == exact.to(dtype)).double().mean() > 0.99


@each_variant
@each_layout
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16))
@pytest.mark.parametrize("residual", (False, True))
def test_gradient_passes_exactly_where_the_pre_activation_is_positive(
    variant, layout: str, dtype, residual: bool
):
    """torch rounds halves before it looks at their sign, and gets such bits wrong."""
    x, z = (
        _images((6, 8, 20, 21), seed=s).to(dtype).contiguous(memory_format=LAYOUTS[layout]) for s in (0, 1)
    )
    z = z if residual else None
    exact = _exact(x, z)
    with variant.use():
        y, stats, mask = _forward(x, z, act="relu")
        ones = torch.ones_like(x)
        sums, _, bias_grad = OPS.batch_norm_bwd_stats(
            ones, x, None, torch.ones(8), torch.zeros(8), stats, mask, act="relu"
        )
    clear = exact.abs() > 5e-6
    counted = (exact > 0).double().sum((0, 2, 3))
    uncertain = (~clear).double().sum((0, 2, 3))
    assert ((bias_grad.double() - counted).abs() <= uncertain).all()
    assert ((y > 0) == (exact > 0))[clear & (exact.abs() > 1e-4)].all()
    assert (mask.numel() > 0) == residual
    assert sums[-1] == x.numel() // 8


# Channels apart, whose second pass follows group by group where that pays; the last group is smaller. In
# the last two results go past the caches, and the first pass writes the residual's gradient: as it is made,
# and by way of whole lines.
GROUPED = ((4, 38, 30, 30), (2, 520, 7, 7), (3, 9, 60, 60), (8, 33, 92, 92), (9, 80, 57, 57))


# Channels innermost: whole lines and what is left of one, several parts whose channels threads share, and a
# handful of pixels in a row, which are computed as if they were such channels.
INNERMOST = ((3, 36, 9, 9), (2, 33, 11, 7), (5, 71, 12, 13), (2, 4112, 20, 20), (9, 8, 40, 40))
LONG_ROWS = ((300, 50, 3, 3), (70, 37, 5, 1))


def _assert_exact_for_any_threads(
    shape: tuple[int, ...], residual: bool, dtype: torch.dtype, layout: str = "nchw"
) -> None:
    """Both directions, with the same bits."""
    x, z, dy = (_images(shape, seed=s).to(dtype).contiguous(memory_format=LAYOUTS[layout]) for s in (0, 1, 2))
    leaves = [t.clone().requires_grad_() for t in ((x, z) if residual else (x,))]
    exact = [t.detach().double().requires_grad_() for t in leaves]
    affine = [torch.linspace(low, 2.0, shape[1]).requires_grad_() for low in (0.5, -2.0)]
    want = _exact(exact[0], exact[1] if residual else None, *affine)
    dy[want.detach().abs() < 1e-4] = 0  # where the sign of a rounding decides
    gradients = torch.autograd.grad(want.relu(), [*exact, *affine], dy.double())
    rtol, atol = (1e-5, 1e-5) if dtype == torch.float32 else (torch.finfo(dtype).eps, 1e-3)
    first = None
    for count in (1, 2, 5, 8):
        with threads(count):
            y = ours.batch_norm(leaves[0], None, None, *affine, True, act="relu", residual=(*leaves, None)[1])
            got = [y.detach(), *torch.autograd.grad(y, [*leaves, *affine], dy)]
        first = first or got
        assert all(torch.equal(a, b) for a, b in zip(got, first, strict=True))
    for ours_, theirs in zip(first, (want.relu(), *gradients), strict=True):
        size = max(1.0, theirs.abs().max().item())
        torch.testing.assert_close(ours_.double(), theirs.double(), rtol=rtol, atol=atol * size)


@pytest.mark.parametrize("shape", GROUPED, ids=str)
@pytest.mark.parametrize("residual", (False, True))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_groups_of_channels(shape: tuple[int, ...], residual: bool, dtype: torch.dtype):
    _assert_exact_for_any_threads(shape, residual, dtype)


@pytest.mark.parametrize("shape, layout", [(s, "nhwc") for s in INNERMOST] + [(s, "nchw") for s in LONG_ROWS])
@pytest.mark.parametrize("residual", (False, True))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16))
def test_channels_innermost(shape: tuple[int, ...], layout: str, residual: bool, dtype: torch.dtype):
    _assert_exact_for_any_threads(shape, residual, dtype, layout)


# Whose results go past the caches: rows that strands can lay apart in their pages; rows of half a page and of
# whole pages, which go from the end to the beginning where that is of use.
PAST = ((5, 96, 50, 50), (4, 512, 25, 25), (4, 1024, 17, 17))
PLACES = ((0, 0, 0), (96, 0, 0), (1, 5, 7), (928, 928, 928), (512, 608, 416))  # of x, residual, dy; elements


def _placed(t: Tensor, at: int) -> Tensor:
    """A copy that begins so many elements behind the start of a page."""
    room = torch.empty(t.numel() + 4096, dtype=t.dtype)
    first = -(room.data_ptr() // t.element_size()) % (4096 // t.element_size()) + at
    images, channels, *pixels = t.shape
    place = room[first : first + t.numel()].view(images, *pixels, channels).permute(0, 3, 1, 2)
    return place.copy_(t)


@pytest.mark.parametrize("shape", PAST, ids=str)
@pytest.mark.parametrize("residual", (False, True))
def test_channels_innermost_past_the_caches(shape: tuple[int, ...], residual: bool):
    _assert_exact_for_any_threads(shape, residual, torch.float32, "nhwc")


@pytest.mark.parametrize("shape", (*PAST, (4, 2048, 18, 18)), ids=str)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_bits_do_not_depend_on_where_tensors_lie(shape: tuple[int, ...], dtype: torch.dtype):
    weight, bias = torch.linspace(0.5, 2.0, shape[1]), torch.linspace(-2.0, 2.0, shape[1])
    tensors = [_images(shape, seed=s).to(dtype) for s in (0, 1, 2)]
    first = None
    for places in PLACES:
        x, z, dy = (_placed(t, at) for t, at in zip(tensors, places, strict=True))
        got = []
        for residual in (None, z):
            y, stats, mask = OPS.batch_norm_fwd(x, residual, weight, bias, None, None, None, act="relu")
            kept = (x, None, weight, bias, stats, mask)
            grads = OPS.batch_norm_bwd(dy, *kept, act="relu")
            given = OPS.batch_norm_bwd(dy, *kept, act="relu", training=False)
            got += [y, mask, *grads, *given]
        first = first or got
        assert all(torch.equal(a, b) for a, b in zip(got, first, strict=True))


@each_layout
@pytest.mark.parametrize("act", (None, "relu", "silu"))
@pytest.mark.parametrize("affine", (False, True))
@pytest.mark.parametrize("training", (False, True))
def test_large_gradients_of_input_and_residual(layout: str, act: str | None, affine: bool, training: bool):
    """A first pass may write the residual's. With given statistics and neither weight nor bias nothing is
    summed, so there is none."""
    channels = 100  # not in whole lines
    x, z, dy = (
        _images((4, channels, 60, 60), seed=s).float().contiguous(memory_format=LAYOUTS[layout])
        for s in (0, 1, 2)
    )
    running = torch.linspace(-0.5, 0.5, channels), torch.linspace(0.5, 2.0, channels)
    parameters = [torch.linspace(low, 2.0, channels) for low in (0.5, -1.0)] if affine else []
    torchs = {None: lambda v: v, "relu": functional.relu, "silu": functional.silu}[act]

    def leaves(dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
        return [t.to(dtype) for t in running], [
            t.to(dtype, copy=True).requires_grad_() for t in (x, z, *parameters)
        ]

    given, (a, b, *affines) = leaves(torch.float64)
    v = functional.batch_norm(a, *given, *affines, training=training) + b
    dy[v.detach().abs() < 1e-4] = 0  # where the sign of a rounding decides
    want = torch.autograd.grad(torchs(v), (a, b, *affines), dy.double())
    given, (a, b, *affines) = leaves(torch.float32)
    y = ours.batch_norm(a, *given, *affines, training=training, act=act, residual=b)
    got = torch.autograd.grad(y, (a, b, *affines), dy)
    for ours_, theirs in zip(got, want, strict=True):
        size = max(1.0, theirs.abs().max().item())
        torch.testing.assert_close(ours_.double(), theirs, rtol=1e-5, atol=2e-6 * size)


@each_variant
@each_layout
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
@pytest.mark.parametrize("bits", (0x7FFFFFFF, -1), ids=("positive", "negative"))
def test_nan_of_all_bits_stays_nan(variant, layout: str, dtype: torch.dtype, bits: int):
    """Rounded to bfloat16 without a look at it, it would become -0 or 0."""
    if variant.backend == "triton" and dtype == torch.bfloat16:
        pytest.skip("the interpreter cuts bfloat16 off")
    x, dy = (
        _images((2, 8, 9, 9), seed=s).to(dtype).contiguous(memory_format=LAYOUTS[layout]) for s in (0, 1)
    )
    nan = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
    weight, bias = torch.ones(8), torch.zeros(8)
    weight[1] = bias[3] = nan
    with variant.use():
        y, stats, mask = OPS.batch_norm_fwd(x, None, weight, bias, None, None, None)
        dx = OPS.batch_norm_bwd(dy, x, None, weight, bias, stats, mask)[0]
    for got, channels in ((y, [1, 3]), (dx, [1])):
        assert got.isnan().all((0, 2, 3)).nonzero().flatten().tolist() == channels
        assert got.isnan().any((0, 2, 3)).nonzero().flatten().tolist() == channels


@each_variant
@each_layout
def test_silu_is_that_of_float64(variant, layout: str):
    """exp is good to an ulp and three roundings follow. The gradient has v * (1 - s), where s rounds to
    2^-24 and v is 17 until it is 1."""
    v = torch.cat(
        [torch.linspace(-87, 87, 40_003), torch.tensor([-1e-6, 0.0, 1e-6, -1e-40, 88.9, 104, 1e30])]
    )
    x = v.view(1, 1, -1, 1).expand(1, 3, -1, 1).contiguous(memory_format=LAYOUTS[layout])
    exact = x.double().requires_grad_()
    want = functional.silu(exact)
    dwant = torch.autograd.grad(want.sum(), exact)[0]
    with variant.use():
        y, stats, mask = OPS.batch_norm_eval(
            x, None, None, None, torch.zeros(3), torch.ones(3), eps=0.0, act="silu"
        )
        dx = OPS.batch_norm_bwd(
            torch.ones_like(x), x, None, None, None, stats, mask, act="silu", training=False
        )[0]
    torch.testing.assert_close(y.double(), want.detach(), rtol=4 * 2**-23, atol=2e-38)
    torch.testing.assert_close(dx.double(), dwant, rtol=4 * 2**-23, atol=20 * 2**-24)


@each_variant
@each_layout
def test_silu_beyond_all_numbers(variant, layout: str):
    bad = torch.tensor([float("nan"), float("inf"), float("-inf"), -90.0, -105.0, -1e38] * 3)
    x = bad.view(1, 1, -1, 1).expand(1, 3, -1, 1).contiguous(memory_format=LAYOUTS[layout])
    with variant.use():
        y = OPS.batch_norm_eval(x, None, None, None, torch.zeros(3), torch.ones(3), eps=0.0, act="silu")[0]
    torch.testing.assert_close(y, functional.silu(x), rtol=1e-6, atol=2e-36, equal_nan=True)


# --- what is not a number ---------------------------------------------------------------------------------
@each_variant
@each_layout
@pytest.mark.parametrize("bad", (float("nan"), float("inf"), float("-inf")))
@pytest.mark.parametrize("act", (None, "relu", "leaky_relu"))
def test_inf_and_nan_go_where_torchs_go(variant, layout: str, bad: float, act: str | None):
    x = _images((4, 5, 6, 6)).float().contiguous(memory_format=LAYOUTS[layout])
    x[1, 2, 3, 3] = bad
    torchs = {None: lambda v: v, "relu": functional.relu, "leaky_relu": functional.leaky_relu}[act]
    running, wanted = (torch.zeros(5), torch.ones(5)), (torch.zeros(5), torch.ones(5))
    want = torchs(functional.batch_norm(x, *wanted, training=True))
    with variant.use():
        got = OPS.batch_norm_fwd(x, None, None, None, *running, None, act=act)[0]
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5, equal_nan=True)
    for ours_, theirs in zip(running, wanted, strict=True):
        torch.testing.assert_close(ours_, theirs, rtol=1e-5, atol=1e-5, equal_nan=True)
    assert got[:, 2].isnan().all() and not got[:, [0, 1, 3, 4]].isnan().any()


@each_variant
@each_layout
def test_values_whose_squares_overflow(variant, layout: str):
    x = (_images((4, 5, 6, 6)) * 1e30).float().contiguous(memory_format=LAYOUTS[layout])
    if variant.backend == "triton":
        pytest.skip("on GPUs torch sums in float32, too")
    with variant.use():
        assert (_forward(x)[0].double() - _exact(x)).abs().max() < 5e-6


@each_variant
@pytest.mark.parametrize("value", (0.0, 3.0, -1e6, 1e-40))
def test_a_constant_channel_becomes_zero(variant, value: float):
    x = torch.full((3, 4, 5, 5), value)
    with variant.use():
        y, stats, _ = _forward(x)
    assert (y == 0).all()
    assert (stats[0] == value).all()


# --- any shape, any layout --------------------------------------------------------------------------------
def _strided(draw, x: Tensor) -> Tensor:
    """The same values in some other place in memory."""
    kind = draw(st.sampled_from(("dense", "last", "step", "turned", "padded")))
    if kind == "last":
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    if kind == "step":
        return x.repeat_interleave(2, 0)[::2]
    if kind == "turned":
        return x.transpose(0, 1).contiguous().transpose(0, 1)
    if kind == "padded":
        return functional.pad(x, (1, 2))[..., 1:-2]
    return x


@st.composite
def _call(draw) -> tuple[Tensor, Tensor | None, str | None]:
    pixels = draw(st.lists(st.integers(1, 19), min_size=0, max_size=3))
    shape = (draw(st.integers(1, 9)), draw(st.integers(1, 40)), *pixels)
    x = _images(
        shape,
        draw(st.sampled_from((0.0, 5.0, 1e3))),
        draw(st.sampled_from((1.0, 1e-3))),
        draw(st.integers(0, 99)),
    )
    if draw(st.booleans()):
        x[:, 0] = 2.5
    residual = draw(st.booleans())
    x = _strided(draw, x.float())
    z = torch.empty_like(dense_image(x)).normal_() if residual else None
    return x, z, draw(st.sampled_from((None, "relu", "leaky_relu", "silu")))


@settings(max_examples=150, deadline=None)
@given(_call())
def test_any_shape_and_layout_agrees_with_torch(call):
    x, z, act = call
    if x.numel() == x.shape[1]:
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            ours.batch_norm(x, None, None, training=True, act=act)
        return
    leaves = [t.detach().clone().as_subclass(Tensor).requires_grad_() for t in (x, z) if t is not None]
    dense = [t.double().detach().requires_grad_() for t in (x, z) if t is not None]
    y = ours.batch_norm(
        leaves[0], None, None, training=True, act=act, residual=leaves[1] if z is not None else None
    )
    v = functional.batch_norm(dense[0], None, None, training=True)
    v = v + dense[1] if z is not None else v
    want = {
        None: lambda t: t,
        "relu": functional.relu,
        "leaky_relu": functional.leaky_relu,
        "silu": functional.silu,
    }[act](v)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    dy[(v.detach().abs() < 1e-4)] = 0  # where the sign of a rounding decides
    got = torch.autograd.grad(y, leaves, dy)
    wanted = torch.autograd.grad(want, dense, dy.double())
    scale = 1 + (x.abs().max() * 1e-7 * 320).item()  # of a mean's rounding, by the largest 1 / sqrt(eps)
    torch.testing.assert_close(y.double(), want, rtol=1e-5, atol=3e-5 * scale)
    for ours_, theirs in zip(got, wanted, strict=True):
        size = theirs.abs().max().item()
        torch.testing.assert_close(ours_.double(), theirs, rtol=1e-4, atol=1e-5 * (1 + size) * scale)
