"""The machine code that nvcc made of the kernels of the 8-bit product's gradients, as it stands in
onepass._cuda. No GPU is needed to read it.

Asserted is what makes a kernel fast and no result shows: tensor cores, memory that moves in 16-byte pieces,
no register spilled.
"""

import functools
import itertools
import re
from pathlib import Path
from typing import NamedTuple

import sass
from sass import each_arch
from test_cuda_int8_aot import TILES

REGISTERS = {
    "gradient_tiles": 128,
    "ready_of_rows": 80,
    "ready_of_columns": 80,
}  # three blocks of 256 threads
SIZES = {"float": 4, "__nv_bfloat16": 2, "__half": 2}
TEAMS = ("32", "256")  # csrc/cuda/int8_backward_rows.cuh


class Kernel(NamedTuple):
    name: str
    dtype: str  # of g
    what: str  # how a product is cut up, threads of a row
    is_long: bool


KERNELS = {Kernel("gradient_tiles", "", cut, False) for cut in TILES}
KERNELS |= {Kernel("gradient_tiles", "", cut, True) for cut in ("1", "2")}
KERNELS |= {Kernel("ready_of_rows", *which, False) for which in itertools.product(SIZES, TEAMS)}
KERNELS |= {Kernel("ready_of_columns", dtype, "", False) for dtype in SIZES}


@functools.cache
def _functions(folder: Path, arch: str) -> dict[Kernel, sass.Function]:
    code = sass.functions_of_arch(folder, arch)
    return {_kernel(name): f for name, f in code.items() if re.search(r"(Ready|Gradient)Int8WorkE$", name)}


def _kernel(mangled: str) -> Kernel:
    """...gradient_tilesINS0_6TilingILNS0_7Int8CutE3E...ELb0EEE... and ...ready_of_rowsI6__halfLi32EEE..."""
    what = r"(?:NS0_6TilingILNS0_7Int8CutE(\d)E|(f)|\d+(__half|__nv_bfloat16))(?:Li(\d+)E)?"
    match = re.search(rf"cuda\d+([a-z_]+)I{what}", mangled)
    assert match, mangled
    name, cut, single, half, team = match.groups()
    return Kernel(name, "float" if single else half or "", cut or team or "", "Lb1E" in mangled)


def _of(folder: Path, arch: str, name: str) -> list[tuple[Kernel, sass.Function]]:
    found = [(kernel, code) for kernel, code in _functions(folder, arch).items() if kernel.name == name]
    assert found, name
    return found


def _count(function: sass.Function, start: str, bits: int | None = None) -> int:
    return sum(o.startswith(start) and bits in (None, sass.width(o)) for o in function.opcodes())


@each_arch
def test_every_kernel_is_there(cubins: Path, arch: str):
    assert _functions(cubins, arch).keys() == KERNELS


@each_arch
def test_nothing_is_spilled(cubins: Path, arch: str):
    for kernel, function in _functions(cubins, arch).items():
        function.assert_in_registers(REGISTERS[kernel.name], kernel)


@each_arch
def test_no_access_has_to_find_out_what_memory_it_is_to(cubins: Path, arch: str):
    for kernel, function in _functions(cubins, arch).items():
        assert not function.generic(), kernel


# --- products ---------------------------------------------------------------------------------------------
@each_arch
def test_tiles_are_those_of_int8_mm(cubins: Path, arch: str):
    """As many products and reads of shared memory as there; pieces of rows come past L1, and never one by
    one."""
    for kernel, function in _of(cubins, arch, "gradient_tiles"):
        tile = TILES[kernel.what]
        assert _count(function, "IMMA.16832.S8.S8") == tile.mmas, kernel
        assert _count(function, "LDSM.16.M88.4") == tile.ldmatrices, kernel
        copies = [o for o in function.opcodes() if o.startswith("LDGSTS")]
        assert set(copies) == {"LDGSTS.E.BYPASS.128"}, kernel
        assert len(copies) in (2 * tile.copies, (tile.ahead + 1) * tile.copies), kernel
        assert not _count(function, "LDG", 8) and not _count(function, "IDP"), kernel


@each_arch
def test_eight_outputs_are_rounded_once_and_stored_in_128_bits(cubins: Path, arch: str):
    """From 64 bits: of float32 two stores, of bfloat16 and float16 one each."""
    for kernel, function in _of(cubins, arch, "gradient_tiles"):
        assert _count(function, "I2F.S64") == 8, kernel
        assert _count(function, "STG", 128) == 2 + 1 + 1, kernel


# --- what they are made of --------------------------------------------------------------------------------
@each_arch
def test_the_other_factor_is_turned_by_pieces(cubins: Path, arch: str):
    for name in ("ready_of_rows", "ready_of_columns"):
        for kernel, function in _of(cubins, arch, name):
            assert _count(function, "STG", 128) == 1, kernel
            assert _count(function, "STS", 128) >= 1, kernel


@each_arch
def test_rows_are_read_in_128_bits_and_stored_eight_bytes_at_a_time(cubins: Path, arch: str):
    """Eight numbers and their factors, twice, and a piece of the other factor."""
    for kernel, function in _of(cubins, arch, "ready_of_rows"):
        wide = 2 * (SIZES[kernel.dtype] // 2 + 2) + 1
        assert _count(function, "LDG", 128) >= wide, (kernel, _count(function, "LDG", 128))
        assert _count(function, "STG", 64) == 1, kernel


@each_arch
def test_columns_are_read_in_128_bits_and_stored_eight_bytes_at_a_time(cubins: Path, arch: str):
    """Each in two passes, of which the first piece of each is read ahead; behind q, the start of a column."""
    for kernel, function in _of(cubins, arch, "ready_of_columns"):
        pieces = SIZES[kernel.dtype] // 2
        assert _count(function, "LDG", 128) >= 2 * 2 * pieces + 1, kernel
        assert _count(function, "STG", 64) == 2, kernel
