"""Quantization's rules on Triton's blocks: formulas and order as in csrc/rules/quant.h and
csrc/rules/fake_quant.h.

Divisions are made in float64 and rounded, which is the quotient rounded once; multiply and add stay two
operations, so that every q is that of the other backends.
"""

import triton
import triton.language as tl

_ROUNDS = tl.constexpr(12582912.0)  # 1.5 * 2^23: what is added to it is rounded to a whole number, to even
_SMALLEST = tl.constexpr(2.0**-126)


@triton.jit
def _quotient(a, b):
    return (a.to(tl.float64) / b).to(tl.float32)


@triton.jit
def inverse_of(scale):
    return (1.0 / scale.to(tl.float64)).to(tl.float32)


@triton.jit
def rounded(v):
    return (v + _ROUNDS) - _ROUNDS


# --- the grid ---------------------------------------------------------------------------------------------
@triton.jit
def merge(x, low, high, odd):
    """What values reach: low, high, and 0 where all are finite."""
    return tl.minimum(low, x), tl.maximum(high, x), odd + (x - x)


@triton.jit
def grid_of(reached, SYMMETRIC: tl.constexpr, STEPS: tl.constexpr):
    """scale, 1 / scale, zero_point. STEPS: the highest level; the lowest is 0 or as far below it."""
    low, high, odd = reached
    steps = tl.full((), STEPS, tl.float64)
    if SYMMETRIC:
        width = _quotient(tl.maximum(high, -low), steps)
    else:
        width = _quotient(high, steps) - _quotient(low, steps)
    scale = tl.maximum(width, _SMALLEST)
    inverse = inverse_of(scale)
    zero = tl.minimum(rounded(-low * inverse), STEPS).to(tl.int32) * (0 if SYMMETRIC else 1)
    finite = odd == 0
    return tl.where(finite, scale, float("nan")), tl.where(finite, inverse, 0.0), tl.where(finite, zero, 0)


@triton.jit
def on_grid(x, inverse, lowest, highest):
    """q - zero_point, before it is rounded. NaN becomes zero."""
    v = x * inverse
    v = tl.where(v == v, v, 0.0)
    return tl.minimum(tl.maximum(v, lowest), highest)


@triton.jit
def steps_of(x, inverse, zero, LOW: tl.constexpr, HIGH: tl.constexpr):
    """q - zero_point, as float32."""
    return rounded(on_grid(x, inverse, (LOW - zero).to(tl.float32), (HIGH - zero).to(tl.float32)))


@triton.jit
def quantized(x, inverse, zero, LOW: tl.constexpr, HIGH: tl.constexpr):
    """q, as int32."""
    return steps_of(x, inverse, zero, LOW, HIGH).to(tl.int32) + zero


# --- there and back ---------------------------------------------------------------------------------------
@triton.jit
def is_inside(x, inverse, steps):
    return rounded(x * inverse) == steps


@triton.jit
def scale_grad(x, steps, inside, scale, inverse):
    """d output / d scale. Of the scale's two parts, of 12 bits each, products with steps are exact."""
    high = (scale.to(tl.int32, bitcast=True) & -4096).to(tl.float32, bitcast=True)
    off = (x - steps * high) - steps * (scale - high)
    return tl.where(inside, off * -inverse, steps)
