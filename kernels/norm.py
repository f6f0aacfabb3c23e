"""Batch normalization: the ops batch_norm_*, with the arguments of the schemas in onepass/ops.py.

Memory contract. Forward: `measure` reads the input once and writes a few numbers a channel; `normalise_all`
reads the input (and the residual) once and writes the output, and a bit an element where backward needs it.
Backward: `measure_grads` reads the gradient and the input once (and the mask or the residual, where the
activation needs it); `grads_of_inputs` reads the same once and writes the input's gradient, and that of the
residual where it is wanted. Two launches each way: whichever program is the last to finish on a block of
channels merges what all have found there, and leaves statistics and coefficients on the device. Where the
statistics are given, a small launch makes these (`settle_*`). Nothing waits for the device. Inputs with inf,
NaN or squares that float32 does not hold are read two times more. What is not dense goes through copies.

Two orders of memory: planar (images, channels, pixels: NCHW) and interleaved (images, pixels, channels).
To read a channel is different work in them. The second launch goes over memory as it lies, from its end,
where the first has been last. Sums run in an order that the shape alone decides: the same bits in every run.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .amp import _bits, _float64
from .machine import INTERPRETED, THREADS, options, programs_of
from .norm_rules import (
    activate,
    activation_grad,
    finite_or_zero,
    gate,
    input_grad,
    input_grad_make,
    merge,
    merge_near,
    normalise,
    normalise_make,
    passes,
    running,
    stats_make,
    unbiased,
    whole_dot,
)
from .optim import TL_DTYPES
from .rules import max_or_nan

TILE = 2048 if INTERPRETED else 16 * THREADS  # elements that a program takes at a time; of float64 half
PROGRAMS = 16 if INTERPRETED else 512  # of a measuring launch, about: one set for a large GPU
TILES = 1 if INTERPRETED else 4  # of a measuring program at least, where there are as many
CHUNK = 2 if INTERPRETED else 16  # tiles that are summed before they are merged
SEGMENT = 64  # bytes of a row that a measuring program reads where channels are innermost
FOLD = 512  # partial results that a last program takes at a time
NARROW = 2**31  # elements whose offsets 32 bits hold
SETTLED = 128  # channels of a program that only makes coefficients

# How an element's channel is found from where it lies, eight elements at a time.
SAME = tl.constexpr(0)  # the eight are of one channel
NEXT = tl.constexpr(1)  # of eight channels in a row
WRAPPED = tl.constexpr(2)  # the same, and after the last one comes the first
CROSSING = tl.constexpr(3)  # of one channel, or the last of them of the next one
EACH = tl.constexpr(4)  # any

Results = tuple[Tensor, Tensor, Tensor]


class Cut(NamedTuple):
    """How a launch that measures is cut: a tile has `block` channels of `rows` elements each.

    The rows of planar memory are read in runs of `run` elements that lie side by side, but for the end of an
    image that comes between them; even: none does. Those of interleaved memory start on multiples of `run`
    elements, 16 bytes, if they are even.
    """

    last: bool  # channels are innermost
    block: int
    rows: int
    run: int
    even: bool
    chunk: int
    index: Any  # the integer type of an offset
    shape: tuple[int, ...]  # of a tile: rows, channels; or channels, runs, elements of a run


# --- a channel's own numbers ------------------------------------------------------------------------------
@triton.jit
def _get(at, c, there, missing: tl.constexpr):
    """A number a channel, in float64; `missing` where nobody has given any."""
    value = tl.full(c.shape, missing, tl.float64)
    if at is not None:
        value = tl.load(at + c, mask=there, other=0.0).to(tl.float64)
    return value


@triton.jit
def _set(at, c, there, value):
    """Rounded as C++ does it: a half takes what is left of a float32."""
    if at is not None:
        TYPE: tl.constexpr = at.dtype.element_ty
        narrow = value if TYPE.is_fp64() else value.to(tl.float32)
        tl.store(at + c, narrow.to(TYPE), mask=there)


@triton.jit
def _follow(at, c, there, now, factor):
    _set(at, c, there, running(_get(at, c, there, 0.0), now, factor))


@triton.jit
def _load_stats(stats, c, there, channels):
    return (
        tl.load(stats + c, mask=there, other=0.0),
        tl.load(stats + channels + c, mask=there, other=0.0),
        tl.load(stats + 2 * channels + c, mask=there, other=0.0),
    )


@triton.jit
def _set_normalise(table, c, there, channels, stats, weight, bias, T: tl.constexpr):
    mean, scale, shift = normalise_make(stats, _get(weight, c, there, 1.0), _get(bias, c, there, 0.0), T)
    tl.store(table + c, mean, mask=there)
    tl.store(table + channels + c, scale, mask=there)
    tl.store(table + 2 * channels + c, shift, mask=there)


@triton.jit
def _set_stats(stats, table, c, there, channels, mean, variance, eps, weight, bias, T: tl.constexpr):
    made = stats_make(mean, variance, eps, T)
    tl.store(stats + c, made[0], mask=there)
    tl.store(stats + channels + c, made[1], mask=there)
    tl.store(stats + 2 * channels + c, made[2], mask=there)
    _set_normalise(table, c, there, channels, made, weight, bias, T)


@triton.jit
def _set_input_grad(table, c, there, channels, stats, weight, sum, dot, count, T: tl.constexpr):
    slope, constant = input_grad_make(stats, _get(weight, c, there, 1.0), sum, dot, count, T)
    tl.store(table + 3 * channels + c, slope, mask=there)
    tl.store(table + 4 * channels + c, constant, mask=there)


@triton.jit
def _factor(momentum, batches, AVERAGE: tl.constexpr):
    """The share of this batch in the running statistics. AVERAGE: as much as any of all batches; one that
    nobody counts stays where it is. The counter itself moves in the next launch, when all have read it."""
    factor = _float64(momentum)
    if AVERAGE:
        factor = tl.full((), 0.0, tl.float64)
        if batches is not None:
            factor = 1.0 / (tl.load(batches) + 1).to(tl.float64)
    return factor


# --- where the elements of a channel lie ------------------------------------------------------------------
@triton.jit
def _tile(tile, block, count, pixels, channels, CUT: tl.constexpr):
    """(where runs start, offsets, are they there?) of a tile, in CUT.shape."""
    more = tl.arange(0, CUT.run)[None, None, :]
    if CUT.last:
        c = block * CUT.block + tl.arange(0, CUT.block // CUT.run)[None, :, None] * CUT.run
        row = tile * CUT.rows + tl.arange(0, CUT.rows)[:, None, None]
        start = row * channels + c
        inside = (row < count) & (c < channels)
    else:
        c = block * CUT.block + tl.arange(0, CUT.block)[:, None, None]
        row = (tile * (CUT.rows // CUT.run) + tl.arange(0, CUT.rows // CUT.run)[None, :, None]) * CUT.run
        image = row // pixels
        pixel = row - image * pixels
        start = (image * channels + c) * pixels + pixel
        inside = (row < count) & (c < channels)
    if CUT.even:
        start = tl.multiple_of(start, [CUT.run, CUT.run, CUT.run])
        offsets = start + more
        inside = inside & (more >= 0)  # in full shape
    else:
        # A run is no longer than an image has pixels, and so reaches into one image more at most.
        offsets = start + more + tl.where(pixel + more >= pixels, (channels - 1) * pixels, 0)
        inside = inside & (row + more < count)
    return start, offsets, inside


@triton.jit
def _over_tile(v, CUT: tl.constexpr):
    """A value a channel, to be read by the elements of a tile."""
    return tl.reshape(v, (1, CUT.block // CUT.run, CUT.run)) if CUT.last else v[:, None, None]


@triton.jit
def _sum_tile(v, CUT: tl.constexpr):
    """The sum over all of a channel's elements in a tile."""
    return tl.reshape(tl.sum(v, 0), (CUT.block,)) if CUT.last else tl.sum(tl.sum(v, 2), 1)


