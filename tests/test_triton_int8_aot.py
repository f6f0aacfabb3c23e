"""The machine code of the 8-bit products' Triton kernels, compiled ahead of time without a GPU.

Products are made with a recorder in place of the launch, so what is compiled is what the ops launch. Asserted
is what makes a kernel fast and no result shows: tensor cores multiply bytes as bytes (IMMA on sm_80, wgmma on
sm_90, tcgen05 on sm_100), nothing is spilled, memory moves in accesses of 128 bits or by descriptors.
"""

import re
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import sass
import torch
from ahead_of_time import SHARED, Launch, compiled
from conftest import need

BYTES = torch.int8


def _launch(
    target: int,
    m: int,
    x: torch.dtype,
    y: torch.dtype,
    tiles: str | None,
    zeros: bool = False,
    act: str | None = None,
) -> Launch:
    """What a product of m rows launches, in these tiles."""
    from onepass.kernels import int8, int8_plan
    from onepass.kernels.machine import Machine

    machine, launches = Machine(132, SHARED[target] * 1024, target != 942, 90 <= target < 900), []

    def record(kernel: Any, _: int, *arguments: Any, **constants: Any) -> None:
        launches.append(Launch(kernel, arguments, constants))

    n, k, whole = 1024, 4096, not x.is_floating_point
    input, w, rows, outputs = (
        torch.ones(m, k).to(x),
        torch.ones(n, k).to(BYTES),
        torch.ones(m, 1),
        torch.ones(n),
    )
    vectors = (rows if whole else None, rows.int() if zeros else None, outputs, outputs)
    scale, zero = torch.ones(()), torch.ones((), dtype=torch.int32)
    grid = {torch.int8: (scale, None), torch.uint8: (scale, zero)}.get(y, (None, None))
    before = int8_plan.launch, int8_plan.PINNED, int8.machine_of
    int8_plan.launch, int8_plan.PINNED, int8.machine_of = record, tiles, lambda _: machine
    try:
        int8._Product(input, w, vectors, act, y, grid).run()
    finally:
        int8_plan.launch, int8_plan.PINNED, int8.machine_of = before
    (launch,) = launches
    return launch


class Made(NamedTuple):
    text: str  # PTX, or AMD's assembler
    function: sass.Function | None


@pytest.fixture
def make(tmp_path: Path):
    """make(target, m, x, y, tiles, ...): the launch's machine code, in which nothing is spilled."""
    need("triton")

    def make(target: int, *what: Any, **more: Any) -> Made:
        found = compiled(_launch(target, *what, **more), target)
        if target == 942:
            assert ".vgpr_spill_count: 0" in re.sub(" +", " ", found["amdgcn"])
            return Made(found["amdgcn"], None)
        (tmp_path / "cubin").write_bytes(found["cubin"])
        (function,) = sass.functions(tmp_path / "cubin").values()
        assert not function.spills() and function.stack == 0
        return Made(found["ptx"], function)

    return make


def _rows(quick: set[tuple], *values: Any) -> list:
    """All combinations; those that are not quick are slow."""
    return [pytest.param(*row, marks=() if row in quick else pytest.mark.slow) for row in product(*values)]


def _accesses(function: sass.Function) -> Counter:
    """Of memory, by name and width; what loads through descriptors has no width."""
    opcodes = [o for o in function.opcodes() if o.startswith(("LDG", "STG", "UTMALDG"))]
    return Counter(
        o.partition(".")[0] + ("" if o[0] == "U" or "DEPBAR" in o else str(sass.width(o))) for o in opcodes
    )


# --- by tensor cores ----------------------------------------------------------------------------------------
# How they multiply bytes: in PTX, and in machine code where it is told apart there.
IMMA = (r"mma\.sync\.aligned\.m16n8k32\.row\.col\.satfinite\.s32\.s8\.s8\.s32", "IMMA")
CORES = {
    80: IMMA,
    90: (r"wgmma\.mma_async\.sync\.aligned\.m64n\d+k32\.s32\.s8\.s8", "IGMMA"),
    100: (r"tcgen05\.mma\.cta_group::1\.kind::i8", "UTCIMMA"),
}
TILES = ("wide", "square", "low", "flat")
QUICK = {("wide", 90, "gelu"), ("square", 80, "gelu"), ("low", 100, "gelu"), ("flat", 90, "gelu")}
# By pointers there is no wide one. gelu takes the most registers of what may follow.
ALL = [row for row in _rows(QUICK, TILES, CORES, ("gelu",)) if row.values[:2] != ("wide", 80)]
ALL += [pytest.param("wide", 90, None), pytest.param("square", 100, None, marks=pytest.mark.slow)]


