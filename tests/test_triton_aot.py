"""The machine code of every Triton kernel, compiled ahead of time for GPUs that need not be there.

Asserted is what makes a kernel fast and no result shows: no register is spilled, so few are taken that all
programs of a launch run at a time, full tiles move in 128-bit accesses, and each stream moves once.
"""

import importlib
import re
from itertools import product
from pathlib import Path
from typing import NamedTuple

import pytest
import sass
import torch
from conftest import need

CUDA, HIP = (80, 90, 100), ("gfx942",)
REGISTERS = 128  # a thread: kernels/machine.py launches as many programs as then fit
OF_FLOAT64 = 168  # three of the four programs then run at a time
# Kernels that keep one register on the stack while they divide in float64: the division is a call, and
# nothing else in them takes registers. One store and one load a row; of float64 parameters a tile.
AROUND_A_CALL = {("lion", "bfloat16"): "row", ("lion", "float16"): "row", ("sgd", "float64"): "tile"}


# A rule with which of its optional states it keeps, as bits: how many states that makes.
STATES = {
    ("adam", 0): 2, ("adam", 1): 3, ("adamw", 0): 2, ("adamw", 1): 3, ("sgd", 0): 0, ("sgd", 1): 1,
    ("rmsprop", 0): 1, ("rmsprop", 1): 2, ("rmsprop", 2): 2, ("rmsprop", 3): 3, ("adagrad", 0): 1,
    ("lion", 0): 1,
}  # fmt: skip
UNCOUNTED = ("sgd", "lion")


class Kernel(NamedTuple):
    rule: str
    variant: int
    dtype: str  # of the parameters
    states: str  # dtype
    ema: bool
    after: int  # what is left in the gradients
    target: int | str
    summed: bool = False  # gradients are float32, whatever the parameters are

    def __str__(self) -> str:
        gpu = f"sm_{self.target}" if self.target in CUDA else self.target
        phase = f"{'-ema' * self.ema}{('', '-zeroed', '-written')[self.after]}"
        phase += "-summed" * self.summed
        return f"{self.rule}{self.variant}-{self.dtype}-{self.states}{phase}-{gpu}"

    def accesses(self) -> tuple[int, int]:
        """(loads, stores) of 128 bits in which a thread moves its part of a full tile: 8 elements of each
        stream, of float64 4. One access takes all of them in a half type, else two do."""
        own = 1 if self.dtype in ("bfloat16", "float16") else 2
        states = (1 if self.states == "bfloat16" else 2) * STATES[self.rule, self.variant]
        average, grad = 2 * self.ema, 2 if self.summed else own
        return own + grad + states + average, own + states + average + grad * (self.after > 0)


# Every rule as it is most used, and every option with AdamW; the rest is slow.
PHASES = ((False, 0), (True, 0), (False, 1), (False, 2), (True, 1))
QUICK = {(*rule, "float32", "float32", False, 0) for rule in STATES} | {
    ("adamw", 0, "float32", "float32", True, 1),
    ("adamw", 0, "float32", "float32", False, 2),
    ("adamw", 0, "bfloat16", "float32", False, 0),
    ("adamw", 1, "bfloat16", "float32", True, 1),
    ("adamw", 0, "bfloat16", "bfloat16", False, 0),
    ("sgd", 1, "float16", "float32", False, 1),
}


def _kernels(targets: tuple) -> list:
    kernels = []
    for (rule, variant), dtype in product(STATES, ("float32", "bfloat16", "float16", "float64")):
        kept = ["float64"] if dtype == "float64" else ["float32", "bfloat16"]
        for states, phase in product(kept, PHASES):
            kind = (rule, variant, dtype, states, *phase)
            every = rule == "adamw" or (phase == (False, 0) and states == kept[0]) or phase == (True, 1)
            if kind in QUICK:
                kernels += [(Kernel(*kind, targets[0]), ())]
                kernels += [(Kernel(*kind, target), pytest.mark.slow) for target in targets[1:]]
            elif every and (STATES[rule, variant] or states == kept[0]):
                kernels += [(Kernel(*kind, target), pytest.mark.slow) for target in targets[-1:]]
    for after, marks in ((0, ()), (1, pytest.mark.slow), (2, pytest.mark.slow)):
        kernels += [(Kernel("adamw", 0, "bfloat16", "float32", False, after, targets[-1], True), marks)]
    return [pytest.param(kernel, id=str(kernel), marks=marks) for kernel, marks in kernels]


def _compile_for(target: int | str, kernel, signature: dict, values: dict) -> dict:
    """What the compiler makes of it, by stage."""
    import triton
    from onepass.kernels.machine import options
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind[0] == "*"}
    signature = {**signature, **dict.fromkeys(values, "constexpr")}
    source = ASTSource(kernel, signature, values, attrs=aligned)
    gpu = GPUTarget("cuda", target, 32) if target in CUDA else GPUTarget("hip", target, 64)
    return triton.compile(source, gpu, options(gpu.warp_size)).asm


def _compile(kernel: Kernel) -> dict:
    need("triton")
    from onepass.kernels import optim
    from onepass.kernels.multi_tensor import multi_tensor

    values = optim.constants(
        kernel.rule,
        getattr(torch, kernel.dtype),
        getattr(torch, kernel.states),
        torch.float32 if kernel.summed else None,
        variant=kernel.variant,
        states=STATES[kernel.rule, kernel.variant],
        counts=kernel.rule not in UNCOUNTED,
        ema=kernel.ema,
        grads_after=kernel.after,
    )
    return _compile_for(kernel.target, multi_tensor, {"table": "*i64", "count": "i32"}, values)