@triton.jit
def _elements(first, last, tiles, splits, count, CUT: tl.constexpr):
    """How many elements of a channel the tiles first, first + splits ... < last have, as float64. The last
    tile of all may not be full."""
    has_end = (last == tiles) & ((tiles - 1 - first) % splits == 0)
    missing = tl.where(has_end, tiles * CUT.rows - count, 0)
    return (((last - first + splits - 1) // splits) * CUT.rows - missing).to(tl.float64)


# --- the last program of a block of channels --------------------------------------------------------------
@triton.jit
def _leave(partials, c, there, channels, first, second):
    """Two results of this program. partials: float64 [2, splits, channels]."""
    split, splits = tl.program_id(1), tl.num_programs(1)
    tl.store(partials + split * channels + c, first, mask=there)
    tl.store(partials + (splits + split) * channels + c, second, mask=there)


@triton.jit
def _is_last(tickets):
    """Are all programs of this block of channels done?"""
    ticket = tickets + tl.program_id(0)
    tl.debug_barrier()  # all is written
    last = tl.atomic_add(ticket, 1, sem="acq_rel") == tl.num_programs(1) - 1
    if last:
        tl.store(ticket, 0)  # as it was: the next call finds it so
    return last


@triton.jit
def _left(partials, rows, c, there, channels, second: tl.constexpr):
    """What the programs `rows` have left."""
    splits = tl.num_programs(1)
    at = partials + (second * splits + rows)[:, None] * channels + c[None, :]
    mask = (rows < splits)[:, None] & there[None, :]
    return tl.load(at, mask=mask, other=0.0, cache_modifier=".cg")


@triton.jit
def _all_moments(partials, c, there, channels, tiles, count, CUT: tl.constexpr, FOLDED: tl.constexpr):
    """(mean, m2) over all programs: Chan's merge of all at once, around the mean that the first has found."""
    splits = tl.num_programs(1)
    base = finite_or_zero(tl.load(partials + c, mask=there, other=0.0, cache_modifier=".cg"))
    off = tl.zeros((FOLDED, CUT.block), tl.float64)
    m2 = tl.zeros((FOLDED, CUT.block), tl.float64)
    for start in range(0, splits, FOLDED):
        rows = start + tl.arange(0, FOLDED)
        n = _elements(rows, tiles, tiles, splits, count, CUT)
        n = tl.where(rows < splits, n, 0.0)[:, None]
        delta = _left(partials, rows, c, there, channels, 0) - base[None, :]
        delta = tl.where((rows < splits)[:, None], delta, 0.0)
        off += n * delta
        m2 += _left(partials, rows, c, there, channels, 1) + n * delta * delta
    shift, all = tl.sum(off, 0), tl.cast(count, tl.float64)
    return base + shift / all, max_or_nan(tl.sum(m2, 0) - shift * (shift / all), 0.0)


@triton.jit
def _all_sums(partials, c, there, channels, BLOCK: tl.constexpr, FOLDED: tl.constexpr):
    first = tl.zeros((FOLDED, BLOCK), tl.float64)
    second = tl.zeros((FOLDED, BLOCK), tl.float64)
    for start in range(0, tl.num_programs(1), FOLDED):
        rows = start + tl.arange(0, FOLDED)
        first += _left(partials, rows, c, there, channels, 0)
        second += _left(partials, rows, c, there, channels, 1)
    return tl.sum(first, 0), tl.sum(second, 0)


# --- moments of channels ----------------------------------------------------------------------------------
@triton.jit
def _pilot(x, block, tiles, count, pixels, channels, CUT: tl.constexpr, T: tl.constexpr):
    """The mean of the first tile: squares are summed of deviations from a shift that is close to the mean."""
    split = tl.program_id(1).to(CUT.index)
    _, at, inside = _tile(split, block, count, pixels, channels, CUT)
    n = tl.minimum(count - split * CUT.rows, CUT.rows).to(T)
    return finite_or_zero(_sum_tile(tl.load(x + at, mask=inside, other=0.0).to(T), CUT) / n)


@triton.jit
def _moments(x, block, tiles, count, pixels, channels, CUT: tl.constexpr, T: tl.constexpr):
    """(mean, m2) of this program's tiles, in float64. Made in T, for float64 takes twice the registers: each
    chunk is summed around the mean of those before, which is kept in two parts."""
    split, splits = tl.program_id(1).to(CUT.index), tl.num_programs(1)
    mean = _pilot(x, block, tiles, count, pixels, channels, CUT, T)
    low, m2 = tl.zeros((CUT.block,), T), tl.zeros((CUT.block,), T)
    for first in range(split, tiles, splits * CUT.chunk):
        last = tl.minimum(first + splits * CUT.chunk, tiles)
        s, q, shift = tl.zeros(CUT.shape, T), tl.zeros(CUT.shape, T), _over_tile(mean, CUT)
        for tile in range(first, last, splits):
            _, at, inside = _tile(tile, block, count, pixels, channels, CUT)
            deviation = tl.where(inside, tl.load(x + at, mask=inside, other=0.0).to(T) - shift, 0.0)
            s += deviation
            q = tl.fma(deviation, deviation, q)
        before = _elements(split, first, tiles, splits, count, CUT)
        n = _elements(first, last, tiles, splits, count, CUT)
        sum = _sum_tile(s, CUT)
        off = sum * (1.0 / n).to(T)
        its = max_or_nan(_sum_tile(q, CUT) - sum * off, 0.0)
        mean, low, m2 = merge_near(mean, low, m2, before, n, off, its, T)
    return mean.to(tl.float64) + low.to(tl.float64), m2.to(tl.float64)


@triton.jit
def _sum_again(x, mean, block, tiles, count, pixels, channels, CUT: tl.constexpr):
    """Of x over this program's tiles in float64; given a mean, that of squared deviations."""
    s = tl.zeros(CUT.shape, tl.float64)
    for tile in range(tl.program_id(1).to(CUT.index), tiles, tl.num_programs(1)):
        _, at, inside = _tile(tile, block, count, pixels, channels, CUT)
        wide = tl.load(x + at, mask=inside, other=0.0).to(tl.float64)
        if mean is not None:
            deviation = tl.where(inside, wide - _over_tile(mean, CUT), 0.0)
            wide = deviation * deviation
        s += wide
    return _sum_tile(s, CUT)


@triton.jit
def _moments_again(x, block, tiles, count, pixels, channels, CUT: tl.constexpr):
    """Where there are inf, NaN or numbers whose squares overflow, in two passes: the mean then is what torch
    has, +-inf or NaN, and squares of 1e30 fit."""
    split, splits = tl.program_id(1).to(CUT.index), tl.num_programs(1)
    n = _elements(split, tiles, tiles, splits, count, CUT)
    mean = _sum_again(x, None, block, tiles, count, pixels, channels, CUT) / n
    return mean, _sum_again(x, mean, block, tiles, count, pixels, channels, CUT)


@triton.jit(do_not_specialize=["eps", "momentum", "count", "pixels", "channels"])
def measure(
    x, partials, tickets, stats, table, weight, bias, running_mean, running_var, batches, eps, momentum,
    count, pixels, channels,
    AVERAGE: tl.constexpr, CUT: tl.constexpr, FOLDED: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """Grid: blocks of channels, and programs that share each. Program i of a block takes its tiles i, i +
    splits ... No table: `stats` takes the moments, for others to merge. eps, momentum: bits of a float64."""
    count, pixels = tl.cast(count, CUT.index), tl.cast(pixels, CUT.index)
    channels = tl.cast(channels, CUT.index)
    block, tiles = tl.program_id(0).to(CUT.index), tl.cdiv(count, CUT.rows)
    c = block * CUT.block + tl.arange(0, CUT.block)
    there = c < channels
    mean, m2 = _moments(x, block, tiles, count, pixels, channels, CUT, T)
    if tl.sum((m2 - m2 != 0).to(tl.int32)) > 0:
        mean, m2 = _moments_again(x, block, tiles, count, pixels, channels, CUT)
    _leave(partials, c, there, channels, mean, m2)
    if _is_last(tickets):
        mean, m2 = _all_moments(partials, c, there, channels, tiles, count, CUT, FOLDED)
        n = tl.cast(count, tl.float64)
        if table is None:
            made = stats_make(mean, m2, 0.0, T)
            tl.store(stats + c, made[0], mask=there)
            tl.store(stats + channels + c, made[1], mask=there)
            tl.store(stats + 2 * channels + c, m2.to(T), mask=there)
            tl.store(stats + 3 * channels, n.to(T))
        else:
            factor = _factor(momentum, batches, AVERAGE)
            _follow(running_mean, c, there, mean, factor)
            _follow(running_var, c, there, unbiased(m2, n), factor)
            _set_stats(stats, table, c, there, channels, mean, m2 / n, _float64(eps), weight, bias, T)


# --- sums of gradients ------------------------------------------------------------------------------------
@triton.jit
def _gradient(g, x, z, passed, coefficients, negative_slope, ACT: tl.constexpr):
    """The gradient of the pre-activations. passed: where the mask says so; None: told from x (and z)."""
    if ACT is not None:
        if passed is not None:
            g = gate(g, passed, negative_slope, ACT)
        else:
            mean, scale, shift = coefficients
            v = normalise(x, mean, scale, shift)
            if z is not None:
                v = v + z
            g = activation_grad(g, v, negative_slope, ACT)
    return g


@triton.jit
def _passed(bits, start, offsets, inside, CUT: tl.constexpr):
    """The bit of each element. A run of eight has a byte of its own."""
    if CUT.even and CUT.run == 8:
        mask = tl.sum(inside.to(tl.int32), 2, keep_dims=True) > 0
        byte, bit = tl.load(bits + start // 8, mask=mask, other=0), tl.arange(0, 8)[None, None, :]
    else:
        byte, bit = tl.load(bits + offsets // 8, mask=inside, other=0), offsets % 8
    return (byte.to(tl.int32) >> bit.to(tl.int32)) & 1 != 0


@triton.jit(do_not_specialize=["negative_slope", "count", "pixels", "channels"])
def measure_grads(
    dy, x, residual, bits, partials, tickets, stats, table, sums, weight, bias, dweight, dbias,
    negative_slope, count, pixels, channels,
    ACT: tl.constexpr, CUT: tl.constexpr, FOLDED: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """As `measure`. Writes gradients of weight and bias, and the table of coefficients or else `sums`."""
    count, pixels = tl.cast(count, CUT.index), tl.cast(pixels, CUT.index)
    channels = tl.cast(channels, CUT.index)
    block, tiles = tl.program_id(0).to(CUT.index), tl.cdiv(count, CUT.rows)
    split, splits = tl.program_id(1).to(CUT.index), tl.num_programs(1)
    c = block * CUT.block + tl.arange(0, CUT.block)
    there = c < channels
    saved = _load_stats(stats, c, there, channels)
    mean, scale, shift = normalise_make(saved, _get(weight, c, there, 1.0), _get(bias, c, there, 0.0), T)
    mean, scale, shift = _over_tile(mean, CUT), _over_tile(scale, CUT), _over_tile(shift, CUT)
    slope = _float64(negative_slope).to(T)
    s, d = tl.zeros(CUT.shape, T), tl.zeros(CUT.shape, T)
    for tile in range(split, tiles, splits):
        start, at, inside = _tile(tile, block, count, pixels, channels, CUT)
        g = tl.load(dy + at, mask=inside, other=0.0).to(T)
        xs = tl.load(x + at, mask=inside, other=0.0).to(T)
        z = None if residual is None else tl.load(residual + at, mask=inside, other=0.0).to(T)
        passed = None if bits is None else _passed(bits, start, at, inside, CUT)
        g = tl.where(inside, _gradient(g, xs, z, passed, (mean, scale, shift), slope, ACT), 0.0)
        s += g
        d = tl.fma(g, tl.where(inside, xs - mean, 0.0), d)
    sum, dot = _sum_tile(s, CUT).to(tl.float64), _sum_tile(d, CUT).to(tl.float64)
    _leave(partials, c, there, channels, sum, dot)
    if _is_last(tickets):
        sum, dot = _all_sums(partials, c, there, channels, CUT.block, FOLDED)
        saved = _load_stats(stats, c, there, channels)
        dot, n = whole_dot(dot, sum, saved), tl.cast(count, tl.float64)
        _set(dbias, c, there, sum)
        _set(dweight, c, there, dot * saved[2].to(tl.float64))
        if sums is None:
            _set_normalise(table, c, there, channels, saved, weight, bias, T)
            _set_input_grad(table, c, there, channels, saved, weight, sum, dot, n, T)
        else:
            tl.store(sums + c, sum.to(T), mask=there)
            tl.store(sums + channels + c, dot.to(T), mask=there)
            tl.store(sums + 2 * channels, n.to(T))


# --- coefficients of what is given ------------------------------------------------------------------------
@triton.jit(do_not_specialize=["eps", "channels"])
def settle_running(
    running_mean, running_var, stats, table, weight, bias, eps, channels, T: tl.constexpr, SIZE: tl.constexpr
):
    c = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    there = c < channels
    mean, variance = _get(running_mean, c, there, 0.0), _get(running_var, c, there, 0.0)
    _set_stats(stats, table, c, there, channels, mean, variance, _float64(eps), weight, bias, T)


@triton.jit(do_not_specialize=["eps", "momentum", "processes", "channels"])
def settle_moments(
    moments, stats, table, weight, bias, running_mean, running_var, batches, eps, momentum, processes,
    channels,
    AVERAGE: tl.constexpr, T: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """moments: [processes, 3 * channels + 1]. Running statistics stay as they are if nobody has elements."""
    c = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    there = c < channels
    count = tl.full((), 0.0, tl.float64)
    mean, m2 = tl.zeros((SIZE,), tl.float64), tl.zeros((SIZE,), tl.float64)
    for process in range(processes):
        its = moments + tl.cast(process, tl.int64) * (3 * channels + 1)
        n = tl.load(its + 3 * channels).to(tl.float64)
        if n > 0:
            high, low = _get(its, c, there, 0.0), _get(its + channels, c, there, 0.0)
            other = _get(its + 2 * channels, c, there, 0.0)
            mean, m2 = merge(mean, m2, count, n / (count + n), high + low, other)
            count += n
    if count > 0:
        factor = _factor(momentum, batches, AVERAGE)
        _follow(running_mean, c, there, mean, factor)
        _follow(running_var, c, there, unbiased(m2, count), factor)
    variance = m2 / tl.where(count > 0, count, 1.0)
    _set_stats(stats, table, c, there, channels, mean, variance, _float64(eps), weight, bias, T)


@triton.jit(do_not_specialize=["channels"])
def settle_sums(sums, stats, table, weight, bias, channels, T: tl.constexpr, SIZE: tl.constexpr):
    """sums: None where the statistics were given, and their gradient is not wanted."""
    c = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    there = c < channels
    saved = _load_stats(stats, c, there, channels)
    _set_normalise(table, c, there, channels, saved, weight, bias, T)
    if sums is not None:
        sum, dot = _get(sums, c, there, 0.0), _get(sums + channels, c, there, 0.0)
        n = tl.load(sums + 2 * channels).to(tl.float64)
        _set_input_grad(table, c, there, channels, saved, weight, sum, dot, n, T)


# --- over all of memory -----------------------------------------------------------------------------------
@triton.jit
def _channel_of(first, inner, channels, HOW: tl.constexpr):
    """The channels of eight elements from `first` on. inner: elements of a channel side by side."""
    more = tl.arange(0, 8)[None, :].to(first.dtype)
    if HOW == EACH:
        c = (first + more) // inner % channels
    elif HOW == SAME:
        c = first // inner % channels + 0 * more
    elif HOW == CROSSING:
        run = first // inner
        c = run % channels + (first - run * inner + more >= inner).to(first.dtype)
        c = tl.where(c >= channels, 0, c)
    else:
        start = first % channels
        if HOW == NEXT:
            start = tl.multiple_of(start, [8, 8])
        c = start + more
        if HOW == WRAPPED:
            c = tl.where(c >= channels, c - channels, c)
    return c


@triton.jit
def _coefficients(table, c, channels, HOW: tl.constexpr):
    """mean, scale, shift. NEXT: rows of the table start on multiples of eight: the compiler has to see it."""
    row = channels // 8 * 8 if HOW == NEXT else channels
    return tl.load(table + c), tl.load(table + row + c), tl.load(table + 2 * row + c)


@triton.jit
def _normalise_tile(
    x, residual, y, bits, table, first, numel, inner, channels, negative_slope,
    FULL: tl.constexpr, ACT: tl.constexpr, HOW: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    at = first + tl.arange(0, 8)[None, :]
    mask = None if FULL else at < numel
    c = _channel_of(first, inner, channels, HOW)
    mean, scale, shift = _coefficients(table, c, channels, HOW)
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
    numel, inner = tl.cast(numel, INDEX), tl.cast(inner, INDEX)
    channels = tl.cast(channels, INDEX)
    start = (tl.num_programs(0) - 1 - tl.program_id(0)).to(INDEX) * SIZE
    first = start + tl.arange(0, SIZE // 8)[:, None] * 8
    slope = _float64(negative_slope).to(T)
    if start + SIZE <= numel:
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


@triton.jit
def _grads_tile(
    dy, x, residual, bits, dx, dresidual, table, first, numel, inner, channels, negative_slope,
    FULL: tl.constexpr, GIVEN: tl.constexpr, ACT: tl.constexpr, HOW: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    at = first + tl.arange(0, 8)[None, :]
    mask = None if FULL else at < numel
    c = _channel_of(first, inner, channels, HOW)
    mean, scale, shift = _coefficients(table, c, channels, HOW)
    g, xs = tl.load(dy + at, mask=mask).to(T), tl.load(x + at, mask=mask).to(T)
    z = None if residual is None else tl.load(residual + at, mask=mask).to(T)
    passed = None
    if bits is not None:
        byte = tl.load(bits + first // 8, mask=None if FULL else first < numel).to(tl.int32)
        passed = (byte >> tl.arange(0, 8)[None, :]) & 1 != 0
    g = _gradient(g, xs, z, passed, (mean, scale, shift), negative_slope, ACT)
    if GIVEN:
        grad = g * scale
    else:
        row = channels // 8 * 8 if HOW == NEXT else channels
        slope, constant = tl.load(table + 3 * row + c), tl.load(table + 4 * row + c)
        grad = input_grad(g, xs, mean, scale, slope, constant)
    tl.store(dx + at, grad.to(dx.dtype.element_ty), mask=mask)
    if dresidual is not None:
        tl.store(dresidual + at, g.to(dx.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["negative_slope", "numel", "inner", "channels"])
def grads_of_inputs(
    dy, x, residual, bits, dx, dresidual, table, negative_slope, numel, inner, channels,
    GIVEN: tl.constexpr, ACT: tl.constexpr, HOW: tl.constexpr, INDEX: tl.constexpr, T: tl.constexpr,
    SIZE: tl.constexpr,
):  # fmt: skip
    """GIVEN: so were the statistics. table: mean, scale, shift, and else slope and constant."""
    numel, inner = tl.cast(numel, INDEX), tl.cast(inner, INDEX)
    channels = tl.cast(channels, INDEX)
    start = (tl.num_programs(0) - 1 - tl.program_id(0)).to(INDEX) * SIZE
    first = start + tl.arange(0, SIZE // 8)[:, None] * 8
    slope = _float64(negative_slope).to(T)
    if start + SIZE <= numel:
        _grads_tile(
            dy, x, residual, bits, dx, dresidual, table, first, numel, inner, channels, slope,
            True, GIVEN, ACT, HOW, T,
        )  # fmt: skip
    else:
        _grads_tile(
            dy, x, residual, bits, dx, dresidual, table, first, numel, inner, channels, slope,
            False, GIVEN, ACT, HOW, T,
        )  # fmt: skip


# --- memory -----------------------------------------------------------------------------------------------
def _is_dense(t: Tensor, last: bool) -> bool:
    """Do elements lie without gaps as images, channels, pixels (or images, pixels, channels)?"""
    if t.numel() == 0:
        return True
    pixels = sorted((t.stride(d), t.shape[d]) for d in range(2, t.dim()))
    channels, images = (t.stride(1), t.shape[1]), (t.stride(0), t.shape[0])
    step = 1
    for stride, size in [channels, *pixels, images] if last else [*pixels, channels, images]:
        if size != 1 and stride != step:
            return False
        step *= size
    return True


def _dense(t: Tensor) -> Tensor:
    """The tensor itself where it is dense in one of the two orders, else a copy that is."""
    if t.is_contiguous() or _is_dense(t, True) or _is_dense(t, False):
        return t
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    last = t.dim() in formats and t.shape[1] > 1 and t.stride(1) == 1
    return t.contiguous(memory_format=formats[t.dim()] if last else torch.contiguous_format)


def _same_strides(a: Tensor, b: Tensor) -> bool:
    return all(n == 1 or a.stride(d) == b.stride(d) for d, n in enumerate(a.shape))


def _up(n: int) -> int:
    return triton.next_power_of_2(max(1, n))


_tickets: dict[tuple[torch.device, int], Tensor] = {}


def _tickets_of(device: torch.device, n: int) -> Tensor:
    """n zeros, which launches count up and leave as zeros. A stream has its own, and so has a captured graph,
    which may run beside others whatever its stream was."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return torch.zeros(n, dtype=torch.int32, device=device)
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    tickets = _tickets.get((device, stream))
    if tickets is None or len(tickets) < n:
        tickets = _tickets[device, stream] = torch.zeros(_up(n), dtype=torch.int32, device=device)
    return tickets


class Image:
    """What is normalized, dense, and how launches over it are cut."""

    def __init__(self, input: Tensor) -> None:
        self.x = _dense(input)
        self.numel, self.channels = input.numel(), input.shape[1]
        self.count = self.numel // max(1, self.channels)  # elements of a channel
        self.pixels = max(1, self.count // max(1, input.shape[0]))
        self.last = self.channels > 1 and _is_dense(self.x, True)
        self.dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
        self.tile = TILE // 2 if self.dtype == torch.float64 else TILE
        self.options = options(programs_of(input.device)[1])

    # --- tensors ------------------------------------------------------------------------------------------
    def like(self, t: Tensor | None) -> Tensor | None:
        """A tensor of the same shape in the same order of memory."""
        if t is None:
            return None
        dense = _dense(t)
        return dense if _same_strides(dense, self.x) else torch.empty_like(self.x).copy_(dense)

    def new(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Of the arithmetic type, if no other is named."""
        return self.x.new_empty(shape, dtype=dtype or self.dtype)

    def new_bits(self, act: str | None, residual: Tensor | None, saving: bool) -> Tensor:
        wanted = saving and residual is not None and act in ("relu", "leaky_relu")
        return self.new((self.numel + 7) // 8 if wanted else 0, dtype=torch.uint8)

    # --- launches -----------------------------------------------------------------------------------------
    @property
    def index(self) -> Any:
        """Of an offset, and of what lies behind the last one in its tile."""
        behind = self.tile * max(16, self.channels)
        return tl.int32 if self.numel + behind < NARROW else tl.int64

    def cut(self) -> Cut:
        size, most = self.x.element_size(), _up(self.channels)
        shape: tuple[int, ...]
        if self.last:
            rows = min(self.tile // min(most, SEGMENT // size), _up(self.count))
            block = min(most, self.tile // rows)
            run = next(n for n in (8, 4, 1) if self.channels % n == 0)
            even, shape = True, (rows, block // run, run)
        else:
            rows = min(self.tile, _up(self.count))
            block = min(most, self.tile // rows)
            run = next((n for n in (8, 4) if self.pixels % n == 0), 8 if self.pixels > 8 else 1)
            even, shape = self.pixels % run == 0, (block, rows // run, run)
        return Cut(self.last, block, rows, run, even, CHUNK, self.index, shape)

    def measure(self, kernel: Any, cut: Cut, before: tuple, after: tuple, **constants: Any) -> None:
        """before, after: the kernel's arguments on both sides of partial results and tickets; then come the
        sizes."""
        blocks, tiles = triton.cdiv(self.channels, cut.block), triton.cdiv(self.count, cut.rows)
        splits = max(1, min(PROGRAMS // blocks, triton.cdiv(tiles, TILES)))
        partials = self.new(2, splits, self.channels, dtype=torch.float64)
        scratch = (partials, _tickets_of(self.x.device, blocks))
        constants |= {"CUT": cut, "FOLDED": min(max(1, FOLD // cut.block), _up(splits)), "T": self.T}
        sizes = (self.count, self.pixels, self.channels)
        kernel[blocks, splits](*before, *scratch, *after, *sizes, **constants, **self.options)

    def settle(self, kernel: Any, *arguments: Any, **constants: Any) -> None:
        grid = (max(1, triton.cdiv(self.channels, SETTLED)),)
        kernel[grid](*arguments, self.channels, T=self.T, SIZE=SETTLED, **constants, **self.options)

    def everywhere(self, kernel: Any, *arguments: Any, **constants: Any) -> None:
        grid = (max(1, triton.cdiv(self.numel, self.tile)),)
        inner = 1 if self.last else self.pixels
        sizes = (self.numel, inner, max(1, self.channels))
        constants |= {"HOW": self.how, "INDEX": self.index, "T": self.T, "SIZE": self.tile}
        kernel[grid](*arguments, *sizes, **constants, **self.options)

    @property
    def T(self) -> Any:
        return TL_DTYPES[self.dtype]

    @property
    def how(self) -> int:
        if self.last:
            wide = NEXT if self.channels % 8 == 0 else WRAPPED
            return (wide if self.channels >= 8 else EACH).value
        if self.pixels % 8 == 0 or self.channels == 1:
            return SAME.value
        return (CROSSING if self.pixels >= 8 else EACH).value


@contextmanager
def _without_gaps(*tensors: Tensor | None) -> Iterator[tuple[Tensor | None, ...]]:
    """One value a channel each, side by side; what is written to copies is copied back."""
    dense = tuple(None if t is None else t.contiguous() for t in tensors)
    yield dense
    for t, run in zip(tensors, dense, strict=True):
        if t is not None and run is not None and run is not t:
            t.copy_(run)


def _vector(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous()


def _or_none(t: Tensor) -> Tensor | None:
    return t if t.numel() > 0 else None


# --- forward ----------------------------------------------------------------------------------------------
def _forward(
    image: Image,
    settle: Callable[[Tensor, Tensor], None],
    residual: Tensor | None,
    batches: Tensor | None,
    act: str | None,
    negative_slope: float,
    saving: bool,
) -> Results:
    """settle(stats, table): the launch that comes first."""
    stats, table = image.new(3, image.channels), image.new(3, max(1, image.channels))
    output, bits = torch.empty_like(image.x), image.new_bits(act, residual, saving)
    settle(stats, table)
    tensors = (image.x, image.like(residual), output, _or_none(bits), table, batches)
    image.everywhere(normalise_all, *tensors, _bits(negative_slope), ACT=act)
    return output, stats, bits


@torch.no_grad()
def batch_norm_fwd(
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    num_batches_tracked: Tensor | None,
    *,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
    act: str | None = None,
    negative_slope: float = 0.01,
    saving: bool = True,
) -> Results:
    if input.numel() == 0:
        return batch_norm_apply(
            input, residual, weight, bias, batch_norm_stats(input), running_mean, running_var,
            num_batches_tracked, momentum=momentum, eps=eps, act=act, negative_slope=negative_slope,
            saving=saving,
        )  # fmt: skip
    image = Image(input)
    numbers = (num_batches_tracked, _bits(eps), _bits(momentum or 0.0))

    def settle(stats: Tensor, table: Tensor) -> None:
        with _without_gaps(running_mean, running_var) as statistics:
            after = (stats, table, _vector(weight), _vector(bias), *statistics, *numbers)
            image.measure(measure, image.cut(), (image.x,), after, AVERAGE=momentum is None)

    with torch.cuda.device_of(input):
        return _forward(image, settle, residual, num_batches_tracked, act, negative_slope, saving)


@torch.no_grad()
def batch_norm_eval(
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    *,
    eps: float = 1e-5,
    act: str | None = None,
    negative_slope: float = 0.01,
    saving: bool = True,
) -> Results:
    image = Image(input)

    def settle(stats: Tensor, table: Tensor) -> None:
        vectors = map(_vector, (weight, bias))
        statistics = (running_mean.contiguous(), running_var.contiguous())
        image.settle(settle_running, *statistics, stats, table, *vectors, _bits(eps))

    with torch.cuda.device_of(input):
        return _forward(image, settle, residual, None, act, negative_slope, saving)


@torch.no_grad()
def batch_norm_stats(input: Tensor) -> Tensor:
    image = Image(input)
    if image.numel == 0:
        return image.new(3 * image.channels + 1).zero_()
    moments = image.new(3 * image.channels + 1)
    with torch.cuda.device_of(input):
        after = (moments, None, None, None, None, None, None, 0, 0)
        image.measure(measure, image.cut(), (image.x,), after, AVERAGE=False)
    return moments


@torch.no_grad()
def batch_norm_apply(
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    moments: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    num_batches_tracked: Tensor | None,
    *,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
    act: str | None = None,
    negative_slope: float = 0.01,
    saving: bool = True,
) -> Results:
    image = Image(input)
    processes = moments.numel() // (3 * image.channels + 1)
    numbers = (num_batches_tracked, _bits(eps), _bits(momentum or 0.0), processes)

    def settle(stats: Tensor, table: Tensor) -> None:
        with _without_gaps(running_mean, running_var) as statistics:
            vectors = (stats, table, _vector(weight), _vector(bias), *statistics)
            image.settle(settle_moments, moments, *vectors, *numbers, AVERAGE=momentum is None)

    with torch.cuda.device_of(input):
        return _forward(image, settle, residual, num_batches_tracked, act, negative_slope, saving)


# --- backward ---------------------------------------------------------------------------------------------
class Saved:
    """What a backward pass begins with, all in the input's order of memory."""

    def __init__(
        self,
        grad_output: Tensor,
        input: Tensor,
        residual: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        stats: Tensor,
        mask: Tensor,
        act: str | None,
        negative_slope: float,
    ) -> None:
        self.image = Image(input)
        self.wants_residual = mask.numel() > 0 or residual is not None
        self.weight, self.bias, self.stats = _vector(weight), _vector(bias), stats
        self.act, self.negative_slope = act, _bits(negative_slope)
        bits = _or_none(mask) if act in ("relu", "leaky_relu") else None
        needed = residual if bits is None and act is not None else None
        self.streams = (self.image.like(grad_output), self.image.x, self.image.like(needed), bits)

    def affine_grads(self, fill: bool) -> tuple[Tensor, Tensor]:
        """Empty where there is no such parameter. fill: with zeros."""
        dweight, dbias = (
            self.image.x.new_empty(0) if t is None else torch.empty_like(t) for t in (self.weight, self.bias)
        )
        return (dweight.zero_(), dbias.zero_()) if fill else (dweight, dbias)

    def measure(self, table: Tensor | None, sums: Tensor | None, grads: tuple[Tensor, Tensor]) -> None:
        vectors = (self.stats, table, sums, self.weight, self.bias, *map(_or_none, grads))
        after = (*vectors, self.negative_slope)
        self.image.measure(measure_grads, self.image.cut(), self.streams, after, ACT=self.act)

    def settle(self, table: Tensor, sums: Tensor | None) -> None:
        self.image.settle(settle_sums, sums, self.stats, table, self.weight, self.bias)

    def table(self) -> Tensor:
        return self.image.new(5, max(1, self.image.channels))

    def input_grads(self, table: Tensor, given: bool) -> tuple[Tensor, Tensor]:
        dx = torch.empty_like(self.image.x)
        dresidual = torch.empty_like(dx) if self.wants_residual else dx.new_empty(0)
        if self.image.numel > 0:
            arguments = (*self.streams, dx, _or_none(dresidual), table, self.negative_slope)
            self.image.everywhere(grads_of_inputs, *arguments, GIVEN=given, ACT=self.act)
        return dx, dresidual


@torch.no_grad()
def batch_norm_bwd(
    grad_output: Tensor,
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    stats: Tensor,
    mask: Tensor,
    *,
    act: str | None = None,
    negative_slope: float = 0.01,
    training: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    with torch.cuda.device_of(input):
        saved = Saved(grad_output, input, residual, weight, bias, stats, mask, act, negative_slope)
        table, empty = saved.table(), saved.image.numel == 0
        grads = saved.affine_grads(fill=empty)
        if training or weight is not None or bias is not None:
            if not empty:
                saved.measure(table, None, grads)
        else:
            saved.settle(table, None)
        return *saved.input_grads(table, not training), *grads


@torch.no_grad()
def batch_norm_bwd_stats(
    grad_output: Tensor,
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    stats: Tensor,
    mask: Tensor,
    *,
    act: str | None = None,
    negative_slope: float = 0.01,
) -> tuple[Tensor, Tensor, Tensor]:
    with torch.cuda.device_of(input):
        saved = Saved(grad_output, input, residual, weight, bias, stats, mask, act, negative_slope)
        empty = saved.image.numel == 0
        sums, grads = saved.image.new(2 * saved.image.channels + 1), saved.affine_grads(fill=empty)
        if empty:
            sums.zero_()
        else:
            saved.measure(None, sums, grads)
        return sums, *grads


@torch.no_grad()
def batch_norm_bwd_apply(
    grad_output: Tensor,
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    stats: Tensor,
    mask: Tensor,
    sums: Tensor,
    *,
    act: str | None = None,
    negative_slope: float = 0.01,
) -> tuple[Tensor, Tensor]:
    with torch.cuda.device_of(input):
        saved = Saved(grad_output, input, residual, weight, bias, stats, mask, act, negative_slope)
        table = saved.table()
        saved.settle(table, sums)
        return saved.input_grads(table, given=False)
