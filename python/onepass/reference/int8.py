"""The 8-bit matrix product in plain PyTorch: sums in float64, which holds them exactly, formulas in float64,
rounded once. Packed weights as csrc/common/int8.h has them."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from .quant import quantize

_PANEL, _FOUR, _HEADER = 16, 4, 64
_MAGIC, _VERSION = 0x3870_6173_7365_6E6F, 1


# --- packed weights ---------------------------------------------------------------------------------------
def int8_pack(weight: Tensor) -> Tensor:
    n, k = weight.shape
    panels, fours = -(-n // _PANEL), -(-k // _FOUR)
    header = torch.tensor([_MAGIC, _VERSION, n, k, 0, 0, 0, 0], device=weight.device)
    padded = functional.pad(weight, (0, fours * _FOUR - k, 0, panels * _PANEL - n))
    sums = padded.sum(1, dtype=torch.int32)
    turned = padded.view(panels, _PANEL, fours, _FOUR).transpose(1, 2).contiguous()
    return torch.cat([part.reshape(-1).view(torch.uint8) for part in (header, sums, turned)])


def int8_unpack(packed: Tensor, n: int, k: int) -> Tensor:
    panels, fours = -(-n // _PANEL), -(-k // _FOUR)
    turned = packed[_HEADER + panels * _PANEL * 4 :].view(torch.int8).view(panels, fours, _PANEL, _FOUR)
    return (
        turned.transpose(1, 2)
        .reshape(panels * _PANEL, fours * _FOUR)[:n, :k]
        .clone(memory_format=torch.contiguous_format)
    )


def plain(weight: Tensor) -> Tensor:
    """int8 [n, k], of a packed one too."""
    if weight.dtype == torch.int8:
        return weight
    n, k = weight[16:32].view(torch.int64).tolist()
    return int8_unpack(weight, n, k)


# --- products ---------------------------------------------------------------------------------------------
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
}


def _a_value_an_output(t: Tensor) -> Tensor:
    """[n] of [n] or [n, 1]; [] stays."""
    return t.view(-1) if t.dim() else t


def _product(
    input: Tensor,
    weight: Tensor,
    input_scale: Tensor | None,
    weight_scale: Tensor | None,
    input_zero_point: Tensor | None,
    bias: Tensor | None,
    act: str | None,
) -> Tensor:
    x = input.double()
    if input_zero_point is not None and input_zero_point.numel() > 0:
        x = x - input_zero_point
    y = x @ plain(weight).double().T
    y = y if input_scale is None else y * input_scale
    y = y if weight_scale is None else y * _a_value_an_output(weight_scale)
    y = y if bias is None else y + _a_value_an_output(bias)
    return y if act is None else _ACTIVATIONS[act](y)


def int8_mm(
    input: Tensor,
    weight: Tensor,
    input_scale: Tensor | None = None,
    weight_scale: Tensor | None = None,
    input_zero_point: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    act: str | None = None,
    dtype: torch.dtype | None = None,
    output_scale: Tensor | None = None,
    output_zero_point: Tensor | None = None,
) -> Tensor:
    y = _product(input, weight, input_scale, weight_scale, input_zero_point, bias, act)
    if output_scale is None:
        return y.to(dtype or torch.float32)
    zero_point = output_zero_point if dtype == torch.uint8 else None
    return quantize(y.float(), output_scale, zero_point, group_size=0, symmetric=dtype == torch.int8)[0]


def int8_linear(
    input: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    *,
    symmetric: bool = True,
    bits: int = 8,
    act: str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    q, scale, zero_point = quantize(input, symmetric=symmetric, bits=bits)
    y = _product(q, weight, scale, weight_scale, zero_point, bias, act)
    return y.to(dtype or input.dtype)


def int8_weight_only_mm(
    input: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    *,
    act: str | None = None,
) -> Tensor:
    return _product(input, weight, None, weight_scale, None, bias, act).to(input.dtype)
