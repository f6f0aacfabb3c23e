"""Philox's words as a kernel of Triton's rules draws them: for the interpreter, which wants a module."""

import triton
import triton.language as tl
from onepass.kernels.philox_rules import words
from torch import Tensor


@triton.jit
def _draw(to, seed, block, STREAM: tl.constexpr):
    """Of blocks `block` and the three before it."""
    blocks = block - 3 + tl.arange(0, 4)[None, :]
    tl.store(to + tl.arange(0, 16)[None, :], words(seed, STREAM, blocks.to(tl.int64)).to(tl.int64))


def draw(to: Tensor, seed: int, block: int, stream: int) -> None:
    _draw[(1,)](to, seed, block, STREAM=stream)
