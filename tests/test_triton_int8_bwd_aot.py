"""The machine code of the Triton kernels of the 8-bit product's gradients, compiled ahead of time without a
GPU: what the op launches, recorded. Tensor cores multiply bytes as bytes, nothing is spilled, memory moves in
accesses of 128 bits or by descriptors, and multiply and add stay two operations.
"""

import re
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import sass
import torch
from ahead_of_time import SHARED, Launch, compiled
from conftest import need

BYTES, HALF = torch.int8, torch.bfloat16
TARGETS = (80, 90, 100)


def _launches(
    target: int,
    m: int = 320,
    g: torch.dtype = HALF,
    x: torch.dtype = BYTES,
    y: torch.dtype = HALF,
    tiles: str | None = None,
    seed: int | None = None,
) -> list[Launch]:
    """Of both gradients: made ready and multiplied, of the input and of the weight. An odd m: all is odd."""
    from onepass.kernels import int8_backward, int8_plan
    from onepass.kernels.machine import Machine

    machine, launches = Machine(132, SHARED[target] * 1024, target != 942, 90 <= target < 900), []
    n, k = (512, 256) if m % 16 == 0 else (509, 251)

    def record(kernel: Any, _: int, *arguments: Any, **constants: Any) -> None:
        launches.append(Launch(kernel, arguments, constants))

    zero = torch.ones(m, 1, dtype=torch.int32) if x == torch.uint8 else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(int8_plan, "PINNED", tiles)
        patch.setattr(int8_plan, "launch", record)
        patch.setattr(int8_backward, "machine_of", lambda _: machine)
        patch.setattr(int8_backward, "programs_of", lambda _: (528, 64 if target == 942 else 32))
        int8_backward.int8_mm_bwd(
            torch.ones(m, n, dtype=g), torch.ones(m, k, dtype=x), torch.ones(n, k, dtype=BYTES),
            torch.ones(m, 1), torch.ones(n), zero, seed=seed, dtype=y,
        )  # fmt: skip
    return launches


INPUT_READY, INPUT, WEIGHT_READY, WEIGHT = range(4)


def _function(launch: Launch, target: int, folder: Path) -> tuple[str, sass.Function]:
    """PTX and machine code, in which nothing is spilled."""
    need("triton")
    made = compiled(launch, target)
    (folder / "cubin").write_bytes(made["cubin"])
    (function,) = sass.functions(folder / "cubin").values()
    assert not function.spills() and function.local == 0
    return made["ptx"], function


def _accesses(function: sass.Function) -> Counter:
    """Of memory, by name and width; what loads through descriptors has no width."""
    opcodes = [o for o in function.opcodes() if o.startswith(("LDG", "STG", "UTMALDG"))]
    return Counter(
        o.partition(".")[0] + ("" if o[0] == "U" or "DEPBAR" in o else str(sass.width(o))) for o in opcodes
    )


def _rows(quick: set[tuple], *values: Any) -> list:
    """All combinations; those that are not quick are slow."""
    return [pytest.param(*row, marks=() if row in quick else pytest.mark.slow) for row in product(*values)]


# --- made ready ---------------------------------------------------------------------------------------------
READY = _rows(
    {(WEIGHT_READY, HALF, 5, 90)}, (INPUT_READY, WEIGHT_READY), (HALF, torch.float32), (None, 5), TARGETS
)


@pytest.mark.parametrize("which, g, seed, target", READY)
def test_elements_move_in_128_bits(which: int, g: torch.dtype, seed: int | None, target: int, tmp_path: Path):
    launch = _launches(target, g=g, x=torch.uint8, seed=seed)[which]
    ptx, function = _function(launch, target, tmp_path)
    assert "fma.rn.f32" not in ptx and function.registers <= 128
    found = _accesses(function)
    assert not {"LDG8", "LDG16", "STG8", "STG16"} & found.keys(), found
    assert found["LDG128"] > 1 and found["STG128"] > 0


ODD = _rows(
    {(INPUT_READY, 5, 80), (WEIGHT, None, 90)}, (INPUT_READY, INPUT, WEIGHT_READY, WEIGHT), (None, 5), TARGETS
)


@pytest.mark.parametrize("which, seed, target", ODD)
def test_odd_sizes_keep_their_registers(which: int, seed: int | None, target: int, tmp_path: Path):
    """Elements that move one by one, and lines that begin within blocks of random numbers."""
    _function(_launches(target, m=323, x=torch.uint8, y=torch.float32, seed=seed)[which], target, tmp_path)


