"""The calls of quantization, checked, and their results as fake tensors: see call_checks.py.

csrc/quant_call.h makes the same checks in the same words; tests/test_quant_errors.py holds them together.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from . import checks

REAL = (torch.float32, torch.bfloat16, torch.float16)
WHOLE = (torch.int8, torch.uint8)


def _fail(op, *parts: object) -> None:
    raise RuntimeError(f"{op.name}: " + "".join(map(str, parts)))


# --- groups -----------------------------------------------------------------------------------------------
def groups_of_row(columns: int, group_size: int) -> int:
    """The last may be shorter than the others."""
    return 1 if group_size == -1 else max(1, math.ceil(columns / group_size))


def scale_shape(shape: torch.Size, group_size: int) -> list[int]:
    if group_size == 0:
        return []
    columns = shape[-1] if len(shape) else 1
    return [*shape[:-1], groups_of_row(columns, group_size)]


def mask_shape(t: Tensor) -> list[int]:
    return [(t.numel() + 7) // 8]


# --- arguments --------------------------------------------------------------------------------------------
def _group_size(op, group_size: int) -> None:
    if group_size < -1:
        _fail(op, f"group_size is {group_size}, expected -1 (a row), 0 (the whole tensor) or at least 1")


def _real(op, name: str, dtype: torch.dtype) -> None:
    if dtype not in REAL:
        _fail(op, f"{name} has a dtype that is not served, expected torch.float32, bfloat16 or float16")


def _other(
    op, name: str, t: Tensor | None, dtype: torch.dtype, main: Tensor, shape: Sequence[int], why: str,
    values: bool, dtype_name: str | None = None,
) -> None:  # fmt: skip
    """An argument beside the main one. why: the shape is that."""
    if t is None:
        return
    if t.device != main.device:
        _fail(op, f"{name} is on another device")
    if t.dtype != dtype:
        _fail(op, f"{name} has another dtype, expected {dtype_name or dtype}")
    if list(t.shape) != list(shape):
        _fail(op, f"{name} has shape {list(t.shape)}, expected {list(shape)}: {why}")
    if values:
        checks.check_storage(f"{op.name}: {name}", t)


def _of_groups(
    op, name: str, t: Tensor | None, dtype: torch.dtype, main: Tensor, group_size: int, values: bool
) -> None:
    _other(op, name, t, dtype, main, scale_shape(main.shape, group_size), "a value a group", values)


def _grid(
    op, main: Tensor, scale: Tensor | None, zero_point: Tensor | None, group_size: int, symmetric: bool,
    bits: int, values: bool,
) -> None:  # fmt: skip
    """Where the grid is, if it is given."""
    if zero_point is not None and (symmetric or scale is None):
        _fail(op, "zero_point needs symmetric=False and a scale")
    if scale is not None and not symmetric and zero_point is None:
        _fail(op, "scale with symmetric=False needs zero_point")
    _of_groups(op, "scale", scale, torch.float32, main, group_size, values)
    _of_groups(op, "zero_point", zero_point, torch.int32, main, group_size, values)
    if values and zero_point is not None and zero_point.device.type == "cpu":  # elsewhere that would wait
        for zero in zero_point.flatten()[
            (zero_point < 0).flatten() | (zero_point >= 2**bits).flatten()
        ].tolist():
            _fail(op, f"zero_point holds {zero}, expected 0..{2**bits - 1}")


def _main(op, name: str, t: Tensor, group_size: int, bits: int, values: bool) -> None:
    _real(op, name, t.dtype)
    if values:
        checks.check_storage(f"{op.name}: {name}", t)
    _group_size(op, group_size)
    if bits not in (7, 8):
        _fail(op, f"bits is {bits}, expected 7 or 8")


# --- calls ------------------------------------------------------------------------------------------------
def quantize(
    op,
    input: Tensor,
    scale: Tensor | None = None,
    zero_point: Tensor | None = None,
    *,
    group_size: int = -1,
    symmetric: bool = True,
    bits: int = 8,
    values: bool,
) -> None:
    _main(op, "input", input, group_size, bits, values)
    _grid(op, input, scale, zero_point, group_size, symmetric, bits, values)


def dequantize(
    op,
    input: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    group_size: int = -1,
    dtype: torch.dtype | None = None,
    values: bool,
) -> None:
    if input.dtype not in WHOLE:
        _fail(op, "input has another dtype, expected torch.int8 or torch.uint8")
    if values:
        checks.check_storage(f"{op.name}: input", input)
    _group_size(op, group_size)
    if zero_point is not None and zero_point.numel() == 0:
        zero_point = None
    _of_groups(op, "scale", scale, torch.float32, input, group_size, values)
    _of_groups(op, "zero_point", zero_point, torch.int32, input, group_size, values)
    _real(op, "dtype", dtype or torch.float32)


def fake_quant_bwd(
    op,
    grad_output: Tensor,
    mask: Tensor,
    input: Tensor | None = None,
    scale: Tensor | None = None,
    zero_point: Tensor | None = None,
    *,
    group_size: int = -1,
    symmetric: bool = True,
    bits: int = 8,
    values: bool,
) -> None:
    _main(op, "grad_output", grad_output, group_size, bits, values)
    _other(op, "mask", mask, torch.uint8, grad_output, mask_shape(grad_output), "a bit an element", values)
    if (input is None) != (scale is None):
        _fail(op, "input and scale are given both or not at all")
    that = "that of grad_output"
    _other(op, "input", input, grad_output.dtype, grad_output, grad_output.shape, that, values, that)
    _grid(op, grad_output, scale, zero_point, group_size, symmetric, bits, values)


# --- results as fake tensors ------------------------------------------------------------------------------
def new_quantized(
    input: Tensor, _scale=None, _zero_point=None, *, group_size=-1, symmetric=True, bits=8
) -> tuple[Tensor, Tensor, Tensor]:
    shape = scale_shape(input.shape, group_size)
    values = input.new_empty(input.shape, dtype=torch.int8 if symmetric else torch.uint8)
    zero_point = input.new_empty([0] if symmetric else shape, dtype=torch.int32)
    return values, input.new_empty(shape, dtype=torch.float32), zero_point


def new_dequantized(input: Tensor, _scale, _zero_point=None, *, group_size=-1, dtype=None) -> Tensor:
    return input.new_empty(input.shape, dtype=dtype or torch.float32)


def new_fake_quantized(input: Tensor, scale=None, zero_point=None, **options) -> tuple[Tensor, ...]:
    _, scales, zero_points = new_quantized(input, scale, zero_point, **options)
    output = input.new_empty(input.shape)
    return output, input.new_empty(mask_shape(input), dtype=torch.uint8), scales, zero_points


def new_fake_quant_grads(
    grad_output: Tensor, _mask, _input=None, scale: Tensor | None = None, _zero_point=None, **_options
) -> tuple[Tensor, Tensor]:
    shape = [0] if scale is None else scale.shape
    return grad_output.new_empty(grad_output.shape), grad_output.new_empty(shape, dtype=torch.float32)
