"""The calls of the 8-bit matrix product, checked, and their results as fake tensors: see call_checks.py.

csrc/int8_call.h makes the same checks in the same words; tests/test_int8_errors.py holds them together.
"""

import torch
from torch import Tensor

from . import checks
from .quant_checks import WHOLE, _real

ACTIVATIONS = (None, "relu", "gelu", "silu")
PANEL, FOUR, HEADER = 16, 4, 64
MAGIC, VERSION = 0x3870_6173_7365_6E6F, 1
MAX_DEPTH = 65_536


def _fail(op, *parts: object) -> None:
    raise RuntimeError(f"{op.name}: " + "".join(map(str, parts)))


# --- packed weights ---------------------------------------------------------------------------------------
def packed_bytes(n: int, k: int) -> int:
    """As csrc/common/int8.h has it: a header, sums, panels."""
    panels, fours = -(-n // PANEL), -(-k // FOUR)
    return HEADER + panels * PANEL * 4 + panels * fours * PANEL * FOUR


def packed_shape(op, name: str, t: Tensor) -> tuple[int, int]:
    """[n, k] of a packed weight, as its memory says."""
    checks.check_storage(f"{op.name}: {name}", t)
    header = [0] * 4
    bytes_ = t.dtype == torch.uint8 and t.dim() == 1
    if bytes_ and t.shape[0] >= HEADER and t.is_contiguous() and t.data_ptr() % 8 == 0:
        header = t[:32].clone().view(torch.int64).tolist()
    magic, version, n, k = header
    if magic != MAGIC:
        _fail(op, f"{name} is no packed weight, as int8_pack makes it")
    if version != VERSION:
        _fail(op, f"{name} was packed as version {version}, expected {VERSION}: pack it again")
    sound = 0 <= n <= t.shape[0] and 0 <= k <= MAX_DEPTH
    if not sound or packed_bytes(n, k) != t.shape[0]:
        _fail(op, f"{name} has {t.shape[0]} bytes, which is no packed [{n}, {k}]")
    return n, k


def outputs(op, weight: Tensor, *vectors: Tensor | None) -> int:
    """n as shapes tell it: those of a packed weight do not, but those of what has a value an output do."""
    if weight.dtype != torch.uint8:
        return weight.shape[0]
    for t in vectors:
        if t is not None and t.dim() > 0:
            return t.shape[0]
    _fail(
        op, "the number of outputs of a packed weight is not in its shape: give weight_scale or bias as [n]"
    )
    raise AssertionError


# --- arguments --------------------------------------------------------------------------------------------
def _plain_weight(op, weight: Tensor, values: bool) -> tuple[int, int]:
    if weight.dtype != torch.int8 or weight.dim() != 2:
        _fail(op, "weight has to be a torch.int8 tensor [n, k], or one that int8_pack has made")
    if values:
        checks.check_storage(f"{op.name}: weight", weight)
    n, k = weight.shape
    if k > MAX_DEPTH:
        _fail(op, f"weight has {k} columns, expected at most {MAX_DEPTH}")
    # Kernels of other devices take -128 as it is; to look for it would take a wait.
    if values and weight.device.type == "cpu" and bool((weight == -128).any()):
        _fail(op, "weight holds -128, expected -127..127")
    return n, k


def _weight(op, weight: Tensor, input: Tensor, values: bool, *vectors: Tensor | None) -> int:
    """n, the outputs."""
    if weight.device != input.device:
        _fail(op, "weight is on another device than input")
    if weight.dtype == torch.uint8 and weight.device.type not in ("cpu", "meta"):
        _fail(op, "weight is packed, which only kernels of the CPU read: give the torch.int8 weight")
    if weight.dtype == torch.uint8 and not values:
        n, k = outputs(op, weight, *vectors), input.shape[-1]
        if packed_bytes(n, k) != weight.numel():
            _fail(op, f"weight has {weight.numel()} bytes, which is no packed [{n}, {k}]")
    elif weight.dtype == torch.uint8:
        n, k = packed_shape(op, "weight", weight)
    else:
        n, k = _plain_weight(op, weight, values)
    if k != input.shape[-1]:
        shape = list(input.shape)
        _fail(op, f"weight has {k} columns, expected {input.shape[-1]} as input: it has shape {shape}")
    return n


def _vector(
    op, name: str, t: Tensor | None, dtype: torch.dtype, shapes: list[list[int]], input: Tensor, values: bool
) -> None:
    if t is None:
        return
    if t.device != input.device:
        _fail(op, f"{name} is on another device than input")
    if t.dtype != dtype:
        _fail(op, f"{name} has another dtype, expected {dtype}")
    if values:
        checks.check_storage(f"{op.name}: {name}", t)
    if list(t.shape) not in shapes:
        *some, last = shapes
        _fail(op, f"{name} has shape {list(t.shape)}, expected {', '.join(map(str, some))} or {last}")


def _input(op, input: Tensor, values: bool) -> None:
    if values:
        checks.check_storage(f"{op.name}: input", input)
    if input.dim() == 0:
        _fail(op, "input has no dimension, expected [..., k]")


def _rest(
    op, input: Tensor, n: int, weight_scale: Tensor | None, bias: Tensor | None, act: str | None, values: bool
) -> None:
    shapes = [[n], [n, 1], []]
    _vector(op, "weight_scale", weight_scale, torch.float32, shapes, input, values)
    _vector(op, "bias", bias, torch.float32, shapes, input, values)
    if act not in ACTIVATIONS:
        _fail(op, f"act is '{act}', expected None, 'relu', 'gelu' or 'silu'")


# --- calls ------------------------------------------------------------------------------------------------
def int8_pack(op, weight: Tensor, *, values: bool) -> None:
    _plain_weight(op, weight, values)


def int8_unpack(op, packed: Tensor, n: int, k: int, *, values: bool) -> None:
    """n, k: for those who cannot read them in the memory of a packed weight."""
    if n < 0 or k < 0 or packed.numel() != packed_bytes(n, k):
        _fail(op, f"packed has {packed.numel()} bytes, which is no packed [{n}, {k}]")
    if values and packed_shape(op, "packed", packed) != (n, k):
        _fail(op, f"packed holds another weight than [{n}, {k}]")


def _zeros_fit(op, input: Tensor, zero_point: Tensor) -> None:
    """Do sums of (input - zero_point) * weight fit?"""
    low = -128 if input.dtype == torch.int8 else 0
    zero = zero_point.flatten().long()
    reach = torch.maximum((low - zero).abs(), (low + 255 - zero).abs())
    for odd in zero[127 * input.shape[-1] * reach >= 2**31].tolist():
        _fail(op, f"input_zero_point holds {odd}, which sums of {input.shape[-1]} products have no room for")


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