# --- products -----------------------------------------------------------------------------------------------
IMMA = (r"mma\.sync\.aligned\.m16n8k32\.row\.col\.satfinite\.s32\.s8\.s8\.s32", "IMMA")
CORES = {
    80: IMMA,
    90: (r"wgmma\.mma_async\.sync\.aligned\.m64n\d+k32\.s32\.s8\.s8", "IGMMA"),
    100: (r"tcgen05\.mma\.cta_group::1\.kind::i8", "UTCIMMA"),
}
TILES = ("wide", "square", "low", "flat")
QUICK = {("wide", 90, BYTES), ("square", 80, torch.uint8), ("square", 90, torch.uint8), ("low", 100, BYTES)}
PRODUCTS = [
    row
    for row in _rows(QUICK, TILES, TARGETS, (BYTES, torch.uint8))
    if row.values[0] != "wide" or row.values[1:] in ((90, BYTES), (100, BYTES))
]


def _check_product(launch: Launch, tiles: str, target: int, folder: Path) -> None:
    ptx, function = _function(launch, target, folder)
    multiply, opcode = IMMA if tiles == "flat" else CORES[target]
    assert re.search(multiply, ptx) and any(o.startswith(opcode) for o in function.opcodes())
    found = _accesses(function)
    assert not {"LDG8", "LDG16", "STG8", "STG16", "STG32", "LDGSTS32", "LDGSTS64"} & found.keys(), found
    assert found["LDGSTS128" if target == 80 else "UTMALDG"] > 0


@pytest.mark.parametrize("tiles, target, x", PRODUCTS)
def test_tensor_cores_multiply_bytes(tiles: str, target: int, x: torch.dtype, tmp_path: Path):
    """x unsigned: with a start in 64 bits."""
    _check_product(_launches(target, x=x, tiles=tiles)[WEIGHT], tiles, target, tmp_path)


LONG = _rows({("square", 90, BYTES)}, TILES[1:], TARGETS, (BYTES, torch.uint8))


@pytest.mark.parametrize("tiles, target, x", LONG)
def test_long_sums_keep_their_registers(tiles: str, target: int, x: torch.dtype, tmp_path: Path):
    launch = _launches(target, m=65_552, x=x, tiles=tiles)[WEIGHT]
    assert launch.constants["LONG"]
    _check_product(launch, tiles, target, tmp_path)


@pytest.mark.parametrize(
    "y, tiles, target",
    _rows({(torch.float32, "square", 90)}, (torch.float32, torch.float16), TILES[:3], (90,)),
)
def test_all_outputs(y: torch.dtype, tiles: str, target: int, tmp_path: Path):
    _check_product(_launches(target, y=y, tiles=tiles)[INPUT], tiles, target, tmp_path)


# --- AMD ----------------------------------------------------------------------------------------------------
def _of_amd(launch: Launch) -> str:
    need("triton")
    text = compiled(launch, 942)["amdgcn"]
    for spilled in ("vgpr_spill_count", "private_segment_fixed_size"):
        assert re.findall(rf"\.{spilled}:\s+(\d+)", text) == ["0"]
    return text


OF_AMD = _rows({("square", BYTES, 320)}, TILES[1:], (BYTES, torch.uint8), (320,))
OF_AMD += _rows(set(), TILES[1:], (BYTES, torch.uint8), (65_552,))


@pytest.mark.parametrize("tiles, x, m", OF_AMD)
def test_matrix_cores_of_amd(tiles: str, x: torch.dtype, m: int):
    text = _of_amd(_launches(942, m=m, x=x, tiles=tiles)[WEIGHT])
    assert re.search(r"v_mfma_i32_\w+_i8", text)
    assert "dwordx4" in text and not re.search(r"(global|buffer)_load_[us]byte", text)


@pytest.mark.parametrize("which, seed", _rows({(WEIGHT_READY, 5)}, (INPUT_READY, WEIGHT_READY), (None, 5)))
def test_made_ready_on_amd(which: int, seed: int | None):
    text = _of_amd(_launches(942, x=torch.uint8, seed=seed)[which])
    assert "dwordx4" in text and not re.search(r"(global|buffer)_load_[us]byte", text)
