"""Quantization to 8 bits in plain PyTorch: as csrc/rules/quant.h has it, in float32, operation by operation,
so that every q is the same."""

import torch
from torch import Tensor

SMALLEST_SCALE = 2.0**-126


def _levels(symmetric: bool, bits: int) -> tuple[int, int]:
    half = 2 ** (bits - 1) - 1
    return (-half, half) if symmetric else (0, 2**bits - 1)


# --- groups -----------------------------------------------------------------------------------------------
def _scale_shape(shape: torch.Size, group_size: int) -> list[int]:
    if group_size == 0:
        return []
    columns = shape[-1] if len(shape) else 1
    return [*shape[:-1], 1 if group_size == -1 else max(1, -(-columns // group_size))]


def _in_groups(t: Tensor, group_size: int) -> Tensor:
    """[groups, elements of a group]; where the last group of a row is shorter it is filled up with zeros."""
    if group_size == 0:
        return t.reshape(1, -1)
    rows = t.reshape(-1, 1) if t.dim() == 0 else t.reshape(t.shape[:-1].numel(), t.shape[-1])
    groups = _scale_shape(t.shape, group_size)[-1]
    size = rows.shape[1] if group_size == -1 else min(group_size, max(1, rows.shape[1]))
    filled = torch.nn.functional.pad(rows, (0, groups * size - rows.shape[1]))
    return filled.reshape(rows.shape[0] * groups, size)


def _from_groups(grouped: Tensor, shape: torch.Size, group_size: int) -> Tensor:
    if group_size == 0:
        return grouped.reshape(shape)
    rows, columns = shape[:-1].numel(), shape[-1] if len(shape) else 1
    whole = _scale_shape(shape, group_size)[-1] * grouped.shape[1]
    return grouped.reshape(rows, whole)[:, :columns].reshape(shape)


# --- the grid ---------------------------------------------------------------------------------------------
def _grid(x: Tensor, symmetric: bool, bits: int) -> tuple[Tensor, Tensor]:
    """scale and zero_point of each group of x, [groups, elements]."""
    low, high = _levels(symmetric, bits)
    steps = float(high if symmetric else high - low)
    if x.shape[1] == 0:
        x = x.new_zeros(x.shape[0], 1)
    finite = x.isfinite().all(1)
    x = torch.where(finite[:, None], x, 0.0)
    least, most = x.amin(1).clamp(max=0), x.amax(1).clamp(min=0)
    steps_ = torch.full_like(most, steps)  # a tensor: by a number CUDA multiplies with its inverse
    width = torch.maximum(most, -least) / steps_ if symmetric else most / steps_ - least / steps_
    scale = width.clamp(min=SMALLEST_SCALE)
    zero_point = (
        torch.zeros_like(scale) if symmetric else (-least * (1 / scale)).round().clamp(max=steps) + low
    )
    zero_point = torch.where(finite, zero_point, 0).to(torch.int32)
    return torch.where(finite, scale, float("nan")), zero_point


def quantize(
    input: Tensor,
    scale: Tensor | None = None,
    zero_point: Tensor | None = None,
    *,
    group_size: int = -1,
    symmetric: bool = True,
    bits: int = 8,
) -> tuple[Tensor, Tensor, Tensor]:
    shape = _scale_shape(input.shape, group_size)
    x = _in_groups(input.float(), group_size)
    if scale is None:
        scales, zeros = _grid(x, symmetric, bits)
        inverse = torch.where(scales.isnan(), 0.0, 1 / scales)
    else:
        scales = scale.reshape(-1)
        zeros = torch.zeros_like(scales).int() if zero_point is None else zero_point.reshape(-1)
        inverse = 1 / scales
    low, high = (level - zeros[:, None] for level in _levels(symmetric, bits))
    steps = (x * inverse[:, None]).nan_to_num(nan=0.0, posinf=float("inf"), neginf=float("-inf"))
    steps = torch.minimum(torch.maximum(steps, low.float()), high.float()).round()
    values = (steps + zeros[:, None]).to(torch.int8 if symmetric else torch.uint8)
    zero_points = zeros.new_empty(0) if symmetric else zeros.clone().reshape(shape)
    return (
        _from_groups(values, input.shape, group_size).contiguous(),
        scales.clone().reshape(shape),
        zero_points,
    )


def _steps(values: Tensor, zero_point: Tensor | None, group_size: int) -> Tensor:
    """q - zero_point of each group, [groups, elements]."""
    steps = _in_groups(values.to(torch.int32), group_size)
    return steps if zero_point is None or zero_point.numel() == 0 else steps - zero_point.reshape(-1, 1)


def dequantize(
    input: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    group_size: int = -1,
    dtype: torch.dtype | None = None,
) -> Tensor:
    x = _steps(input, zero_point, group_size).float() * scale.reshape(-1, 1)
    return _from_groups(x, input.shape, group_size).to(dtype or torch.float32).contiguous()
