"""Masks in plain PyTorch: a bit an element, the first in the lowest bit of the first byte."""

import torch
from torch import Tensor
from torch.nn import functional


def pack(passed: Tensor) -> Tensor:
    """bool [n] to uint8 [ceil(n / 8)]; bits behind the last element are 0."""
    bits = functional.pad(passed.to(torch.uint8), (0, -passed.numel() % 8)).view(-1, 8)
    return (bits << torch.arange(8, dtype=torch.uint8, device=bits.device)).sum(1, dtype=torch.uint8)


def unpack(mask: Tensor, numel: int) -> Tensor:
    """The other way round: bool [numel]."""
    bits = mask.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8, device=mask.device) & 1
    return bits.view(-1)[:numel].bool()
