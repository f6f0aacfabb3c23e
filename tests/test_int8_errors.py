"""Calls of the 8-bit product that are refused: in the same words by C++ and by the checks in Python."""

import re

import pytest
import torch
from onepass.testing import variants
from quant_helpers import refused
from torch._subclasses.fake_tensor import FakeTensorMode

OPS = torch.ops.onepass
VARIANTS = [v for v in variants("cpu") if v.backend != "triton"]
each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)

X, W = torch.ones(4, 6), torch.ones(3, 6, dtype=torch.int8)
SCALE, ZERO = {"output_scale": torch.ones(())}, {"output_zero_point": torch.ones((), dtype=torch.int32)}
PACKED, G = OPS.int8_pack(W), torch.ones(4, 3)


def _newer() -> torch.Tensor:
    packed = PACKED.clone()
    packed[8] = 9
    return packed


def _endless() -> torch.Tensor:
    """A header whose size, multiplied out, is 64 bytes once more."""
    packed = torch.zeros(64, dtype=torch.uint8)
    packed.view(torch.int64)[:4] = torch.tensor([*PACKED[:16].view(torch.int64).tolist(), 2**62, 6])
    return packed


def _call(op: str, **changes) -> dict:
    calls = {
        "int8_pack": {"weight": W},
        "int8_unpack": {"packed": PACKED, "n": 3, "k": 6},
        "int8_mm": {"input": X.to(torch.int8), "weight": PACKED},
        "int8_linear": {"input": X, "weight": PACKED, "weight_scale": torch.ones(3)},
        "int8_weight_only_mm": {"input": X, "weight": PACKED, "weight_scale": torch.ones(3)},
        "int8_mm_bwd": {"grad_output": G, "input": X.to(torch.int8), "weight": W},
    }
    return {**calls[op], **changes}


