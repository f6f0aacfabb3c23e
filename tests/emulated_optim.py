"""The CUDA room of the optimizers, run by the emulator on the cases of the op table.

As a program, in a process that has the sanitizer: MODE CONCURRENT CASE...
"""

import functools
import sys
from typing import Any

import emulated
import emulator
import torch
from onepass.ops import OPS, Op
from onepass.testing import Case, Mismatch
from torch import Tensor

SOURCES = (
    *(f"csrc/cuda/{name}.cu" for name in ("adam", "adamw", "rmsprop", "sgd", "adagrad", "lion")),
    *(f"csrc/cuda/{name}" for name in ("grads.cu", "amp.cu", "launch.cpp")),
    "tests/emulator/optim_bind.cpp",
)


# The others: emulated_norm.py, emulated_int8.py.
SERVED = [op for op in OPS if "CUDA" in op.cpp and op.bench not in ("norm", "int8", "fake_quant")]


@functools.cache
def built(mode: str) -> tuple[Any, emulator.Emulator]:
    """The module and its emulator."""
    path = emulator.build("emulated_optim", [emulator.ROOT / source for source in SOURCES], mode)
    return emulator.load(path), emulator.Emulator(path)


def array(t: Tensor) -> Any:
    t = t.detach()
    return (t.view(torch.uint16) if t.dtype == torch.bfloat16 else t).numpy()


def _arrays(tensors: list[Tensor]) -> list[Any]:
    return [array(t) for t in tensors]


def step(module: Any, op: Op, call: dict[str, Any], **how: bool) -> None:
    """One call of an optimizer's op, in place. how: hyper_on_device, wait (for the stream)."""
    if not call["params"]:
        return
    variant = sum(1 << k for k, name in enumerate(op.states[op.required :]) if call[name])
    names = ("params", "grads", *op.states, "emas")
    scalars = {
        name: None if call.get(name) is None else array(call[name].reshape(-1))
        for name in ("grad_scale", "found_inf", "stats")
    }
    module.step(
        op.name,
        variant,
        [_arrays(call[name]) for name in names if call[name]],
        bool(call["emas"]),
        _arrays(call["steps"]),
        array(call["hyper"]),
        call["groups"],
        grads_after=call.get("grads_after", 0),
        **scalars,
        **how,
    )


def grad_stats(module: Any, grads: list[Tensor], grad_scale: Tensor | None = None) -> Tensor:
    scale = None if grad_scale is None else array(grad_scale.reshape(-1))
    return torch.from_numpy(module.grad_stats(_arrays(grads), scale))


def clip_grads_(module: Any, grads: list[Tensor], stats: Tensor, max_norm: float) -> None:
    module.clip_grads_(_arrays(grads), array(stats), max_norm)


def unscale_(module: Any, grads: list[Tensor], grad_scale: Tensor) -> Tensor:
    return torch.from_numpy(module.unscale_(_arrays(grads), array(grad_scale.reshape(-1))))


def accumulate_(module: Any, sums: list[Tensor], grads: list[Tensor], inv_scale: Tensor | None) -> None:
    factor = None if inv_scale is None else array(inv_scale.reshape(-1))
    module.accumulate_(_arrays(sums), _arrays(grads), factor)


def update_scale_(
    module: Any, scale: Tensor, growth_tracker: Tensor, skipped: Tensor, found_infs: list[Tensor], **rule: Any
) -> None:
    states = [array(t.reshape(-1)) for t in (scale, growth_tracker, skipped)]
    module.update_scale_(*states, [array(t.reshape(-1)) for t in found_infs], *rule.values())


RUN = {
    "grad_stats": grad_stats,
    "clip_grads_": clip_grads_,
    "unscale_": unscale_,
    "accumulate_": accumulate_,
    "update_scale_": update_scale_,
}


def run(module: Any, op: Op, call: dict[str, Any]) -> dict[str, Any]:
    """The call as the emulated kernels leave it, with its results, if any."""
    if op.hyper:
        step(module, op, call)
        return call
    results = RUN[op.name](module, **call)
    return call if results is None else {**call, "results": results}


def mismatches(module: Any, op: Op, case: Case, dtype: torch.dtype) -> list[Mismatch]:
    """What the emulated kernels leave otherwise than the reference."""
    return emulated.mismatches(op, case, dtype, lambda call, want: run(module, op, call))


def main(mode: str, concurrent: str, *names: str) -> None:
    module, switches = built(mode)
    switches.set_concurrent_blocks(concurrent == "True")
    print(emulated.assert_agreement(SERVED, names, functools.partial(mismatches, module)), "cases")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
