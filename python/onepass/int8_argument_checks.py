"""Arguments of the 8-bit matrix product, each checked: weights, plain and packed, and what goes with them.

csrc/int8_call.h makes the same checks in the same words; tests/test_int8_errors.py holds them together.
"""

import torch
from torch import Tensor

from . import checks

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


def _zeros_fit(op, input: Tensor, zero_point: Tensor) -> None:
    """Do sums of (input - zero_point) * weight fit?"""
    low = -128 if input.dtype == torch.int8 else 0
    zero = zero_point.flatten().long()
    reach = torch.maximum((low - zero).abs(), (low + 255 - zero).abs())
    for odd in zero[127 * input.shape[-1] * reach >= 2**31].tolist():
        _fail(op, f"input_zero_point holds {odd}, which sums of {input.shape[-1]} products have no room for")
