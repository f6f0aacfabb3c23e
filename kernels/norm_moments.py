"""Batch normalization: mean and squared deviations of each channel.

Memory contract: `measure` reads the input once and writes three float64 a channel and program, and from those
statistics, coefficients and running statistics, a few numbers a channel. A program's first tile is read twice
(the second time from the cache). Inputs with inf, NaN or squares that float32 does not hold are read two
times more.
"""

import triton
import triton.language as tl

from .amp import _float64
from .norm_channels import follow, store_row, store_stats
from .norm_memory import (
    channels_of_block,
    is_last_of_block,
    leave,
    left,
    none_held,
    over_tile,
    read_tile,
    sizes_of,
    sum_held,
    sum_tile,
    tile_of,
    tiles_of,
)
from .norm_rules import finite_or_zero, low_part, merge_near
from .rules import max_or_nan


@triton.jit
def _pilot(x, sizes, CUT: tl.constexpr, T: tl.constexpr):
    """The mean of the first tile: squares are summed of deviations from a shift that is close to the mean."""
    start, there, inside, held = tile_of(tl.program_id(1).to(CUT.index), sizes, CUT)
    n = tl.maximum(sum_held(held, CUT), 1).to(T)
    return finite_or_zero(sum_tile(tl.where(inside, read_tile(x, start, there, CUT, T), 0.0), CUT) / n)


@triton.jit
def _moments(x, sizes, CUT: tl.constexpr, T: tl.constexpr):
    """(count, mean, m2) of this program's tiles, in float64. Made in T, for float64 takes twice the
    registers: each chunk is summed around the mean of those before, which is kept in two parts."""
    split, splits, tiles = tl.program_id(1).to(CUT.index), tl.num_programs(1), tiles_of(sizes, CUT)
    mean = _pilot(x, sizes, CUT, T)
    low, m2 = tl.zeros((CUT.block,), T), tl.zeros((CUT.block,), T)
    count = tl.zeros((CUT.block,), tl.float64)
    for first in range(split, tiles, splits * CUT.chunk):
        last = tl.minimum(first + splits * CUT.chunk, tiles)
        s, q, shift = tl.zeros(CUT.shape, T), tl.zeros(CUT.shape, T), over_tile(mean, CUT)
        n = none_held(CUT)
        for tile in range(first, last, splits):
            start, there, inside, held = tile_of(tile, sizes, CUT)
            deviation = tl.where(inside, read_tile(x, start, there, CUT, T) - shift, 0.0)
            s += deviation
            q = tl.fma(deviation, deviation, q)
            n += held
        more = sum_held(n, CUT).to(tl.float64)
        sum = sum_tile(s, CUT)
        off = sum * (1.0 / tl.maximum(more, 1.0)).to(T)
        its = max_or_nan(sum_tile(q, CUT) - sum * off, 0.0)
        mean, low, m2 = merge_near(mean, low, m2, count, more, off, its, T)
        count += more
    return count, mean.to(tl.float64) + low.to(tl.float64), m2.to(tl.float64)


@triton.jit
def _sum_again(x, mean, sizes, CUT: tl.constexpr):
    """Of x over this program's tiles in float64; given a mean, that of squared deviations."""
    s = tl.zeros(CUT.shape, tl.float64)
    for tile in range(tl.program_id(1).to(CUT.index), tiles_of(sizes, CUT), tl.num_programs(1)):
        start, there, inside, _ = tile_of(tile, sizes, CUT)
        wide = read_tile(x, start, there, CUT, tl.float64)
        if mean is not None:
            deviation = wide - over_tile(mean, CUT)
            wide = deviation * deviation
        s += tl.where(inside, wide, 0.0)
    return sum_tile(s, CUT)


@triton.jit
def _moments_again(x, count, sizes, CUT: tl.constexpr):
    """Where there are inf, NaN or numbers whose squares overflow, in two passes: the mean then is what torch
    has, +-inf or NaN, and squares of 1e30 fit."""
    mean = _sum_again(x, None, sizes, CUT) / count
    return mean, _sum_again(x, mean, sizes, CUT)


@triton.jit
def _all_moments(partials, c, there, channels, count, CUT: tl.constexpr, FOLDED: tl.constexpr):
    """(mean, m2) over all programs: Chan's merge of all at once, around the mean that the first has found."""
    base = finite_or_zero(tl.load(partials + tl.num_programs(1) * channels + c, mask=there, other=0.0,
                                  cache_modifier=".cg"))  # fmt: skip
    off = tl.zeros((FOLDED, CUT.block), tl.float64)
    m2 = tl.zeros((FOLDED, CUT.block), tl.float64)
    for start in range(0, tl.num_programs(1), FOLDED):
        rows = start + tl.arange(0, FOLDED)
        n = left(partials, 0, rows, c, there, channels)
        delta = tl.where(n > 0, left(partials, 1, rows, c, there, channels) - base[None, :], 0.0)
        off += n * delta
        m2 += left(partials, 2, rows, c, there, channels) + n * delta * delta
    shift = tl.sum(off, 0)
    return base + shift / count, max_or_nan(tl.sum(m2, 0) - shift * (shift / count), 0.0)


@triton.jit(do_not_specialize=["eps", "momentum", "images", "pixels", "channels", "vectors"])
def measure(
    x, partials, tickets, stats, table, weight, bias, running_mean, running_var, batches, eps, momentum,
    images, pixels, channels, vectors,
    AVERAGE: tl.constexpr, CUT: tl.constexpr, FOLDED: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """Grid: blocks of channels, and programs that share each. Program i of a block takes its tiles i, i +
    splits ... No table: `stats` takes the moments, for others to merge. eps, momentum: bits of a float64."""
    sizes = sizes_of(images, pixels, channels, vectors, CUT)
    channels = sizes[2]
    c, there = channels_of_block(sizes, CUT)
    count, mean, m2 = _moments(x, sizes, CUT, T)
    if tl.sum((m2 - m2 != 0).to(tl.int32)) > 0:
        mean, m2 = _moments_again(x, count, sizes, CUT)
    leave(partials, 0, c, there, channels, count)
    leave(partials, 1, c, there, channels, mean)
    leave(partials, 2, c, there, channels, m2)
    if is_last_of_block(tickets):
        n = (sizes[0] * sizes[1]).to(tl.float64)
        mean, m2 = _all_moments(partials, c, there, channels, n, CUT, FOLDED)
        if table is None:
            store_row(stats, 0, c, there, channels, mean.to(T))
            store_row(stats, 1, c, there, channels, low_part(mean, T))
            store_row(stats, 2, c, there, channels, m2.to(T))
            tl.store(stats + 3 * channels, n.to(T))
        else:
            follow(running_mean, running_var, batches, momentum, c, there, mean, m2, n, AVERAGE)
            store_stats(stats, table, c, there, channels, mean, m2 / n, _float64(eps), weight, bias, T)
