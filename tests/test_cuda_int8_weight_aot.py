"""The machine code that nvcc made of the kernels of real numbers by 8-bit weights, as it stands in
onepass._cuda. No GPU is needed to read it.

Asserted is what makes a kernel fast and no result shows: tensor cores for halves, multiply-adds alone for
float32, memory that moves in 16-byte pieces, weights that no conversion widens; no register spilled.
"""

import functools
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import sass
from sass import each_arch

REGISTERS = (
    128  # csrc/cuda/int8_weight_tiles.cuh: two blocks of 256 threads on a multiprocessor, or four of 128
)
SIZES = {"float": 4, "__nv_bfloat16": 2, "__half": 2}
PIECE, SLAB = 16, 64


class Kernel(NamedTuple):
    name: str
    dtype: str
    what: str  # how a product is cut up, rows of x


class Tile(NamedTuple):
    """csrc/cuda/int8_weight_tiles.cuh"""

    rows: int  # of a block, as the next
    outputs: int
    warp_rows: int
    warp_outputs: int
    shares: int  # of k
    threads: int

    def copies(self, size: int) -> int:
        """Pieces that a thread fetches of a stage."""
        return (self.rows * SLAB * size + self.outputs * SLAB) * self.shares // PIECE // self.threads

    def products(self) -> int:
        """Of a lane, in a slab of k."""
        return self.warp_rows * self.warp_outputs * SLAB // 32


TILES = {
    "1": Tile(16, 32, 16, 32, 4, 128),
    "2": Tile(64, 64, 32, 32, 1, 128),
    "3": Tile(128, 128, 64, 32, 1, 256),
}
ROWS = ("1", "2", "4", "8")
KERNELS = {Kernel("int8_weight_tiles", dtype, what) for dtype in SIZES for what in TILES}
KERNELS |= {Kernel("int8_weight_rows", dtype, what) for dtype in SIZES for what in ROWS}


@functools.cache
def _functions(folder: Path, arch: str) -> dict[Kernel, sass.Function]:
    code = sass.functions_of_arch(folder, arch)
    return {_kernel(name): f for name, f in code.items() if "int8_weight" in name}


def _kernel(mangled: str) -> Kernel:
    """...int8_weight_tilesINS0_12WeightTilingIfLNS0_7Int8CutE3E... and ...int8_weight_rowsI6__halfLi8E..."""
    dtype = r"(?:(f)|\d+(__half|__nv_bfloat16))"
    match = re.search(
        rf"(int8_weight_[a-z]+)I(?:NS0_\d+WeightTilingI)?{dtype}L(?:NS0_7Int8CutE|i)(\d)E", mangled
    )
    assert match, mangled
    return Kernel(match[1], "float" if match[2] else match[3], match[4])


def _of(folder: Path, arch: str, name: str) -> list[tuple[Kernel, sass.Function]]:
    found = [(kernel, code) for kernel, code in _functions(folder, arch).items() if kernel.name == name]
    assert found, name
    return found


def _turns(kernel: Kernel) -> int:
    """Of the loop over a slab: four k each of float32, halves of it where a warp has many rows."""
    return SLAB // 4 if kernel.dtype == "float" else 2 if TILES[kernel.what].warp_rows > 32 else 1


def _count(function: sass.Function, start: str) -> int:
    return sum(opcode.startswith(start) for opcode in function.opcodes())


@each_arch
def test_every_kernel_is_there(cubins: Path, arch: str):
    assert _functions(cubins, arch).keys() == KERNELS


@each_arch
def test_nothing_is_spilled(cubins: Path, arch: str):
    for kernel, function in _functions(cubins, arch).items():
        function.assert_in_registers(REGISTERS, kernel)


@each_arch
def test_no_access_has_to_find_out_what_memory_it_is_to(cubins: Path, arch: str):
    for kernel, function in _functions(cubins, arch).items():
        assert not function.generic(), kernel


