"""The CUDA room of the 8-bit product's gradients, run by the emulator on the cases of the op table.

As a program, in a process that has the sanitizer: MODE CONCURRENT CASE...; with tiles of several sizes.
"""

import functools
import sys
from typing import Any, NamedTuple

import emulated
import emulator
import torch
from emulated_int8 import CUTS, MANY, _vector, plain
from emulated_optim import array
from onepass import backends
from onepass.ops import BY_NAME
from onepass.testing import Case, Mismatch
from torch import Tensor

SOURCES = (
    *(f"csrc/cuda/int8_backward{name}" for name in (".cu", "_ready.cu", "_launch.cpp")),
    "tests/emulator/int8_backward_bind.cpp",
)
OP = BY_NAME["int8_mm_bwd"]
NAMES = ("grad_input", "grad_weight")
reference = backends.target(OP.reference)


@functools.cache
def built(mode: str) -> tuple[Any, emulator.Emulator]:
    """The module and its emulator."""
    path = emulator.build("emulated_int8_bwd", [emulator.ROOT / source for source in SOURCES], mode)
    return emulator.load(path), emulator.Emulator(path)


def multiprocessors(module: Any, cut: str, lines: int, outputs: int) -> int | None:
    """So many that a device has tiles of this size for [lines, outputs]; None where none has."""
    tiles = -(-lines // 64) * -(-outputs // 64)
    return next((count for count in (1, tiles, MANY) if CUTS[module.cut(lines, outputs, count)] == cut), None)


# --- one call ---------------------------------------------------------------------------------------------
def launch(module: Any, call: dict[str, Any], results: dict[str, Tensor]) -> Tensor:
    """Writes the results; those without elements are not wanted. Returns what is left in scratch."""
    weight, input = plain(call["weight"]), call["input"].contiguous()
    (n, k), m = weight.shape, input.shape[:-1].numel()
    zero = call.get("input_zero_point")
    left = module.int8_mm_bwd(
        array(call["grad_output"].contiguous().view(m, n)),
        array(input.view(m, k)),
        array(weight),
        _vector(call.get("input_scale"), m),
        _vector(call.get("weight_scale"), n),
        None if zero is None or zero.numel() == 0 else _vector(zero, m),
        call.get("seed"),
        *(array(results[name]) for name in NAMES),
    )
    return torch.from_numpy(left)


def run(module: Any, call: dict[str, Any], want: dict[str, Any]) -> dict[str, Any]:
    """The call as the emulated kernels leave it, with its results, which are like those wanted."""
    results = {name: torch.full_like(want[name], 77) for name in NAMES}  # what nobody writes is seen
    launch(module, call, results)
    return {**call, **results}


def mismatches(module: Any, case: Case, dtype: torch.dtype) -> list[Mismatch]:
    """What the emulated kernels leave otherwise than the reference."""
    return emulated.mismatches(OP, case, dtype, lambda call, want: run(module, call, want))


def gradients(
    module: Any, g: Tensor, x: Tensor, weight: Tensor, only: str = "", **options: Any
) -> tuple[Tensor, Tensor]:
    """As the op makes them, in the dtype of g; `only` one of NAMES, and nothing for the other."""
    shapes = {"grad_input": x.shape, "grad_weight": weight.shape}
    want = {name: g.new_empty(shapes[name] if only in ("", name) else (0,)) for name in NAMES}
    got = run(module, {"grad_output": g, "input": x, "weight": weight, **options}, want)
    return got["grad_input"], got["grad_weight"]


# --- what a product is made of ----------------------------------------------------------------------------
class Ready(NamedTuple):
    q: Tensor  # [lines, width], as the next
    turned: Tensor  # [outputs, width]
    starts: Tensor | None
    scales: Tensor


def made_ready(module: Any, which: str, call: dict[str, Any]) -> Ready:
    """Before the gradient of this name: what the first launch leaves in scratch, where
    csrc/cuda/int8_backward_launch.cpp puts it."""
    x, weight = call["input"], call["weight"]
    shape = x.shape if which == "grad_input" else weight.shape
    results = {name: torch.empty(shape if name == which else 0) for name in NAMES}
    left = launch(module, call, results)
    lines, outputs = shape
    depth = weight.shape[0] if which == "grad_input" else x.shape[0]
    width = -(-depth // 16) * 16
    corrects = which == "grad_weight" and (x.dtype == torch.uint8 or "input_zero_point" in call)
    sizes = lines * width, outputs * width, 8 * lines * corrects, 4 * lines
    q, turned, starts, scales = left.split(sizes)
    return Ready(
        q.view(torch.int8).view(lines, width),
        turned.view(torch.int8).view(outputs, width),
        starts.clone().view(torch.int64) if corrects else None,
        scales.clone().view(torch.float32),
    )


def main(mode: str, concurrent: str, *names: str) -> None:
    module, switches = built(mode)
    switches.set_concurrent_blocks(concurrent == "True")
    count = 0
    for device in (1, MANY):
        switches.set_multiprocessors(device)
        count += emulated.assert_agreement([OP], names, lambda _, *case: mismatches(module, *case))
    print(count, "cases")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