# Each kernel on lists of gradients: module, arguments, constants, and how many 128-bit loads and stores a
# thread makes of its 8 elements of a full tile, in all storage types: two for float32, one for the halves,
# four for float64; a half is added to a float32.
_LIST = {"at": "*i64", "count": "i32"}
_SUMS = {"at": "*i64", "sums": "*fp64", "stats": "*fp64", "count": "i32"}
_CLIP = {"at": "*i64", "stats": "*fp64", "max_norm": "*fp64", "count": "i32"}
GRADS = {
    "sum": ("grads.sum_grads", _SUMS, {"UNSCALE": False, "SIZE": 1024, "SUMS": 512}, (8, 0)),
    "unscale": ("grads.sum_grads", _SUMS, {"UNSCALE": True, "SIZE": 1024, "SUMS": 512}, (8, 8)),
    "clip": ("grads.scale_grads", _CLIP, {"SIZE": 1024}, (8, 8)),
    "accumulate": ("amp.add_grads", _LIST, {"SIZE": 1024}, (4 + 3 + 3 + 8, 2 + 2 + 2 + 4)),
}


def _compile_grads(name: str, target: int | str) -> dict:
    need("triton")
    path, signature, values, _ = GRADS[name]
    module, kernel = path.split(".")
    found = getattr(importlib.import_module(f"onepass.kernels.{module}"), kernel)
    return _compile_for(target, found, signature, values)


# --- NVIDIA -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kernel", _kernels(CUDA))
def test_machine_code(kernel: Kernel, tmp_path: Path):
    code = _compile(kernel)["cubin"]
    assert {"cuobjdump", "nvdisasm"} <= sass.tools().keys()
    (tmp_path / "cubin").write_bytes(code)
    (function,) = sass.functions(tmp_path / "cubin").values()
    if around := AROUND_A_CALL.get((kernel.rule, kernel.dtype)):
        assert len(function.spills()) <= 2
        assert around == "tile" or not any(map(_is_spilled, _moving(function)))
    else:
        assert not function.spills()
        assert (function.stack, function.local) == (0, 0)
    assert function.registers <= (OF_FLOAT64 if kernel.dtype == "float64" else REGISTERS)
    assert _vectors([sass.global_accesses(block) for block in function.blocks], "LDG") == kernel.accesses()


@pytest.mark.parametrize("name", GRADS)
@pytest.mark.parametrize("target", CUDA)
def test_machine_code_of_gradients_alone(name: str, target: int, tmp_path: Path):
    code = _compile_grads(name, target)["cubin"]
    (tmp_path / "cubin").write_bytes(code)
    (function,) = sass.functions(tmp_path / "cubin").values()
    assert not function.spills()
    assert (function.stack, function.local) == (0, 0)
    assert function.registers <= REGISTERS
    accesses = [opcode for block in function.blocks for opcode in sass.global_accesses(block)]
    wide = [opcode for opcode in accesses if sass.width(opcode) == 128]
    loads, stores = (sum(opcode.startswith(kind) for opcode in wide) for kind in ("LDG", "STG"))
    assert (loads, stores) == GRADS[name][3]


@pytest.mark.parametrize("target", CUDA)
def test_the_loss_scales_kernel_compiles(target: int, tmp_path: Path):
    need("triton")
    from onepass.kernels.amp import move_scale

    signature = {
        "scale": "*fp32", "tracker": "*i32", "skipped": "*i64", "found_infs": "*fp32", "count": "i32",
        "growth_factor": "i64", "backoff_factor": "i64", "min_scale": "i64", "max_scale": "i64",
        "growth_interval": "i32", "hysteresis": "i32",
    }  # fmt: skip
    (tmp_path / "cubin").write_bytes(_compile_for(target, move_scale, signature, {})["cubin"])
    (function,) = sass.functions(tmp_path / "cubin").values()
    assert not function.spills()


def _moving(function: sass.Function) -> list[list[str]]:
    """The blocks that move elements."""
    return [
        block for block in function.blocks if any(sass.width(o) == 128 for o in sass.global_accesses(block))
    ]


def _is_spilled(block: list[str]) -> bool:
    return any(opcode.startswith(("LDL", "STL")) for opcode in block)


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
    """Accesses to global memory by basic block, renamed as NVIDIA's: a dwordx4 is 128 bits. A load of two
    dwords is of a number in the table: it reads some beside the streams."""
    blocks: list[list[str]] = [[]]
    for match in _HIP.finditer(text):
        if match[1] == "global_load_dwordx2":
            continue
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


@pytest.mark.parametrize("name", GRADS)
@pytest.mark.parametrize("target", HIP)
def test_machine_code_of_gradients_alone_for_amd(name: str, target: str):
    text = _compile_grads(name, target)["amdgcn"]
    for spilled in ("vgpr_spill_count", "private_segment_fixed_size"):
        assert re.findall(rf"\.{spilled}:\s+(\d+)", text) == ["0"]
    assert text.count("global_load_dwordx4") >= GRADS[name][3][0]


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
