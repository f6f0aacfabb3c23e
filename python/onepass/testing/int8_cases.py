"""The cases of the 8-bit matrix product."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..backends import target
from ..ops import BY_NAME

Settings = dict[str, Any]
REAL = (torch.float32, torch.bfloat16, torch.float16)
_pack = target(BY_NAME["int8_pack"].reference)


def _whole(rng: torch.Generator, shape: Sequence[int], extreme: bool = False, signed: bool = True) -> Tensor:
    """-127..127, or 0..255; extreme: the ends of the range alone."""
    low, high, dtype = (-127, 128, torch.int8) if signed else (0, 256, torch.uint8)
    if extreme:
        ends = torch.tensor([low, high - 1], dtype=dtype)
        return ends[torch.randint(2, tuple(shape), generator=rng)]
    return torch.randint(low, high, tuple(shape), generator=rng, dtype=dtype)


def _scales(rng: torch.Generator, shape: Sequence[int]) -> Tensor:
    return torch.rand(tuple(shape), generator=rng) * 0.02 + 0.001


def pack(
    rng: torch.Generator, dtype: torch.dtype, device: str, *, n: int, k: int, turned: bool = False
) -> Settings:
    weight = _whole(rng, (n, k)).to(device)
    return {"weight": weight.t().contiguous().t() if turned else weight}


def unpack(rng: torch.Generator, dtype: torch.dtype, device: str, *, n: int, k: int, **_: Any) -> Settings:
    return {"packed": _pack(_whole(rng, (n, k))).to(device), "n": n, "k": k}


def _given(weight: Tensor, packed: bool, device: str) -> Tensor:
    """Packed weights are the CPU's: other devices are given the weight itself."""
    return (_pack(weight) if packed and device == "cpu" else weight).to(device)


def _behind(
    rng: torch.Generator, device: str, n: int, scale: str, bias: bool, act: str | None, dtype: torch.dtype
) -> Settings:
    shape = {"[n]": (n,), "[n, 1]": (n, 1), "[]": (), "": None}[scale]
    like = (n,) if shape is None else shape  # the bias has the shape of the scale
    return {
        "weight_scale": None if shape is None else _scales(rng, shape).to(device),
        "bias": torch.randn(like, generator=rng).to(device) if bias else None,
        "act": act,
        "dtype": dtype,
    }


def _powers_of_two(rng: torch.Generator, like: Tensor) -> Tensor:
    return 2.0 ** -torch.randint(2, 6, like.shape, generator=rng).to(like)


def _to_8_bits(
    rng: torch.Generator, call: Settings, to: torch.dtype, grid: Sequence[int], spoil: bool
) -> Settings:
    """The same call of numbers that float32 need not round: what lies in the middle of two levels does so in
    every backend. grid: the shape of its scale and zero point."""
    call |= {name: _powers_of_two(rng, call[name]) for name in ("input_scale", "weight_scale")}
    if call["bias"] is not None:
        call["bias"] = (call["bias"] * 500).round()
    if spoil:
        call["input_scale"][1], call["input_scale"][2] = float("nan"), float("inf")
    scale = torch.full(tuple(grid), 16.0, device=call["input"].device)
    zero_point = torch.full_like(scale, 77, dtype=torch.int32) if to == torch.uint8 else None
    return {**call, "dtype": to, "output_scale": scale, "output_zero_point": zero_point}


def mm(
    rng: torch.Generator,
    dtype: torch.dtype,
    device: str,
    *,
    m: Sequence[int] = (9,),
    n: int = 37,
    k: int = 70,
    packed: bool = False,
    signed: bool = True,
    zeros: bool = False,
    extreme: bool = False,
    input_scale: str = "row",
    weight_scale: str = "[n]",
    bias: bool = True,
    act: str | None = None,
    raw: bool = False,
    turned: bool = False,
    to: torch.dtype | None = None,
    grid: Sequence[int] = (),
    spoil: bool = False,
) -> Settings:
    """to: 8 bits again, by a grid of this shape."""
    input, weight = _whole(rng, (*m, k), extreme, signed), _whole(rng, (n, k), extreme)
    kept = (*m, 1) if input_scale == "row" else ()
    call: Settings = {
        "input": (input.transpose(0, -1).contiguous().transpose(0, -1) if turned else input).to(device),
        "weight": _given(weight, packed, device),
        "input_scale": None if raw else _scales(rng, kept).to(device),
        "input_zero_point": torch.randint(0, 256, kept, generator=rng, dtype=torch.int32).to(device)
        if zeros
        else None,
        "output_scale": None,
        "output_zero_point": None,
    }
    if raw:
        return {**call, "weight_scale": None, "bias": None, "act": None, "dtype": torch.int32}
    call |= _behind(rng, device, n, weight_scale, bias, act, dtype)
    return call if to is None else _to_8_bits(rng, call, to, grid, spoil)


