"""The machine code that nvcc made of fake quantization, as it stands in onepass._cuda. No GPU is needed to
read it.

Asserted is what makes a kernel fast and no result shows: accesses of 128 bits, a byte of the mask for eight
elements, no register spilled, no atomics.
"""

import functools
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import sass
from sass import each_arch

REGISTERS = 64  # four blocks of 256 threads on a multiprocessor
SIZES = {"float": 4, "__nv_bfloat16": 2, "__half": 2}
TEAMS = (8, 32, 256)  # csrc/cuda/quant_groups.cuh


class Kernel(NamedTuple):
    name: str
    real: str = ""  # the storage type
    team: int = 0  # threads of a group


BY_TEAM = ("grids_of_groups", "grads_of_groups")
ALONE = ("put_whole", "put_all", "pass_all")
KERNELS = {Kernel("sums_of_parts"), *(Kernel(*which) for which in itertools.product(ALONE, SIZES))}
KERNELS |= {Kernel(*which) for which in itertools.product(BY_TEAM, SIZES, TEAMS)}
# Streams of real numbers that each reads and writes; forward by groups reads x once more.
STREAMS = {
    "grids_of_groups": (2, 1),
    "put_whole": (1, 1),
    "put_all": (1, 1),
    "pass_all": (1, 1),
    "grads_of_groups": (2, 1),
}


@functools.cache
def _functions(folder: Path, arch: str) -> dict[Kernel, sass.Function]:
    code = sass.functions_of_arch(folder, arch)
    return {_kernel(name): f for name, f in code.items() if name.endswith("13FakeQuantWorkE")}


def _kernel(mangled: str) -> Kernel:
    """_ZN7onepass4cuda15grids_of_groupsI13__nv_bfloat16Li8EEEvNS0_13FakeQuantWorkE and others."""
    match = re.search(r"cuda\d+([a-z_]+)(?:I(f|\d+(?:__half|__nv_bfloat16))(?:Li(\d+)E)?)?E", mangled)
    assert match, mangled
    real = "float" if match[2] == "f" else (match[2] or "").lstrip("0123456789")
    return Kernel(match[1], real, int(match[3] or 0))


def _streaming(folder: Path, arch: str) -> Iterator[tuple[Kernel, sass.Function]]:
    return ((k, f) for k, f in _functions(folder, arch).items() if k.name in STREAMS)


def _accesses(function: sass.Function, start: str, bits: int) -> int:
    return sum(opcode.startswith(start) and sass.width(opcode) == bits for opcode in function.opcodes())


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


@each_arch
def test_eight_elements_move_in_128_bit_accesses(cubins: Path, arch: str):
    """Of four bytes in two, of two in one; their bits in one of a byte."""
    for kernel, function in _streaming(cubins, arch):
        reads, writes = (streams * SIZES[kernel.real] // 2 for streams in STREAMS[kernel.name])
        assert _accesses(function, "LDG", 128) >= reads, kernel
        assert _accesses(function, "STG", 128) >= writes, kernel
        of_bits = "LDG" if kernel.name in ("pass_all", "grads_of_groups") else "STG"
        assert _accesses(function, of_bits, 8) > 0, kernel


@each_arch
def test_sums_are_double_and_no_atomics(cubins: Path, arch: str):
    for kernel, function in _functions(cubins, arch).items():
        opcodes = [opcode.partition(".")[0] for opcode in function.opcodes()]
        assert ("DADD" in opcodes) == (kernel.name in ("grads_of_groups", "sums_of_parts")), kernel
        assert not {"RED", "ATOMG", "ATOMS"} & set(opcodes), kernel
