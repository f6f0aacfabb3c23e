"""The machine code that nvcc made of the kernels of 8-bit numbers, as it stands in onepass._cuda. No GPU is
needed to read it.

Asserted is what makes a kernel fast and no result shows: tensor cores, fed by ldmatrix from what cp.async
fetched in 16-byte pieces; dot products of four numbers where there are few rows; no register spilled.
"""

import functools
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import sass
from sass import each_arch

REGISTERS = 128  # csrc/cuda/int8_tiles.cuh: two blocks of 256 threads on a multiprocessor, or four of 128
SIZES = {"float": 4, "__nv_bfloat16": 2, "__half": 2}


class Kernel(NamedTuple):
    name: str
    what: str  # its first template argument: how a product is cut up, rows of x, a storage type
    switch: bool = False  # its second: zero points; or, of quantize_groups, a block a group


class Tile(NamedTuple):
    """What a warp does between two barriers: csrc/cuda/int8_tiles.cuh."""

    mmas: int  # of 16 x 8 outputs and 32 k
    ldmatrices: int
    copies: int  # pieces of 16 bytes that a thread fetches of a stage, and stages ahead of the loop
    ahead: int


TILES = {"1": Tile(4, 3, 3, 3), "2": Tile(32, 16, 8, 2), "3": Tile(64, 24, 8, 2)}
ROWS = ("1", "2", "4", "8")
PRODUCTS = {
    Kernel(name, what, zeros)
    for name, whats in (("int8_tiles", TILES), ("int8_rows", ROWS))
    for what, zeros in itertools.product(whats, (False, True))
}
QUANTS = {
    *(Kernel("quantize_groups", s, block) for s, block in itertools.product(SIZES, (False, True))),
    *(Kernel(n, s) for n, s in itertools.product(("extents", "quantize_whole", "dequantize_groups"), SIZES)),
}


@functools.cache
def _functions(folder: Path, arch: str) -> dict[Kernel, sass.Function]:
    code = sass.functions_of_arch(folder, arch)
    # Others have files of their own.
    ours = re.compile(r"cuda\d+(?!\d|int8_weight)\w+\d(Int8|Quant)WorkE$")
    return {_kernel(name): f for name, f in code.items() if ours.search(name)}


def _kernel(mangled: str) -> Kernel:
    """_ZN7onepass4cuda10int8_tilesINS0_6TilingILNS0_7Int8CutE3ELi2E...EELb0EEEvNS0_8Int8WorkE and others."""
    what = r"NS0_6TilingILNS0_7Int8CutE(\d)E|Li(\d)E|(f)|\d+(__half|__nv_bfloat16)"
    match = re.search(rf"cuda\d+([a-z0-9_]+)I(?:{what})", mangled)
    assert match, mangled
    (found,) = filter(None, match.groups()[1:])
    return Kernel(match[1], "float" if found == "f" else found, "Lb1E" in mangled)


def _of(folder: Path, arch: str, name: str) -> Iterator[tuple[Kernel, sass.Function]]:
    found = [
        (kernel, function) for kernel, function in _functions(folder, arch).items() if kernel.name == name
    ]
    assert found, name
    yield from found


def _count(function: sass.Function, start: str) -> int:
    return sum(opcode.startswith(start) for opcode in function.opcodes())


@each_arch
def test_every_kernel_is_there(cubins: Path, arch: str):
    assert _functions(cubins, arch).keys() == PRODUCTS | QUANTS


@each_arch
def test_nothing_is_spilled(cubins: Path, arch: str):
    for kernel, function in _functions(cubins, arch).items():
        function.assert_in_registers(REGISTERS, kernel)


@each_arch
def test_no_access_has_to_find_out_what_memory_it_is_to(cubins: Path, arch: str):
    for kernel, function in _functions(cubins, arch).items():
        assert not function.generic(), kernel


@each_arch
def test_tiles_are_multiplied_by_tensor_cores(cubins: Path, arch: str):
    """As many instructions as a warp's part of a stage takes, and no dot product but of zero points' sums."""
    for kernel, function in _of(cubins, arch, "int8_tiles"):
        tile = TILES[kernel.what]
        assert _count(function, "IMMA.16832.S8.S8") == tile.mmas, kernel
        assert _count(function, "LDSM.16.M88.4") == tile.ldmatrices, kernel
        assert (_count(function, "IDP.4A") > 0) == kernel.switch, kernel


@each_arch
def test_stages_are_fetched_in_128_bit_copies_past_l1(cubins: Path, arch: str):
    for kernel, function in _of(cubins, arch, "int8_tiles"):
        tile = TILES[kernel.what]
        copies = [o for o in function.opcodes() if o.startswith("LDGSTS")]
        assert set(copies) == {"LDGSTS.E.BYPASS.128"}, kernel
        assert len(copies) in (2 * tile.copies, (tile.ahead + 1) * tile.copies), kernel


@each_arch
def test_outputs_are_stored_in_128_bits(cubins: Path, arch: str):
    """Eight of them, of four bytes (sums, float32) and of two (bfloat16, float16). Scales and biases are
    loaded in as many. Where they are quantized again all eight are one store of 64 bits."""
    for kernel, function in _of(cubins, arch, "int8_tiles"):
        found = [o for block in function.blocks for o in sass.global_accesses(block) if sass.width(o) == 128]
        stores = sum(o.startswith("STG") for o in found)
        assert (len(found) - stores, stores) == (2 + 2, 2 + 2 + 1 + 1), (kernel, found)
        narrow = [o for o in function.opcodes() if o.startswith("STG") and sass.width(o) == 64]
        assert len(narrow) == 1, (kernel, narrow)


@each_arch
def test_few_rows_take_dot_products_of_128_bit_loads(cubins: Path, arch: str):
    """Four outputs of each row: a piece of 16 numbers is four dot products, one a row or output is a load."""
    for kernel, function in _of(cubins, arch, "int8_rows"):
        rows, outputs = int(kernel.what), 4
        assert _count(function, "IMMA") == 0, kernel
        assert _count(function, "IDP.4A") % (4 * outputs * (rows + kernel.switch)) == 0, kernel
        wide = [o for o in function.opcodes() if o.startswith("LDG.") and sass.width(o) == 128]
        assert len(wide) >= rows + outputs, kernel
        assert _count(function, "REDUX") == outputs * (rows + kernel.switch), kernel


@each_arch
@pytest.mark.parametrize("name", ("quantize_groups", "quantize_whole", "extents", "dequantize_groups"))
def test_eight_numbers_move_in_the_widest_accesses(cubins: Path, arch: str, name: str):
    """Real numbers in 128-bit accesses, those of 8 bits in 64."""
    for kernel, function in _of(cubins, arch, name):
        of_real, of_whole = ("STG", "LDG") if name == "dequantize_groups" else ("LDG", "STG")
        wide = [o for o in function.opcodes() if o.startswith(of_real) and sass.width(o) == 128]
        narrow = [o for o in function.opcodes() if o.startswith(of_whole) and sass.width(o) == 64]
        assert len(wide) >= SIZES[kernel.what] // 2, kernel
        assert (len(narrow) > 0) == (name != "extents"), kernel