def linear(
    rng: torch.Generator,
    dtype: torch.dtype,
    device: str,
    *,
    m: Sequence[int] = (9,),
    n: int = 37,
    k: int = 70,
    packed: bool = False,
    mean: float = 0.0,
    spoil: bool = False,
    symmetric: bool = True,
    bits: int = 8,
    weight_scale: str = "[n]",
    bias: bool = True,
    act: str | None = None,
    **_: Any,
) -> Settings:
    input = torch.randn(*m, k, generator=rng, dtype=torch.float64) + mean
    if spoil:
        input[1, 3], input[2, 5] = float("nan"), float("inf")
    weight = _whole(rng, (n, k))
    call = {"input": input.to(device, dtype), "weight": _given(weight, packed, device)}
    return {
        **call,
        **_behind(rng, device, n, weight_scale, bias, act, dtype),
        "symmetric": symmetric,
        "bits": bits,
    }


def _misaligned(t: Tensor) -> Tensor:
    return torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape)


def weight_only(
    rng: torch.Generator,
    dtype: torch.dtype,
    device: str,
    *,
    turned: bool = False,
    misaligned: bool = False,
    **settings: Any,
) -> Settings:
    call = linear(rng, dtype, device, **settings)
    input = call["input"]
    if turned:
        call["input"] = input.transpose(0, -1).contiguous().transpose(0, -1)
    if misaligned:
        call["input"] = _misaligned(input)
    return {name: value for name, value in call.items() if name not in ("symmetric", "bits", "dtype")}


def backward(
    rng: torch.Generator,
    dtype: torch.dtype,
    device: str,
    *,
    spoil: bool = False,
    weight_scale: str = "[n]",
    turned: bool = False,
    seed: int | None = None,
    input_grad: bool = True,
    weight_grad: bool = True,
    other_dtype: torch.dtype | None = None,
    **settings: Any,
) -> Settings:
    """dtype: of grad_output. turned: its memory."""
    call = mm(rng, dtype, device, weight_scale=weight_scale, **settings)
    n = settings.get("n", 37)
    g = torch.randn(*call["input"].shape[:-1], n, generator=rng, dtype=torch.float64).to(device, dtype)
    if spoil:
        g[1, 3], g[2, 5] = float("nan"), float("inf")
    names = ("input", "weight", "input_scale", "weight_scale", "input_zero_point")
    return {
        "grad_output": g.transpose(0, -1).contiguous().transpose(0, -1) if turned else g,
        **{name: call[name] for name in names},
        "seed": seed,
        "input_grad": input_grad,
        "weight_grad": weight_grad,
        "dtype": other_dtype,
    }


