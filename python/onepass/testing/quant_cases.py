"""The cases of quantization."""

from collections.abc import Sequence
from typing import Any

import torch

from ..quant_checks import scale_shape

Settings = dict[str, Any]
REAL = (torch.float32, torch.bfloat16, torch.float16)
_NAN, _INF = float("nan"), float("inf")


def _values(rng: torch.Generator, shape: Sequence[int], std: float, mean: float) -> torch.Tensor:
    return torch.randn(tuple(shape), generator=rng, dtype=torch.float64) * std + mean


def quantize(
    rng: torch.Generator,
    dtype: torch.dtype,
    device: str,
    *,
    shape: Sequence[int] = (9, 53),
    std: float = 1.0,
    mean: float = 0.0,
    spoil: Sequence[float] = (),
    transposed: bool = False,
    misaligned: bool = False,
    given: bool = False,
    given_scale: float = 0.02,
    group_size: int = -1,
    symmetric: bool = True,
    bits: int = 8,
) -> Settings:
    """spoil: values that stand in as many rows, one each."""
    input = _values(rng, shape, std, mean).to(device, dtype)
    for row, value in enumerate(spoil):
        input[row, -1 - row] = value
    if transposed:
        input = input.transpose(0, 1).contiguous().transpose(0, 1)
    if misaligned:
        input = input.new_zeros(input.numel() + 2)[1:-1].view(input.shape).copy_(input)
    call: Settings = {"input": input, "scale": None, "zero_point": None}
    if given:
        kept = scale_shape(input.shape, group_size)
        call["scale"] = (torch.rand(kept, generator=rng) * given_scale + given_scale / 2).to(device)
        if not symmetric:
            call["zero_point"] = torch.randint(0, 2**bits, kept, generator=rng, dtype=torch.int32).to(device)
    return {**call, "group_size": group_size, "symmetric": symmetric, "bits": bits}


