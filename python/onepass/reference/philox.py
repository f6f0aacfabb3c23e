"""Random numbers without a state, Philox4x32-10 (Salmon et al., SC 2011), and rounding by them, in plain
PyTorch: as csrc/rules/philox.h has it, bit for bit."""

import torch
from torch import Tensor

_ALL = 0xFFFF_FFFF
_MULTIPLIERS, _STEPS = (0xD251_1F53, 0xCD9E_8D57), (0x9E37_79B9, 0xBB67_AE85)


def philox(counters: list[Tensor], key: tuple[int, int]) -> list[Tensor]:
    """Four words for each counter of four words; each of 32 bits, as int64."""
    (a, b, c, d), (k0, k1) = counters, key
    for _ in range(10):
        even, odd = (
            a * _MULTIPLIERS[0],
            c * _MULTIPLIERS[1],
        )  # bits 32 to 63 of them are right, as if unsigned
        a, b, c, d = (odd >> 32) & _ALL ^ b ^ k0, odd & _ALL, (even >> 32) & _ALL ^ d ^ k1, even & _ALL
        k0, k1 = (k0 + _STEPS[0]) & _ALL, (k1 + _STEPS[1]) & _ALL
    return [a, b, c, d]


def words(seed: int, stream: int, shape: torch.Size, device: torch.device) -> Tensor:
    """A word an element, in order: four elements share a counter, that of their index / 4."""
    blocks = torch.arange(-(-shape.numel() // 4), device=device)
    counters = [blocks & _ALL, blocks >> 32, torch.full_like(blocks, stream), torch.zeros_like(blocks)]
    drawn = philox(counters, (seed & _ALL, (seed >> 32) & _ALL))
    return torch.stack(drawn, -1).reshape(-1)[: shape.numel()].reshape(shape)


def rounded_by_chance(v: Tensor, word: Tensor) -> Tensor:
    """Up with the probability of what lies above the lower whole number, so that the mean is v."""
    below = v.floor()
    return below + ((word >> 8).float() * 2.0**-24 < v - below)
