"""Fake quantization: training that feels what 8 bits do to a tensor."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


class _Scaled(Function):
    """A tensor as it is, whose gradient is multiplied."""

    @staticmethod
    def forward(ctx: Any, t: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return t.view_as(t)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad * ctx.factor, None


def fake_quantize(
    input: Tensor,
    scale: Tensor | None = None,
    zero_point: Tensor | None = None,
    *,
    group_size: int = -1,
    symmetric: bool = True,
    bits: int = 8,
    grad_scale: float = 1.0,
) -> Tensor:
    """The input as it comes back from 8 bits: (q - zero_point) * scale, with the q of `quantize`, bit for
    bit what quantizing and dequantizing it makes.

    Args:
        input: any shape and layout (what is not contiguous is copied first); float32, bfloat16 or float16.
        scale: float32, one a group, > 0; None: the finest that holds all values of a group. Learned where it
            requires a gradient.
        zero_point: int32, one a group, in 0..2**bits - 1; with symmetric=False and a scale, and only then.
        group_size: elements of the last dimension that share a scale; -1: all of it, 0: the whole tensor. The
            shape of scale and zero_point is the input's but for the last dimension, which is the number of
            groups in a row (the last of them may be shorter); [] for the whole tensor.
        symmetric: q in -127..127 (7 bits: -63..63) around zero; else in 0..255 (0..127).
        bits: 8 or 7.
        grad_scale: what the gradient of scale is multiplied with; LSQ has 1 / sqrt(n * q), where n elements
            share the scale and q is the highest level.

    Returns:
        Shape and dtype of the input, contiguous. NaN becomes 0 by a given scale, inf the end of the range;
        a group that holds one of them and finds its own scale becomes NaN.

    The gradient of input is that of the output where the value was inside the range (its nearest q is one),
    else exactly 0: so for NaN, and in all of a group whose scale is NaN. A scale that was found here counts
    as a constant. Gradient of scale: float32, for each group the sum of grad_output * (q - zero_point -
    input / scale) where inside, of grad_output * (q - zero_point) elsewhere; the same bits for any number
    of threads. Nothing is written in place.

    Passes over memory, each element: input read once (twice where scales are found, the second time from
    the cache where a group fits it), output written once, and a bit kept for backward; there grad_output
    read once and the gradient of input written once. For the gradient of scale the input is kept, too, and
    read once more.

    Raises:
        RuntimeError: an argument of another shape, dtype or device, before anything is written; backward with
            create_graph=True, when it is differentiated again.

    Sources: Bengio et al., arXiv:1308.3432 (straight-through estimator); Jacob et al., arXiv:1712.05877 (in
    training); Esser et al., arXiv:1902.08153 (LSQ: the gradient of scale).
    """
    if scale is not None and grad_scale != 1.0:
        scale = _Scaled.apply(scale, grad_scale)
    return torch.ops.onepass.fake_quant_fwd(
        input, scale, zero_point, group_size=group_size, symmetric=symmetric, bits=bits
    )[0]
