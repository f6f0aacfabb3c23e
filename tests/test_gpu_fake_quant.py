"""Fake quantization on a GPU: bits, sums, launches, graphs. test_gpu.py compares the ops' cases."""

import pytest
import torch
from gpu_helpers import DEVICE, each_variant, kernels_of, marks, no_sync, on_a_side_stream
from onepass import backends
from onepass.ops import BY_NAME
from onepass.quant import fake_quantize
from onepass.testing import Variant
from torch import Tensor

pytestmark = marks
OPS = torch.ops.onepass
FORWARD, BACKWARD = (
    backends.target(BY_NAME[name].reference) for name in ("fake_quant_fwd", "fake_quant_bwd")
)
about_cuda = pytest.mark.skipif(DEVICE != "cuda", reason="about CUDA itself")
each_sign = pytest.mark.parametrize("symmetric", (True, False), ids=("symmetric", "asymmetric"))
each_dtype = pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16), ids=str)
# Groups of eight lanes, of a warp, of a block and of many, that lie on bytes of the mask and across them.
each_shape = pytest.mark.parametrize("shape, group_size", (
    ((300, 1003), 64), ((300, 1024), 128), ((300, 1003), -1), ((65, 4096), -1), ((65, 4095), 7),
    ((3, 90_001), -1), ((2, 100_003), 40_001), ((700, 1003), 0), ((4096, 4096), 0),
))  # fmt: skip


def _x(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _bits_of(t: Tensor) -> Tensor:
    """Of NaN there is one only."""
    return torch.where(t.isnan(), torch.nan, t).cpu().reshape(-1).view(torch.uint8)


@each_variant
@each_shape
@each_dtype
@each_sign
def test_bits_and_sums(
    variant: Variant, shape: tuple[int, int], group_size: int, dtype: torch.dtype, symmetric: bool
):
    """By scales that are found and by given ones: what quantize and dequantize make, as the CPU's reference
    has it; gradients of scale within 1e-6 of what is summed."""
    x, grad = _x(*shape).to(dtype), _x(*shape, seed=1).to(dtype)
    x[1, :3] = torch.tensor((1e4, -1e4, 0.0))
    options = {"group_size": group_size, "symmetric": symmetric}
    found = FORWARD(x, **options)
    given = found[2] * 0.6, None if symmetric else found[3]
    want = FORWARD(x, *given, **options)
    grads = BACKWARD(grad, want[1], x, *given, **options)
    sizes = BACKWARD(grad.abs(), want[1], x, *given, **options)[1].abs()
    x, grad, given = x.to(DEVICE), grad.to(DEVICE), [t if t is None else t.to(DEVICE) for t in given]
    with variant.use():
        values, *kept = OPS.quantize(x, *given, **options)
        back = OPS.dequantize(values, *kept, group_size=group_size, dtype=dtype)
        ours = OPS.fake_quant_fwd(x, **options), OPS.fake_quant_fwd(x, *given, **options)
        dx, dscale = OPS.fake_quant_bwd(grad, ours[1][1], x, *given, **options)
        alone, none = OPS.fake_quant_bwd(grad, ours[1][1], **options)
        again = OPS.fake_quant_bwd(grad, ours[1][1], x, *given, **options)[1]
    assert torch.equal(_bits_of(ours[1][0]), _bits_of(back))
    for got, wanted in zip(ours, (found, want), strict=True):
        assert all(torch.equal(_bits_of(a), _bits_of(b)) for a, b in zip(got, wanted, strict=True))
    assert torch.equal(dx.cpu(), grads[0]) and torch.equal(alone, dx) and none.shape == (0,)
    assert torch.equal(again, dscale)  # from run to run
    off = (dscale.cpu() - grads[1]).abs()
    assert (off <= 1e-6 * torch.maximum(sizes, grads[1].abs().mean())).all()


@each_variant
@each_dtype
@pytest.mark.parametrize("group_size", (-1, 0, 8, 19))
def test_memory_that_begins_anywhere(variant: Variant, dtype: torch.dtype, group_size: int):
    x, options = _x(5 * 72 + 3).to(DEVICE, dtype)[3:].view(5, 72), {"group_size": group_size}
    with variant.use():
        got, want = OPS.fake_quant_fwd(x, **options), OPS.fake_quant_fwd(x.clone(), **options)
        grads = OPS.fake_quant_bwd(x, got[1], x, got[2], **options)
        wanted = OPS.fake_quant_bwd(x.clone(), want[1], x.clone(), want[2], **options)
    assert all(map(torch.equal, (*got, *grads), (*want, *wanted)))


@each_variant
def test_a_learned_scale_follows_its_gradient(variant: Variant):
    """Through autograd, as training calls it."""
    x, scale = _x(64, 333).to(DEVICE), torch.full((64, 1), 0.02, device=DEVICE)
    leaves = x.requires_grad_(), scale.requires_grad_()
    with variant.use():
        fake_quantize(*leaves).square().sum().backward()
    output, mask, _, _ = FORWARD(x.detach().cpu(), scale.detach().cpu())
    wanted = BACKWARD(2 * output, mask, x.detach().cpu(), scale.detach().cpu())
    torch.testing.assert_close(x.grad.cpu(), wanted[0], rtol=0, atol=0)
    torch.testing.assert_close(
        scale.grad.cpu(), wanted[1], rtol=1e-5, atol=1e-5 * float(wanted[1].abs().mean())
    )


# --- about CUDA itself --------------------------------------------------------------------------------------
def _steps(group_size: int) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(64, 4096, device=DEVICE)
    shape = () if group_size == 0 else (64, 1) if group_size == -1 else (64, 4096 // group_size)
    return x, torch.randn_like(x), torch.full(shape, 0.02, device=DEVICE)


@each_variant
@about_cuda
@pytest.mark.parametrize("group_size", (-1, 0, 64))
def test_at_most_two_kernels_and_no_wait(variant: Variant, group_size: int):
    if not kernels_of(lambda: torch.ones(3, device=DEVICE).add_(1)):
        pytest.skip("torch.profiler sees no kernels on this machine")
    (x, grad, scale), options = _steps(group_size), {"group_size": group_size}
    with variant.use():
        mask = OPS.fake_quant_fwd(x, scale, **options)[1]
        calls = (
            lambda: OPS.fake_quant_fwd(x, **options),
            lambda: OPS.fake_quant_bwd(grad, mask, x, scale, **options),
            lambda: OPS.fake_quant_bwd(grad, mask, **options),
        )
        for call in calls:
            call()  # compiles, where that is left to do
            if variant.backend == "cpp":
                assert 1 <= len(kernels_of(call)) <= 2
            with no_sync():
                call()


@each_variant
@about_cuda
@pytest.mark.parametrize("group_size", (-1, 0, 64))
def test_replays_are_eager_calls(variant: Variant, group_size: int):
    (x, grad, scale), options = _steps(group_size), {"group_size": group_size}

    def both() -> list[Tensor]:
        found = OPS.fake_quant_fwd(x, **options)
        given = OPS.fake_quant_fwd(x, scale, **options)
        return [*found, *given, *OPS.fake_quant_bwd(grad, given[1], x, scale, **options)]

    with variant.use():
        on_a_side_stream(both)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = both()
        for _ in range(3):
            x.copy_(torch.randn(64, 4096))
            graph.replay()
            assert all(map(torch.equal, captured, both()))
