"""Fake quantization in plain PyTorch: what `quantize` and `dequantize` make of a tensor, in float32 as
these are, and its gradients, as csrc/rules/fake_quant.h has them, in float64."""

import torch
from torch import Tensor

from .bits import pack, unpack
from .quant import _from_groups, _in_groups, _steps, dequantize, quantize


def fake_quant_fwd(
    input: Tensor,
    scale: Tensor | None = None,
    zero_point: Tensor | None = None,
    *,
    group_size: int = -1,
    symmetric: bool = True,
    bits: int = 8,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    values, scales, zero_points = quantize(
        input, scale, zero_point, group_size=group_size, symmetric=symmetric, bits=bits
    )
    output = dequantize(values, scales, zero_points, group_size=group_size, dtype=input.dtype)
    nearest = (_in_groups(input.float(), group_size) * (1 / scales.reshape(-1, 1))).round()
    inside = nearest == _steps(values, zero_points, group_size)
    return output, pack(_from_groups(inside, input.shape, group_size).reshape(-1)), scales, zero_points


def fake_quant_bwd(
    grad_output: Tensor,
    mask: Tensor,
    input: Tensor | None = None,
    scale: Tensor | None = None,
    zero_point: Tensor | None = None,
    *,
    group_size: int = -1,
    symmetric: bool = True,
    bits: int = 8,
) -> tuple[Tensor, Tensor]:
    inside = unpack(mask, grad_output.numel()).view(grad_output.shape)
    grad_input = torch.where(inside, grad_output, 0.0).contiguous()
    if input is None or scale is None:
        return grad_input, grad_output.new_empty(0, dtype=torch.float32)
    values, _, _ = quantize(input, scale, zero_point, group_size=group_size, symmetric=symmetric, bits=bits)
    steps = _steps(values, zero_point, group_size).double()
    exact = _in_groups(input.double(), group_size) / scale.reshape(-1, 1)
    moved = torch.where(_in_groups(inside, group_size), steps - exact, steps)
    sums = (moved * _in_groups(grad_output.double(), group_size)).sum(1)
    return grad_input, sums.float().reshape(scale.shape)
