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


@torch.no_grad()
def unscale_(grads: list[Tensor], grad_scale: Tensor) -> Tensor:
    """grad / grad_scale, in place. Returns what grad_stats has of them: the norm is of the unscaled gradients
    before they are rounded, and inf or NaN is looked for before they are scaled, as torch does."""
    stats = grad_stats(grads, grad_scale=grad_scale)
    inv_scale = grad_scale.double().reciprocal().reshape(())
    for g in grads:
        g.copy_(g.double() * inv_scale)
    return stats if grads else stats.to(grad_scale.device)


@torch.no_grad()
def accumulate_(sums: list[Tensor], grads: list[Tensor], *, inv_scale: Tensor | None = None) -> None:
    for total, g in zip(sums, grads, strict=True):
        wide = g.double() if inv_scale is None else g.double() * inv_scale.double().reshape(())
        total.copy_(total.double() + wide)
