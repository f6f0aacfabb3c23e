"""Arithmetic on one element, on blocks of Triton: what csrc/rules/ has in C++, in the same words and order.

A rule is two functions: MAKE turns a row of hyperparameters and the number of the step into coefficients, in
float64 on the device, once per row and program; RULE applies them to a block. T is the arithmetic type:
float32, or float64 for float64 parameters. Nothing here knows a tensor, a tile or a launch.
"""

import triton
import triton.language as tl


@triton.jit
def max_or_nan(a, b):
    """The larger of two; NaN if either is NaN, as torch.maximum has it."""
    return tl.where((a > b) | (a != a), a, b)


@triton.jit
def power(base, t):
    """base^t in float64; 0 <= base < 1, t >= 1. Exact for a first step, where 1 - base^t is smallest."""
    some = tl.exp2(t * tl.log2(tl.where(base > 0, base, 0.5)))
    return tl.where(base > 0, tl.where(t == 1, base, some), 0.0)


# --- the decay factor of a running average: s <- beta * s + (1 - beta) * x --------------------------------
@triton.jit
def decay_make(beta, T: tl.constexpr):
    """(hi, lo, 1 - beta) with beta = hi + lo, both parts positive: hi is the number of type T below beta.

    A beta rounded to float32 is wrong by up to 3e-8, at every step in the same direction. A negative lo would
    make NaN (inf - inf) of an average that has overflowed.
    """
    BITS: tl.constexpr = tl.int64 if T.is_fp64() else tl.int32
    nearest = beta.to(T)
    below = (nearest.to(BITS, bitcast=True) - 1).to(T, bitcast=True)
    hi = tl.where(nearest > 0, below, nearest)
    return hi, (beta - hi.to(tl.float64)).to(T), (1.0 - beta).to(T)


@triton.jit
def decay_keep(hi, lo, s, add):
    """beta * s + add, where add is the caller's rest * x."""
    return hi * s + (lo * s + add)


# --- IEEE division and root: the short forms of float32 are off by up to two units -----
@triton.jit
def divide(x, y, T: tl.constexpr):
    return tl.div_rn(x, y) if T.is_fp32() else x / y


@triton.jit
def root(x, T: tl.constexpr):
    return tl.sqrt_rn(x) if T.is_fp32() else tl.sqrt(x)


# --- Step: all that an optimizer step does to one element, in this order, for every optimizer -------------
#   unscale the gradient, negate it to maximize, add the L2 term, apply the rule
@triton.jit
def step_make(hyper, t, inv_scale, MAKE: tl.constexpr, COLUMNS: tl.constexpr, T: tl.constexpr):
    """hyper: a row of float64; whatever the rule, its last two columns are weight_decay and maximize."""
    weight_decay, maximize = tl.load(hyper + COLUMNS - 2), tl.load(hyper + COLUMNS - 1)
    factor = tl.where(maximize != 0, -inv_scale, inv_scale)
    return factor.to(T), weight_decay.to(T), MAKE(hyper, t, T)


@triton.jit
def step(
    coefficients,
    g,
    p,
    a,
    b,
    c,
    RULE: tl.constexpr,
    DECOUPLED: tl.constexpr,
    VARIANT: tl.constexpr,
    T: tl.constexpr,
):
    """a, b, c: the rule's states; those it does not keep are ignored. Returns p, a, b, c."""
    factor, l2, rule = coefficients
    g = g * factor
    if not DECOUPLED:
        g = g + l2 * p
    return RULE(rule, g, p, a, b, c, DECOUPLED, VARIANT, T)


# --- Adam, AMSGrad, AdamW: formula, references and order of rounding in csrc/rules/adam.h -----------------
@triton.jit
def adam_make(hyper, t, T: tl.constexpr):
    """hyper: lr, beta1, beta2, eps, weight_decay, maximize. t: the number of this step, from 1."""
    lr, beta1, beta2 = tl.load(hyper), tl.load(hyper + 1), tl.load(hyper + 2)
    eps, weight_decay = tl.load(hyper + 3), tl.load(hyper + 4)
    bias1, bias2 = 1.0 - power(beta1, t), 1.0 - power(beta2, t)
    step_size, rsqrt_bias2 = lr / bias1, 1.0 / tl.sqrt(bias2)
    return (
        decay_make(beta1, T),
        decay_make(beta2, T),
        step_size.to(T),
        rsqrt_bias2.to(T),
        eps.to(T),
        (lr * weight_decay).to(T),
    )


@triton.jit
def adam(
    coefficients,
    g,
    p,
    exp_avg,
    exp_avg_sq,
    max_exp_avg_sq,
    DECOUPLED: tl.constexpr,
    AMSGRAD: tl.constexpr,
    T: tl.constexpr,
):
    beta1, beta2, step_size, rsqrt_bias2, eps, decay = coefficients
    hi1, lo1, rest1 = beta1
    hi2, lo2, rest2 = beta2
    exp_avg = decay_keep(hi1, lo1, exp_avg, rest1 * g)
    exp_avg_sq = decay_keep(hi2, lo2, exp_avg_sq, rest2 * g * g)
    largest = exp_avg_sq
    if AMSGRAD:
        max_exp_avg_sq = max_or_nan(max_exp_avg_sq, exp_avg_sq)
        largest = max_exp_avg_sq
    update = divide(step_size * exp_avg, root(largest, T) * rsqrt_bias2 + eps, T)
    p = p - (decay * p + update if DECOUPLED else update)  # in one rounding
    return p, exp_avg, exp_avg_sq, max_exp_avg_sq