REFUSED = [
    (
        "int8_pack",
        {"weight": W.float()},
        "weight has to be a torch.int8 tensor [n, k], or one that int8_pack has made",
    ),
    ("int8_pack", {"weight": W[0]}, "weight has to be a torch.int8 tensor"),
    ("int8_pack", {"weight": W - 129}, "weight holds -128, expected -127..127"),
    ("int8_pack", {"weight": W[:, :1].expand(3, 70_000)}, "weight has 70000 columns, expected at most 65536"),
    ("int8_unpack", {"n": 4}, "packed holds another weight than [4, 6]"),
    ("int8_unpack", {"n": -17}, "packed has 256 bytes, which is no packed [-17, 6]"),
    ("int8_unpack", {"n": 40}, "packed has 256 bytes, which is no packed [40, 6]"),
    ("int8_unpack", {"packed": PACKED * 0}, "packed is no packed weight, as int8_pack makes it"),
    ("int8_mm", {"input": X}, "input has another dtype, expected torch.int8 or torch.uint8"),
    ("int8_mm", {"input": torch.ones((), dtype=torch.int8)}, "input has no dimension, expected [..., k]"),
    ("int8_mm", {"weight": _newer()}, "weight was packed as version 9, expected 1: pack it again"),
    ("int8_mm", {"weight": PACKED[:-1]}, "weight has 255 bytes, which is no packed [3, 6]"),
    ("int8_mm", {"weight": W[:, :5]}, "weight has 5 columns, expected 6 as input: it has shape [4, 6]"),
    ("int8_mm", {"input_scale": torch.ones(4)}, "input_scale has shape [4], expected [4, 1] or []"),
    (
        "int8_mm",
        {"input_zero_point": torch.ones(4, 1)},
        "input_zero_point has another dtype, expected torch.int32",
    ),
    ("int8_mm", {"weight": _endless()}, f"weight has 64 bytes, which is no packed [{2**62}, 6]"),
    (
        "int8_mm",
        {"input_zero_point": torch.tensor(3_000_000, dtype=torch.int32)},
        "input_zero_point holds 3000000, which sums of 6 products have no room for",
    ),
    ("int8_mm", {"bias": torch.ones(5)}, "bias has shape [5], expected [3], [3, 1] or []"),
    ("int8_mm", {"dtype": torch.float64}, "dtype has a dtype that is not served"),
    (
        "int8_mm",
        {"dtype": torch.int32, "bias": torch.ones(3)},
        "dtype torch.int32 takes the sums as they are, without scale, bias and act",
    ),
    ("int8_mm", {"dtype": torch.int8}, "dtype torch.int8 needs output_scale"),
    ("int8_mm", {"dtype": torch.uint8}, "dtype torch.uint8 needs output_scale and output_zero_point"),
    ("int8_mm", {"dtype": torch.uint8, **SCALE}, "dtype torch.uint8 needs output_scale and output_zero"),
    ("int8_mm", {"dtype": torch.uint8, **ZERO}, "dtype torch.uint8 needs output_scale and output_zero_point"),
    ("int8_mm", SCALE, "output_scale needs dtype torch.int8 or torch.uint8"),
    ("int8_mm", {"dtype": torch.int32, **SCALE}, "output_scale needs dtype torch.int8 or torch.uint8"),
    ("int8_mm", {"dtype": torch.bfloat16, **ZERO}, "output_zero_point needs dtype torch.uint8"),
    ("int8_mm", {"dtype": torch.int8, **SCALE, **ZERO}, "output_zero_point needs dtype torch.uint8"),
    (
        "int8_mm",
        {"dtype": torch.int8, "output_scale": torch.ones(2)},
        "output_scale has shape [2], expected [1] or []",
    ),
    (
        "int8_mm",
        {"dtype": torch.int8, "output_scale": torch.ones(1, 1)},
        "output_scale has shape [1, 1], expected [1] or []",
    ),
    (
        "int8_mm",
        {"dtype": torch.int8, "output_scale": torch.ones(()).double()},
        "output_scale has another dtype, expected torch.float32",
    ),
    (
        "int8_mm",
        {"dtype": torch.uint8, **SCALE, "output_zero_point": torch.ones(3, dtype=torch.int32)},
        "output_zero_point has shape [3], expected [1] or []",
    ),
    (
        "int8_mm",
        {"dtype": torch.uint8, **SCALE, "output_zero_point": torch.ones(())},
        "output_zero_point has another dtype, expected torch.int32",
    ),
    (
        "int8_mm",
        {"dtype": torch.uint8, **SCALE, "output_zero_point": torch.tensor(256, dtype=torch.int32)},
        "output_zero_point holds 256, expected 0..255",
    ),
    (
        "int8_mm",
        {"dtype": torch.uint8, **SCALE, "output_zero_point": torch.tensor([-1], dtype=torch.int32)},
        "output_zero_point holds -1, expected 0..255",
    ),
    ("int8_linear", {"input": X.to(torch.int8)}, "input has a dtype that is not served"),
    ("int8_linear", {"bits": 6}, "bits is 6, expected 7 or 8"),
    (
        "int8_linear",
        {"weight_scale": torch.ones(2)},
        "weight_scale has shape [2], expected [3], [3, 1] or []",
    ),
    (
        "int8_linear",
        {"weight_scale": torch.ones(3).half()},
        "weight_scale has another dtype, expected torch.float32",
    ),
    ("int8_linear", {"act": "tanh"}, "act is 'tanh', expected None, 'relu', 'gelu' or 'silu'"),
    ("int8_linear", {"dtype": torch.int32}, "dtype has a dtype that is not served"),
    ("int8_weight_only_mm", {"input": X.to(torch.int8)}, "input has a dtype that is not served"),
    ("int8_weight_only_mm", {"input": X.double()}, "input has a dtype that is not served"),
    ("int8_weight_only_mm", {"input": torch.ones(())}, "input has no dimension, expected [..., k]"),
    ("int8_weight_only_mm", {"input": X[:, :5]}, "weight has 6 columns, expected 5 as input"),
    (
        "int8_weight_only_mm",
        {"weight": W.float()},
        "weight has to be a torch.int8 tensor [n, k], or one that int8_pack has made",
    ),
    ("int8_weight_only_mm", {"weight": W - 129}, "weight holds -128, expected -127..127"),
    (
        "int8_weight_only_mm",
        {"weight": _newer()},
        "weight was packed as version 9, expected 1: pack it again",
    ),
    (
        "int8_weight_only_mm",
        {"weight_scale": torch.ones(2, 3)},
        "weight_scale has shape [2, 3], expected [3], [3, 1] or []",
    ),
    ("int8_weight_only_mm", {"weight_scale": torch.ones(3).double()}, "weight_scale has another dtype"),
    (
        "int8_weight_only_mm",
        {"bias": torch.ones(3).bfloat16()},
        "bias has another dtype, expected torch.float32",
    ),
    ("int8_weight_only_mm", {"act": "tanh"}, "act is 'tanh', expected None, 'relu', 'gelu' or 'silu'"),
    ("int8_mm_bwd", {"grad_output": G.double()}, "grad_output has a dtype that is not served"),
    ("int8_mm_bwd", {"input": X}, "input has another dtype, expected torch.int8 or torch.uint8"),
    ("int8_mm_bwd", {"input": torch.ones((), dtype=torch.int8)}, "input has no dimension, expected [..., k]"),
    ("int8_mm_bwd", {"grad_output": G[:3]}, "grad_output has shape [3, 3], expected [4, 3]"),
    ("int8_mm_bwd", {"grad_output": G[:, :2]}, "grad_output has shape [4, 2], expected [4, 3]"),
    ("int8_mm_bwd", {"grad_output": torch.ones(())}, "grad_output has shape [], expected [4, 3]"),
    (
        "int8_mm_bwd",
        {"weight": W.float()},
        "weight has to be a torch.int8 tensor [n, k], or one that int8_pack has made",
    ),
    ("int8_mm_bwd", {"weight": W - 129}, "weight holds -128, expected -127..127"),
    ("int8_mm_bwd", {"weight": _newer()}, "weight was packed as version 9, expected 1: pack it again"),
    ("int8_mm_bwd", {"weight": W[:, :5]}, "weight has 5 columns, expected 6 as input: it has shape [4, 6]"),
    ("int8_mm_bwd", {"input_scale": torch.ones(4)}, "input_scale has shape [4], expected [4, 1] or []"),
    (
        "int8_mm_bwd",
        {"weight_scale": torch.ones(2)},
        "weight_scale has shape [2], expected [3], [3, 1] or []",
    ),
    ("int8_mm_bwd", {"weight_scale": torch.ones(3).half()}, "weight_scale has another dtype, expected"),
    ("int8_mm_bwd", {"input_zero_point": torch.ones(4, 1)}, "input_zero_point has another dtype, expected"),
    (
        "int8_mm_bwd",
        {"input_zero_point": torch.tensor(3_000_000, dtype=torch.int32)},
        "input_zero_point holds 3000000, which sums of 6 products have no room for",
    ),
    ("int8_mm_bwd", {"dtype": torch.float64}, "dtype has a dtype that is not served"),
    ("int8_mm_bwd", {"dtype": torch.int32}, "dtype has a dtype that is not served"),
]


