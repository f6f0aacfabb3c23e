"""Batch normalization, its activation and their gradients on blocks of Triton: what csrc/rules/norm.h has in
C++, in the same words and order; formulas and sources stand there.

A channel's own numbers are made in float64 and rounded once to T, the arithmetic type: float32, or float64
for float64 input. Nothing here knows a tensor, a tile or a launch. ACT: None, "relu", "leaky_relu" or "silu".
"""

import triton
import triton.language as tl


# --- moments ----------------------------------------------------------------------------------------------
@triton.jit
def finite_or_zero(v):
    return tl.where(v - v == 0, v, 0.0)


@triton.jit
def merge(mean, m2, count, share, other_mean, other_m2):
    """Of two sets, Chan's: of `count` elements, and of others whose share in both is `share`. The mean is
    weighed, not moved: one that is inf stays inf, as torch's does."""
    delta = other_mean - mean
    return mean * (1.0 - share) + other_mean * share, m2 + other_m2 + delta * delta * count * share


@triton.jit
def merge_near(mean, low, m2, count, others, off, other_m2, T: tl.constexpr):
    """The same in T, of numbers that are finite: mean + low, and the mean of `others` more is mean + off."""
    share = others / (count + others)
    delta = off - low
    moved = low + delta * share.to(T)
    whole = mean + moved
    return whole, moved - (whole - mean), m2 + other_m2 + delta * delta * (count * share).to(T)


@triton.jit
def unbiased(m2, count):
    return tl.where(count > 1.0, m2 / (count - 1.0), m2)


@triton.jit
def low_part(mean, T: tl.constexpr):
    """What rounding to T cuts off of a mean. Beside one that is not finite there is nothing low."""
    return finite_or_zero(mean - mean.to(T).to(tl.float64)).to(T)


@triton.jit
def stats_make(mean, variance, eps, T: tl.constexpr):
    """mean, mean_low, invstd. A mean below four deviations is low as a whole."""
    near = mean * mean < 16.0 * variance
    high, low = tl.where(near, 0.0, mean.to(T)), tl.where(near, mean.to(T), low_part(mean, T))
    return high, low, (1.0 / tl.sqrt(variance + eps)).to(T)


@triton.jit
def running(before, now, momentum):
    return (1.0 - momentum) * before + momentum * now


# --- the pre-activation, the residual apart ---------------------------------------------------------------
@triton.jit
def normalise_make(stats, weight, bias, T: tl.constexpr):
    """mean, scale, shift, from the stats as they are stored."""
    mean, mean_low, invstd = stats
    scale = (weight * invstd.to(tl.float64)).to(T)
    return mean, scale, (bias - mean_low.to(tl.float64) * scale.to(tl.float64)).to(T)


@triton.jit
def normalise(x, mean, scale, shift):
    return tl.fma(x - mean, scale, shift)


# --- the gradient of the input ----------------------------------------------------------------------------
@triton.jit
def whole_dot(dot, sum, stats):
    """Kernels take x - mean without mean_low. The sum of g * (x - mean) with the whole of it."""
    return dot - stats[1].to(tl.float64) * sum


@triton.jit
def input_grad_make(stats, weight, sum, dot, count, T: tl.constexpr):
    """slope, constant; the scale is that of the pre-activation."""
    mean_low, invstd = stats[1].to(tl.float64), stats[2].to(tl.float64)
    scale = weight * invstd
    slope = (-scale * invstd * invstd * dot / count).to(T)
    return slope, (-scale * sum / count - slope.to(tl.float64) * mean_low).to(T)


@triton.jit
def input_grad(g, x, mean, scale, slope, constant):
    return tl.fma(g, scale, tl.fma(x - mean, slope, constant))


# --- activations ------------------------------------------------------------------------------------------
@triton.jit
def sigmoid(v):
    return 1.0 / (1.0 + tl.exp(-v))


@triton.jit
def passes(v, ACT: tl.constexpr):
    """Does the gradient pass unchanged? NaN as torch has it: relu hands it on, leaky_relu does not."""
    return ~(v <= 0) if ACT == "relu" else v > 0


@triton.jit
def activate(v, negative_slope, ACT: tl.constexpr):
    if ACT == "relu":
        v = tl.where(passes(v, ACT), v, 0.0)
    if ACT == "leaky_relu":
        v = tl.where(passes(v, ACT), v, v * negative_slope)
    if ACT == "silu":
        v = v * sigmoid(v)
    return v


@triton.jit
def gate(g, passed, negative_slope, ACT: tl.constexpr):
    """What is left of a gradient at a pre-activation that passes or does not. One product: the choice between
    g and g * negative_slope crashes the optimizer of Triton 3.9 (bfloat16, sm_90)."""
    return g * tl.where(passed, 1.0, negative_slope) if ACT == "leaky_relu" else tl.where(passed, g, 0.0)


@triton.jit
def activation_grad(g, v, negative_slope, ACT: tl.constexpr):
    """The gradient of the pre-activation v, given that of the activation."""
    if ACT == "silu":
        s = sigmoid(v)
        g = g * s * (1.0 + v * (1.0 - s))
    else:
        g = gate(g, passes(v, ACT), negative_slope, ACT)
    return g
