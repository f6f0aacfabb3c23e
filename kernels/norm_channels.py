"""Batch normalization: a channel's own numbers, and the small launches that make only these.

Memory contract: all that is read and written here has a number a channel. `settle_running`, `settle_moments`
and `settle_sums` read statistics, weight and bias once and write the table of coefficients and what is saved
for backward, `settle_moments` also the running statistics. The first launch of a pass that measures does
the same at its end, with the functions below.

Numbers are made in float64 and rounded once. The table is [5, channels] of the arithmetic type: mean, scale
and shift of the pre-activation, slope and constant of the input's gradient.
"""

import triton
import triton.language as tl

from .amp import _float64
from .norm_rules import input_grad_make, merge, normalise_make, running, stats_make, unbiased


# --- numbers that may be missing --------------------------------------------------------------------------
@triton.jit
def get(at, c, there, missing: tl.constexpr):
    """A number a channel, in float64; `missing` where nobody has given any."""
    value = tl.full(c.shape, missing, tl.float64)
    if at is not None:
        value = tl.load(at + c, mask=there, other=0.0).to(tl.float64)
    return value


@triton.jit
def put(at, c, there, value):
    """Rounded as C++ does it: a half takes what is left of a float32."""
    if at is not None:
        TYPE: tl.constexpr = at.dtype.element_ty
        narrow = value if TYPE.is_fp64() else value.to(tl.float32)
        tl.store(at + c, narrow.to(TYPE), mask=there)


# --- what is saved, and the table -------------------------------------------------------------------------
@triton.jit
def load_stats(stats, c, there, channels):
    return (
        tl.load(stats + c, mask=there, other=0.0),
        tl.load(stats + channels + c, mask=there, other=0.0),
        tl.load(stats + 2 * channels + c, mask=there, other=0.0),
    )


@triton.jit
def store_row(rows, row: tl.constexpr, c, there, channels, value):
    """Row of an array [.., channels]."""
    tl.store(rows + row * channels + c, value, mask=there)


@triton.jit
def load_normalise(stats, c, there, channels, weight, bias, T: tl.constexpr):
    """(mean, scale, shift) from what is saved."""
    saved = load_stats(stats, c, there, channels)
    return normalise_make(saved, get(weight, c, there, 1.0), get(bias, c, there, 0.0), T)


@triton.jit
def store_normalise(table, c, there, channels, stats, weight, bias, T: tl.constexpr):
    mean, scale, shift = normalise_make(stats, get(weight, c, there, 1.0), get(bias, c, there, 0.0), T)
    store_row(table, 0, c, there, channels, mean)
    store_row(table, 1, c, there, channels, scale)
    store_row(table, 2, c, there, channels, shift)


@triton.jit
def store_stats(stats, table, c, there, channels, mean, variance, eps, weight, bias, T: tl.constexpr):
    made = stats_make(mean, variance, eps, T)
    store_row(stats, 0, c, there, channels, made[0])
    store_row(stats, 1, c, there, channels, made[1])
    store_row(stats, 2, c, there, channels, made[2])
    store_normalise(table, c, there, channels, made, weight, bias, T)


@triton.jit
def store_input_grad(table, c, there, channels, stats, weight, sum, dot, count, T: tl.constexpr):
    slope, constant = input_grad_make(stats, get(weight, c, there, 1.0), sum, dot, count, T)
    store_row(table, 3, c, there, channels, slope)
    store_row(table, 4, c, there, channels, constant)


# --- running statistics -----------------------------------------------------------------------------------
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


@triton.jit
def follow(running_mean, running_var, batches, momentum, c, there, mean, m2, count, AVERAGE: tl.constexpr):
    """Moves them by the moments of this batch."""
    factor = _factor(momentum, batches, AVERAGE)
    put(running_mean, c, there, running(get(running_mean, c, there, 0.0), mean, factor))
    put(running_var, c, there, running(get(running_var, c, there, 0.0), unbiased(m2, count), factor))


# --- launches ---------------------------------------------------------------------------------------------
@triton.jit(do_not_specialize=["eps", "channels"])
def settle_running(
    running_mean, running_var, stats, table, weight, bias, eps, channels, T: tl.constexpr, SIZE: tl.constexpr
):
    c = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    there = c < channels
    mean, variance = get(running_mean, c, there, 0.0), get(running_var, c, there, 0.0)
    store_stats(stats, table, c, there, channels, mean, variance, _float64(eps), weight, bias, T)


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
            high, low = get(its, c, there, 0.0), get(its + channels, c, there, 0.0)
            other = get(its + 2 * channels, c, there, 0.0)
            mean, m2 = merge(mean, m2, count, n / (count + n), high + low, other)
            count += n
    if count > 0:
        follow(running_mean, running_var, batches, momentum, c, there, mean, m2, count, AVERAGE)
    variance = m2 / tl.where(count > 0, count, 1.0)
    store_stats(stats, table, c, there, channels, mean, variance, _float64(eps), weight, bias, T)


@triton.jit(do_not_specialize=["channels"])
def settle_sums(sums, stats, table, weight, bias, channels, T: tl.constexpr, SIZE: tl.constexpr):
    """sums: None where the statistics were given, and their gradient is not wanted."""
    c = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    there = c < channels
    saved = load_stats(stats, c, there, channels)
    store_normalise(table, c, there, channels, saved, weight, bias, T)
    if sums is not None:
        sum, dot = get(sums, c, there, 0.0), get(sums + channels, c, there, 0.0)
        n = tl.load(sums + 2 * channels).to(tl.float64)
        store_input_grad(table, c, there, channels, saved, weight, sum, dot, n, T)