# Below, at and above the widths of a panel, of a four, of a tile and of a block of k.
_SIZES: dict[str, Settings] = {
    "plain": {},
    "one_row": {"m": (1,), "n": 100, "k": 301},
    "one_output": {"n": 1},
    "one_product": {"m": (1,), "n": 1, "k": 1},
    "even": {"m": (16,), "n": 48, "k": 64},
    "many_rows": {"m": (53,), "n": 19, "k": 33},
    "deep": {"m": (7,), "n": 17, "k": 2_051},
    "batched": {"m": (2, 3, 5)},
    "no_rows": {"m": (0,)},
    "no_depth": {"k": 0},
    "threads": {"m": (210,), "n": 130, "k": 300},
}
_BEHIND: dict[str, Settings] = {
    "no_bias": {"bias": False},
    "one_scale": {"weight_scale": "[]"},
    "in_a_column": {"weight_scale": "[n, 1]"},
    "relu": {"act": "relu"},
    "gelu": {"act": "gelu"},
    "silu": {"act": "silu"},
}
# Weights as the CPU's kernels alone read them: Case.packed.
_PACKED: dict[str, Settings] = {f"packed_{name}": {**sizes, "packed": True} for name, sizes in _SIZES.items()}
PACK: dict[str, Settings] = {
    "plain": {"n": 37, "k": 70},
    "even": {"n": 32, "k": 64},
    "one": {"n": 1, "k": 1},
    "turned": {"n": 20, "k": 31, "turned": True},
    "empty": {"n": 0, "k": 7},
    "no_depth": {"n": 5, "k": 0},
    "threads": {"n": 300, "k": 411},
}
_TO_8_BITS: dict[str, Settings] = {
    **_SIZES,
    "unsigned": {"to": torch.uint8, "signed": False, "zeros": True},
    "unsigned_even": {**_SIZES["even"], "to": torch.uint8, "grid": (1,)},
    "relu": {"act": "relu", "bias": False},
    "spoilt": {"to": torch.uint8, "spoil": True},
}
MM: dict[str, Settings] = {
    **_SIZES,
    **_PACKED,
    **_BEHIND,
    "unsigned": {"signed": False, "zeros": True},
    "zero_points": {"zeros": True},
    "one_input_scale": {"input_scale": "one", "zeros": True},
    "no_weight_scale": {"weight_scale": "", "bias": True},
    "turned": {"turned": True},
    "raw": {"raw": True},
    "raw_unsigned": {"raw": True, "signed": False, "zeros": True},
    "raw_extreme": {"raw": True, "extreme": True, "k": 16_384},
    "raw_extreme_unsigned": {"raw": True, "extreme": True, "k": 16_384, "signed": False},
    **{f"to_8_bits_{name}": {"to": torch.int8, **settings} for name, settings in _TO_8_BITS.items()},
    **{
        f"packed_to_8_bits_{name}": {"to": torch.int8, **_PACKED[f"packed_{name}"]}
        for name in ("plain", "even")
    },
}
LINEAR: dict[str, Settings] = {
    **_SIZES,
    **_PACKED,
    **_BEHIND,
    "seven_bits": {"bits": 7},
    "seven_bits_deep": {"bits": 7, "m": (13,), "k": 2_051},
    "unsigned": {"symmetric": False, "mean": 1.0},
    "seven_bits_unsigned": {"symmetric": False, "bits": 7, "mean": 1.0},
    "spoilt": {"spoil": True},
}
WEIGHT_ONLY: dict[str, Settings] = {
    **_SIZES,
    **_BEHIND,
    "few_rows": {"m": (3,), "n": 33, "k": 261},
    "even_rows": {"m": (48,), "n": 32, "k": 512},
    "turned": {"turned": True},
    "misaligned": {"misaligned": True, "k": 64},
    "spoilt": {"spoil": True},
}
BACKWARD: dict[str, Settings] = {
    **_SIZES,
    "no_outputs": {"n": 0, "packed": False},
    "one_scale": {"weight_scale": "[]", "input_scale": "one", "packed": False},
    "in_a_column": {"weight_scale": "[n, 1]"},
    "no_weight_scale": {"weight_scale": ""},
    "unsigned": {"signed": False, "zeros": True},
    "unsigned_without_zeros": {"signed": False},
    "zero_points": {"zeros": True},
    "turned": {"turned": True},
    "spoilt": {"spoil": True},
    "by_chance": {"seed": 7},
    "by_chance_and_batched": {"seed": -(2**40) - 3, "m": (3, 5, 7), "signed": False, "zeros": True},
    "of_input_alone": {"weight_grad": False},
    "of_weight_alone": {"input_grad": False},
    "to_another_dtype": {"other_dtype": torch.float16},
    # Sums in pieces.
    "more_rows_than_a_sum_holds": {"m": (70_001,), "n": 3, "k": 5, "signed": False, "zeros": True},
    "more_outputs_than_a_sum_holds": {"m": (3,), "n": 70_001, "k": 5, "seed": 1},
}

_LONG = ("more_rows_than_a_sum_holds", "more_outputs_than_a_sum_holds")


def dtypes(op: str, name: str) -> tuple[torch.dtype, ...]:
    """Of the output, and of int8_linear's input."""
    large = name.removeprefix("packed_") in ("threads", "deep", *_LONG)
    whole = name.startswith("raw") or "to_8_bits" in name
    single = op in ("int8_pack", "int8_unpack") or whole or large
    return REAL[:1] if single else REAL