@pytest.mark.parametrize("zeros", (False, True))
@pytest.mark.parametrize("tiles, target, act", ALL)
def test_tensor_cores_multiply_bytes(make, tiles: str, target: int, act: str | None, zeros: bool):
    """zeros: unsigned bytes with a zero point, which have no wide tiles."""
    tiles = "square" if zeros and tiles == "wide" else tiles
    x = torch.uint8 if zeros else BYTES
    text, function = make(target, 300, x, torch.bfloat16, tiles, zeros=zeros, act=act)
    multiply, opcode = IMMA if tiles == "flat" else CORES[target]
    assert re.search(multiply, text)
    assert any(o.startswith(opcode) for o in function.opcodes())
    found = _accesses(function)
    assert not {"LDG8", "LDG16", "STG8", "STG16", "STG32", "LDGSTS32", "LDGSTS64"} & found.keys(), found
    assert found["LDGSTS128" if target == 80 else "UTMALDG"] > 0


WIDEST = _rows({("square", 90, torch.float32)}, TILES[1:], CORES, (torch.float32,))
WIDEST += _rows(set(), TILES[:1], (90, 100), (torch.float32,))
OTHERS = _rows({("square", 90, torch.int32)}, TILES[:2], (90,), (torch.float16, torch.int32))


@pytest.mark.parametrize("tiles, target, y", WIDEST + OTHERS)
def test_all_outputs(make, tiles: str, target: int, y: torch.dtype):
    act = None if y == torch.int32 else "relu" if tiles == "wide" else "silu"
    found = _accesses(make(target, 300, BYTES, y, tiles, act=act).function)
    assert found["STG128"] + found["STG64"] > 0 and not {"STG8", "STG16", "STG32"} & found.keys(), found


AGAIN = _rows({("wide", 90, "gelu"), ("square", 80, "gelu")}, TILES, CORES, ("gelu",))
AGAIN += _rows({("square", 90, "silu")}, TILES[1:], (90,), ("silu",))


@pytest.mark.parametrize("y", (torch.int8, torch.uint8))
@pytest.mark.parametrize("tiles, target, act", AGAIN)
def test_8_bits_again(make, tiles: str, target: int, act: str | None, y: torch.dtype):
    """Nothing is spilled for it, and bytes leave side by side: of a flat tile a thread has four."""
    tiles = "square" if (tiles, target) == ("wide", 80) else tiles
    found = _accesses(make(target, 300, BYTES, y, tiles, act=act).function)
    stores = {name for name in found if name.startswith("STG")}
    assert stores and stores <= ({"STG32"} if tiles == "flat" else {"STG64", "STG128"}), found


# --- few rows -----------------------------------------------------------------------------------------------
REALS = (torch.bfloat16, torch.float16, torch.float32)
FEW = {(1, BYTES, 90), (4, torch.bfloat16, 80)}


