"""How the ops of the table are recorded for autograd.

The functions at the foot stand at the dispatcher's Autograd key: they run the op below that key and keep what
backward needs. Memory kept, beside the input (and the residual for silu, which needs it): a few values a
channel, and for relu and leaky_relu behind a residual one bit an element.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

_OPS = torch.ops.onepass


class _Forward(Function):
    """batch_norm_fwd or batch_norm_eval: `run` is the op, given all but its options."""

    @staticmethod
    def forward(ctx: Any, op: Any, options: dict[str, Any], training: bool, *tensors: Tensor | None):
        with torch._C._AutoDispatchBelowAutograd():
            output, stats, mask = op(*tensors, **(options | {"saving": True}))
        ctx.mark_non_differentiable(stats, mask)
        ctx.set_materialize_grads(False)
        input, residual, weight, bias = tensors[:4]
        ctx.training, ctx.residual = training, residual is not None
        ctx.eps, ctx.act = options.get("eps", 1e-5), options.get("act")
        ctx.negative_slope = options.get("negative_slope", 0.01)
        ctx.save_for_backward(input, residual if ctx.act == "silu" else None, weight, bias, stats, mask)
        return output, stats, mask

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, _stats: None, _mask: None):
        if grad_output is None:
            return (None,) * len(ctx.needs_input_grad)
        options = {"act": ctx.act, "negative_slope": ctx.negative_slope, "training": ctx.training}
        if torch.is_grad_enabled():  # somebody will differentiate this
            grads = _Backward.apply(options, ctx.eps, grad_output, *ctx.saved_tensors)
        else:
            grads = _run_backward(grad_output, *ctx.saved_tensors, **options)
        dx, dresidual, dweight, dbias = grads
        if ctx.residual and (ctx.act is None or grad_output.numel() == 0):  # then nothing was computed
            dresidual = grad_output
        needed = ctx.needs_input_grad[3:]
        grads = [g if n else None for g, n in zip((dx, dresidual, dweight, dbias), needed, strict=False)]
        return None, None, None, *grads, *(None,) * (len(needed) - len(grads))


def _run_backward(*tensors: Tensor | None, **options: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    with torch._C._AutoDispatchBelowAutograd():
        return _OPS.batch_norm_bwd.default(*tensors, **options)


class _Backward(Function):
    """batch_norm_bwd. Its own gradient, which few need, is that of the same formula in plain PyTorch."""

    @staticmethod
    def forward(ctx: Any, options: dict[str, Any], eps: float, *tensors: Tensor | None):
        ctx.options, ctx.eps = options, eps
        ctx.save_for_backward(*tensors)
        return _run_backward(*tensors, **options)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None):
        *tensors, stats, mask = ctx.saved_tensors
        with torch.enable_grad():
            # Views: a tensor that came twice is two arguments here.
            own: list[Any] = [None if t is None else t.view_as(t) for t in tensors]
            dy, x, z, weight, bias = own
            results = _gradients(dy, x, z, weight, bias, stats, mask, ctx.eps, **ctx.options)
        pairs = [(r, g) for r, g in zip(results, grads, strict=True) if g is not None and r.requires_grad]
        wanted = [i for i, t in enumerate(own) if t is not None and t.requires_grad]
        found = torch.autograd.grad(
            [r for r, _ in pairs],
            [own[i] for i in wanted],
            [g for _, g in pairs],
            create_graph=torch.is_grad_enabled(),
            allow_unused=True,
        )
        second: dict[int, Tensor | None] = dict(zip(wanted, found, strict=True))
        return (None,) * 2 + tuple(second.get(i) for i in range(len(own))) + (None, None)


def _gradients(
    grad_output: Tensor,
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    stats: Tensor,
    mask: Tensor,
    eps: float,
    *,
    act: str | None,
    negative_slope: float,
    training: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What batch_norm_bwd returns, differentiable: csrc/rules/norm.h says how it is put together."""
    across = [d for d in range(input.dim()) if d != 1]
    count = max(1, input.numel() // max(1, input.shape[1]))

    def channels(values: Tensor) -> Tensor:
        return values.to(stats.dtype).view(1, -1, *[1] * (input.dim() - 2))

    x = input.to(stats.dtype)
    mean, invstd = channels(stats[0] + stats[1]), channels(stats[2])
    if training:
        mean = x.mean(across, keepdim=True)
        invstd = ((x - mean).square().mean(across, keepdim=True) + eps).rsqrt()
    normalised = (x - mean) * invstd
    scale = invstd if weight is None else invstd * channels(weight)

    g = grad_output.to(stats.dtype)
    if mask.numel() > 0:  # the gradient of a residual shows what passes
        ones = torch.ones_like(grad_output)
        options = {"act": act, "negative_slope": negative_slope, "training": training}
        g = g * _run_backward(ones, input, residual, weight, bias, stats, mask, **options)[1]
    elif act is not None:
        v = normalised if weight is None else normalised * channels(weight)
        v = v if bias is None else v + channels(bias)
        v = v if residual is None else v + residual
        s = torch.sigmoid(v)
        passed = ~(v <= 0) if act == "relu" else v > 0
        g = (
            g * s * (1 + v * (1 - s))
            if act == "silu"
            else torch.where(passed, g, g * negative_slope * (act != "relu"))
        )

    dbias, dweight = g.sum(across), (g * normalised).sum(across)
    dx = g * scale
    if training:
        dx = scale * (g - (channels(dbias) + normalised * channels(dweight)) / count)
    none = g.new_empty(0)
    return (
        dx.to(input.dtype),
        g.to(input.dtype) if mask.numel() > 0 or residual is not None else none,
        none if weight is None else dweight.to(weight.dtype),
        none if bias is None else dbias.to(bias.dtype),
    )


def _has_tangent(t: Tensor | None) -> bool:
    return t is not None and forward_ad.unpack_dual(t).tangent is not None


def _is_recorded(tensors: tuple[Tensor | None, ...]) -> bool:
    if torch.is_grad_enabled():
        for t in tensors[:4]:  # input, residual, weight, bias; a generator would cost a microsecond
            if t is not None and t.requires_grad:
                return True
    # Forward mode goes the same way, and torch says there that it is not implemented.
    return forward_ad._current_level >= 0 and any(map(_has_tangent, tensors))


def _record(op: Any, training: bool, tensors: tuple[Tensor | None, ...], options: dict[str, Any]):
    if _is_recorded(tensors):
        return _Forward.apply(op, options, training, *tensors)
    with torch._C._AutoDispatchBelowAutograd():
        return op(*tensors, **options)


def batch_norm_fwd(*tensors: Tensor | None, **options: Any):
    return _record(_OPS.batch_norm_fwd.default, True, tensors, options)


def batch_norm_eval(*tensors: Tensor | None, **options: Any):
    for name, t in zip(("running_mean", "running_var"), tensors[4:], strict=True):
        if torch.is_grad_enabled() and t is not None and t.requires_grad:
            raise RuntimeError(f"batch_norm_eval: not differentiable with respect to {name}")
    return _record(_OPS.batch_norm_eval.default, False, tensors, options)
