"""What the 8-bit product's gradients multiply, made ready for tensor cores, which read bytes along the depth:
lines of g (its rows, or its columns) in 8 bits, and the other factor turned.

Memory contract: one launch. A program of the first ones reads some lines of g twice, to find their scales and
to quantize them, the second time from a cache, and writes a byte an element, and each line's scale. Columns
are taken 32 side by side, a cache line of float32. A program of the others reads and writes a square of bytes
of the other factor. Rows of what is written begin at multiples of 16 bytes, with zeros behind the depth.
"""

import triton
import triton.language as tl

from .int8_rules import HALF_OF_UNSIGNED, signed
from .philox_rules import rounded_by_chance, words
from .quant_rules import grid_of, merge, on_grid, rounded


@triton.jit
def _held(at, depth, EVEN: tl.constexpr):
    """Is this a place in a line?"""
    return at < depth if EVEN else (at >= 0) & (at < depth)


@triton.jit
def _along(values, at, depth, STEP: tl.constexpr, EVEN: tl.constexpr):
    """What every place of the depth has, or all have in common; None where there is nothing."""
    return None if values is None else tl.load(values + at * STEP, mask=_held(at, depth, EVEN), other=0)


@triton.jit
def _values(from_g, there, factors, at, depth, STEP: tl.constexpr, EVEN: tl.constexpr):
    """Elements of g times a factor for each place of the depth; 0 where there are none."""
    v = tl.load(from_g, mask=there & _held(at, depth, EVEN), other=0.0).to(tl.float32)
    factor = _along(factors, at, depth, STEP, EVEN)
    return v if factor is None else v * factor


@triton.jit
def _lacking(zeros, at, depth, STEP: tl.constexpr, EVEN: tl.constexpr, X: tl.constexpr):
    """What signed(x) lacks of x - zero, in 64 bits. X: the dtype of x."""
    half = HALF_OF_UNSIGNED if tl.uint8 == X else 0
    zero = _along(zeros, at, depth, STEP, EVEN)
    return tl.full((1, 1), half, tl.int64) if zero is None else half - zero.to(tl.int64)


@triton.jit
def _quantize(
    program, g, factors, zeros, seed, q, scales, starts, lines, depth, width, strides,
    STEPS: tl.constexpr, X: tl.constexpr, STREAM: tl.constexpr, EVEN: tl.constexpr,
    LINES: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """LINES lines, DEPTH elements of each at a time. Unless lines begin at Philox's blocks of four, EVEN,
    tiles do, in front of them. starts: of each line, the sum of q times what it is multiplied by lacks."""
    of_line, of_depth = strides
    line = program.to(tl.int64) * LINES + tl.arange(0, LINES)
    there, first = (line < lines)[:, None], line * depth
    deep, end = tl.arange(0, DEPTH)[None, :], width
    if not EVEN:
        deep, end = deep - (first % 4).to(tl.int32)[:, None], width + 3
    step = tl.cast(of_depth, tl.int64)
    from_g = g + line[:, None] * of_line + deep * step
    low = tl.zeros((LINES, DEPTH), tl.float32)
    high, odd = low, low
    for start in range(0, end, DEPTH):
        v = _values(from_g + start * step, there, factors, deep + start, depth, STEPS[0], EVEN)
        low, high, odd = merge(v, low, high, odd)
    scale, inverse, _ = grid_of((tl.min(low, 1), tl.max(high, 1), tl.sum(odd, 1)), True, 127)
    tl.store(scales + line, scale, mask=line < lines)
    total = tl.zeros((LINES,), tl.int64)
    for start in range(0, end, DEPTH):
        at = deep + start
        v = _values(from_g + start * step, there, factors, at, depth, STEPS[0], EVEN)
        v = on_grid(v, inverse[:, None], -127.0, 127.0)
        if seed is None:
            v = rounded(v)
        else:
            block = (first // 4)[:, None] + (start // 4 + tl.arange(0, DEPTH // 4)[None, :])
            v = rounded_by_chance(v, words(seed, STREAM, block))
        tl.store(q + line[:, None] * width + at, v.to(tl.int8), mask=there & _held(at, width, EVEN))
        if starts is not None:
            total += tl.sum(v.to(tl.int64) * _lacking(zeros, at, depth, STEPS[1], EVEN, X), 1)
    if starts is not None:
        tl.store(starts + line, total, mask=line < lines)


@triton.jit
def _turn(program, right, turned, depth, outputs, width, strides, SIDE: tl.constexpr):
    """A square of [depth, outputs] to [outputs, width], as signed bytes."""
    of_depth, of_output = strides
    across = tl.cdiv(outputs, SIDE)
    deep = (program // across).to(tl.int64) * SIDE + tl.arange(0, SIDE)
    output = (program % across).to(tl.int64) * SIDE + tl.arange(0, SIDE)
    held = (deep < depth)[:, None] & (output < outputs)[None, :]
    x = signed(tl.load(right + deep[:, None] * of_depth + output[None, :] * of_output, mask=held, other=0))
    to = turned + output[:, None] * width + deep[None, :]
    tl.store(to, tl.trans(tl.where(held, x, 0)), mask=(output < outputs)[:, None] & (deep < width)[None, :])


@triton.jit(do_not_specialize=["seed"])
def make_ready(
    g, factors, zeros, seed, q, scales, starts, right, turned, lines, depth, width, outputs, programs,
    of_line, of_depth, from_depth, from_output,
    STEPS: tl.constexpr, STREAM: tl.constexpr, EVEN: tl.constexpr,
    LINES: tl.constexpr, DEPTH: tl.constexpr, SIDE: tl.constexpr,
):  # fmt: skip
    """`programs` of them quantize, the others turn. Strides: g's and right's. STEPS: of factors and zeros, 0
    for one value."""
    program = tl.program_id(0)
    if program < programs:
        _quantize(
            program, g, factors, zeros, seed, q, scales, starts, lines, depth, width, (of_line, of_depth),
            STEPS, right.dtype.element_ty, STREAM, EVEN, LINES, DEPTH,
        )  # fmt: skip
    else:
        strides = (from_depth, from_output)
        _turn(program - programs, right, turned, depth, outputs, width, strides, SIDE)
