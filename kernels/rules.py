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


@triton.jit
def sign(x, T: tl.constexpr):
    """-1, 0 or 1; 0 for NaN."""
    return (x > 0).to(T) - (x < 0).to(T)


# --- Step: all that the optimizer phase does to one element, in this order, for every optimizer -----------
#   unscale and clip the gradient, negate it to maximize, add the L2 and the L1 term, apply the rule; then the
#   average of weights. csrc/rules/step.h has the formulas.
OWN = tl.constexpr(6)  # where a rule's own columns of hyper start: lr, weight_decay, maximize, l1, ema_decay,
# max_grad_norm come before


@triton.jit
def clip_coefficient(max_norm, norm, scale):
    """min(1, max_norm / (norm + 1e-6)) / scale, by a single division: a call each, in float64."""
    within = max_norm > norm + 1e-6
    return tl.where(within, 1.0, max_norm) / (tl.where(within, 1.0, norm + 1e-6) * scale)  # NaN stays NaN


@triton.jit
def step_make(hyper, t, scale, norm, MAKE: tl.constexpr, T: tl.constexpr):
    """hyper: a row of float64. norm: 0 where it was not measured; max_grad_norm is inf then."""
    factor = clip_coefficient(tl.load(hyper + 5), norm, scale)  # first: little has to be kept over its call
    weight_decay, maximize, l1 = tl.load(hyper + 1), tl.load(hyper + 2), tl.load(hyper + 3)
    ema_decay = tl.load(hyper + 4)
    signed = tl.where(maximize != 0, -factor, factor)
    ema = decay_make(ema_decay, T)
    return factor.to(T), signed.to(T), weight_decay.to(T), l1.to(T), ema, MAKE(hyper, t, T)


@triton.jit
def clipped(coefficients, g):
    """The gradient as torch would leave it behind: unscaled and clipped."""
    return coefficients[0] * g


@triton.jit
def step(
    coefficients,
    g,
    p,
    a,
    b,
    c,
    RULE: tl.constexpr,
    L2: tl.constexpr,
    VARIANT: tl.constexpr,
    T: tl.constexpr,
):
    """a, b, c: the rule's states; those it does not keep are ignored. Returns p, a, b, c."""
    g = coefficients[1] * g
    if L2:
        g = g + coefficients[2] * p
    g = g + coefficients[3] * sign(p, T)
    return RULE(coefficients[5], g, p, a, b, c, VARIANT, T)


@triton.jit
def average(coefficients, ema, p):
    hi, lo, rest = coefficients[4]
    return decay_keep(hi, lo, ema, rest * p)