@each_variant
@pytest.mark.parametrize("op, changes, message", REFUSED, ids=lambda v: v if isinstance(v, str) else "")
def test_refused_in_the_same_words(variant, op: str, changes: dict, message: str):
    refused(variant, op, _call(op, **changes), message)


@each_variant
def test_a_grid_without_memory_is_refused(variant):
    grid = {**SCALE, **ZERO}
    for name, t in grid.items():
        freed = t.clone()
        freed.untyped_storage().resize_(0)
        arguments = _call("int8_mm", **{**grid, name: freed}, dtype=torch.uint8)
        with variant.use(), pytest.raises(RuntimeError, match=f"int8_mm: {name} has no storage"):
            OPS.int8_mm(**arguments)


@each_variant
@pytest.mark.parametrize(
    "op, name",
    (
        ("int8_pack", "weight"),
        ("int8_mm", "input"),
        ("int8_linear", "weight_scale"),
        ("int8_weight_only_mm", "input"),
        ("int8_weight_only_mm", "weight_scale"),
        ("int8_mm_bwd", "grad_output"),
        ("int8_mm_bwd", "input"),
        ("int8_mm_bwd", "weight"),
    ),
)
def test_freed_memory_is_refused(variant, op: str, name: str):
    arguments = _call(op)
    arguments[name] = arguments[name].clone()
    arguments[name].untyped_storage().resize_(0)
    with variant.use(), pytest.raises(RuntimeError, match=f"{op}: {name} has no storage: it was freed"):
        getattr(OPS, op)(**arguments)


@pytest.mark.parametrize("op", ("int8_mm", "int8_linear"))
def test_packed_weights_are_the_cpus(op: str):
    packed = f"{op}: weight is packed, which only kernels of the CPU read: give the torch.int8 weight"
    arguments = _call(op)
    with FakeTensorMode(), pytest.raises(RuntimeError, match=re.escape(packed)):
        getattr(OPS, op)(
            **{k: torch.empty(v.shape, dtype=v.dtype, device="cuda") for k, v in arguments.items()}
        )
