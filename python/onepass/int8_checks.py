"""The calls of the 8-bit matrix product, checked, and their results as fake tensors: see call_checks.py.

csrc/int8_call.h makes the same checks in the same words; tests/test_int8_errors.py holds them together.
"""

import torch
from torch import Tensor

from .int8_argument_checks import (
    _fail,
    _input,
    _plain_weight,
    _rest,
    _vector,
    _weight,
    _zeros_fit,
    outputs,
    packed_bytes,
    packed_shape,
)
from .quant_checks import WHOLE, _real


# --- calls ------------------------------------------------------------------------------------------------
def int8_pack(op, weight: Tensor, *, values: bool) -> None:
    _plain_weight(op, weight, values)


def int8_unpack(op, packed: Tensor, n: int, k: int, *, values: bool) -> None:
    """n, k: for those who cannot read them in the memory of a packed weight."""
    if n < 0 or k < 0 or packed.numel() != packed_bytes(n, k):
        _fail(op, f"packed has {packed.numel()} bytes, which is no packed [{n}, {k}]")
    if values and packed_shape(op, "packed", packed) != (n, k):
        _fail(op, f"packed holds another weight than [{n}, {k}]")


def _or_none(zero_point: Tensor | None) -> Tensor | None:
    """quantize leaves an empty one where it is symmetric."""
    return None if zero_point is None or zero_point.numel() == 0 else zero_point


def _output_grid(op, scale: Tensor | None, zero_point: Tensor | None, dtype: torch.dtype | None) -> None:
    """Outputs of which dtype are quantized again, and by what."""
    if scale is not None and dtype not in WHOLE:
        _fail(op, "output_scale needs dtype torch.int8 or torch.uint8")
    if zero_point is not None and dtype != torch.uint8:
        _fail(op, "output_zero_point needs dtype torch.uint8")
    if scale is None and dtype == torch.int8:
        _fail(op, "dtype torch.int8 needs output_scale")
    if (scale is None or zero_point is None) and dtype == torch.uint8:
        _fail(op, "dtype torch.uint8 needs output_scale and output_zero_point")


def _one_of_levels(op, zero_point: Tensor) -> None:
    if not 0 <= int(zero_point) <= 255:
        _fail(op, f"output_zero_point holds {int(zero_point)}, expected 0..255")


def int8_mm(
    op,
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
    values: bool,
) -> None:
    if input.dtype not in WHOLE:
        _fail(op, "input has another dtype, expected torch.int8 or torch.uint8")
    zero_point, output_zero_point = _or_none(input_zero_point), _or_none(output_zero_point)
    _output_grid(op, output_scale, output_zero_point, dtype)
    scaled = any(t is not None for t in (input_scale, weight_scale, bias, act))
    if dtype == torch.int32 and scaled:
        _fail(op, "dtype torch.int32 takes the sums as they are, without scale, bias and act")
    _input(op, input, values)
    n = _weight(op, weight, input, values, weight_scale, bias)
    rows = [[*input.shape[:-1], 1], []]
    _vector(op, "input_scale", input_scale, torch.float32, rows, input, values)
    _vector(op, "input_zero_point", zero_point, torch.int32, rows, input, values)
    _rest(op, input, n, weight_scale, bias, act, values)
    _vector(op, "output_scale", output_scale, torch.float32, [[1], []], input, values)
    _vector(op, "output_zero_point", output_zero_point, torch.int32, [[1], []], input, values)
    known = values and input.device.type == "cpu"  # elsewhere it would take a wait
    if known and output_zero_point is not None:
        _one_of_levels(op, output_zero_point)
    if known and zero_point is not None:
        _zeros_fit(op, input, zero_point)
    if dtype not in (None, torch.int32, *WHOLE):
        _real(op, "dtype", dtype)


def int8_linear(
    op,
    input: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    *,
    symmetric: bool = True,
    bits: int = 8,
    act: str | None = None,
    dtype: torch.dtype | None = None,
    values: bool,
) -> None:
    _real(op, "input", input.dtype)
    if bits not in (7, 8):
        _fail(op, f"bits is {bits}, expected 7 or 8")
    _input(op, input, values)
    n = _weight(op, weight, input, values, weight_scale, bias)
    _rest(op, input, n, weight_scale, bias, act, values)
    _real(op, "dtype", dtype or input.dtype)


def int8_weight_only_mm(
    op,
    input: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    *,
    act: str | None = None,
    values: bool,
) -> None:
    _real(op, "input", input.dtype)
    _input(op, input, values)
    n = _weight(op, weight, input, values, weight_scale, bias)
    _rest(op, input, n, weight_scale, bias, act, values)


# --- results as fake tensors ------------------------------------------------------------------------------
def new_packed(weight: Tensor) -> Tensor:
    return weight.new_empty(packed_bytes(*weight.shape), dtype=torch.uint8)


def new_unpacked(packed: Tensor, n: int, k: int) -> Tensor:
    return packed.new_empty((n, k), dtype=torch.int8)


def _product(input: Tensor, n: int, dtype: torch.dtype) -> Tensor:
    return input.new_empty((*input.shape[:-1], n), dtype=dtype)


def new_product(
    input: Tensor,
    weight: Tensor,
    _scale=None,
    weight_scale=None,
    _zero=None,
    bias=None,
    *,
    dtype=None,
    **_options,
) -> Tensor:
    return _product(input, outputs(None, weight, weight_scale, bias), dtype or torch.float32)


def new_linear(input: Tensor, weight: Tensor, weight_scale, bias=None, *, dtype=None, **_options) -> Tensor:
    return _product(input, outputs(None, weight, weight_scale, bias), dtype or input.dtype)