def fake_quant_bwd(
    rng: torch.Generator,
    dtype: torch.dtype,
    device: str,
    *,
    learned: bool = False,
    bad_grads: bool = False,
    **settings: Any,
) -> Settings:
    """learned: with input and scale. bad_grads: NaN and inf among the gradients. The mask's bits are any."""
    call = quantize(rng, dtype, device, given=learned, **settings)
    input = call.pop("input")
    grad = torch.empty_like(input).copy_(_values(rng, input.shape, 1.0, 0.0))
    if bad_grads:
        grad[:, ::3], grad[1::2, ::4] = _NAN, _INF
    mask = torch.randint(0, 256, ((grad.numel() + 7) // 8,), generator=rng, dtype=torch.uint8).to(device)
    return {"grad_output": grad, "mask": mask, "input": input if learned else None, **call}


def dequantize(
    rng: torch.Generator,
    dtype: torch.dtype,
    device: str,
    *,
    shape: Sequence[int] = (9, 53),
    transposed: bool = False,
    group_size: int = -1,
    symmetric: bool = True,
    empty_zero_point: bool = False,
    **_: Any,
) -> Settings:
    low, high, whole = (-127, 128, torch.int8) if symmetric else (0, 256, torch.uint8)
    values = torch.randint(low, high, tuple(shape), generator=rng, dtype=whole).to(device)
    if transposed:
        values = values.transpose(0, 1).contiguous().transpose(0, 1)
    kept = scale_shape(values.shape, group_size)
    zero_point = torch.randint(0, 256, kept, generator=rng, dtype=torch.int32).to(device)
    none = zero_point.new_empty(0) if empty_zero_point else None
    return {
        "input": values,
        "scale": torch.rand(kept, generator=rng).to(device),
        "zero_point": none if symmetric else zero_point,
        "group_size": group_size,
        "dtype": dtype,
    }


_UNSIGNED: Settings = {"symmetric": False}
_COMMON: dict[str, Settings] = {
    "plain": {},
    "tensor": {"group_size": 0},
    "groups": {"group_size": 16},
    "groups_beyond_a_row": {"group_size": 2**40},
    "groups_even": {"group_size": 8, "shape": (3, 4, 64)},
    "unsigned": _UNSIGNED,
    "unsigned_tensor": {"group_size": 0, **_UNSIGNED},
    "unsigned_groups": {"group_size": 7, **_UNSIGNED},
    "narrow": {"shape": (33, 1)},
    "short": {"shape": (5, 3)},
    "one_row": {"shape": (131,)},
    "zero_dim": {"shape": ()},
    "batched": {"shape": (2, 3, 5, 40), **_UNSIGNED},
    "transposed": {"transposed": True},
    "empty": {"shape": (0, 7)},
    "empty_rows": {"shape": (3, 0)},
    "threads": {"shape": (701, 331)},
    "threads_tensor": {"shape": (701, 331), "group_size": 0, **_UNSIGNED},
}
QUANTIZE: dict[str, Settings] = {
    **_COMMON,
    "seven_bits": {"bits": 7},
    "seven_bits_unsigned": {"bits": 7, **_UNSIGNED},
    "given": {"given": True},
    "given_tensor": {"given": True, "group_size": 0},
    "given_groups": {"given": True, "group_size": 10},
    "given_unsigned": {"given": True, **_UNSIGNED},
    "given_and_spoilt": {"given": True, "spoil": (_NAN, _INF, -_INF)},
    "positive": {"mean": 9.0, **_UNSIGNED},
    "negative": {"mean": -9.0, **_UNSIGNED},
    "zeros": {"std": 0.0},
    "zeros_unsigned": {"std": 0.0, **_UNSIGNED},
    "constant": {"std": 0.0, "mean": -3.0},
    "spoilt": {"spoil": (_NAN, _INF, -_INF, 1e4)},
    "spoilt_unsigned": {"spoil": (_NAN, _INF, -_INF, 1e4), **_UNSIGNED},
    "spoilt_tensor": {"spoil": (_NAN,), "group_size": 0},
    "huge": {"std": 1e38},
    "huge_unsigned": {"std": 1e38, **_UNSIGNED},
    "tiny": {"std": 1e-38},
    "tiny_unsigned": {"std": 1e-40, **_UNSIGNED},
}
# Groups that begin and end within a byte of the mask; long ones, that several threads share.
_ACROSS_BYTES: dict[str, Settings] = {
    "across_bytes": {"shape": (13, 35), "group_size": 19},
    "across_bytes_unsigned": {"shape": (13, 83), "group_size": 37, **_UNSIGNED},
    "single": {"shape": (3, 21), "group_size": 1},
    "misaligned": {"misaligned": True, "shape": (9, 64)},
    "long_rows": {"shape": (2, 40_001)},
    "long_groups": {"shape": (2, 50_001), "group_size": 33_001, **_UNSIGNED},
}
FAKE_QUANT_FWD: dict[str, Settings] = {
    **QUANTIZE,
    **_ACROSS_BYTES,
    **{f"given_{name}": {"given": True, **settings} for name, settings in _ACROSS_BYTES.items()},
    "given_coarse": {"given": True, "given_scale": 0.5, "bits": 7},
}
_PASSED = _COMMON | _ACROSS_BYTES
FAKE_QUANT_BWD: dict[str, Settings] = {
    **_PASSED,
    "bad_grads": {"bad_grads": True},
    **{f"learned_{name}": {"learned": True, **settings} for name, settings in _PASSED.items()},
    "learned_seven_bits": {"learned": True, "bits": 7},
    "learned_and_spoilt": {"learned": True, "spoil": (_NAN, _INF, -_INF)},
    "learned_bad_grads": {"learned": True, "bad_grads": True},
}
DEQUANTIZE: dict[str, Settings] = {**_COMMON, "no_zero_point": {"empty_zero_point": True}}


def dtypes(name: str) -> tuple[torch.dtype, ...]:
    """float16 has no such numbers; denormals of bfloat16 are lost by Triton's interpreter."""
    return {"huge": REAL[:2], "tiny": REAL[:1]}.get(name.removesuffix("_unsigned"), REAL)
