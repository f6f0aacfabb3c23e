"""The machine code of batch normalization's Triton kernels, compiled ahead of time without a GPU.

Calls are made with recorders in place of kernels, so what is compiled is what the ops launch. Asserted is
what makes a kernel fast and no result shows: no register is spilled where elements move, so few are taken
that four programs run at a time on a multiprocessor, and streams move once, in accesses of 128 bits.
"""

from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import sass
import torch
from conftest import need

CUDA = (80, 90)
SETTLE = ("settle_running", "settle_moments", "settle_sums")
KERNELS = ("measure", "measure_grads", "normalise_all", "grads_of_inputs", *SETTLE)
SHAPES = {"planar": (8, 64, 28, 28), "interleaved": (8, 64, 28, 28), "odd": (8, 64, 7, 7)}
REGISTERS = 128  # a thread: four programs of 128 threads then run at a time
CODES = {
    torch.float32: "*fp32", torch.float64: "*fp64", torch.bfloat16: "*bf16", torch.float16: "*fp16",
    torch.int64: "*i64", torch.int32: "*i32", torch.uint8: "*u8",
}  # fmt: skip


class Launch(NamedTuple):
    kernel: Any
    arguments: tuple
    constants: dict[str, Any]


def _kind(argument: Any) -> str:
    if isinstance(argument, torch.Tensor):
        return CODES[argument.dtype]
    return "constexpr" if argument is None else "i64" if abs(argument) >= 2**31 else "i32"


def _compile(launch: Launch, target: int) -> dict:
    import triton
    from onepass.kernels.machine import options
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, arguments, constants = launch
    names = kernel.arg_names[: len(arguments)]
    signature = {name: _kind(a) for name, a in zip(names, arguments, strict=True)}
    for number in ("eps", "momentum", "negative_slope"):
        if number in signature:
            signature[number] = "i64"
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind[0] == "*"}
    values = {name: None for name, a in zip(names, arguments, strict=True) if a is None} | constants
    signature |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(kernel, signature, values, attrs=aligned)
    return triton.compile(source, GPUTarget("cuda", target, 32), options(32)).asm


def _launches(dtype: torch.dtype, layout: str, act: str | None, residual: bool) -> dict[str, Launch]:
    """What all ops launch on such an input."""
    from onepass.kernels import norm, norm_plan

    launches: dict[str, Launch] = {}

    def record(kernel: Any, _: Any, *arguments: Any, num_warps: int, **constants: Any) -> None:
        del constants["enable_fp_fusion"]
        launches[kernel.fn.__name__] = Launch(kernel, arguments, constants)

    x = torch.zeros(SHAPES[layout], dtype=dtype)
    if layout == "interleaved":
        x = x.contiguous(memory_format=torch.channels_last)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    vectors = [torch.ones(x.shape[1], dtype=wide) for _ in range(4)]
    z = x if residual else None
    options = {"act": act}
    launch, norm_plan.launch = norm_plan.launch, record
    try:
        norm.batch_norm_apply(
            x, z, *vectors[:2], norm.batch_norm_stats(x), *vectors[2:], torch.tensor(0), **options
        )
        norm.batch_norm_eval(x, z, *vectors, **options)
        _, stats, mask = norm.batch_norm_fwd(x, z, *vectors, torch.tensor(0), **options)
        saved = (x, x, z if act == "silu" else None, *vectors[:2], stats, mask)
        norm.batch_norm_bwd_apply(*saved, norm.batch_norm_bwd_stats(*saved, **options)[0], **options)
        norm.batch_norm_bwd(*saved, **options)
    finally:
        norm_plan.launch = launch
    return launches


# A tile is 2048 elements, 16 a thread: so many accesses of 128 bits a stream. Odd pixels have as many: what
# is read starts on a vector, wherever the channel does.
OWN = {"float32": 4, "bfloat16": 2, "float16": 2}


