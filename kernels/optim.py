"""The optimizers' ops, with the arguments of the schemas in onepass/ops.py: one launch for each
combination of the dtypes of parameters, gradients and states.

Tensors of a row that do not lie alike, without gaps, in memory (slices, expanded gradients, a gradient laid
out otherwise than its parameter) go through dense copies that are made for the call and copied back. The
results are the same; what was copied is read and written twice.
"""

from collections.abc import Sequence
from itertools import compress
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from . import rules, table
from .machine import THREADS, block_of, options, programs_of
from .multi_tensor import multi_tensor

TL_DTYPES = {
    torch.float32: tl.float32,
    torch.float64: tl.float64,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}
Row = tuple[Tensor, ...]  # a parameter, its gradient, its states, its average of weights


class Rule(NamedTuple):
    make: Any
    rule: Any
    l2: bool  # is weight decay added to the gradient?
    columns: int  # of hyper


RULES = {
    "adam": Rule(rules.adam_make, rules.adam, True, 9),
    "adamw": Rule(rules.adam_make, rules.adamw, False, 9),
    "sgd": Rule(rules.sgd_make, rules.sgd, True, 9),
    "rmsprop": Rule(rules.rmsprop_make, rules.rmsprop, True, 9),
    "adagrad": Rule(rules.adagrad_make, rules.adagrad, True, 8),
    "lion": Rule(rules.lion_make, rules.lion, False, 8),
}


# --- rows whose tensors lie otherwise than one run --------------------------------------------------------
def is_dense(t: Tensor) -> bool:
    """Every element once, no gaps: some order of the dimensions makes it contiguous."""
    return t.is_contiguous() or torch.ops.aten.is_non_overlapping_and_dense(t)


def _as_runs(row: Row) -> Row:
    """The row itself if its tensors lie alike and dense; else with copies laid out as the parameter, or
    contiguous where that has gaps."""
    if all(map(Tensor.is_contiguous, row)):
        return row
    lead = row[0] if is_dense(row[0]) else row[0].contiguous()
    like = lead.stride()
    if lead is row[0] and all(t.stride() == like for t in row):
        return row
    return tuple(t if t.stride() == like else torch.empty_like(lead, dtype=t.dtype).copy_(t) for t in row)


def _copy_back(row: Row, run: Row, grads_after: int) -> None:
    for i, (t, copy) in enumerate(zip(row, run, strict=True)):
        if copy is not t and (i != 1 or grads_after):
            t.copy_(copy)


# --- launches ---------------------------------------------------------------------------------------------
def constants(
    name: str,
    dtype: torch.dtype,
    state_dtype: torch.dtype | None = None,
    grad_dtype: torch.dtype | None = None,
    *,
    variant: int = 0,
    states: int,
    counts: bool = True,
    ema: bool = False,
    grads_after: int = 0,
) -> dict[str, Any]:
    """What makes the driver the kernel for this case: its constexpr arguments.

    Args:
        variant: which of the rule's optional states there are, as bits.
        states: how many there are in all; of state_dtype, None for that of the arithmetic.
        grad_dtype: None for that of the parameters.
    """
    rule = RULES[name]
    arithmetic = torch.float64 if dtype == torch.float64 else torch.float32
    return {
        "MAKE": rule.make,
        "RULE": rule.rule,
        "STATES": states,
        "COLUMNS": rule.columns,
        "L2": rule.l2,
        "VARIANT": variant,
        "COUNTS": counts,
        "EMA": ema,
        "GRADS_AFTER": grads_after,
        "S": TL_DTYPES[dtype],
        "G": TL_DTYPES[grad_dtype or dtype],
        "Q": TL_DTYPES[state_dtype or arithmetic],
        "BLOCK": block_of(dtype),
    }


def _launch(
    kernel: dict[str, Any],
    rows: Sequence[Row],
    steps: Sequence[Tensor],
    groups: Sequence[int],
    hyper: Tensor,
    scalars: dict[str, Tensor | None],
) -> None:
    """rows: of the same dtypes, the tensors of a row laid out alike."""
    param = rows[0][0]
    columns = table.columns(list(zip(*rows, strict=True)), steps, groups, kernel["BLOCK"])
    tiles = int(columns[table.FIRST.value, -1])
    programs, warp = programs_of(param.device)
    grid = (max(1, min(tiles, programs)),)  # steps advance without a tile, too
    with torch.cuda.device_of(param):  # Triton launches on the current device
        there = table.build(columns, hyper, param.device, **scalars)
        multi_tensor[grid](there, len(rows), **kernel, **options(warp))


@torch.no_grad()
def _run(
    name: str,
    required: list[list[Tensor]],
    optional: list[list[Tensor]],
    emas: list[Tensor],
    steps: list[Tensor],
    hyper: Tensor,
    groups: list[int],
    *,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    stats: Tensor | None = None,
    grads_after: int = 0,
) -> None:
    """required: params, grads, the states that are always there. optional: the others, or empty lists."""
    variant = sum(bool(tensors) << k for k, tensors in enumerate(optional))
    states = [*required[2:], *filter(None, optional)]
    lists = [*required[:2], *states, *([emas] if emas else [])]
    rows: list[Row] = list(zip(*lists, strict=True))
    runs = [_as_runs(row) for row in rows]
    kinds = [(row[0].dtype, row[2].dtype if states else None, row[1].dtype) for row in rows]
    scalars = {"grad_scale": grad_scale, "found_inf": found_inf, "stats": stats}
    for kind in dict.fromkeys(kinds):
        mine = [kind == other for other in kinds]
        kernel = constants(
            name,
            *kind,
            variant=variant,
            states=len(states),
            counts=bool(steps),
            ema=bool(emas),
            grads_after=grads_after,
        )
        some = list(compress(runs, mine)), list(compress(steps, mine)), list(compress(groups, mine))
        _launch(kernel, *some, hyper, scalars)
    for row, run in zip(rows, runs, strict=True):
        if run is not row:
            _copy_back(row, run, grads_after)


def adam_(params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, *rest, **phase) -> None:
    _run("adam", [params, grads, exp_avgs, exp_avg_sqs], [max_exp_avg_sqs], *rest, **phase)


def adamw_(params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, *rest, **phase) -> None:
    _run("adamw", [params, grads, exp_avgs, exp_avg_sqs], [max_exp_avg_sqs], *rest, **phase)


def sgd_(params, grads, momentum_buffers, *rest, **phase) -> None:
    _run("sgd", [params, grads], [momentum_buffers], *rest, **phase)


def rmsprop_(params, grads, square_avgs, grad_avgs, momentum_buffers, *rest, **phase) -> None:
    _run("rmsprop", [params, grads, square_avgs], [grad_avgs, momentum_buffers], *rest, **phase)


def adagrad_(params, grads, sums, *rest, **phase) -> None:
    _run("adagrad", [params, grads, sums], [], *rest, **phase)


def lion_(params, grads, exp_avgs, *rest, **phase) -> None:
    _run("lion", [params, grads, exp_avgs], [], *rest, **phase)


__all__ = ["RULES", "THREADS", "adagrad_", "adam_", "adamw_", "lion_", "rmsprop_", "sgd_"]
