"""Products of few tiles, whose depth is cut in shares so that more multiprocessors have work.

Memory contract: one launch, a program a share of a tile. x and w are read as in int8_tiles.py and
int8_weight_only.py, by pointers on every machine: a share has few steps, and no tile comes after it. A
program leaves its sums (and those of w, where there is a zero point to correct) in a scratch of [tiles,
shares, sums]. The last one of a tile to be done reads the tile's, out of the L2 cache, adds them in the order
of shares, and goes on as if they were its own. Int32 sums have the same bits in any number of shares; float32
sums have the same from run to run, and others in another number of shares, which the machine decides, too.
"""

import triton
import triton.language as tl

from .int8_tiles import finish, place, sums_of_tile
from .int8_weight_only import real_sums_of_tile
from .tickets import is_last

_IN_FLIGHT = tl.constexpr(4)  # shares that are read before the first of them is added


@triton.jit
def _depth(k, DEPTH: tl.constexpr):
    """(begin, end) of this program's share. They differ by a step of DEPTH at most; some may be empty."""
    share, shares, steps = tl.program_id(1), tl.num_programs(1), tl.cdiv(k, DEPTH)
    each, more = steps // shares, steps % shares
    first = share * each + tl.minimum(share, more)
    last = first + each + (share < more).to(tl.int32)
    return first * DEPTH, tl.minimum(last * DEPTH, k)


@triton.jit
def _left(partials, share, at):
    """What a share has left; zeros of those that there are not."""
    there = tl.full(at.shape, share, tl.int32) < tl.num_programs(1)
    return tl.load(partials + at, mask=there, other=0, cache_modifier=".cg")


@triton.jit
def _all(partials, at, SIZE: tl.constexpr):
    """The sum over shares, in their order."""
    sums = tl.zeros(at.shape, partials.dtype.element_ty)
    for share in range(0, tl.num_programs(1), _IN_FLIGHT):
        for more in tl.static_range(_IN_FLIGHT):
            sums += _left(partials + (share + more) * SIZE, share + more, at)
    return sums


@triton.jit
def _finish_last(
    sums, weights, partials, tickets, first_row, first_output, behind,
    X: tl.constexpr, STEPS: tl.constexpr, ACT: tl.constexpr,
):  # fmt: skip
    tile, share, shares = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    SUMS: tl.constexpr = sums.shape[0] * sums.shape[1]
    SIZE: tl.constexpr = SUMS if weights is None else SUMS + sums.shape[1]
    outputs = tl.arange(0, sums.shape[1])
    at = tl.arange(0, sums.shape[0])[:, None] * sums.shape[1] + outputs[None, :]
    of_tile = partials + tl.cast(tile, tl.int64) * shares * SIZE
    tl.store(of_tile + share * SIZE + at, sums)
    if weights is not None:
        tl.store(of_tile + share * SIZE + SUMS + outputs, weights)
    if is_last(tickets + tile, shares):
        of_outputs = None if weights is None else _all(of_tile + SUMS, outputs, SIZE)
        finish(_all(of_tile, at, SIZE), of_outputs, first_row, first_output, behind, X, STEPS, ACT)


@triton.jit
def product_shares(
    x, w, y, input_scale, input_zero, weight_scale, bias, output_scale, output_zero, m, n, k,
    partials, tickets,
    STEPS: tl.constexpr, ACT: tl.constexpr, CORRECTS: tl.constexpr,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Grid: tiles, shares. tickets: zeros, one a tile."""
    begin, end = _depth(k, DEPTH)
    row, output = place(tl.program_id(0), m, n, ROWS, OUTPUTS)
    sums, weights = sums_of_tile(x, w, row, output, begin, end, m, n, k, CORRECTS, ROWS, OUTPUTS, DEPTH)
    weights = weights if CORRECTS else None
    behind = (y, input_scale, input_zero, weight_scale, bias, output_scale, output_zero, m, n)
    at = (row * ROWS, output * OUTPUTS)
    _finish_last(sums, weights, partials, tickets, *at, behind, x.dtype.element_ty, STEPS, ACT)


@triton.jit
def weight_only_shares(
    x, w, y, input_scale, input_zero, weight_scale, bias, output_scale, output_zero, m, n, k,
    partials, tickets,
    STEPS: tl.constexpr, ACT: tl.constexpr, CORRECTS: tl.constexpr,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    begin, end = _depth(k, DEPTH)
    row, output = place(tl.program_id(0), m, n, ROWS, OUTPUTS)
    sums = real_sums_of_tile(x, w, row, output, begin, end, m, n, k, ROWS, OUTPUTS, DEPTH)
    behind = (y, None, None, weight_scale, bias, None, None, m, n)
    at = (row * ROWS, output * OUTPUTS)
    _finish_last(sums, None, partials, tickets, *at, behind, x.dtype.element_ty, STEPS, ACT)
