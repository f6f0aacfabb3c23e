"""What is done to gradients alone, in plain PyTorch; no host sync on any device."""

import torch
from torch import Tensor


@torch.no_grad()
def grad_stats(grads: list[Tensor], *, grad_scale: Tensor | None = None) -> Tensor:
    """float64 [2]: the norm of all unscaled gradients, and 1 where one of them is inf or NaN, else 0."""
    device = grads[0].device if grads else torch.device("cpu")
    squares, finite = torch.zeros((), dtype=torch.float64, device=device), torch.ones((), device=device)
    for g in grads:
        squares = squares + g.double().square().sum()
        finite = finite * g.isfinite().all()
    norm = squares.sqrt()
    if grad_scale is not None:
        norm = norm / grad_scale.double().reshape(()).abs()
    return torch.stack([norm, (1 - finite).double()])


def clip_coefficient(max_norm: float | Tensor, norm: Tensor) -> Tensor:
    """As torch.nn.utils.clip_grad_norm_ has it."""
    return (max_norm / (norm + 1e-6)).clamp(max=1.0)


@torch.no_grad()
def clip_grads_(grads: list[Tensor], stats: Tensor, max_norm: float) -> None:
    coefficient = clip_coefficient(max_norm, stats[0])
    for g in grads:
        g.copy_(torch.where(coefficient == 1, g, g.double() * coefficient))
