"""Batch normalization with its residual and activation, in plain PyTorch: formulas in float64, rounded once.

Formulas and order as in csrc/rules/norm.h; what is saved (`stats`, `mask`) as onepass/ops.py has it.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from .bits import pack, unpack

Forward = tuple[Tensor, Tensor, Tensor]


# --- memory -----------------------------------------------------------------------------------------------
def _order(t: Tensor) -> list[int]:
    """Dimensions by falling stride; those of size 1 anywhere."""
    strides = t.stride()
    return sorted(range(t.dim()), key=lambda d: 1 if t.shape[d] == 1 else -strides[d])


def _is_dense_image(t: Tensor) -> bool:
    """Without gaps, in the order images, channels, pixels, or images, pixels, channels."""
    order = [d for d in _order(t) if t.shape[d] != 1]
    if t.numel() == 0 or not order:
        return True
    steps = [t.stride(d) for d in order]
    sizes = [t.shape[d] for d in order]
    dense = steps == [math.prod(sizes[i + 1 :]) for i in range(len(sizes))]
    image = 0 not in order or order[0] == 0
    rest = [d for d in order if d != 0]
    return dense and image and (1 not in rest or 1 in (rest[0], rest[-1]))


def _dense(t: Tensor) -> Tensor:
    if _is_dense_image(t):
        return t
    last = t.dim() in (4, 5) and t.shape[1] > 1 and t.stride(1) == 1
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return t.contiguous(memory_format=formats[t.dim()] if last else torch.contiguous_format)


def _like(values: Tensor, input: Tensor) -> Tensor:
    """Values in the input's dtype and order of memory."""
    return torch.empty_like(_dense(input)).copy_(values)


def _in_memory_order(values: Tensor, input: Tensor) -> Tensor:
    return values.permute(_order(_dense(input))).reshape(-1)


def _pack(passed: Tensor, input: Tensor) -> Tensor:
    return pack(_in_memory_order(passed, input))


def _unpack(mask: Tensor, input: Tensor) -> Tensor:
    passed = torch.empty_like(_dense(input), dtype=torch.bool)
    passed.permute(_order(passed)).view(-1).copy_(unpack(mask, input.numel()))
    return passed


# --- channels ---------------------------------------------------------------------------------------------
def _arithmetic(input: Tensor) -> torch.dtype:
    return torch.float64 if input.dtype == torch.float64 else torch.float32


def _across(input: Tensor) -> list[int]:
    return [d for d in range(input.dim()) if d != 1]


def _channels(values: Tensor, input: Tensor) -> Tensor:
    """One value a channel, in the shape that broadcasts over the input."""
    return values.double().view(1, -1, *[1] * (input.dim() - 2))


def _moments(input: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sum of squared deviations."""
    x = input.double()
    mean = x.mean(_across(input))
    return mean, (x - _channels(mean, input)).square().sum(_across(input))


def _in_two(mean: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rounded, and what rounding cut off."""
    high = mean.to(dtype)
    return high, torch.where(mean.isfinite(), mean - high.double(), 0.0).to(dtype)


def _stats(mean: Tensor, variance: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    near = mean.square() < 16 * variance
    high, low = _in_two(mean, dtype)
    high, low = torch.where(near, 0, high), torch.where(near, high, low)
    return torch.stack([high, low, (variance + eps).rsqrt().to(dtype)])


def _follow(running: Tensor | None, now: Tensor, momentum: float | Tensor, some: Tensor) -> None:
    """some: are there elements at all?"""
    if running is not None:
        running.copy_(torch.where(some, (1 - momentum) * running.double() + momentum * now, running.double()))


# --- activations ------------------------------------------------------------------------------------------
def _activate(v: Tensor, act: str | None, negative_slope: float) -> Tensor:
    if act == "relu":
        return functional.relu(v)
    if act == "leaky_relu":
        return functional.leaky_relu(v, negative_slope)
    return functional.silu(v) if act == "silu" else v


def _passes(v: Tensor, act: str | None) -> Tensor:
    return ~(v <= 0) if act == "relu" else v > 0


def _keeps_mask(act: str | None, residual: Tensor | None) -> bool:
    return residual is not None and act in ("relu", "leaky_relu")


# --- forward ----------------------------------------------------------------------------------------------
def _forward(
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    eps: float,
    act: str | None,
    negative_slope: float,
    saving: bool,
) -> Forward:
    v = (input.double() - _channels(mean, input)) * _channels((variance + eps).rsqrt(), input)
    v = v if weight is None else v * _channels(weight, input)
    v = v if bias is None else v + _channels(bias, input)
    v = v if residual is None else v + residual.double()
    output = _like(_activate(v, act, negative_slope), input)
    empty = torch.empty(0, dtype=torch.uint8, device=input.device)
    mask = _pack(_passes(v, act), input) if saving and _keeps_mask(act, residual) else empty
    return output, _stats(mean, variance, eps, _arithmetic(input)), mask


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
) -> Forward:
    moments = batch_norm_stats(input.double()).unsqueeze(0)
    return batch_norm_apply(
        input,
        residual,
        weight,
        bias,
        moments,
        running_mean,
        running_var,
        num_batches_tracked,
        momentum=momentum,
        eps=eps,
        act=act,
        negative_slope=negative_slope,
        saving=saving,
    )


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
) -> Forward:
    mean, variance = running_mean.double(), running_var.double()
    return _forward(input, residual, weight, bias, mean, variance, eps, act, negative_slope, saving)