def _accesses(kernel: str, dtype: str, layout: str) -> list[tuple[int, int]]:
    """(loads, stores) of 128 bits in each run of code that moves a tile, for relu behind a residual."""
    own = OWN[dtype]
    # Of the loads, those of coefficients: four of each where eight channels lie side by side.
    coefficients = 4 if layout == "interleaved" else 0
    return {
        "measure": [(own, 0)] * 4,  # a first tile for its mean, all tiles; twice again for what is not finite
        "measure_grads": [(2 * own, 0)],
        "normalise_all": [(2 * own + 3 * coefficients, own)],
        "grads_of_inputs": [(2 * own + 4 * coefficients, 2 * own)],
    }[kernel]


def _tiles(function: sass.Function) -> list[Counter]:
    """Accesses of each basic block that moves a whole tile. Where memory may end within a tile, elements are
    stored one by one."""
    found = []
    for block in function.blocks:
        accesses = Counter(o[:3] + str(sass.width(o)) for o in sass.global_accesses(block))
        if accesses["LDG128"] and not accesses["STG16"] + accesses["STG32"]:
            found.append(accesses)
    return found


def _function(launch: Launch, target: int, folder: Path) -> sass.Function:
    (folder / "cubin").write_bytes(_compile(launch, target)["cubin"])
    (function,) = sass.functions(folder / "cubin").values()
    return function


def _keeps_registers(function: sass.Function) -> bool:
    """Nothing is spilled where elements move in a loop; around what a program does once (its first tile,
    a division in float64), little."""
    moving = [b for b in function.blocks[1:] if any(sass.width(o) == 128 for o in sass.global_accesses(b))]
    spilled = any(opcode.startswith(("LDL", "STL")) for block in moving for opcode in block)
    return not spilled and len(function.spills()) <= 4


QUICK = {
    ("measure", "interleaved"),
    ("measure_grads", "odd"),
    ("normalise_all", "planar"),
    ("grads_of_inputs", "interleaved"),
}


def _rows() -> list:
    rows = []
    for kernel, layout, dtype, target in product(KERNELS[:4], SHAPES, OWN, CUDA):
        quick = (kernel, layout) in QUICK and dtype == "bfloat16" and target == CUDA[-1]
        marks = [] if quick else [pytest.mark.slow]
        rows.append(pytest.param(kernel, layout, dtype, target, marks=marks))
    return rows


@pytest.mark.parametrize("kernel, layout, dtype, target", _rows())
def test_machine_code(kernel: str, layout: str, dtype: str, target: int, tmp_path: Path):
    need("triton")
    launch = _launches(getattr(torch, dtype), layout, "relu", residual=True)[kernel]
    function = _function(launch, target, tmp_path)
    assert function.registers <= REGISTERS and _keeps_registers(function)
    tiles = _tiles(function)
    assert [(t["LDG128"], t["STG128"]) for t in tiles] == _accesses(kernel, dtype, layout)
    allowed = {"LDG128", "STG128", "LDG8", "STG8"} | (set() if layout == "interleaved" else {"LDG32"})
    assert all({k for k in t if t[k]} <= allowed for t in tiles), tiles
    assert all(t["LDG8"] <= 2 and t["STG8"] <= 2 for t in tiles), tiles  # a byte of the mask for eight


@pytest.mark.slow
@pytest.mark.parametrize("act, residual", ((None, False), ("leaky_relu", False), ("silu", True)))
@pytest.mark.parametrize("layout", SHAPES)
@pytest.mark.parametrize("dtype", ("bfloat16", pytest.param("float64", marks=pytest.mark.slow)))
def test_all_kernels_keep_their_registers(
    dtype: str, layout: str, act: str | None, residual: bool, tmp_path: Path
):
    need("triton")
    launches = _launches(getattr(torch, dtype), layout, act, residual)
    assert launches.keys() == set(KERNELS)
    for launch in launches.values():
        assert _keeps_registers(_function(launch, CUDA[-1], tmp_path))
