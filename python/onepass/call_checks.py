"""An op's call, checked: one function an argument list, named by the `check` column of the table; and what an
op returns, as fake tensors, named by the `fake` column.

`values`: look at memory and hyperparameters too, which a fake tensor does not have.
"""

import torch
from torch import Tensor

from . import checks
from .int8_backward_checks import int8_mm_bwd, new_product_grads
from .int8_checks import (
    int8_linear,
    int8_mm,
    int8_pack,
    int8_unpack,
    int8_weight_only_mm,
    new_linear,
    new_packed,
    new_product,
    new_unpacked,
)
from .norm_checks import (
    batch_norm_apply,
    batch_norm_bwd,
    batch_norm_bwd_apply,
    batch_norm_bwd_stats,
    batch_norm_eval,
    batch_norm_fwd,
    batch_norm_stats,
    new_backward,
    new_backward_sums,
    new_forward,
    new_input_grads,
    new_moments,
)
from .quant_checks import (
    dequantize,
    fake_quant_bwd,
    new_dequantized,
    new_fake_quant_grads,
    new_fake_quantized,
    new_quantized,
    quantize,
)

__all__ = [
    "accumulate",
    "batch_norm_apply",
    "batch_norm_bwd",
    "batch_norm_bwd_apply",
    "batch_norm_bwd_stats",
    "batch_norm_eval",
    "batch_norm_fwd",
    "batch_norm_stats",
    "clip_grads",
    "dequantize",
    "fake_quant_bwd",
    "grad_stats",
    "int8_linear",
    "int8_mm",
    "int8_mm_bwd",
    "int8_pack",
    "int8_unpack",
    "int8_weight_only_mm",
    "new_backward",
    "new_backward_sums",
    "new_dequantized",
    "new_fake_quant_grads",
    "new_fake_quantized",
    "new_forward",
    "new_input_grads",
    "new_linear",
    "new_moments",
    "new_packed",
    "new_product",
    "new_product_grads",
    "new_quantized",
    "new_stats",
    "new_unpacked",
    "nothing",
    "optimizer",
    "quantize",
    "unscale",
    "update_scale",
]


def optimizer(op, params: list[Tensor], grads: list[Tensor], *rest, values: bool, **keywords) -> None:
    """rest: the states, emas, steps, hyper and groups, as the schema has them."""
    *states, emas, steps, hyper, groups = rest
    by_name = dict(zip(op.states, states, strict=True))
    lists = {"params": params, "grads": grads}
    lists |= {name: by_name[name] for i, name in enumerate(op.states) if i < op.required or by_name[name]}
    if emas:
        lists["emas"] = emas
    count = len(params) if op.counts == "always" or (op.counts == "maybe" and steps) else 0

    checks.check_lengths(op.name, lists, len(params))
    checks.check_lengths(op.name, {"steps": steps}, count)
    checks.check_lengths(op.name, {"groups": groups}, len(params))
    here = params[0].device if params else torch.device("cpu")
    checks.check_hyper(op.name, hyper, len(op.hyper), here)
    if values:
        checks.check_storage(f"{op.name}: hyper", hyper)
        if hyper.device.type == "cpu":  # elsewhere reading it would wait for the device
            checks.check_hyper_values(op.name, op.hyper, hyper)
    checks.check_groups(op.name, groups, hyper.shape[0])
    _scalars(op, here, values, **keywords)
    for i in range(len(params)):
        row = {name: tensors[i] for name, tensors in lists.items()}
        checks.check_row(op.name, i, row, here, values, op.single)
        if keywords.get("grads_after", 0):
            checks.check_written(f"{op.name}: grads[{i}]", grads[i])
        if count:
            checks.check_step(op.name, i, steps[i], params[i], values)
    if values:
        checks.check_apart(op.name, params)


def _scalars(
    op,
    here: torch.device,
    values: bool,
    *,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    stats: Tensor | None = None,
    grads_after: int = 0,
) -> None:
    for name, t in (("grad_scale", grad_scale), ("found_inf", found_inf)):
        checks.check_scalar(op.name, name, t, here)
        if values:
            checks.check_storage(f"{op.name}: {name}", t)
    _stats(op, stats, here, values)
    checks.check_grads_after(op.name, grads_after)


def _stats(op, stats: Tensor | None, here: torch.device, values: bool) -> None:
    checks.check_stats(op.name, stats, here)
    if values:
        checks.check_storage(f"{op.name}: stats", stats)


def _grads(op, grads: list[Tensor], written: bool, values: bool) -> torch.device:
    here = grads[0].device if grads else torch.device("cpu")
    for i, g in enumerate(grads):
        checks.check_grad(op.name, i, g, here)
        if written:
            checks.check_written(f"{op.name}: grads[{i}]", g)
        if values:
            checks.check_storage(f"{op.name}: grads[{i}]", g)
    return here


def grad_stats(op, grads: list[Tensor], *, grad_scale: Tensor | None = None, values: bool) -> None:
    here = _grads(op, grads, False, values)
    _scalars(op, here, values, grad_scale=grad_scale)


def clip_grads(op, grads: list[Tensor], stats: Tensor, max_norm: float, *, values: bool) -> None:
    _stats(op, stats, _grads(op, grads, True, values), values)


def unscale(op, grads: list[Tensor], grad_scale: Tensor, *, values: bool) -> None:
    here = _grads(op, grads, True, values) if grads else grad_scale.device
    _scalars(op, here, values, grad_scale=grad_scale)


def accumulate(
    op, sums: list[Tensor], grads: list[Tensor], *, inv_scale: Tensor | None = None, values: bool
) -> None:
    if len(grads) != len(sums):
        raise RuntimeError(f"{op.name}: grads has {len(grads)} entries, expected {len(sums)} as sums")
    here = sums[0].device if sums else torch.device("cpu")
    for i, (total, g) in enumerate(zip(sums, grads, strict=True)):
        checks.check_sum(op.name, i, total, g, here, values)
    checks.check_scalar(op.name, "inv_scale", inv_scale, here)
    if values:
        checks.check_storage(f"{op.name}: inv_scale", inv_scale)


def update_scale(
    op,
    scale: Tensor,
    growth_tracker: Tensor,
    skipped: Tensor,
    found_infs: list[Tensor],
    growth_factor: float,
    backoff_factor: float,
    growth_interval: int,
    hysteresis: int,
    min_scale: float,
    max_scale: float,
    *,
    values: bool,
) -> None:
    checks.check_scale_rule(op.name, growth_factor, backoff_factor, hysteresis, min_scale, max_scale)
    wanted = {
        "scale": (scale, torch.float32, 1),
        "growth_tracker": (growth_tracker, torch.int32, 1),
        "skipped": (skipped, torch.int64, 2),
        **{f"found_infs[{i}]": (t, torch.float32, 1) for i, t in enumerate(found_infs)},
    }
    for name, (t, dtype, numel) in wanted.items():
        checks.check_elements(op.name, name, t, dtype, numel, scale.device)
        if values:
            checks.check_storage(f"{op.name}: {name}", t)


def nothing(*_args, **_kwargs) -> None:
    """What an op that only writes its arguments returns."""


def new_stats(grads: list[Tensor], grad_scale: Tensor | None = None) -> Tensor:
    device = next((t.device for t in (*grads, grad_scale) if t is not None), torch.device("cpu"))
    return torch.empty(2, dtype=torch.float64, device=device)
