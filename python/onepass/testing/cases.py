"""The inputs of every op: named cases, each a function from a seed, a dtype and a device to one call.

A call is a dict from the schema's argument names to values. The same seed gives the same numbers on every
device (they are drawn on the CPU) and the same memory layout, so that two backends can be given equal,
separate inputs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ..ops import OPS
from . import int8_cases, layouts, norm_cases, quant_cases
from .amp_cases import ACCUMULATE, SCALE, UNSCALE, accumulate, unscale, update_scale
from .grad_cases import CLIP, STATS, clip_grads, grad_stats
from .optim_cases import optimizer, variant_names

HALF = (torch.bfloat16, torch.float16)
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

Call = dict[str, Any]


@dataclass(frozen=True)
class Case:
    name: str
    build: Callable[[torch.Generator, torch.dtype, str], Call]
    dtypes: tuple[torch.dtype, ...] = FLOATS  # of the op's main argument

    def __call__(self, seed: int, dtype: torch.dtype, device: str = "cpu") -> Call:
        return self.build(torch.Generator().manual_seed(seed), dtype, device)

    @property
    def packed(self) -> bool:
        """Has it a weight as only the CPU's own kernels and the reference read it?"""
        return self.name.startswith("packed_")


# --- optimizers -------------------------------------------------------------------------------------------
# Below, at and above the widths of a vector, of an unrolled loop, of a tile and of the cut between threads.
_ODD = [(n,) for n in (1, 3, 7, 8, 15, 16, 17, 63, 64, 65, 257, 1000, 4099)]
_IMAGES = [(4, 3, 5, 7), (8, 16, 3, 3)]
_MATRICES = [(5, 7), (33, 64), (3, 1), (1, 9), (2, 3, 300)]
_SMALL = [(3, 5), (17,), (1,), (300,), (8, 8)]
_GROUPS: tuple[dict[str, float], ...] = (
    {},
    {"lr": 2e-2, "weight_decay": 0.5, "maximize": 1.0},
    {"lr": 5e-3, "beta1": 0.95, "beta2": 0.98, "eps": 1e-3, "weight_decay": 0.0, "lr_decay": 0.1},
    {"beta1": 0.0, "beta2": 0.5, "alpha": 0.5, "momentum": 0.5, "dampening": 0.5},
    {"lr": 0.0, "beta2": 0.0, "nesterov": 1.0},
)
_BAD = (float("inf"), float("-inf"), float("nan"))
_FEW: dict[str, tuple[torch.dtype, ...]] = {
    # Enough elements for eight threads to have work, so not in every dtype.
    "threads": (torch.float32, torch.bfloat16),
    # float16 has no such numbers.
    "tiny": (torch.float32, torch.float64, torch.bfloat16),
    # float64 parameters keep float64 states.
    "bf16_states": (torch.float32, torch.bfloat16, torch.float16),
    "bf16_states_phase": (torch.float32, torch.bfloat16, torch.float16),
    "float32_grads": HALF,
    "float32_grads_phase": HALF,
    "float32_grads_sliced": HALF,
    "float32_grads_misaligned": HALF,
    "float32_grads_zeroed": HALF,
}


def _all(layout: layouts.Layout) -> dict[str, layouts.Layout]:
    return {"params": layout, "grads": layout, "states": layout}


# Weight decay stays out of a first step: where weight_decay * p all but cancels the gradient, a zero state
# leaves nothing but the rounding of their sum, and the update lr * g / |g| makes that large.
_NO_DECAY = ({"weight_decay": 0.0},)

