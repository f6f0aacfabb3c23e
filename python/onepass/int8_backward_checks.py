"""The calls of the 8-bit product's gradients, checked, and their results as fake tensors: see call_checks.py.

csrc/bind_int8_backward.cpp makes the same checks in the same words; tests/test_int8_errors.py holds them
together.
"""

import torch
from torch import Tensor

from . import checks
from .int8_argument_checks import _fail, _input, _vector, _weight, _zeros_fit
from .quant_checks import WHOLE, _real


def int8_mm_bwd(
    op,
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
    values: bool,
) -> None:
    _real(op, "grad_output", grad_output.dtype)
    if input.dtype not in WHOLE:
        _fail(op, "input has another dtype, expected torch.int8 or torch.uint8")
    _input(op, input, values)
    if grad_output.device != input.device:
        _fail(op, "grad_output is on another device than input")
    if values:
        checks.check_storage(f"{op.name}: grad_output", grad_output)
    n = _weight(op, weight, input, values, grad_output.transpose(0, -1))  # whose first dimension is n
    wanted = [*input.shape[:-1], n]
    if list(grad_output.shape) != wanted:
        _fail(op, f"grad_output has shape {list(grad_output.shape)}, expected {wanted}")
    rows = [[*input.shape[:-1], 1], []]
    _vector(op, "input_scale", input_scale, torch.float32, rows, input, values)
    if input_zero_point is not None and input_zero_point.numel() > 0:
        _vector(op, "input_zero_point", input_zero_point, torch.int32, rows, input, values)
    _vector(op, "weight_scale", weight_scale, torch.float32, [[n], [n, 1], []], input, values)
    if values and input_zero_point is not None and input_zero_point.device.type == "cpu":
        _zeros_fit(op, input, input_zero_point)
    _real(op, "dtype", dtype or grad_output.dtype)


def new_product_grads(
    grad_output: Tensor,
    input: Tensor,
    _weight: Tensor,
    _input_scale=None,
    _weight_scale=None,
    _zero=None,
    *,
    seed=None,
    input_grad=True,
    weight_grad=True,
    dtype=None,
) -> tuple[Tensor, Tensor]:
    result = dtype or grad_output.dtype
    of_weight = (grad_output.shape[-1], input.shape[-1])
    return (
        input.new_empty(input.shape if input_grad else (0,), dtype=result),
        input.new_empty(of_weight if weight_grad else (0,), dtype=result),
    )