# --- tiles --------------------------------------------------------------------------------------------------
@each_arch
def test_halves_are_multiplied_by_tensor_cores(cubins: Path, arch: str):
    """As many instructions, of 16 x 8 outputs and 16 k, as a warp's part of a slab takes."""
    for kernel, function in _of(cubins, arch, "int8_weight_tiles"):
        opcode = {"__half": "HMMA.16816.F32", "__nv_bfloat16": "HMMA.16816.F32.BF16", "float": None}[
            kernel.dtype
        ]
        found = [o for o in function.opcodes() if o.startswith(("HMMA", "IMMA", "DMMA"))]
        wanted = TILES[kernel.what].products() // _turns(kernel) * 32 // (16 * 8 * 16)
        assert found == ([opcode] * wanted if opcode else []), kernel


@each_arch
def test_float32_takes_multiply_adds_alone(cubins: Path, arch: str):
    """A product an instruction, of four k in each turn of the loop, and no digit lost as TF32."""
    for kernel, function in _of(cubins, arch, "int8_weight_tiles"):
        if kernel.dtype == "float":
            assert _count(function, "FFMA") >= TILES[kernel.what].products() // _turns(kernel), kernel


@each_arch
def test_stages_are_fetched_in_128_bit_copies_past_l1(cubins: Path, arch: str):
    for kernel, function in _of(cubins, arch, "int8_weight_tiles"):
        copies = [o for o in function.opcodes() if o.startswith("LDGSTS")]
        each = TILES[kernel.what].copies(SIZES[kernel.dtype])
        assert set(copies) == {"LDGSTS.E.BYPASS.128"}, kernel
        assert len(copies) in (2 * each, 3 * each), kernel


@each_arch
def test_stages_are_read_in_128_bit_loads(cubins: Path, arch: str):
    """Rows of x, every fourth of a lane; outputs, every eighth; sums of all shares of k. Other loads are of
    single words: of float32's weights, and those without effect that nvcc puts in front of cp.async."""
    for kernel, function in _of(cubins, arch, "int8_weight_tiles"):
        tile, single = TILES[kernel.what], kernel.dtype == "float"
        outputs, sums = tile.warp_outputs // 8, 2 * tile.shares
        rows = tile.warp_rows // 4 // (1 if single else _turns(kernel))
        found = Counter(o for o in function.opcodes() if o.startswith("LDS"))
        assert found["LDS.128"] == rows + sums + (0 if single else outputs), kernel
        assert found.keys() <= {"LDS", "LDS.128"}, kernel


@each_arch
def test_outputs_are_stored_in_128_bits(cubins: Path, arch: str):
    """Eight of them; scales and biases are loaded in as many."""
    for kernel, function in _of(cubins, arch, "int8_weight_tiles"):
        found = [o for block in function.blocks for o in sass.global_accesses(block) if sass.width(o) == 128]
        stores = sum(o.startswith("STG") for o in found)
        assert (len(found) - stores, stores) == (2 + 2, SIZES[kernel.dtype] // 2), (kernel, found)


# --- few rows -----------------------------------------------------------------------------------------------
@each_arch
def test_few_rows_read_weights_in_128_bit_loads(cubins: Path, arch: str):
    """A piece of each of four outputs; of each row sixteen numbers, four at a time."""
    for kernel, function in _of(cubins, arch, "int8_weight_rows"):
        bits = 32 * SIZES[kernel.dtype]
        found = [sass.width(o) for o in function.opcodes() if o.startswith("LDG.") and ".CONSTANT" in o]
        wanted = Counter([128] * 4 + [bits] * (8 if kernel.what == "8" else 4 * int(kernel.what)))
        assert all(Counter(found)[width] >= count for width, count in wanted.items()), (kernel, found)


@each_arch
def test_few_rows_take_multiply_adds_and_no_conversion(cubins: Path, arch: str):
    """The conversion of a byte would take as long as a row's products."""
    for kernel, function in _of(cubins, arch, "int8_weight_rows"):
        rows, outputs = int(kernel.what), 4
        assert _count(function, "FFMA") >= rows * outputs * (PIECE if rows < 8 else 4), kernel
        assert not _count(function, "I2F") and not _count(function, "HMMA"), kernel
        values, sends = rows * outputs, 0
        for _ in range(5):  # halves of all values to the other lanes, at last the one that is left
            values = max(1, values // 2)
            sends += values
        assert _count(function, "SHFL") == sends, kernel
