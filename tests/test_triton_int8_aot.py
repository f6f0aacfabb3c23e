"""The machine code of the 8-bit products' Triton kernels, compiled ahead of time without a GPU.

Products are made with a recorder in place of the launch, so what is compiled is what the ops launch. Asserted
is what makes a kernel fast and no result shows: tensor cores multiply bytes as bytes (IMMA on sm_80, wgmma on
sm_90, tcgen05 on sm_100), nothing is spilled, memory moves in accesses of 128 bits or by descriptors.
"""

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import sass
import torch
from conftest import need

CODES = {
    torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int32: "*i32",
    torch.int8: "*i8", torch.uint8: "*u8",
}  # fmt: skip
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")
ROWS = {"wide": 4096, "square": 1200, "low": 40, "flat": 9}  # of x, at which tiles are the ones of that name
SHAPE = (4096, 1024)  # n, k


class Launch(NamedTuple):
    kernel: Any
    arguments: tuple
    constants: dict[str, Any]


def launch_of(
    m: int, x: torch.dtype, y: torch.dtype, target: int, zeros: bool = False, act: str | None = None, k: int = 1024
) -> Launch:
    """What a product launches on a GPU of this compute capability; 942: gfx942."""
    from onepass.kernels import int8, int8_plan
    from onepass.kernels.machine import Processors

    shared = {80: 163, 90: 227, 100: 227, 120: 99, 942: 64}[target] * 1024
    machine = Processors(132, shared, target != 942, 90 <= target < 900)
    launches = []

    def record(kernel: Any, _: int, *arguments: Any, **constants: Any) -> None:
        launches.append(Launch(kernel, arguments, constants))

    n = SHAPE[0]
    rows, outputs, zero = torch.ones(m, 1), torch.ones(n), torch.ones(m, 1, dtype=torch.int32)
    input, w = torch.ones(m, k).to(x), torch.ones(n, k, dtype=torch.int8)
    vectors = (rows if input.dtype in (torch.int8, torch.uint8) else None, zero if zeros else None, outputs, outputs)
    before = int8_plan.launch, int8.processors_of
    int8_plan.launch, int8.processors_of = record, lambda _: machine
    try:
        int8._Product(input, w, vectors, act, y).run()
    finally:
        int8_plan.launch, int8.processors_of = before
    (launch,) = launches
    return launch


def _kind(argument: Any) -> str:
    if isinstance(argument, torch.Tensor):
        return CODES[argument.dtype]
    if hasattr(argument, "block_shape"):
        return f"tensordesc<{CODES[argument.base.dtype][1:]}{argument.block_shape}>"
    return "constexpr" if argument is None else "i32"


def compiled(launch: Launch, target: int) -> dict:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, arguments, constants = launch
    names = kernel.arg_names[: len(arguments)]
    signature = {name: _kind(a) for name, a in zip(names, arguments, strict=True)}
    even = [kind[0] == "*" or (kind == "i32" and a % 16 == 0) for kind, a in zip(signature.values(), arguments)]
    attrs = {(i,): [["tt.divisibility", 16]] for i, divides in enumerate(even) if divides}
    options = {name: constants[name] for name in OPTIONS}
    values = {name: value for name, value in constants.items() if name not in OPTIONS}
    values |= {name: None for name, a in zip(names, arguments, strict=True) if a is None}
    signature |= dict.fromkeys(values, "constexpr")
    source = ASTSource(kernel, signature, values, attrs=attrs)
    gpu = GPUTarget("hip", "gfx942", 64) if target == 942 else GPUTarget("cuda", target, 32)
    return triton.compile(source, gpu, options).asm