# --- Adam, AMSGrad, AdamW: formula, references and order of rounding in csrc/rules/adam.h -----------------
@triton.jit
def adam_make(hyper, t, T: tl.constexpr):
    """Own columns: beta1, beta2, eps. t: the number of this step, from 1."""
    lr, weight_decay = tl.load(hyper), tl.load(hyper + 1)
    beta1, beta2, eps = tl.load(hyper + OWN), tl.load(hyper + OWN + 1), tl.load(hyper + OWN + 2)
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
def _adam(
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


@triton.jit
def adam(coefficients, g, p, a, b, c, VARIANT: tl.constexpr, T: tl.constexpr):
    return _adam(coefficients, g, p, a, b, c, False, VARIANT == 1, T)


@triton.jit
def adamw(coefficients, g, p, a, b, c, VARIANT: tl.constexpr, T: tl.constexpr):
    return _adam(coefficients, g, p, a, b, c, True, VARIANT == 1, T)


# --- SGD: csrc/rules/sgd.h --------------------------------------------------------------------------------
@triton.jit
def sgd_make(hyper, t, T: tl.constexpr):
    """Own columns: momentum, dampening, nesterov."""
    lr, momentum = tl.load(hyper), tl.load(hyper + OWN)
    dampening, nesterov = tl.load(hyper + OWN + 1), tl.load(hyper + OWN + 2)
    keep = tl.where(t == 1, 0.0, momentum)
    add = tl.where(t == 1, 1.0, 1.0 - dampening)
    return lr.to(T), keep.to(T), add.to(T), momentum.to(T), nesterov


@triton.jit
def sgd(coefficients, g, p, momentum_buffer, b, c, VARIANT: tl.constexpr, T: tl.constexpr):
    lr, keep, add, momentum, nesterov = coefficients
    if VARIANT == 1:
        momentum_buffer = keep * momentum_buffer + add * g
        g = tl.where(nesterov != 0, g + momentum * momentum_buffer, momentum_buffer)
    return p - lr * g, momentum_buffer, b, c


# --- RMSprop: csrc/rules/rmsprop.h ------------------------------------------------------------------------
@triton.jit
def rmsprop_make(hyper, t, T: tl.constexpr):
    """Own columns: alpha, eps, momentum."""
    lr, alpha = tl.load(hyper), tl.load(hyper + OWN)
    eps, momentum = tl.load(hyper + OWN + 1), tl.load(hyper + OWN + 2)
    return decay_make(alpha, T), lr.to(T), eps.to(T), momentum.to(T)


@triton.jit
def rmsprop(coefficients, g, p, square_avg, second, third, VARIANT: tl.constexpr, T: tl.constexpr):
    """second, third: grad_avg if centered, then momentum_buffer with momentum."""
    alpha, lr, eps, momentum = coefficients
    hi, lo, rest = alpha
    square_avg = decay_keep(hi, lo, square_avg, rest * g * g)
    variance = square_avg
    if VARIANT % 2 == 1:
        second = decay_keep(hi, lo, second, rest * g)
        variance = variance - second * second
        variance = tl.where(variance < 0, 0.0, variance)  # NaN stays NaN
    update = divide(g, root(variance, T) + eps, T)
    if VARIANT == 2:
        second = momentum * second + update
        update = second
    if VARIANT == 3:
        third = momentum * third + update
        update = third
    return p - lr * update, square_avg, second, third


# --- AdaGrad: csrc/rules/adagrad.h ------------------------------------------------------------------------
@triton.jit
def adagrad_make(hyper, t, T: tl.constexpr):
    """Own columns: lr_decay, eps."""
    lr, lr_decay, eps = tl.load(hyper), tl.load(hyper + OWN), tl.load(hyper + OWN + 1)
    return (lr / (1.0 + (t - 1.0) * lr_decay)).to(T), eps.to(T)


@triton.jit
def adagrad(coefficients, g, p, total, b, c, VARIANT: tl.constexpr, T: tl.constexpr):
    lr, eps = coefficients
    total = total + g * g
    return p - divide(lr * g, root(total, T) + eps, T), total, b, c


# --- Lion: csrc/rules/lion.h ------------------------------------------------------------------------------
@triton.jit
def lion_make(hyper, t, T: tl.constexpr):
    """Own columns: beta1, beta2."""
    lr, weight_decay = tl.load(hyper), tl.load(hyper + 1)
    beta1, beta2 = tl.load(hyper + OWN), tl.load(hyper + OWN + 1)
    return beta1.to(T), (1.0 - beta1).to(T), lr.to(T), (lr * weight_decay).to(T), decay_make(beta2, T)


@triton.jit
def lion(coefficients, g, p, exp_avg, b, c, VARIANT: tl.constexpr, T: tl.constexpr):
    beta1, rest1, lr, decay, beta2 = coefficients
    hi2, lo2, rest2 = beta2
    p = p - (decay * p + lr * sign(beta1 * exp_avg + rest1 * g, T))
    return p, decay_keep(hi2, lo2, exp_avg, rest2 * g), b, c


# --- the loss scale: csrc/rules/scale.h has the rule -----------------------------------------------------
@triton.jit
def _bounded(scale, factor, least, most):
    """factor * scale, rounded to float32, within its bounds; scale where that is not finite."""
    following = (scale.to(tl.float64) * factor).to(tl.float32)
    finite = tl.abs(following) < float("inf")
    inside = tl.where(following < least, least.to(tl.float32), following)
    inside = tl.where(inside > most, most.to(tl.float32), inside)
    return tl.where(finite, inside, scale)


@triton.jit
def scale_rule(
    overflow,
    scale,
    tracker,
    total,
    in_a_row,
    growth_factor,
    backoff_factor,
    min_scale,
    max_scale,
    growth_interval,
    hysteresis,
):
    """overflow: 0 or 1. Returns scale, tracker, and the steps that overflowed, in all and in a row."""
    in_a_row = tl.where(overflow != 0, in_a_row + 1, 0)
    grow = (overflow == 0) & (tracker + 1 == growth_interval)
    tracker = tl.where((overflow != 0) | grow, 0, tracker + 1)
    grown = _bounded(scale, growth_factor, min_scale, max_scale)
    backed_off = _bounded(scale, backoff_factor, min_scale, max_scale)
    scale = tl.where(grow, grown, tl.where(in_a_row > hysteresis, backed_off, scale))
    return scale, tracker, total + overflow, in_a_row
