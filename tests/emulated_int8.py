"""The CUDA room of quantization and of the 8-bit product, run by the emulator on the cases of the op table.

As a program, in a process that has the sanitizer: MODE CONCURRENT CASE...; with tiles of every size; and a
whole tensor in two launches.
"""

import functools
import sys
from collections.abc import Callable
from typing import Any

import emulated
import emulator
import torch
from emulated_optim import array
from onepass import backends
from onepass.ops import BY_NAME, Op
from onepass.testing import Case, Mismatch
from onepass.testing.verify import result_names
from torch import Tensor

SOURCES = (
    *(f"csrc/cuda/{name}.cu" for name in ("quant", "int8", "int8_weight")),
    *(f"csrc/cuda/{name}_launch.cpp" for name in ("quant", "int8")),
    "tests/emulator/int8_bind.cpp",
)
QUANTIZE, DEQUANTIZE, MM, LINEAR, WEIGHT_ONLY = OPS = tuple(
    BY_NAME[name] for name in ("quantize", "dequantize", "int8_mm", "int8_linear", "int8_weight_only_mm")
)
CUTS = ("rows", "small", "middle", "large")  # csrc/cuda/int8.h
MANY = 1 << 20  # multiprocessors: none is given a tile that is not of the smallest

_unpack = backends.target(BY_NAME["int8_unpack"].reference)


@functools.cache
def built(mode: str) -> tuple[Any, emulator.Emulator]:
    """The module and its emulator."""
    path = emulator.build("emulated_int8", [emulator.ROOT / source for source in SOURCES], mode)
    return emulator.load(path), emulator.Emulator(path)


def multiprocessors(module: Any, cut: str, m: int, n: int) -> int | None:
    """So many that a device goes about [m, n] this way; None where none does."""
    tiles = -(-m // 64) * -(-n // 64)
    return next((count for count in (1, tiles, MANY) if CUTS[module.cut(m, n, count)] == cut), None)


# --- one call ---------------------------------------------------------------------------------------------
def _array(t: Tensor | None) -> Any:
    return None if t is None else array(t)


def _vector(t: Tensor | None, n: int) -> Any:
    """A value each: one for all of them is repeated."""
    return None if t is None else array(t.reshape(-1).expand(n).contiguous())


def _groups(t: Tensor, size: int) -> list[int]:
    columns = t.shape[-1] if t.dim() else 1
    if size == 0:
        return [1, t.numel(), max(1, t.numel())]
    rows = t[..., 0].numel() if t.dim() and columns else t.shape[:-1].numel()
    return [rows, columns, max(1, columns) if size == -1 else size]


def _quantize(module: Any, call: dict[str, Any], out: dict[str, Any]) -> None:
    given = call["scale"] is not None
    if given:
        out["scales"].copy_(call["scale"])
        if call["zero_point"] is not None:
            out["zero_points"].copy_(call["zero_point"])
    groups = _groups(call["input"], call["group_size"])
    results = [array(out[name]) for name in ("values", "scales", "zero_points")]
    module.quantize(array(call["input"].contiguous()), *results, groups, given, call["bits"])


def _dequantize(module: Any, call: dict[str, Any], out: dict[str, Any]) -> None:
    groups = _groups(call["input"], call["group_size"])
    given = [_array(call[name]) for name in ("scale", "zero_point")]
    module.dequantize(array(call["input"].contiguous()), *given, groups, array(out["results"]))


def plain(weight: Tensor) -> Tensor:
    """A weight as CUDA takes it."""
    if weight.dtype == torch.int8:
        return weight.contiguous()
    n, k = weight[16:32].view(torch.int64).tolist()
    return _unpack(weight, n, k)


def _product(module: Any, call: dict[str, Any], out: dict[str, Any]) -> None:
    weight, input = plain(call["weight"]), call["input"].contiguous()
    n, m = weight.shape[0], input.shape[:-1].numel()
    module.int8_mm(
        array(input.reshape(m, input.shape[-1])),
        array(weight),
        _vector(call.get("input_scale"), m),
        _vector(call["weight_scale"], n),
        _vector(call.get("input_zero_point"), m),
        _vector(call["bias"], n),
        call["act"],
        array(out["results"]),
        call.get("symmetric", True),
        call.get("bits", 8),
        *(_array(call.get(name)) for name in ("output_scale", "output_zero_point")),
    )


def _weight_only(module: Any, call: dict[str, Any], out: dict[str, Any]) -> None:
    weight, input = plain(call["weight"]), call["input"].contiguous()
    n, (k,) = weight.shape[0], input.shape[-1:]
    module.int8_weight_only_mm(
        array(input.reshape(input.shape[:-1].numel(), k)),
        array(weight),
        _vector(call["weight_scale"], n),
        _vector(call["bias"], n),
        call["act"],
        array(out["output"]),
    )


RUN: dict[str, Callable[[Any, dict[str, Any], dict[str, Any]], None]] = {
    "quantize": _quantize,
    "dequantize": _dequantize,
    "int8_mm": _product,
    "int8_linear": _product,
    "int8_weight_only_mm": _weight_only,
}


def run(module: Any, op: Op, call: dict[str, Any], want: dict[str, Any]) -> dict[str, Any]:
    """The call as the emulated kernels leave it, with its results, which are like those wanted."""
    results = {
        name: torch.full_like(want[name], 77) for name in result_names(op)
    }  # what nobody writes is seen
    RUN[op.name](module, call, results)
    return {**call, **results}


def mismatches(module: Any, op: Op, case: Case, dtype: torch.dtype) -> list[Mismatch]:
    """What the emulated kernels leave otherwise than the reference."""
    return emulated.mismatches(op, case, dtype, lambda call, want: run(module, op, call, want))


def sums(module: Any, x: Tensor, weight: Tensor, zero_point: Tensor | None = None) -> Tensor:
    """The exact product of whole numbers."""
    out = torch.full((x.shape[0], weight.shape[0]), 77, dtype=torch.int32)
    call = {"input": x, "weight": weight, "weight_scale": None, "bias": None, "act": None}
    _product(module, {**call, "input_zero_point": zero_point}, {"results": out})
    return out


def agree_on_a_whole_tensor(module: Any) -> None:
    input = torch.randn(20_003, generator=torch.Generator().manual_seed(0))
    settings = {"group_size": 0, "symmetric": False, "bits": 8}
    want = backends.target(QUANTIZE.reference)(input, **settings)
    results = dict(zip(result_names(QUANTIZE), want, strict=True))
    got = run(module, QUANTIZE, {"input": input, "scale": None, "zero_point": None, **settings}, results)
    assert all(torch.equal(got[name], value) for name, value in results.items())


def main(mode: str, concurrent: str, *names: str) -> None:
    module, switches = built(mode)
    switches.set_concurrent_blocks(concurrent == "True")
    count = 0
    for device in (1, 3, MANY):
        switches.set_multiprocessors(device)
        count += emulated.assert_agreement(OPS, names, functools.partial(mismatches, module))
    agree_on_a_whole_tensor(module)
    print(count + 1, "cases")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
