"""How fake quantization is recorded for autograd: as autograd.py does it for normalizations.

Memory kept for backward: a bit an element; the input itself and the scale where the gradient of scale is
asked for.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from .autograd import _has_tangent

_OPS = torch.ops.onepass


class _Forward(Function):
    """fake_quant_fwd, given all but its options."""

    @staticmethod
    def forward(
        ctx: Any, options: dict[str, Any], input: Tensor, scale: Tensor | None, zero_point: Tensor | None
    ):
        with torch._C._AutoDispatchBelowAutograd():
            results = _OPS.fake_quant_fwd(input, scale, zero_point, **options)
        ctx.mark_non_differentiable(*results[1:])
        ctx.set_materialize_grads(False)
        learned = (input, scale, zero_point) if ctx.needs_input_grad[2] else (None,) * 3
        ctx.options = options
        ctx.save_for_backward(results[1], *learned)
        return results

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, *_: None):
        if grad_output is None:
            return (None,) * 4
        run = _Backward.apply if torch.is_grad_enabled() else _run_backward
        grad_input, grad_scale = run(ctx.options, grad_output, *ctx.saved_tensors)
        _, input, scale, _ = ctx.needs_input_grad
        return None, grad_input if input else None, grad_scale if scale else None, None


def _run_backward(options: dict[str, Any], *tensors: Tensor | None) -> tuple[Tensor, Tensor]:
    with torch._C._AutoDispatchBelowAutograd():
        return _OPS.fake_quant_bwd(*tensors, **options)


class _Backward(Function):
    """fake_quant_bwd, where somebody may want to differentiate it, and is told that it cannot be."""

    @staticmethod
    def forward(ctx: Any, options: dict[str, Any], *tensors: Tensor | None):
        return _run_backward(options, *tensors)

    @staticmethod
    def backward(ctx: Any, *_: Tensor | None):
        raise RuntimeError("fake_quant_bwd: not differentiable: fake quantization has first derivatives only")


def fake_quant_fwd(
    input: Tensor, scale: Tensor | None = None, zero_point: Tensor | None = None, **options: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    differentiable = (input, scale)
    recorded = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in differentiable)
    # Forward mode goes the same way, and torch says there that it is not implemented.
    if recorded or (forward_ad._current_level >= 0 and any(map(_has_tangent, differentiable))):
        return _Forward.apply(options, input, scale, zero_point)
    with torch._C._AutoDispatchBelowAutograd():
        return _OPS.fake_quant_fwd(input, scale, zero_point, **options)