def batch_norm_stats(input: Tensor) -> Tensor:
    dtype = _arithmetic(input)
    count = torch.full((1,), _count(input), dtype=dtype, device=input.device)
    if input.numel() == 0:
        return torch.cat([count.new_zeros(3 * input.shape[1]), count])
    mean, m2 = _moments(input)
    return torch.cat([*_in_two(mean, dtype), m2.to(dtype), count])


def _count(input: Tensor) -> int:
    return input.shape[:1].numel() * input.shape[2:].numel()


def _merged(moments: Tensor, channels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean and m2 over all processes; those without elements do not matter."""
    rows = moments.double().view(-1, 3 * channels + 1)
    counts = rows[:, -1:]
    count = counts.sum()
    filled = counts > 0
    means = torch.where(filled, rows[:, :channels] + rows[:, channels : 2 * channels], 0.0)
    mean = torch.where(filled, counts / count * means, 0.0).sum(0)
    m2 = torch.where(filled, rows[:, 2 * channels : -1] + counts * (means - mean).square(), 0.0).sum(0)
    return count, mean, m2


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
) -> Forward:
    if num_batches_tracked is not None:
        num_batches_tracked += 1
    count, mean, m2 = _merged(moments, input.shape[1])
    some = count > 0
    factor = momentum if momentum is not None else _average(num_batches_tracked)
    _follow(running_mean, mean, factor, some)
    _follow(running_var, m2 / (count - 1).clamp(min=1), factor, some)
    variance = torch.where(some, m2 / count, 0.0)
    return _forward(input, residual, weight, bias, mean, variance, eps, act, negative_slope, saving)


def _average(num_batches_tracked: Tensor | None) -> Tensor | float:
    """Of all batches so far; a running statistic that nobody counts stays where it is."""
    return 0.0 if num_batches_tracked is None else 1 / num_batches_tracked.double()


# --- backward ---------------------------------------------------------------------------------------------
def _gated(
    grad_output: Tensor,
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    stats: Tensor,
    mask: Tensor,
    act: str | None,
    negative_slope: float,
) -> tuple[Tensor, Tensor]:
    """The gradient of the pre-activation, and x - mean, in float64."""
    high, low, invstd = stats.double()
    centred = input.double() - _channels(high + low, input)
    g = grad_output.double()
    if act is None:
        return g, centred
    v = centred * _channels(invstd, input)
    v = v if weight is None else v * _channels(weight, input)
    v = v if bias is None else v + _channels(bias, input)
    v = v if residual is None else v + residual.double()
    if act == "silu":
        s = torch.sigmoid(v)
        return g * s * (1 + v * (1 - s)), centred
    passed = _unpack(mask, input) if mask.numel() > 0 else _passes(v, act)
    return torch.where(passed, g, g * negative_slope if act == "leaky_relu" else 0.0), centred


def _sums(g: Tensor, centred: Tensor) -> tuple[Tensor, Tensor]:
    across = _across(g)
    return g.sum(across), (g * centred).sum(across)


def _affine_grads(
    input: Tensor, sum: Tensor, dot: Tensor, stats: Tensor, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    dweight = input.new_empty(0) if weight is None else (dot * stats[2].double()).to(weight.dtype)
    dbias = input.new_empty(0) if bias is None else sum.to(bias.dtype)
    return dweight, dbias


def _input_grads(
    g: Tensor,
    centred: Tensor,
    input: Tensor,
    weight: Tensor | None,
    stats: Tensor,
    sums: tuple[Tensor, Tensor, float | Tensor] | None,
    with_residual: bool,
) -> tuple[Tensor, Tensor]:
    """sums: of g and of g * (x - mean), and the count; None: the statistics were given."""
    invstd = stats[2].double()
    scale = invstd if weight is None else invstd * weight.double()
    dx = g
    if sums is not None:
        sum, dot, count = sums
        dx = g - _channels(sum / count, input) - centred * _channels(invstd.square() * dot / count, input)
    dresidual = _like(g, input) if with_residual else input.new_empty(0)
    return _like(dx * _channels(scale, input), input), dresidual


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
    g, centred = _gated(grad_output, input, residual, weight, bias, stats, mask, act, negative_slope)
    sum, dot = _sums(g, centred)
    sums = (sum, dot, max(1, _count(input))) if training else None
    with_residual = mask.numel() > 0 or residual is not None
    grads = _input_grads(g, centred, input, weight, stats, sums, with_residual)
    return *grads, *_affine_grads(input, sum, dot, stats, weight, bias)


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
    g, centred = _gated(grad_output, input, residual, weight, bias, stats, mask, act, negative_slope)
    sum, dot = _sums(g, centred)
    count = sum.new_full((1,), _count(input))
    sums = torch.cat([sum, dot, count]).to(stats.dtype)
    return sums, *_affine_grads(input, sum, dot, stats, weight, bias)


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
    g, centred = _gated(grad_output, input, residual, weight, bias, stats, mask, act, negative_slope)
    sum, dot, count = sums.double().tensor_split([input.shape[1], 2 * input.shape[1]])
    with_residual = mask.numel() > 0 or residual is not None
    return _input_grads(g, centred, input, weight, stats, (sum, dot, count), with_residual)
