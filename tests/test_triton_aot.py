"""The machine code of every Triton kernel, compiled ahead of time for GPUs that need not be there.

Asserted is what makes a kernel fast and no result shows: no register is spilled, so few are taken that all
programs of a launch run at a time, full tiles move in 128-bit accesses, and each stream moves once.
"""

import re
from itertools import product
from pathlib import Path
from typing import NamedTuple

import pytest
import sass
import torch
from conftest import need

CUDA, HIP = (80, 90, 100), ("gfx942",)
REGISTERS = 128  # a thread: kernels/optim.py launches as many programs as then fit


class Kernel(NamedTuple):
    dtype: str  # of the parameters
    decoupled: bool
    amsgrad: bool
    target: int | str

    def __str__(self) -> str:
        gpu = f"sm_{self.target}" if self.target in CUDA else self.target
        return f"adam{'w' * self.decoupled}-{'amsgrad-' * self.amsgrad}{self.dtype}-{gpu}"

    def accesses(self) -> tuple[int, int]:
        """(loads, stores) of 128 bits in which a thread moves its part of a full tile: 8 elements of each
        stream, of float64 4. One access takes all of them in a half type, else two do."""
        own = 1 if self.dtype in ("bfloat16", "float16") else 2
        states = 2 * (3 if self.amsgrad else 2)
        return 2 * own + states, own + states


def _kernels(targets: tuple) -> list:
    """All of them; those outside a few types and rules are slow."""
    rows = product(("float32", "bfloat16", "float16", "float64"), (False, True), (False, True), targets)
    kernels = [Kernel(*row) for row in rows]
    quick = [k for k in kernels if k.dtype in ("float32", "bfloat16") and k.decoupled != k.amsgrad]
    return [pytest.param(k, id=str(k), marks=() if k in quick else pytest.mark.slow) for k in kernels]


def _compile(kernel: Kernel) -> dict:
    """What the compiler makes of it, by stage."""
    need("triton")
    import triton
    from onepass.kernels import optim
    from onepass.kernels.multi_tensor import multi_tensor
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    values = optim.constants(getattr(torch, kernel.dtype), kernel.decoupled, kernel.amsgrad)
    signature = {"table": "*i64", "count": "i32", **dict.fromkeys(values, "constexpr")}
    source = ASTSource(multi_tensor, signature, values, attrs={(0,): [["tt.divisibility", 16]]})
    cuda = kernel.target in CUDA
    target = GPUTarget("cuda", kernel.target, 32) if cuda else GPUTarget("hip", kernel.target, 64)
    return triton.compile(source, target, optim.options(target.warp_size)).asm


# --- NVIDIA -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kernel", _kernels(CUDA))
def test_machine_code(kernel: Kernel, tmp_path: Path):
    code = _compile(kernel)["cubin"]
    assert {"cuobjdump", "nvdisasm"} <= sass.tools().keys()
    (tmp_path / "cubin").write_bytes(code)
    (function,) = sass.functions(tmp_path / "cubin").values()
    assert not function.spills()
    assert (function.stack, function.local) == (0, 0)
    assert function.registers <= REGISTERS
    assert _vectors([sass.global_accesses(block) for block in function.blocks], "LDG") == kernel.accesses()


def _vectors(blocks: list[list[str]], load: str) -> tuple[int, int]:
    """(loads, stores) of 128 bits, after proving that they keep to themselves: beside them there is no access
    of another width, which would be of a stream that moves by the element."""
    wide = [block for block in blocks if any(sass.width(opcode) == 128 for opcode in block)]
    assert all(sass.width(opcode) == 128 for block in wide for opcode in block), wide
    loads = sum(opcode.startswith(load) for block in wide for opcode in block)
    return loads, sum(map(len, wide)) - loads


# --- AMD --------------------------------------------------------------------------------------------------
_HIP = re.compile(r"^(?:\S+:|\s+s_c?branch\S*|\s+(global_(?:load|store)_\S+)).*$", re.MULTILINE)


def _hip_blocks(text: str) -> list[list[str]]:
    """Accesses to global memory by basic block, renamed as NVIDIA's: a dwordx4 is 128 bits."""
    blocks: list[list[str]] = [[]]
    for match in _HIP.finditer(text):
        if match[1]:
            blocks[-1].append(match[1].replace("_dwordx4", ".128"))
        else:
            blocks.append([])
    return blocks


@pytest.mark.parametrize("kernel", _kernels(HIP))
def test_machine_code_for_amd(kernel: Kernel):
    text = _compile(kernel)["amdgcn"]
    for spilled in ("vgpr_spill_count", "private_segment_fixed_size"):
        assert re.findall(rf"\.{spilled}:\s+(\d+)", text) == ["0"]
    assert int(re.findall(r"\.vgpr_count:\s+(\d+)", text)[0]) <= 168  # three waves a SIMD
    loads, stores = _vectors(_hip_blocks(text), "global_load")
    wanted_loads, wanted_stores = kernel.accesses()
    assert loads >= wanted_loads  # and neighbours in the table, which it reads together
    assert stores == wanted_stores


# --- the reader of machine code itself --------------------------------------------------------------------
LISTING = """
	.section	.text.one,"ax",@progbits
one:
.text.one:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/              @!P0 LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0020*/                   LDG.E.U16 R8, desc[UR4][R2.64+0x10] ;
        /*0030*/              @!P0 BRA `(.L_x_0) ;
        /*0040*/                   STL.64 [R1], R2 ;
.L_x_0:
        /*0050*/                   STG.E desc[UR4][R2.64], R4 ;
        /*0060*/                   EXIT ;
	.section	.text.two,"ax",@progbits
        /*0000*/                   EXIT ;
	.section	.nv.info,"",@"SHT_CUDA_INFO"
"""


def test_blocks_are_cut_at_labels_and_branches():
    blocks = sass.blocks_of(LISTING)
    assert blocks["one"] == [
        ["LDC", "LDG.E.128", "LDG.E.U16", "BRA"],
        ["STL.64"],
        ["STG.E", "EXIT"],
    ]
    assert blocks["two"] == [["EXIT"]]
    assert sass.Function(blocks["one"], 8, 0, 0).spills() == ["STL.64"]


def test_accesses_and_their_widths():
    block = ["LDG.E.128", "LDG.E.U16", "STG.E", "LDS.128", "LDG.E.64.CONSTANT", "STG.E.S8", "IADD"]
    assert [sass.width(opcode) for opcode in sass.global_accesses(block)] == [128, 16, 32, 64, 8]
    assert _vectors([["LDG.E.128", "STG.E.128"], ["LDG.E"], ["LDG.E.128"]], "LDG") == (2, 1)
    with pytest.raises(AssertionError):
        _vectors([sass.global_accesses(block)], "LDG")
