"""The product of a linear layer in 8 bits, forwards and backwards: for training."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

_OPS = torch.ops.onepass


class _Int8Matmul(Function):
    """Kept for backward: what is multiplied, a byte an element, and its scales."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, stochastic: bool) -> Tensor:
        x, x_scale, _ = _OPS.quantize(input)
        w, w_scale, _ = _OPS.quantize(weight)
        ctx.save_for_backward(x, w, x_scale, w_scale)
        ctx.stochastic, ctx.weight_dtype = stochastic, weight.dtype
        return _OPS.int8_mm(x, w, x_scale, w_scale, dtype=input.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor):
        input_grad, weight_grad, _ = ctx.needs_input_grad
        grads = _OPS.int8_mm_bwd(
            grad_output,
            *ctx.saved_tensors,
            seed=int(torch.randint(2**63 - 1, (), device="cpu")) if ctx.stochastic else None,
            input_grad=input_grad,
            weight_grad=weight_grad,
        )
        return grads[0] if input_grad else None, grads[1].to(ctx.weight_dtype) if weight_grad else None, None


def int8_matmul(input: Tensor, weight: Tensor, *, stochastic: bool = False) -> Tensor:
    """input @ weight.T in 8 bits; its two gradients are products in 8 bits too.

    All that is multiplied is quantized on the way, symmetrically and to nearest: rows of the input and of the
    weight here; rows, and for the weight's gradient columns, of the gradient of the output. Gradients are
    passed straight through that rounding: they are those with respect to the numbers that were multiplied.

    Args:
        input: [..., k], float32, bfloat16 or float16.
        weight: [n, k], of one of these dtypes.
        stochastic: round the gradient of the output by chance, so that its mean is kept, with a seed drawn
            from torch's generator of the CPU for each backward.

    Returns:
        [..., n], of the input's dtype. The gradients have the dtypes of input and weight; they cannot be
        differentiated once more. Nothing is written in place.

    Raises:
        RuntimeError: shapes or dtypes that do not fit, named by `quantize` or `int8_mm`.

    Passes over memory: each of input, weight and gradient is read once a product to find its scales and be
    quantized; products read a byte an element. Kept for backward: a byte an element of input and weight.
    Source of the formula: csrc/common/int8_backward.h; straight through: Bengio et al., arXiv:1308.3432.
    """
    return _Int8Matmul.apply(input, weight, stochastic)