# What a step does around its rule. Every optimizer has these.
_PHASE: dict[str, dict[str, Any]] = {
    "groups": {"rows": _GROUPS, "shapes": [(40, 3), (5,), (65,), (7, 9), (12,), (33, 2), (1,)]},
    "odd_sizes": {"shapes": _ODD},
    "empty_and_0_dim": {"shapes": [(0,), (), (3,), (0, 5), (1,), (2, 0, 4)]},
    "no_tensors": {"shapes": []},
    "grad_transposed": {"shapes": _MATRICES, "grads": layouts.transposed},
    "sliced": {"shapes": _MATRICES, **_all(layouts.every_second)},
    "misaligned": {"shapes": _SMALL, **_all(layouts.one_buffer)},
    "first_step": {"steps": (0,), "first": True, "rows": _NO_DECAY},
    "scaled": {"grad_scale": 1024.0},
    "skipped": {"grad_scale": 1024.0, "found_inf": 1.0, "spoil": _BAD, "ema": True},
    "inf_and_nan": {"spoil": _BAD * 9},
    "l1": {"rows": ({"l1": 0.05},)},
    "ema": {"ema": True},
    "zeroed": {"grads_after": 1},
    "counted": {"step_counters": True, "rows": ({"dampening": 0.5},), "steps": (0, 1, 7)},
    "written": {"grads_after": 2, "grad_scale": 8.0, "rows": ({"maximize": 1.0},)},
    "clipped": {"rows": ({"max_grad_norm": 0.7},), "stats": (1.9, 0.0)},
    "not_clipped": {"rows": ({"max_grad_norm": 2.5},), "stats": (1.9, 0.0)},
    "skipped_by_stats": {"stats": (float("inf"), 1.0), "spoil": _BAD, "ema": True, "grads_after": 2},
    "skipped_and_zeroed": {"stats": (1.0, 1.0), "spoil": _BAD, "grads_after": 1, "found_inf": 0.0},
    "phase": {
        "shapes": _ODD,
        "rows": (
            {"max_grad_norm": 0.7, "l1": 0.01, "lr": 2e-2},
            {"max_grad_norm": 0.7, "l1": 0.01, "lr": 3e-2},
        ),
        "grad_scale": 1024.0,
        "found_inf": 0.0,
        "stats": (3.0, 0.0),
        "ema": True,
        "grads_after": 1,
    },
    "phase_sliced": {
        "shapes": _MATRICES,
        "ema": True,
        "grads_after": 2,
        "rows": ({"max_grad_norm": 0.7},),
        "stats": (3.0, 0.0),
        **_all(layouts.every_second),
    },
    "phase_misaligned": {"shapes": _SMALL, "ema": True, "grads_after": 1, **_all(layouts.one_buffer)},
    # With a beta2 of 0.999 an average of squares would not move by as much as bfloat16 can tell.
    "bf16_states": {"shapes": _ODD, "bf16_states": True, "rows": ({"beta2": 0.9},)},
    "bf16_states_phase": {
        "bf16_states": True,
        "rows": ({"beta2": 0.9},),
        "ema": True,
        "grads_after": 2,
        "grad_scale": 4.0,
    },
    "float32_grads": {"shapes": _ODD, "float32_grads": True},
    "float32_grads_phase": {
        "float32_grads": True,
        "rows": ({"max_grad_norm": 0.7},),
        "stats": (3.0, 0.0),
        "ema": True,
        "grads_after": 2,
        "grad_scale": 4.0,
    },
    "float32_grads_zeroed": {
        "shapes": _ODD,
        "float32_grads": True,
        "stats": (1.0, 1.0),
        "spoil": _BAD,
        "grads_after": 1,
    },
}
# What only the memory of a step decides, whatever its rule: tried with Adam, for all.
_MEMORY: dict[str, dict[str, Any]] = {
    "groups_amsgrad": {"rows": _GROUPS, "shapes": [(40, 3), (5,), (65,), (7, 9), (12,)], "variant": 1},
    "odd_sizes_amsgrad": {"shapes": _ODD, "variant": 1},
    # Long enough for two threads, and for a thread to walk in strands: csrc/cpu/strands.h.
    "threads": {"shapes": [(141_003,), (17,), (90_000,), (5,)], "steps": (3, 4)},
    "channels_last": {"shapes": _IMAGES, **_all(layouts.channels_last)},
    "transposed": {"shapes": _MATRICES, **_all(layouts.transposed)},
    "param_sliced": {"shapes": _MATRICES, "params": layouts.every_second, "variant": 1},
    "grad_channels_last": {"shapes": _IMAGES, "grads": layouts.channels_last},
    "grad_sliced": {"shapes": _MATRICES, "grads": layouts.every_second, "grads_after": 1},
    "grad_same_rows": {"shapes": _MATRICES, "grads": layouts.same_rows},
    "grad_one_value": {"shapes": _MATRICES, "grads": layouts.one_value},
    "states_transposed": {"shapes": _MATRICES, "states": layouts.transposed, "variant": 1, "ema": True},
    "grad_misaligned": {"shapes": _ODD, "grads": layouts.one_buffer},
    "float32_grads_sliced": {"shapes": _MATRICES, "float32_grads": True, "grads": layouts.every_second},
    "float32_grads_misaligned": {"shapes": _ODD, "float32_grads": True, "grads": layouts.one_buffer},
    "many_steps": {"steps": (0, 1, 99, 100_000), "rows": _NO_DECAY},
    "many_steps_float64": {"steps": (0, 1, 99, 100_000), "step_dtype": torch.float64, "rows": _NO_DECAY},
    "scaled_oddly": {"grad_scale": 3.0, "variant": 1},
    "scaled_finite": {"grad_scale": 1024.0, "found_inf": 0.0},
    "scalars_of_one_dim": {
        "shapes": [(), (5,)],
        "scalar_shape": (1,),
        "grad_scale": 2.0,
        "found_inf": 0.0,
    },
    "inf_and_nan_amsgrad": {"spoil": _BAD * 9, "variant": 1},
}


