"""The 8-bit product by tensor cores: tiles of rows x outputs, whose int32 sums never leave the registers.

Memory contract. x is read once for each block of outputs, w once for each block of rows; tiles at work at a
time lie in bands, so that most of these reads are hits in the L2 cache. y is written once. `product_tiles`
reads by pointers, a program a tile; `product_tiles_tma` by descriptors, as many programs as multiprocessors,
the loads of a tile under way while the one before is stored. Sums of w, where there is a zero point to
correct, are made of the tiles that pass by. Tiles in shares: int8_shares.py.
"""

import triton
import triton.language as tl

from .int8_rules import quantized_again, scaled, signed, signed_zero, without_zero

_BAND = tl.constexpr(8)  # blocks of rows
_AT_ONCE = tl.constexpr(128 * 128)


@triton.jit
def place(tile, m, n, ROWS: tl.constexpr, OUTPUTS: tl.constexpr):
    """(block of rows, block of outputs) of a tile: down a band of _BAND blocks of rows, then to the right."""
    down, across = tl.cdiv(m, ROWS), tl.cdiv(n, OUTPUTS)
    band = across * _BAND
    first = tile // band * _BAND
    height = tl.minimum(down - first, _BAND)
    inside = tile % band
    return first + inside % height, inside // height


@triton.jit
def _each(values, at, count, STEP: tl.constexpr):
    """A value each, or the one for all; None where there are none."""
    return None if values is None else tl.load(values + at * STEP, mask=at < count, other=0)


@triton.jit
def _finish(
    sums, weights, first_row, first_output, behind, X: tl.constexpr, STEPS: tl.constexpr, ACT: tl.constexpr
):
    y, input_scale, input_zero, weight_scale, bias, output_scale, output_zero, m, n = behind
    rows, outputs = first_row + tl.arange(0, sums.shape[0]), first_output + tl.arange(0, sums.shape[1])
    if weights is not None:
        zero = tl.zeros_like(rows) if input_zero is None else _each(input_zero, rows, m, STEPS[1])
        sums = without_zero(sums, signed_zero(zero, X)[:, None], weights[None, :])
    if y.dtype.element_ty != tl.int32:
        of_row, of_output = _each(input_scale, rows, m, STEPS[0]), _each(weight_scale, outputs, n, STEPS[2])
        added = _each(bias, outputs, n, STEPS[3])
        of_row = None if of_row is None else of_row[:, None]
        of_output = None if of_output is None else of_output[None, :]
        sums = scaled(sums, of_output, of_row, None if added is None else added[None, :], ACT)
    if output_scale is not None:
        off = None if output_zero is None else tl.load(output_zero)
        sums = quantized_again(sums, tl.load(output_scale), off)
    to = y + rows.to(tl.int64)[:, None] * n + outputs[None, :]
    tl.store(to, sums.to(y.dtype.element_ty), mask=(rows < m)[:, None] & (outputs < n)[None, :])


@triton.jit
def finish(
    sums, weights, first_row, first_output, behind, X: tl.constexpr, STEPS: tl.constexpr, ACT: tl.constexpr
):
    """Scales, zero points, bias and activation, 8 bits again, and the store. sums: [rows, outputs] of the
    tile. weights: of each output, where they are needed. behind: what a kernel is given from y to n. X: the
    dtype of x. STEPS: of the four vectors, 0 for one value.
    A wide tile in two halves: its sums take half of the registers, and what is made of them would, too."""
    if weights is None and sums.shape[0] * sums.shape[1] > _AT_ONCE:
        HALF: tl.constexpr = sums.shape[1] // 2
        left, right = tl.split(tl.permute(tl.reshape(sums, (sums.shape[0], 2, HALF)), (0, 2, 1)))
        _finish(left, None, first_row, first_output, behind, X, STEPS, ACT)
        _finish(right, None, first_row, first_output + HALF, behind, X, STEPS, ACT)
    else:
        _finish(sums, weights, first_row, first_output, behind, X, STEPS, ACT)


@triton.jit
def sums_of_tile(
    x, w, row, output, begin, end, m, n, k,
    CORRECTS: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """(sums, those of weights if CORRECTS) of a tile, over the depth from begin to end."""
    rows = tl.minimum(row * ROWS + tl.arange(0, ROWS), m - 1).to(tl.int64)  # beyond the last: that again
    outputs = tl.minimum(output * OUTPUTS + tl.arange(0, OUTPUTS), n - 1).to(tl.int64)
    deep = tl.arange(0, DEPTH)
    from_x, from_w = x + rows[:, None] * k + deep[None, :], w + outputs[None, :] * k + deep[:, None]
    sums = tl.zeros((ROWS, OUTPUTS), tl.int32)
    weights = tl.zeros((OUTPUTS,), tl.int32)
    for start in range(begin, end, DEPTH):
        inside = deep < end - start
        a = signed(tl.load(from_x + start, mask=inside[None, :], other=0))
        b = tl.load(from_w + start, mask=inside[:, None], other=0)
        sums = tl.dot(a, b, sums, out_dtype=tl.int32)
        if CORRECTS:
            weights += tl.sum(b.to(tl.int32), 0)
    return sums, weights


@triton.jit
def product_tiles(
    x, w, y, input_scale, input_zero, weight_scale, bias, output_scale, output_zero, m, n, k,
    STEPS: tl.constexpr, ACT: tl.constexpr, CORRECTS: tl.constexpr,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    row, output = place(tl.program_id(0), m, n, ROWS, OUTPUTS)
    sums, weights = sums_of_tile(x, w, row, output, 0, k, m, n, k, CORRECTS, ROWS, OUTPUTS, DEPTH)
    weights = weights if CORRECTS else None
    behind = (y, input_scale, input_zero, weight_scale, bias, output_scale, output_zero, m, n)
    finish(sums, weights, row * ROWS, output * OUTPUTS, behind, x.dtype.element_ty, STEPS, ACT)


@triton.jit
def product_tiles_tma(
    x, w, y, input_scale, input_zero, weight_scale, bias, output_scale, output_zero, m, n, k,
    STEPS: tl.constexpr, ACT: tl.constexpr, CORRECTS: tl.constexpr,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """x, w: descriptors with blocks of the tile's sizes, which give zeros beyond the ends."""
    tiles = tl.cdiv(m, ROWS) * tl.cdiv(n, OUTPUTS)
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
        row, output = place(tile, m, n, ROWS, OUTPUTS)
        sums = tl.zeros((ROWS, OUTPUTS), tl.int32)
        weights = tl.zeros((OUTPUTS,), tl.int32) if CORRECTS else None
        for start in range(0, k, DEPTH):
            a, b = signed(x.load([row * ROWS, start])), w.load([output * OUTPUTS, start])
            sums = tl.dot(a, b.T, sums, out_dtype=tl.int32)
            if CORRECTS:
                weights += tl.sum(b.to(tl.int32), 1)
        behind = (y, input_scale, input_zero, weight_scale, bias, output_scale, output_zero, m, n)
        finish(sums, weights, row * ROWS, output * OUTPUTS, behind, x.dtype, STEPS, ACT)
