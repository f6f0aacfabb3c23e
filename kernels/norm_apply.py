"""Batch normalization: the forward pass once the coefficients are known.

Memory contract: `normalise_all` reads the input, and the residual where there is one, once, and writes the
output once, and a bit an element where backward needs it. It goes over memory as it lies, whatever the order
of memory, and from its end, where the launch that measured has been last: that may still be in the L2 cache.
"""

import triton
import triton.language as tl

from .amp import _float64
from .norm_memory import channels_of, coefficient
from .norm_rules import activate, normalise, passes


@triton.jit
def vectors_of_program(numel, INDEX: tl.constexpr, SIZE: tl.constexpr):
    """Where the vectors of eight of this program's tile start, and whether all of it is there."""
    start = (tl.num_programs(0) - 1 - tl.program_id(0)).to(INDEX) * SIZE
    return start + tl.arange(0, SIZE // 8)[:, None] * 8, start + SIZE <= numel


@triton.jit
def _normalise_tile(
    x, residual, y, bits, table, first, numel, inner, channels, negative_slope,
    FULL: tl.constexpr, ACT: tl.constexpr, HOW: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    at = first + tl.arange(0, 8)[None, :]
    mask = None if FULL else at < numel
    owners = channels_of(first, inner, channels, HOW)
    mean = coefficient(table, 0, owners, channels, HOW)
    scale, shift = coefficient(table, 1, owners, channels, HOW), coefficient(table, 2, owners, channels, HOW)
    v = normalise(tl.load(x + at, mask=mask).to(T), mean, scale, shift)
    if residual is not None:
        v = v + tl.load(residual + at, mask=mask).to(T)
    tl.store(y + at, activate(v, negative_slope, ACT).to(y.dtype.element_ty), mask=mask)
    if bits is not None:
        passed = passes(v, ACT) if FULL else passes(v, ACT) & mask
        packed = tl.sum(passed.to(tl.int32) << tl.arange(0, 8)[None, :], 1, keep_dims=True)
        tl.store(bits + first // 8, packed.to(tl.uint8), mask=None if FULL else first < numel)


@triton.jit(do_not_specialize=["negative_slope", "numel", "inner", "channels"])
def normalise_all(
    x, residual, y, bits, table, batches, negative_slope, numel, inner, channels,
    ACT: tl.constexpr, HOW: tl.constexpr, INDEX: tl.constexpr, T: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """batches: counted up by one. table: mean, scale, shift."""
    numel, inner, channels = tl.cast(numel, INDEX), tl.cast(inner, INDEX), tl.cast(channels, INDEX)
    first, full = vectors_of_program(numel, INDEX, SIZE)
    slope = _float64(negative_slope).to(T)
    if full:
        _normalise_tile(
            x, residual, y, bits, table, first, numel, inner, channels, slope, True, ACT, HOW, T
        )  # fmt: skip
    else:
        _normalise_tile(
            x, residual, y, bits, table, first, numel, inner, channels, slope, False, ACT, HOW, T
        )  # fmt: skip
    if batches is not None:
        one = tl.program_id(0) == 0
        tl.store(batches, tl.load(batches, mask=one) + 1, mask=one)
