"""The 8-bit product's arithmetic on blocks of Triton, around sums that somebody has made.

    y = act(float(sum of (x - zero_point) * w) * weight_scale * input_scale + bias)

in this order, in float32, multiply and add in two operations: the same bits for any way to cut the product.
Sums of signed bytes fit 31 bits, so that tensor cores,
which saturate, never do; what is taken off for a zero point is modulo 2^32, and comes back.

Nothing here knows a tensor, a tile or a launch. ACT: None, "relu", "gelu" or "silu".
"""

import triton
import triton.language as tl

from .norm_rules import activate
from .quant_rules import inverse_of, quantized

HALF_OF_UNSIGNED = tl.constexpr(128)


@triton.jit
def signed(x):
    """Unsigned bytes less 128, as signed ones: the top bit turned. Signed ones as they are."""
    return (x ^ 128).to(tl.int8, bitcast=True) if x.dtype == tl.uint8 else x


@triton.jit
def signed_zero(zero, X: tl.constexpr):
    """The zero point that belongs to signed(x). X: the dtype of x."""
    return zero - HALF_OF_UNSIGNED if tl.uint8 == X else zero


@triton.jit
def without_zero(sums, zero, weights):
    """Sums of x * w made sums of (x - zero) * w. weights: the sum of w for each output."""
    return sums - zero * weights


@triton.jit
def gated(v, ACT: tl.constexpr):
    """gelu is the exact one, by erf."""
    if ACT == "gelu":
        v = v * (0.5 * (1.0 + tl.erf(v * 0.7071067811865476)))
    return activate(v, 0.0, ACT)


@triton.jit
def scaled(sums, weight_scale, input_scale, bias, ACT: tl.constexpr):
    """Each but the sums may be None."""
    v = sums.to(tl.float32)
    if weight_scale is not None:
        v = v * weight_scale
    if input_scale is not None:
        v = v * input_scale
    if bias is not None:
        v = v + bias
    return gated(v, ACT)


@triton.jit
def quantized_again(v, scale, zero):
    """By one scale. zero: None for symmetric numbers of 8 bits, -127..127; else of unsigned ones."""
    if zero is None:
        return quantized(v, inverse_of(scale), tl.full((), 0, tl.int32), -127, 127)
    else:
        return quantized(v, inverse_of(scale), zero, 0, 255)
