"""Batch normalization: sums of gradients of each channel, and the gradients of input and residual.

Memory contract: `measure_grads` reads the gradient and the input once (and the mask or the residual, where
the activation needs it) and writes two float64 a channel and program, and from those the gradients of weight
and bias and coefficients, a few numbers a channel. `grads_of_inputs` reads the same once and writes the
input's gradient, and that of the residual where it is wanted. It goes over memory as it lies, and from its
end, where the first launch has been last.
"""

import triton
import triton.language as tl

from .amp import _float64
from .norm_apply import vectors_of_program
from .norm_channels import load_normalise, load_stats, put, store_input_grad, store_normalise, store_row
from .norm_memory import (
    channels_of,
    channels_of_block,
    coefficient,
    is_last_of_block,
    leave,
    left,
    over_tile,
    read_tile,
    sizes_of,
    sum_tile,
    tile_of,
    tiles_of,
)
from .norm_rules import activation_grad, gate, input_grad, normalise, whole_dot


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


# --- sums -------------------------------------------------------------------------------------------------
@triton.jit
def _passed(bits, start, there, CUT: tl.constexpr):
    """The bit of each element. A vector lies within a byte."""
    bit = start % 8 + tl.arange(0, CUT.run)[None, None, :]
    byte = tl.load(bits + start // 8, mask=there, other=0)
    return (byte.to(tl.int32) >> bit.to(tl.int32)) & 1 != 0


@triton.jit
def _all_sums(partials, kind: tl.constexpr, c, there, channels, CUT: tl.constexpr, FOLDED: tl.constexpr):
    sum = tl.zeros((FOLDED, CUT.block), tl.float64)
    for start in range(0, tl.num_programs(1), FOLDED):
        sum += left(partials, kind, start + tl.arange(0, FOLDED), c, there, channels)
    return tl.sum(sum, 0)


@triton.jit(do_not_specialize=["negative_slope", "images", "pixels", "channels", "vectors"])
def measure_grads(
    dy, x, residual, bits, partials, tickets, stats, table, sums, weight, bias, dweight, dbias,
    negative_slope, images, pixels, channels, vectors,
    ACT: tl.constexpr, CUT: tl.constexpr, FOLDED: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """Grid as that of `measure`. Writes the table of coefficients or else `sums`, for others to add."""
    sizes = sizes_of(images, pixels, channels, vectors, CUT)
    channels = sizes[2]
    c, there = channels_of_block(sizes, CUT)
    mean, scale, shift = load_normalise(stats, c, there, channels, weight, bias, T)
    mean, scale, shift = over_tile(mean, CUT), over_tile(scale, CUT), over_tile(shift, CUT)
    slope = _float64(negative_slope).to(T)
    s, d = tl.zeros(CUT.shape, T), tl.zeros(CUT.shape, T)
    split, splits = tl.program_id(1).to(CUT.index), tl.num_programs(1)
    for tile in range(split, tiles_of(sizes, CUT), splits):
        start, read, inside, _ = tile_of(tile, sizes, CUT)
        g, xs = read_tile(dy, start, read, CUT, T), read_tile(x, start, read, CUT, T)
        z = None if residual is None else read_tile(residual, start, read, CUT, T)
        passed = None if bits is None else _passed(bits, start, read, CUT)
        g = _gradient(g, xs, z, passed, (mean, scale, shift), slope, ACT)
        # What is outside changes no sum: a predicate each, where zeros to add would each take a select and a
        # register. `d` first: in the other order ptxas spills two registers (bfloat16, no activation, sm_90).
        d = tl.where(inside, tl.fma(g, xs - mean, d), d)
        s = tl.where(inside, s + g, s)
    leave(partials, 0, c, there, channels, sum_tile(s, CUT).to(tl.float64))
    leave(partials, 1, c, there, channels, sum_tile(d, CUT).to(tl.float64))
    if is_last_of_block(tickets):
        sum = _all_sums(partials, 0, c, there, channels, CUT, FOLDED)
        saved = load_stats(stats, c, there, channels)
        dot = whole_dot(_all_sums(partials, 1, c, there, channels, CUT, FOLDED), sum, saved)
        n = (sizes[0] * sizes[1]).to(tl.float64)
        put(dbias, c, there, sum)
        put(dweight, c, there, dot * saved[2].to(tl.float64))
        if sums is None:
            store_normalise(table, c, there, channels, saved, weight, bias, T)
            store_input_grad(table, c, there, channels, saved, weight, sum, dot, n, T)
        else:
            store_row(sums, 0, c, there, channels, sum.to(T))
            store_row(sums, 1, c, there, channels, dot.to(T))
            tl.store(sums + 2 * channels, n.to(T))


# --- gradients of input and residual ----------------------------------------------------------------------
@triton.jit
def _grads_tile(
    dy, x, residual, bits, dx, dresidual, table, first, numel, inner, channels, negative_slope,
    FULL: tl.constexpr, GIVEN: tl.constexpr, ACT: tl.constexpr, HOW: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    at = first + tl.arange(0, 8)[None, :]
    mask = None if FULL else at < numel
    owners = channels_of(first, inner, channels, HOW)
    mean = coefficient(table, 0, owners, channels, HOW)
    scale, shift = coefficient(table, 1, owners, channels, HOW), coefficient(table, 2, owners, channels, HOW)
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
        slope = coefficient(table, 3, owners, channels, HOW)
        constant = coefficient(table, 4, owners, channels, HOW)
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
    numel, inner, channels = tl.cast(numel, INDEX), tl.cast(inner, INDEX), tl.cast(channels, INDEX)
    first, full = vectors_of_program(numel, INDEX, SIZE)
    slope = _float64(negative_slope).to(T)
    if full:
        _grads_tile(
            dy, x, residual, bits, dx, dresidual, table, first, numel, inner, channels, slope,
            True, GIVEN, ACT, HOW, T,
        )  # fmt: skip
    else:
        _grads_tile(
            dy, x, residual, bits, dx, dresidual, table, first, numel, inner, channels, slope,
            False, GIVEN, ACT, HOW, T,
        )  # fmt: skip