@pytest.mark.parametrize("m, x, target", _rows(FEW, (1, 4), (BYTES, torch.uint8, *REALS[::2]), (80, 90, 100)))
def test_few_rows_read_weights_at_full_width(make, m: int, x: torch.dtype, target: int):
    """In the loop: 64 bytes a thread, for four rows 16; nothing moves between threads but a real x."""
    _, function = make(target, m, x, torch.bfloat16, None)
    loop = max(function.blocks, key=lambda block: sum(o.startswith(("IMAD", "FFMA")) for o in block))
    found = Counter(o.partition(".")[0] + str(sass.width(o)) for o in sass.global_accesses(loop))
    of_x = m * 16 * x.itemsize // 16
    assert found == {"LDG128": 4 // m + (of_x if x.itemsize == 1 else found["LDG128"] - 4 // m)}
    assert 0 < found["LDG128"] - 4 // m <= of_x
    assert not any(o.startswith(("SHFL", "REDUX")) for o in loop)
    assert x.is_floating_point or not any(o.startswith(("BAR", "LDS", "STS")) for o in loop)


# --- real x -------------------------------------------------------------------------------------------------
MULTIPLY = {
    80: r"mma\.sync\.\S*\.f32\.{0}\.{0}\.f32",
    90: r"wgmma\.\S*\.f32\.{0}\.{0}",
    100: r"tcgen05\.mma\S*kind::f16",
}


HALVES = _rows({("square", torch.bfloat16, 90, "gelu")}, TILES, REALS[:1], MULTIPLY, ("gelu",))
HALVES += _rows(set(), ("square",), REALS[1:2], MULTIPLY, (None,))


@pytest.mark.parametrize("tiles, x, target, act", HALVES)
def test_real_x_by_bytes(make, tiles: str, x: torch.dtype, target: int, act: str | None):
    """Weights move as bytes, and are multiplied in the dtype of x with sums in float32."""
    tiles = "square" if (tiles, target) == ("wide", 80) else tiles
    text, function = make(target, 300, x, x, tiles, act=act)
    assert re.search(MULTIPLY[target].format({torch.bfloat16: "bf16", torch.float16: "f16"}[x]), text)
    found = _accesses(function)
    assert not {"LDG8", "LDG16", "STG8", "STG16", "STG32", "LDGSTS32"} & found.keys(), found
    assert found["LDGSTS128"] > 0 and found["STG128"] > 0


@pytest.mark.parametrize("tiles, target", _rows({("square", 80)}, TILES[1:], (80, 90, 100)))
def test_float32_is_multiplied_as_such(make, tiles: str, target: int):
    text, function = make(target, 300, torch.float32, torch.float32, tiles)
    assert "tf32" not in text and any(o.startswith("FFMA") for o in function.opcodes())
    assert _accesses(function)["STG128"] > 0


# --- in shares ----------------------------------------------------------------------------------------------
SHARES = ("low/4", "flat/4")
FIRST = {("low/4", 90, BYTES), ("flat/4", 100, torch.bfloat16), ("flat/4", 80, torch.uint8)}


def _check_shares(made: Made, tiles: str, target: int, x: torch.dtype) -> None:
    text, function = made
    if x.itemsize == 1:
        assert re.search(IMMA[0] if tiles == "flat/4" else CORES[target][0], text)
    elif x != torch.float32:
        assert re.search(MULTIPLY[target].format("bf16"), text)
    assert sum(o.startswith("ATOMG") for o in function.opcodes()) == 1
    found = _accesses(function)
    assert not {"LDG8", "LDG16", "STG8", "STG16", "LDGSTS32"} & found.keys(), found
    assert found["LDG128"] >= 4 and found["STG128"] > 0  # four shares in flight


@pytest.mark.parametrize("tiles, target, x", _rows(FIRST, SHARES, CORES, (BYTES, torch.uint8, *REALS[::2])))
def test_sums_of_shares_move_in_128_bits(make, tiles: str, target: int, x: torch.dtype):
    """And nothing is spilled for them. Unsigned bytes have a zero point, and sums of weights."""
    y = torch.float32 if x == torch.float32 else torch.bfloat16
    _check_shares(make(target, 60, x, y, tiles, zeros=x == torch.uint8, act="gelu"), tiles, target, x)


@pytest.mark.parametrize("y", (torch.int32, torch.float32, BYTES, torch.uint8))
@pytest.mark.parametrize("tiles, target", _rows(set(), SHARES, CORES))
def test_all_outputs_of_shares(make, tiles: str, target: int, y: torch.dtype):
    act = None if y == torch.int32 else "gelu"
    _check_shares(make(target, 60, BYTES, y, tiles, act=act), tiles, target, BYTES)


# --- AMD ----------------------------------------------------------------------------------------------------
AMDS = (BYTES, torch.uint8, torch.bfloat16)


@pytest.mark.parametrize("tiles, x", _rows({("square", BYTES)}, (*TILES[1:], *SHARES), AMDS))
def test_matrix_cores_of_amd(make, tiles: str, x: torch.dtype):
    text, _ = make(942, 300, x, torch.bfloat16, tiles, act="gelu")
    assert re.search(r"v_mfma_f32_\w+bf16" if x.is_floating_point else r"v_mfma_i32_\w+_i8", text)
    assert "dwordx4" in text and not re.search(r"(global|buffer)_load_[us]byte", text)


@pytest.mark.parametrize("m, x", _rows({(1, BYTES)}, (1, 4), AMDS))
def test_few_rows_on_amd(make, m: int, x: torch.dtype):
    text, _ = make(942, m, x, torch.bfloat16, None)
    assert "dwordx4" in text and not re.search(r"(global|buffer)_load_[us]byte", text)
