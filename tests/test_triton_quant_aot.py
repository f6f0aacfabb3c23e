"""The machine code of quantization's Triton kernels, compiled ahead of time without a GPU: nothing is
spilled, and the product of a value and 1 / scale is rounded before it is rounded to a whole number."""

from itertools import product
from pathlib import Path

import pytest
import sass
from conftest import need

REALS = {"float32": "*fp32", "bfloat16": "*bf16", "float16": "*fp16"}
TARGETS = (80, 90, 100)
GROUPS = {"count": "i64", "columns": "i64", "size": "i32", "of_row": "i32"}
LEVELS = {"SYMMETRIC": True, "LOW": -127, "HIGH": 127}
UNSIGNED = {"SYMMETRIC": False, "LOW": 0, "HIGH": 255}
TILES = {"ROWS": 1, "COLUMNS": 1024}


def _kernels(real: str) -> dict[str, tuple[str, dict[str, str], dict[str, object]]]:
    """A kernel's name, its arguments' types and its constants."""
    to = {"x": real, "q": "*i8", "scales": "*fp32", "zeros": "*i32"}
    back = {"q": "*i8", "x": real, "scales": "*fp32", "zeros": "*i32"}
    whole = {"x": real, "q": "*i8", "partials": "*fp32", "scales": "*fp32", "zeros": "*i32"}
    return {
        "rows": ("quantize_groups", to | GROUPS, LEVELS | TILES | {"GIVEN": False}),
        "rows_unsigned": ("quantize_groups", to | GROUPS, UNSIGNED | TILES | {"GIVEN": False}),
        "small_groups": ("quantize_groups", to | GROUPS, LEVELS | {"GIVEN": True, "ROWS": 32, "COLUMNS": 32}),
        "back": ("dequantize_groups", back | GROUPS | {"tiles": "i32"}, TILES | {"HAS_ZEROS": True}),
        "extents": ("extents", {"x": real, "partials": "*fp32", "numel": "i64"}, {"TILE": 1024}),
        "whole": (
            "quantize_whole",
            whole | {"numel": "i64", "programs": "i32"},
            UNSIGNED | {"GIVEN": False, "PROGRAMS": 512, "TILE": 1024},
        ),
    }


@pytest.mark.parametrize(
    "name, real, target",
    [
        pytest.param(name, real, target, marks=() if (real, target) == ("bfloat16", 90) else pytest.mark.slow)
        for name, real, target in product(_kernels(""), REALS, TARGETS)
    ],
)
def test_machine_code(name: str, real: str, target: int, tmp_path: Path):
    need("triton")
    import triton
    from onepass.kernels import quant
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, signature, constants = _kernels(REALS[real])[name]
    signature = signature | dict.fromkeys(constants, "constexpr")
    pointers = [i for i, kind in enumerate(signature.values()) if kind.startswith("*")]
    source = ASTSource(
        getattr(quant, kernel),
        signature,
        constants,
        attrs={(i,): [["tt.divisibility", 16]] for i in pointers},
    )
    options = {"num_warps": 4, "enable_fp_fusion": False}
    made = triton.compile(source, GPUTarget("cuda", target, 32), options).asm
    assert "fma.rn.f32" not in made["ptx"]
    (tmp_path / "cubin").write_bytes(made["cubin"])
    (function,) = sass.functions(tmp_path / "cubin").values()
    assert not function.spills() and function.registers <= 128
