"""Calls of quantization that are refused: in the same words by the C++ ops and by the checks in Python, which
reference, Triton and fake tensors have."""

import pytest
import torch
from onepass.testing import variants
from quant_helpers import refused

OPS = torch.ops.onepass
each_variant = pytest.mark.parametrize("variant", variants("cpu"), ids=str)


def _call(op: str, **changes) -> dict:
    kept = {"group_size": -1}
    x = torch.ones(4, 6)
    calls = {
        "quantize": {"input": x, "scale": None, "zero_point": None, "symmetric": True, "bits": 8, **kept},
        "dequantize": {"input": x.to(torch.int8), "scale": torch.ones(4, 1), "zero_point": None, **kept},
        "fake_quant_bwd": {"grad_output": x, "mask": torch.ones(3, dtype=torch.uint8), **LEARNED, **kept},
    }
    calls["fake_quant_fwd"] = calls["quantize"]
    return {**calls[op], **changes}


LEARNED = {"input": torch.ones(4, 6), "scale": torch.ones(4, 1), "zero_point": None, "symmetric": True}
ZEROS = torch.zeros(4, 1, dtype=torch.int32)
REFUSED = [
    (
        "quantize",
        {"input": torch.ones(3, dtype=torch.float64)},
        "input has a dtype that is not served, expected torch.float32, bfloat16 or float16",
    ),
    ("quantize", {"input": torch.ones(3, dtype=torch.int32)}, "input has a dtype that is not served"),
    (
        "quantize",
        {"group_size": -2},
        "group_size is -2, expected -1 (a row), 0 (the whole tensor) or at least 1",
    ),
    ("quantize", {"bits": 4}, "bits is 4, expected 7 or 8"),
    ("quantize", {"scale": torch.ones(4)}, "scale has shape [4], expected [4, 1]: a value a group"),
    ("quantize", {"scale": torch.ones(4, 1), "group_size": 0}, "scale has shape [4, 1], expected []"),
    ("quantize", {"scale": torch.ones(4, 1), "group_size": 4}, "scale has shape [4, 1], expected [4, 2]"),
    ("quantize", {"scale": torch.ones(4, 1).double()}, "scale has another dtype, expected torch.float32"),
    ("quantize", {"zero_point": ZEROS}, "zero_point needs symmetric=False and a scale"),
    ("quantize", {"zero_point": ZEROS, "symmetric": False}, "zero_point needs symmetric=False and a scale"),
    (
        "quantize",
        {"scale": torch.ones(4, 1), "symmetric": False},
        "scale with symmetric=False needs zero_point",
    ),
    (
        "quantize",
        {"scale": torch.ones(4, 1), "symmetric": False, "zero_point": ZEROS.long()},
        "zero_point has another dtype, expected torch.int32",
    ),
    (
        "quantize",
        {"scale": torch.ones(4, 1), "symmetric": False, "zero_point": ZEROS + 256},
        "zero_point holds 256, expected 0..255",
    ),
    (
        "dequantize",
        {"input": torch.ones(4, 6)},
        "input has another dtype, expected torch.int8 or torch.uint8",
    ),
    ("dequantize", {"group_size": -7}, "group_size is -7, expected -1"),
    ("dequantize", {"scale": torch.ones(5, 1)}, "scale has shape [5, 1], expected [4, 1]: a value a group"),
    (
        "dequantize",
        {"zero_point": ZEROS[:3]},
        "zero_point has shape [3, 1], expected [4, 1]: a value a group",
    ),
    ("dequantize", {"dtype": torch.float64}, "dtype has a dtype that is not served"),
    ("fake_quant_bwd", {"grad_output": torch.ones(4, 6).double()}, "grad_output has a dtype that is not"),
    ("fake_quant_bwd", {"group_size": -2}, "group_size is -2, expected -1"),
    ("fake_quant_bwd", {"bits": 9}, "bits is 9, expected 7 or 8"),
    (
        "fake_quant_bwd",
        {"mask": torch.ones(4, dtype=torch.uint8)},
        "mask has shape [4], expected [3]: a bit an element",
    ),
    ("fake_quant_bwd", {"mask": torch.ones(3)}, "mask has another dtype, expected torch.uint8"),
    ("fake_quant_bwd", {"scale": None}, "input and scale are given both or not at all"),
    ("fake_quant_bwd", {"input": None}, "input and scale are given both or not at all"),
    (
        "fake_quant_bwd",
        {"input": torch.ones(4, 7)},
        "input has shape [4, 7], expected [4, 6]: that of grad_output",
    ),
    (
        "fake_quant_bwd",
        {"input": torch.ones(4, 6).bfloat16()},
        "input has another dtype, expected that of grad_output",
    ),
    ("fake_quant_bwd", {"scale": torch.ones(4)}, "scale has shape [4], expected [4, 1]: a value a group"),
    ("fake_quant_bwd", {"zero_point": ZEROS}, "zero_point needs symmetric=False and a scale"),
    ("fake_quant_bwd", {"symmetric": False}, "scale with symmetric=False needs zero_point"),
    (
        "fake_quant_bwd",
        {"symmetric": False, "zero_point": ZEROS - 1},
        "zero_point holds -1, expected 0..255",
    ),
]
# Both find or take a grid.
REFUSED += [("fake_quant_fwd", *rest) for op, *rest in REFUSED if op == "quantize"]


@each_variant
@pytest.mark.parametrize("op, changes, message", REFUSED, ids=lambda v: v if isinstance(v, str) else "")
def test_refused_in_the_same_words(variant, op: str, changes: dict, message: str):
    refused(variant, op, _call(op, **changes), message)


@each_variant
@pytest.mark.parametrize(
    "op, name",
    (
        ("quantize", "input"),
        ("dequantize", "input"),
        ("fake_quant_fwd", "input"),
        ("fake_quant_bwd", "grad_output"),
        ("fake_quant_bwd", "mask"),
        ("fake_quant_bwd", "input"),
    ),
)
def test_freed_memory_is_refused(variant, op: str, name: str):
    arguments = _call(op)
    arguments[name] = arguments[name].clone()
    arguments[name].untyped_storage().resize_(0)
    with variant.use(), pytest.raises(RuntimeError, match=f"{op}: {name} has no storage: it was freed"):
        getattr(OPS, op)(**arguments)
