"""What the tests of batch normalization on a GPU share: modules, images, a step, and comparison."""

import pytest
import torch
from gpu_helpers import DEVICE
from onepass import nn as onn
from optim_helpers import randn
from torch import Tensor, nn

SHAPE = (6, 24, 9, 7)
each_layout = pytest.mark.parametrize("layout", ("nchw", "nhwc"))
each_dtype = pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
each_residual = pytest.mark.parametrize("residual", (False, True), ids=("alone", "residual"))
each_momentum = pytest.mark.parametrize("momentum", (0.1, None), ids=("momentum", "average"))
Images = tuple[Tensor, Tensor | None, Tensor]


def images(
    seed: int,
    layout: str = "nchw",
    dtype: torch.dtype = torch.float32,
    residual: bool = True,
    shape: tuple[int, ...] = SHAPE,
) -> Images:
    """Input, residual and the output's gradient; channels differ, and so do batches."""
    offsets = torch.arange(shape[1]).view(1, -1, *[1] * (len(shape) - 2)) % 24 / 4
    x, z, dy = (randn(*shape, seed=10 * seed + i) for i in range(3))
    made = [(x * (1 + offsets) + offsets + seed / 8), z, dy]
    if layout == "nhwc":
        made = [t.movedim(1, -1).contiguous().movedim(-1, 1) for t in made]
    x, z, dy = (t.to(DEVICE, dtype) for t in made)
    return x, z if residual else None, dy


def norm(cls: type = onn.BatchNorm2d, channels: int = SHAPE[1], device: str = DEVICE, **options) -> nn.Module:
    """With parameters of no special value."""
    module = cls(channels, device=device, **options)
    with torch.no_grad():
        for seed, p in enumerate(module.parameters()):
            p.add_(randn(channels, seed=100 + seed).to(device), alpha=0.3)
    return module


def step(module: nn.Module, x: Tensor, z: Tensor | None, dy: Tensor) -> list[Tensor]:
    """Output, and gradients of input, residual and parameters, which come to lie in new memory."""
    leaves = [t.detach().requires_grad_() for t in (x, z) if t is not None]
    y = module(*leaves)
    return [y.detach(), *torch.autograd.grad(y, [*leaves, *module.parameters()], dy)]


def state(module: nn.Module) -> list[Tensor]:
    return [b.clone() for b in module.buffers()]


def same_bits(got: list[Tensor], want: list[Tensor]) -> bool:
    return len(got) == len(want) and all(map(torch.equal, got, want))


def near(got: Tensor, want: Tensor, tolerance: float) -> None:
    """As far off as the largest of all allows: what cancels is as wrong as what it was made of."""
    scale = max(1.0, float(want.detach().double().abs().max()))
    torch.testing.assert_close(
        got.detach().double(), want.detach().double(), rtol=0.0, atol=tolerance * scale
    )
