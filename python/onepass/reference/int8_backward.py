"""Gradients of the 8-bit product in plain PyTorch: g quantized in float32, operation by operation, so that
every q is the same; sums and formulas in float64, rounded once."""

import torch
from torch import Tensor

from .int8 import plain
from .philox import rounded_by_chance, words
from .quant import quantize

_OF_ROWS, _OF_COLUMNS = 0, 1  # Philox's streams


def _quantize(lines: Tensor, seed: int | None, stream: int) -> tuple[Tensor, Tensor]:
    """Lines of float32 in 8 bits, and a scale for each, [lines, 1]."""
    nearest, scale, _ = quantize(lines)
    if seed is None:
        return nearest, scale
    inverse = torch.where(scale.isnan(), 0.0, 1 / scale)
    steps = (lines * inverse).nan_to_num(nan=0.0).clamp(-127, 127)
    return rounded_by_chance(steps, words(seed, stream, lines.shape, lines.device)), scale


def _product(lines: Tensor, right: Tensor, seed: int | None, stream: int) -> Tensor:
    q, scale = _quantize(lines, seed, stream)
    return (q.double() @ right.double()) * scale


def int8_mm_bwd(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    input_scale: Tensor | None = None,
    weight_scale: Tensor | None = None,
    input_zero_point: Tensor | None = None,
    *,
    seed: int | None = None,
    input_grad: bool = True,
    weight_grad: bool = True,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    result, rows = dtype or grad_output.dtype, input.shape[:-1].numel()
    g, x = grad_output.float().reshape(rows, grad_output.shape[-1]), input.double()
    if input_zero_point is not None and input_zero_point.numel() > 0:
        x = x - input_zero_point
    grad_input, grad_weight = input.new_empty(0, dtype=result), input.new_empty(0, dtype=result)
    if input_grad:
        scaled = g if weight_scale is None else g * weight_scale.reshape(-1)
        grad_input = _product(scaled, plain(weight), seed, _OF_ROWS).to(result).reshape(input.shape)
    if weight_grad:
        scaled = g if input_scale is None else g * input_scale.reshape(-1, 1)
        turned = scaled.T.contiguous()
        grad_weight = _product(turned, x.reshape(rows, input.shape[-1]), seed, _OF_COLUMNS).to(result)
    return grad_input, grad_weight
