"""The machine code that nvcc made of csrc/cuda/, as it stands in onepass._cuda. No GPU is needed to read it.

Asserted is what makes a kernel fast and no result shows: no register is spilled, and where all streams are
aligned a thread moves each of them once, in 128-bit accesses and no others.
"""

import functools
import importlib.util
import itertools
import re
import subprocess
from pathlib import Path

import pytest
import sass
from conftest import need
from onepass.ops import OPS

ARCHS = ("80", "90", "100")
REGISTERS = 128  # a thread: four blocks of 128 threads on a multiprocessor, csrc/cuda/multi_tensor.cuh
SLOTS = (496, 4064)  # gradient pointers in a kernel's arguments, csrc/cuda/table.h
SIZES = {"float": 4, "double": 8, "__nv_bfloat16": 2, "__half": 2}
each_arch = pytest.mark.parametrize("arch", ARCHS)

# decoupled, amsgrad, storage type, slots
Kernel = tuple[bool, bool, str, int]
KERNELS: set[Kernel] = set(itertools.product((False, True), (False, True), SIZES, SLOTS))


@pytest.fixture(scope="module")
def cubins(tmp_path_factory) -> Path:
    """A folder with the machine code of each architecture, as built."""
    need("nvcc")
    assert {"cuobjdump", "nvdisasm"} <= sass.tools().keys(), "they come with Triton's wheel, and with CUDA"
    built = importlib.util.find_spec("onepass._cuda")
    assert built is not None and built.origin is not None, "nvcc is here, but onepass._cuda was not built"
    folder = tmp_path_factory.mktemp("cubins")
    subprocess.run([sass.tools()["cuobjdump"], "-xelf", "all", built.origin], cwd=folder, check=True)
    return folder


@functools.cache
def _functions(folder: Path, arch: str) -> dict[Kernel, sass.Function]:
    found: dict[Kernel, sass.Function] = {}
    for cubin in folder.glob(f"*.sm_{arch}.cubin"):
        found |= {_kernel(name): function for name, function in sass.functions(cubin).items()}
    return found


def _kernel(mangled: str) -> Kernel:
    """Which kernel a name like _ZN7onepass4cuda12multi_tensorINS_4AdamIfLb1ELb0EEE6__halfLi496EE... names."""
    match = re.search(r"multi_tensorINS_4AdamI[fd]Lb(\d)ELb(\d)EEE(f|d|\d+__\w+?)Li(\d+)E", mangled)
    assert match, mangled
    decoupled, amsgrad, storage, slots = match.groups()
    storage = {"f": "float", "d": "double"}.get(storage, storage.lstrip("0123456789"))
    return decoupled == "1", amsgrad == "1", storage, int(slots)


@each_arch
def test_every_kernel_is_there(cubins: Path, arch: str):
    assert _functions(cubins, arch).keys() == KERNELS


@each_arch
def test_nothing_is_spilled(cubins: Path, arch: str):
    for kernel, function in _functions(cubins, arch).items():
        assert not function.spills(), kernel
        assert (function.stack, function.local) == (0, 0), kernel
        assert function.registers <= REGISTERS, kernel


def _vector_accesses(function: sass.Function) -> list[str]:
    """The 128-bit accesses, after proving that no narrower one is in their blocks."""
    found = []
    for block in function.blocks:
        accesses = sass.global_accesses(block)
        if any(sass.width(access) == 128 for access in accesses):
            assert {sass.width(access) for access in accesses} == {128}, accesses
            found += accesses
    return found


def _wanted(kernel: Kernel) -> tuple[int, int]:
    """(loads, stores) of one turn of the loop: a vector of parameter and gradient, and of each state as many
    vectors as hold that many elements."""
    _, amsgrad, storage, _ = kernel
    states = (3 if amsgrad else 2) * max(1, 4 // SIZES[storage])
    return 2 + states, 1 + states


@each_arch
def test_aligned_streams_move_once_in_128_bit_accesses(cubins: Path, arch: str):
    for kernel, function in _functions(cubins, arch).items():
        accesses = _vector_accesses(function)
        loads = sum(access.startswith("LDG") for access in accesses)
        unrolled, rest = divmod(loads, _wanted(kernel)[0])
        assert unrolled >= 1 and rest == 0, (kernel, accesses)
        assert len(accesses) - loads == unrolled * _wanted(kernel)[1], (kernel, accesses)


@each_arch
def test_no_access_has_to_find_out_what_memory_it_is_to(cubins: Path, arch: str):
    for kernel, function in _functions(cubins, arch).items():
        generic = [o for o in function.opcodes() if o.partition(".")[0] in ("LD", "ST", "ATOM")]
        assert not generic, (kernel, generic)


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_bytes_of_the_table_are_those_of_the_machine_code(cubins: Path, op):
    """16 bytes an access, by the elements in a vector: what the op table says that a float32 call moves."""
    loads, stores = _wanted((op.name == "adamw_", False, "float", SLOTS[0]))
    assert (loads + stores) * 16 // (16 // SIZES["float"]) == op.bytes_per_element
