"""The CUDA room of fake quantization, run by the emulator on the cases of the op table.

As a program, in a process that has the sanitizer: MODE CONCURRENT CASE...; and a whole tensor in parts.
"""

import functools
import sys
from collections.abc import Callable
from typing import Any

import emulated
import emulator
import torch
from emulated_int8 import _groups
from emulated_optim import array
from onepass import backends
from onepass.ops import BY_NAME, Op
from onepass.testing import Case, Mismatch
from onepass.testing.verify import result_names
from torch import Tensor

SOURCES = (
    *(f"csrc/cuda/{name}" for name in ("quant.cu", "fake_quant.cu", "fake_quant_backward.cu")),
    "csrc/cuda/fake_quant_launch.cpp",
    "tests/emulator/fake_quant_bind.cpp",
)
FWD, BWD = OPS = (BY_NAME["fake_quant_fwd"], BY_NAME["fake_quant_bwd"])


@functools.cache
def built(mode: str) -> tuple[Any, emulator.Emulator]:
    """The module and its emulator."""
    path = emulator.build("emulated_fake_quant", [emulator.ROOT / source for source in SOURCES], mode)
    return emulator.load(path), emulator.Emulator(path)


# --- one call ---------------------------------------------------------------------------------------------
def _settings(module: Any, t: Tensor, call: dict[str, Any]) -> Any:
    return module.Settings(_groups(t, call["group_size"]), call["symmetric"], call["bits"])


def _dense(t: Tensor | None) -> Any:
    return None if t is None else array(t.contiguous())


def _forward(module: Any, call: dict[str, Any], out: dict[str, Any]) -> None:
    given = call["scale"] is not None
    if given:
        out["scales"].copy_(call["scale"])
        if call["zero_point"] is not None:
            out["zero_points"].copy_(call["zero_point"])
    results = [array(out[name]) for name in ("output", "mask", "scales", "zero_points")]
    module.forward(_dense(call["input"]), *results, given, _settings(module, call["input"], call))


def _backward(module: Any, call: dict[str, Any], out: dict[str, Any]) -> None:
    given = [_dense(call[name]) for name in ("grad_output", "mask", "input", "scale", "zero_point")]
    results = [array(out[name]) for name in ("grad_input", "grad_scale")]
    module.backward(*given, *results, _settings(module, call["grad_output"], call))


RUN: dict[Op, Callable[[Any, dict[str, Any], dict[str, Any]], None]] = {FWD: _forward, BWD: _backward}


def run(module: Any, op: Op, call: dict[str, Any], want: dict[str, Any]) -> dict[str, Any]:
    """The call as the emulated kernels leave it, with its results, which are like those wanted."""
    results = {
        name: torch.full_like(want[name], 77) for name in result_names(op)
    }  # what nobody writes is seen
    RUN[op](module, call, results)
    return {**call, **results}


def mismatches(module: Any, op: Op, case: Case, dtype: torch.dtype) -> list[Mismatch]:
    """What the emulated kernels leave otherwise than the reference."""
    return emulated.mismatches(op, case, dtype, lambda call, want: run(module, op, call, want))


# --- calls beside the cases -------------------------------------------------------------------------------
def both_ways(
    module: Any, x: Tensor, grad: Tensor, grid: tuple[Tensor | None, ...] = (None, None), **options: Any
) -> list[tuple[str, Tensor, Tensor]]:
    """Forward, and backward by the scales that it leaves: names, what the kernels make, and what is wanted.
    options: group_size, symmetric, bits."""
    scale, zero_point = grid
    names = result_names(FWD)
    call = {"input": x, "scale": scale, "zero_point": zero_point, **options}
    want = dict(zip(names, backends.target(FWD.reference)(**call), strict=True))
    got = run(module, FWD, call, want)
    found = [(name, got[name], want[name]) for name in names]
    kept = want["scales"], None if options["symmetric"] else want["zero_points"]
    call = {"grad_output": grad, "mask": want["mask"], "input": x, "scale": kept[0], "zero_point": kept[1]}
    names = result_names(BWD)
    want = dict(zip(names, backends.target(BWD.reference)(**call, **options), strict=True))
    got = run(module, BWD, {**call, **options}, want)
    return found + [(name, got[name], want[name]) for name in names]


def assert_both_ways(found: list[tuple[str, Tensor, Tensor]]) -> None:
    """All has the reference's bits, but for the gradient of scale, which is within 1e-6 of what is summed."""
    for name, got, want in found:
        if name == "grad_scale":
            torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6 * float(want.abs().mean()))
        else:
            torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


def randn(*shape: int, seed: int = 0, off: int = 0) -> Tensor:
    """off: elements by which its memory begins beyond where it is aligned."""
    numel = torch.Size(shape).numel()
    return torch.randn(numel + off, generator=torch.Generator().manual_seed(seed))[off:].view(shape)


def main(mode: str, concurrent: str, *names: str) -> None:
    module, switches = built(mode)
    switches.set_concurrent_blocks(concurrent == "True")
    count = emulated.assert_agreement(OPS, names, functools.partial(mismatches, module))
    options = {"group_size": 0, "symmetric": False, "bits": 8}
    assert_both_ways(both_ways(module, randn(20_003), randn(20_003, seed=1), **options))
    print(count + 1, "cases")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
