"""Launches of Triton's kernels, recorded and compiled ahead of time, without a GPU."""

from typing import Any, NamedTuple

import torch

CODES = {
    torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int32: "*i32",
    torch.int64: "*i64", torch.int8: "*i8", torch.uint8: "*u8",
}  # fmt: skip
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")
SHARED = {80: 163, 90: 227, 100: 227, 942: 64}  # KB that a program may have; 942: gfx942


class Launch(NamedTuple):
    kernel: Any
    arguments: tuple
    constants: dict[str, Any]


def _kind(argument: Any) -> str:
    """As Triton's launch has it: 1 is known to the compiler."""
    if isinstance(argument, torch.Tensor):
        return CODES[argument.dtype]
    if hasattr(argument, "block_shape"):
        return f"tensordesc<{CODES[argument.base.dtype][1:]}{argument.block_shape}>"
    return "constexpr" if argument is None or argument == 1 else "i32"


def compiled(launch: Launch, target: int) -> dict:
    """target: an sm's number, or 942."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, arguments, constants = launch
    names = kernel.arg_names[: len(arguments)]
    signature = {name: _kind(a) for name, a in zip(names, arguments, strict=True)}
    even = {
        i
        for i, a in enumerate(arguments)
        if isinstance(a, torch.Tensor) or (isinstance(a, int) and a % 16 == 0)
    }
    attrs = {(i,): [["tt.divisibility", 16]] for i in even}
    options = {name: constants[name] for name in OPTIONS if name in constants}
    values = {name: value for name, value in constants.items() if name not in OPTIONS}
    values |= {name: a for name, a in zip(names, arguments, strict=True) if signature[name] == "constexpr"}
    signature |= dict.fromkeys(values, "constexpr")
    source = ASTSource(kernel, signature, values, attrs=attrs)
    gpu = GPUTarget("hip", "gfx942", 64) if target == 942 else GPUTarget("cuda", target, 32)
    return triton.compile(source, gpu, options).asm