def _optimizer_cases(op: str) -> tuple[Case, ...]:
    variants = {name: {"variant": variant} for name, variant in variant_names(op).items()}
    if op in ("adam_as_torch_", "adamw_as_torch_"):
        return _as_torch_cases(op)
    if op not in ("adam_", "adamw_"):
        first = {f"{name}_first": {**_PHASE["first_step"], **v} for name, v in variants.items()}
        phase = {f"{name}_phase": {**_PHASE["phase"], **v} for name, v in variants.items()}
        variants |= first | phase
    else:
        variants |= _MEMORY
    return tuple(
        Case(name, partial(optimizer, op=op, **settings), _FEW.get(name, FLOATS))
        for name, settings in {**variants, **_PHASE}.items()
    )


def _as_torch_cases(op: str) -> tuple[Case, ...]:
    """The rule alone: all around it is that of the other optimizers."""
    names = ("plain", "amsgrad", "groups", "groups_amsgrad", "odd_sizes", "phase", "scaled", "skipped")
    settings = {name: _MEMORY.get(name) or _PHASE.get(name, {}) for name in names}
    settings["amsgrad"] = {"variant": 1}
    single = (torch.float32,)
    return tuple(Case(name, partial(optimizer, op=op, **s), single) for name, s in settings.items())


CASES: dict[str, tuple[Case, ...]] = {op.name: _optimizer_cases(op.name) for op in OPS if op.hyper}
CASES["grad_stats"] = tuple(
    Case(name, partial(grad_stats, **settings), _FEW.get(name, FLOATS)) for name, settings in STATS.items()
)
CASES["clip_grads_"] = tuple(Case(name, partial(clip_grads, **settings)) for name, settings in CLIP.items())
CASES["unscale_"] = tuple(
    Case(name, partial(unscale, **settings), _FEW.get(name, FLOATS)) for name, settings in UNSCALE.items()
)
CASES["accumulate_"] = tuple(
    Case(name, partial(accumulate, **settings), _FEW.get(name, FLOATS))
    for name, settings in ACCUMULATE.items()
)
CASES["update_scale_"] = tuple(
    Case(name, partial(update_scale, **settings), (torch.float32,)) for name, settings in SCALE.items()
)

_NORMS: dict[str, tuple[Callable[..., Call], dict[str, dict[str, Any]]]] = {
    "batch_norm_fwd": (partial(norm_cases.forward, op="batch_norm_fwd"), norm_cases.FORWARD),
    "batch_norm_eval": (partial(norm_cases.forward, op="batch_norm_eval"), norm_cases.EVAL),
    "batch_norm_apply": (partial(norm_cases.forward, op="batch_norm_apply"), norm_cases.APPLY),
    "batch_norm_stats": (norm_cases.stats, norm_cases.STATS),
    "batch_norm_bwd": (
        partial(norm_cases.backward, op="batch_norm_bwd"),
        {**norm_cases.BACKWARD, **norm_cases.GIVEN},
    ),
    "batch_norm_bwd_stats": (partial(norm_cases.backward, op="batch_norm_bwd_stats"), norm_cases.HALVES),
    "batch_norm_bwd_apply": (partial(norm_cases.backward, op="batch_norm_bwd_apply"), norm_cases.HALVES),
}
for _name, (_build, _settings) in _NORMS.items():
    CASES[_name] = tuple(
        Case(name, partial(_build, **settings), norm_cases.dtypes(name))
        for name, settings in _settings.items()
    )

for _name, _build, _settings in (
    ("quantize", quant_cases.quantize, quant_cases.QUANTIZE),
    ("dequantize", quant_cases.dequantize, quant_cases.DEQUANTIZE),
    ("fake_quant_fwd", quant_cases.quantize, quant_cases.FAKE_QUANT_FWD),
    ("fake_quant_bwd", quant_cases.fake_quant_bwd, quant_cases.FAKE_QUANT_BWD),
):
    CASES[_name] = tuple(
        Case(name, partial(_build, **settings), quant_cases.dtypes(name))
        for name, settings in _settings.items()
    )
for _name, _build, _settings in (
    ("int8_pack", int8_cases.pack, int8_cases.PACK),
    ("int8_unpack", int8_cases.unpack, int8_cases.PACK),
    ("int8_mm", int8_cases.mm, int8_cases.MM),
    ("int8_linear", int8_cases.linear, int8_cases.LINEAR),
    ("int8_weight_only_mm", int8_cases.weight_only, int8_cases.WEIGHT_ONLY),
    ("int8_mm_bwd", int8_cases.backward, int8_cases.BACKWARD),
):
    CASES[_name] = tuple(
        Case(name, partial(_build, **settings), int8_cases.dtypes(_name, name))
        for name, settings in _settings.items()
    )
