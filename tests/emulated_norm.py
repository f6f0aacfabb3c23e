"""The CUDA room of the normalizations, run by the emulator on the cases of the op table.

As a program, in a process that has the sanitizer: MODE CONCURRENT CASE...; in two launches, and in one
wherever that fits; and what blocks share out among each other.
"""

import functools
import sys
from typing import Any

import emulated
import emulator
import torch
from emulated_optim import array
from onepass import norm_checks
from onepass.ops import BY_NAME, OPS, Op
from onepass.testing import Case, Mismatch, norm_cases
from onepass.testing.verify import result_names
from torch import Tensor

SOURCES = (
    *(f"csrc/cuda/norm_{name}.cu" for name in ("f32", "f64", "bf16", "f16")),
    "csrc/cuda/norm_launch.cpp",
    "tests/emulator/norm_bind.cpp",
)
NORMS = [op for op in OPS if op.name.startswith("batch_norm")]
FWD, BWD = BY_NAME["batch_norm_fwd"], BY_NAME["batch_norm_bwd"]


@functools.cache
def built(mode: str) -> tuple[Any, emulator.Emulator]:
    """The module and its emulator."""
    path = emulator.build("emulated_norm", [emulator.ROOT / source for source in SOURCES], mode)
    return emulator.load(path), emulator.Emulator(path)


IMAGES = ("input", "residual", "grad_output")

# What decides how a device runs a call: its compute capability and the bytes of its L2 cache.
TWO_LAUNCHES = (80, 50 << 20)
CLUSTERS = (90, 50 << 20)  # and two launches where channels are innermost
SLICES = (90, 0)  # and clusters


def channels_last(t: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last)


# A device, its shared memory of a block in KB, and what several of its blocks work on together there: the
# last of them adds up; a barrier of the device, in three rounds; a barrier of clusters of two or four.
TOGETHER = (
    (TWO_LAUNCHES, 227, {"shape": (3, 64, 8, 16), "layout": channels_last}),
    (SLICES, 34, {"shape": (3, 192, 8, 8), "layout": channels_last}),
    (CLUSTERS, 16, {"shape": (5, 3, 33, 16)}),  # concurrent blocks have 4096 threads at most
)
DEVICES = {"two launches": TWO_LAUNCHES, "clusters": CLUSTERS, "slices": SLICES}


def use(switches: emulator.Emulator, device: tuple[int, int]) -> None:
    switches.set_compute_capability(*divmod(device[0], 10))
    switches.set_l2_cache(device[1])


def _array(value: Any) -> Any:
    return array(value) if isinstance(value, Tensor) else value


def _dense(call: dict[str, Any]) -> dict[str, Any]:
    """The images of a call as the kernels want them: dense, in the order of the input."""
    call = {**call, "input": norm_checks.dense_image(call["input"])}
    for name in IMAGES[1:]:
        if call.get(name) is not None:
            call[name] = torch.empty_like(call["input"]).copy_(call[name])
            if call["input"].data_ptr() % 16:  # and where such a tensor would begin
                call[name] = _as_misaligned(call[name])
    return call


def _as_misaligned(t: Tensor) -> Tensor:
    room = t.new_empty(t.numel() + 1)
    return room[1:].as_strided(t.shape, t.stride(), 1).copy_(t)


def run(module: Any, op: Op, call: dict[str, Any], want: dict[str, Any]) -> dict[str, Any]:
    """The call as the emulated kernels leave it, with its results, which are like those wanted."""
    names = result_names(op)
    results = {name: torch.full_like(want[name], 77) for name in names}  # what nobody writes is seen
    getattr(module, op.name)({name: _array(value) for name, value in {**_dense(call), **results}.items()})
    return {**call, **results}


def mismatches(module: Any, op: Op, case: Case, dtype: torch.dtype) -> list[Mismatch]:
    """What the emulated kernels leave otherwise than the reference."""
    return emulated.mismatches(op, case, dtype, lambda call, want: run(module, op, call, want))


def made(op: Op, **settings: Any) -> Case:
    """A case of forward or backward with these settings."""
    build = norm_cases.forward if op is FWD else norm_cases.backward
    return Case("made", functools.partial(build, op=op.name, **settings))


def agree_together(module: Any, switches: emulator.Emulator) -> int:
    """Runs TOGETHER forward and backward. Returns how many cases there were."""
    for device, kilobytes, settings in TOGETHER:
        use(switches, device)
        switches.set_max_shared_memory(kilobytes << 10)
        for op in (FWD, BWD):
            case = made(op, act="relu", residual=True, **settings)
            found = mismatches(module, op, case, torch.float32)
            assert not found, "\n".join(map(str, found))
    return 2 * len(TOGETHER)


def main(mode: str, concurrent: str, *names: str) -> None:
    module, switches = built(mode)
    switches.set_concurrent_blocks(concurrent == "True")
    count = 0
    for device in (TWO_LAUNCHES, SLICES):
        use(switches, device)
        count += emulated.assert_agreement(NORMS, names, functools.partial(mismatches, module))
    print(count + agree_together(module, switches), "cases")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
