"""onepass.quant.fake_quantize as a user meets it: autograd, learned scales, torch's machinery around it."""

from collections.abc import Callable

import pytest
import torch
from onepass.quant import fake_quantize
from onepass.testing import variants
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

each_variant = pytest.mark.parametrize(
    "variant", [v for v in variants("cpu") if v.isa in (None, variants("cpu")[0].isa)], ids=str
)


def _leaf(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).requires_grad_()


def _step(*shape: int) -> Tensor:
    return torch.full(shape, 0.013, requires_grad=True)


# --- gradients --------------------------------------------------------------------------------------------
@each_variant
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16))
def test_gradients_are_torchs_learnable_fake_quantizes(variant, dtype: torch.dtype):
    """Whose scale is one for all, and whose sums are float32's."""
    x, scale = _leaf(9, 70, dtype=dtype), _step()
    grad = torch.randn(9, 70, generator=torch.Generator().manual_seed(1)).to(dtype)
    with variant.use():
        fake_quantize(x, scale, group_size=0, grad_scale=0.5).backward(grad)
    theirs, size = x.detach().float().requires_grad_(), torch.tensor([0.013], requires_grad=True)
    torch._fake_quantize_learnable_per_tensor_affine(theirs, size, torch.zeros(1), -127, 127, 0.5).backward(
        grad.float()
    )
    assert torch.equal(x.grad.float(), theirs.grad) and x.grad.dtype == dtype
    torch.testing.assert_close(scale.grad.view(1), size.grad, rtol=1e-4, atol=0)


def test_the_gradient_of_scale_is_multiplied():
    grads = []
    for factor in (1.0, 0.25):
        x, scale = _leaf(5, 40), _step(5, 1)
        fake_quantize(x, scale, grad_scale=factor).sum().backward()
        grads.append((x.grad, scale.grad))
    assert torch.equal(grads[0][0], grads[1][0])
    assert torch.equal(grads[0][1] * 0.25, grads[1][1])


def test_scales_that_are_found_are_constants():
    x = _leaf(6, 50)
    y = fake_quantize(x, symmetric=False)
    y.backward(torch.ones(()).expand(6, 50))
    assert torch.equal(x.grad, torch.ones(6, 50))


@pytest.mark.parametrize("moving", ((True, False), (False, True), (False, False)))
def test_only_what_is_asked_for_has_a_gradient(moving: tuple[bool, bool]):
    x, scale = _leaf(5, 40).requires_grad_(moving[0]), _step(5, 1).requires_grad_(moving[1])
    y = fake_quantize(x, scale)
    assert y.requires_grad == any(moving)
    if any(moving):
        y.square().sum().backward()
    assert ((x.grad is not None), (scale.grad is not None)) == moving


def test_a_bit_an_element_is_kept():
    x, scale = _leaf(64, 100), _step(64, 1)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        fake_quantize(x)
        fake_quantize(x, scale.detach())
        assert [t.numel() * t.itemsize for t in kept] == [800, 800]
        kept.clear()
        fake_quantize(x, scale)
    assert sorted(t.numel() * t.itemsize for t in kept) == [256, 800, 25_600]


def test_layouts_that_are_not_contiguous():
    x = _leaf(8, 6, 40)
    scale = torch.full((6, 8, 1), 0.01, requires_grad=True)
    y = fake_quantize(x.transpose(0, 1), scale)
    y.transpose(0, 1).square().sum().backward()
    other, same = (
        x.detach().transpose(0, 1).contiguous().requires_grad_(),
        scale.detach().clone().requires_grad_(),
    )
    fake_quantize(other, same).square().sum().backward()
    assert torch.equal(x.grad, other.grad.transpose(0, 1)) and torch.equal(scale.grad, same.grad)


# --- what cannot be ---------------------------------------------------------------------------------------
def test_a_second_derivative_is_refused():
    x, scale = _leaf(3, 20), _step(3, 1)
    (grad,) = torch.autograd.grad(fake_quantize(x, scale).square().sum(), x, create_graph=True)
    assert grad.isfinite().all()  # a first one may be recorded
    with pytest.raises(RuntimeError, match="fake_quant_bwd: not differentiable"):
        grad.sum().backward()


def test_forward_mode_is_refused():
    with torch.autograd.forward_ad.dual_level():
        x = torch.autograd.forward_ad.make_dual(torch.ones(3, 4), torch.ones(3, 4))
        with pytest.raises((RuntimeError, NotImplementedError), match=r"jvp|forward mode"):
            fake_quantize(x)


def test_errors_name_the_op():
    with pytest.raises(RuntimeError, match=r"fake_quant_fwd: scale has shape \[3\], expected \[3, 1\]"):
        fake_quantize(_leaf(3, 4), torch.ones(3))


# --- torch around it --------------------------------------------------------------------------------------
class _Quantized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(24, 10)
        self.step = nn.Parameter(torch.full((10, 1), 0.002))

    def forward(self, x: Tensor) -> Tensor:
        weight = fake_quantize(self.linear.weight, self.step, grad_scale=0.01)
        return nn.functional.linear(fake_quantize(x, symmetric=False), weight, self.linear.bias)


def _grads(model: nn.Module, x: Tensor, run: Callable[[Tensor], Tensor]) -> list[Tensor]:
    model.zero_grad()
    run(x).square().mean().backward()
    return [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("backend", ("aot_eager", pytest.param("inductor", marks=pytest.mark.slow)))
def test_compiles_whole(backend: str):
    torch._dynamo.reset()
    torch.manual_seed(0)
    model, x = _Quantized(), torch.randn(8, 24)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for got, want in zip(_grads(model, x, compiled), _grads(model, x, model), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-8)
    with torch.no_grad():
        assert torch.equal(compiled(x), model(x))


@pytest.mark.parametrize("group_size", (-1, 0, 16))
def test_compiles_once_for_all_sizes(group_size: int):
    torch._dynamo.reset()

    def step(x: Tensor) -> Tensor:
        return fake_quantize(x, group_size=group_size, symmetric=False)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for n in (40, 57, 131):
            x, other = _leaf(n, n + 5), _leaf(n, n + 5)
            got, want = compiled(x), step(other)
            got.square().sum().backward(), want.square().sum().backward()
            assert torch.equal(got, want) and torch.equal(x.grad, other.grad)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_autocast(dtype: torch.dtype):
    torch.manual_seed(0)
    model, x = _Quantized(), torch.randn(8, 24)
    with torch.autocast("cpu", dtype):
        y = model(x)
        half = fake_quantize(nn.functional.linear(x, model.linear.weight))
    assert y.dtype == half.dtype == dtype
    y.float().square().mean().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


def test_checkpointing_recomputes_the_same():
    torch.manual_seed(0)
    model, x = _Quantized(), torch.randn(8, 24)
    again = _grads(model, x, lambda t: checkpoint(model, t, use_reentrant=False))
    assert all(map(torch.equal, again, _grads(model, x, model)))


def test_steps_that_are_learned_lower_the_error():
    """LSQ moves a scale from far off to where less is lost."""
    x = torch.randn(4, 512, generator=torch.Generator().manual_seed(0))
    step = nn.Parameter(torch.full((4, 1), 0.2))
    optimizer = torch.optim.Adam([step], lr=3e-3)

    def lost() -> Tensor:
        return (fake_quantize(x, step, bits=7, grad_scale=(512 * 63) ** -0.5) - x).square().sum()

    first = lost().item()
    for _ in range(60):
        optimizer.zero_grad()
        lost().backward()
        optimizer.step()
    assert lost().item() < 0.2 * first and (step > 0.02).all()
