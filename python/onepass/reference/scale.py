"""The loss scale, in plain PyTorch; no host sync on any device. The rule: csrc/rules/scale.h."""

import torch
from torch import Tensor


@torch.no_grad()
def update_scale_(
    scale: Tensor,
    growth_tracker: Tensor,
    skipped: Tensor,
    found_infs: list[Tensor],
    growth_factor: float,
    backoff_factor: float,
    growth_interval: int,
    hysteresis: int,
    min_scale: float,
    max_scale: float,
) -> None:
    """Updates scale (float32), growth_tracker (int32) and skipped (int64 [2]: in all, in a row), in place."""
    overflow = torch.zeros((), dtype=torch.bool, device=scale.device)
    for found_inf in found_infs:
        overflow = overflow | (found_inf.reshape(()) != 0)
    in_a_row = torch.where(overflow, skipped[1] + 1, 0)
    tracker = torch.where(overflow, 0, growth_tracker + 1)
    grow = ~overflow & (tracker == growth_interval)

    one = torch.ones((), dtype=torch.float64, device=scale.device)  # factors stay float64 beside it
    factor = torch.where(grow, growth_factor, torch.where(in_a_row > hysteresis, backoff_factor, one))
    following = (scale.double() * factor).float()
    moves = (grow | (in_a_row > hysteresis)) & following.isfinite()
    scale.copy_(torch.where(moves, following.clamp(min_scale, max_scale), scale))
    growth_tracker.copy_(torch.where(grow, 0, tracker))
    skipped.copy_(torch.stack([skipped[0] + overflow, in_a_row]))
