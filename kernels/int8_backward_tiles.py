"""The products of the 8-bit product's gradients, by tensor cores: tiles of lines x outputs.

    y[line, output] = float(sum of q[line, d] * right[output, d] + start[line]) * scale[line]

Memory contract: as int8_tiles.py, by pointers and by descriptors. An int32 has room for a sum of 65,536
products; of a LONG depth such sums are added up in 64 bits, in registers. So is the start, which a zero point
far away makes large. All is exact up to the float.
"""

import triton
import triton.language as tl

from .int8_tiles import finish, place

LONGEST = 65_536
_PIECE = tl.constexpr(LONGEST)
_STEPS = tl.constexpr((1, 0, 0, 0))


@triton.jit
def _leave(sums, starts, first, first_output, y, scales, lines, outputs):
    if starts is not None:
        at = first + tl.arange(0, sums.shape[0])
        sums = sums.to(tl.int64) + tl.load(starts + at, mask=at < lines, other=0)[:, None]
    behind = (y, scales, None, None, None, None, None, lines, outputs)
    finish(sums, None, first, first_output, behind, tl.int8, _STEPS, None)


@triton.jit
def _sums(from_q, from_right, begin, end, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, DEPTH: tl.constexpr):
    deep = tl.arange(0, DEPTH)
    sums = tl.zeros((ROWS, OUTPUTS), tl.int32)
    for start in range(begin, end, DEPTH):
        inside = deep < end - start
        a = tl.load(from_q + start, mask=inside[None, :], other=0)
        b = tl.load(from_right + start, mask=inside[:, None], other=0)
        sums = tl.dot(a, b, sums, out_dtype=tl.int32)
    return sums


@triton.jit
def gradient_tiles(
    q, right, y, scales, starts, lines, outputs, depth,
    LONG: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    row, output = place(tl.program_id(0), lines, outputs, ROWS, OUTPUTS)
    at = tl.minimum(row * ROWS + tl.arange(0, ROWS), lines - 1).to(tl.int64)  # beyond the last: that again
    to = tl.minimum(output * OUTPUTS + tl.arange(0, OUTPUTS), outputs - 1).to(tl.int64)
    deep = tl.arange(0, DEPTH)
    from_q, from_right = q + at[:, None] * depth + deep[None, :], right + to[None, :] * depth + deep[:, None]
    if LONG:
        sums = tl.zeros((ROWS, OUTPUTS), tl.int64)
        for begin in range(0, depth, _PIECE):
            end = tl.minimum(begin + _PIECE, depth)
            sums += _sums(from_q, from_right, begin, end, ROWS, OUTPUTS, DEPTH).to(tl.int64)
    else:
        sums = _sums(from_q, from_right, 0, depth, ROWS, OUTPUTS, DEPTH)
    _leave(sums, starts, row * ROWS, output * OUTPUTS, y, scales, lines, outputs)


@triton.jit
def _described_sums(
    q, right, row, output, begin, end, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, DEPTH: tl.constexpr
):
    sums = tl.zeros((ROWS, OUTPUTS), tl.int32)
    for start in range(begin, end, DEPTH):
        a, b = q.load([row * ROWS, start]), right.load([output * OUTPUTS, start])
        sums = tl.dot(a, b.T, sums, out_dtype=tl.int32)
    return sums


@triton.jit
def gradient_tiles_tma(
    q, right, y, scales, starts, lines, outputs, depth,
    LONG: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """q, right: descriptors with blocks of the tile's sizes, which give zeros beyond the ends."""
    tiles = tl.cdiv(lines, ROWS) * tl.cdiv(outputs, OUTPUTS)
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=not LONG):
        row, output = place(tile, lines, outputs, ROWS, OUTPUTS)
        if LONG:
            sums = tl.zeros((ROWS, OUTPUTS), tl.int64)
            for begin in range(0, depth, _PIECE):
                end = tl.minimum(begin + _PIECE, depth)
                piece = _described_sums(q, right, row, output, begin, end, ROWS, OUTPUTS, DEPTH)
                sums += piece.to(tl.int64)
        else:
            sums = _described_sums(q, right, row, output, 0, depth, ROWS, OUTPUTS, DEPTH)
        _leave(sums, starts, row * ROWS, output * OUTPUTS, y, scales, lines, outputs)
