"""The CUDA room of the optimizers, run by the emulator on the cases of the op table.

As a program, in a process that has the sanitizer: MODE CONCURRENT CASE...
"""

import functools
import sys
from typing import Any

import emulator
import torch
from onepass.ops import OPS, Op
from onepass.testing import CASES, Case, Mismatch, compare, expected
from onepass.testing.compare import margins
from onepass.testing.verify import written
from torch import Tensor

SOURCES = ("csrc/cuda/optim.cu", "csrc/cuda/launch.cpp", "tests/emulator/optim_bind.cpp")


@functools.cache
def built(mode: str) -> tuple[Any, emulator.Emulator]:
    """The module and its emulator."""
    path = emulator.build("emulated_optim", [emulator.ROOT / source for source in SOURCES], mode)
    return emulator.load(path), emulator.Emulator(path)


def _array(t: Tensor) -> Any:
    t = t.detach()
    return (t.view(torch.uint16) if t.dtype == torch.bfloat16 else t).numpy()


def step(module: Any, name: str, call: dict[str, Any], **how: bool) -> None:
    """One call of adam_ or adamw_, in place. how: hyper_on_device, wait (for the stream)."""
    lists = [call[k] for k in ("params", "grads", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs") if call[k]]
    amsgrad = bool(call["max_exp_avg_sqs"])
    if not call["params"]:
        return
    scaling = [None if call[k] is None else _array(call[k].reshape(-1)) for k in ("grad_scale", "found_inf")]
    arrays = [[_array(t) for t in tensors] for tensors in lists]
    steps = [_array(t) for t in call["steps"]]
    module.step(name, amsgrad, arrays, steps, _array(call["hyper"]), call["groups"], *scaling, **how)


def mismatches(module: Any, op: Op, case: Case, dtype: torch.dtype) -> list[Mismatch]:
    """What the emulated kernels leave otherwise than the reference."""
    want, before, got = expected(op, case, 0, dtype, "cpu"), case(0, dtype), case(0, dtype)
    step(module, op.name, got)
    found = compare(op.name, case.name, got, want, before, written(op))
    for ours, old in zip(margins(got), margins(before), strict=True):
        if not torch.equal(ours, old):
            found.append(Mismatch(op.name, case.name, "memory", "beside the tensors was written"))
    return found


def main(mode: str, concurrent: str, *names: str) -> None:
    module, emulated = built(mode)
    emulated.set_concurrent_blocks(concurrent == "True")
    count = 0
    for op in OPS:
        for case in CASES[op.name]:
            for dtype in case.dtypes if case.name in names else ():
                found = mismatches(module, op, case, dtype)
                assert not found, "\n".join(map(str, found))
                count += 1
    print(count, "cases")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
