"""The optimizers' ops, with the arguments of the schemas in onepass/ops.py: one launch a parameter dtype.

Tensors of a row that do not lie alike, without gaps, in memory (slices, expanded gradients, a gradient laid
out otherwise than its parameter) go through dense copies that are made for the call and copied back. The
results are the same; what was copied is read and written twice.
"""

import os
from collections.abc import Sequence
from functools import cache
from itertools import compress
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from . import rules, table
from .multi_tensor import multi_tensor

TL_DTYPES = {
    torch.float32: tl.float32,
    torch.float64: tl.float64,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}
Row = tuple[Tensor, ...]  # a parameter, its gradient, its states

THREADS = 128  # of a program
PROGRAMS = 4  # of a multiprocessor: as many as 128 registers a thread leave room for
COLUMNS = 6  # of hyper: lr, beta1, beta2, eps, weight_decay, maximize
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # read by Triton when it is imported, so also here


def block_of(dtype: torch.dtype) -> int:
    """Elements in a tile: 8 a thread, of float64 4. The interpreter is as quick with 4096 as with one."""
    if INTERPRETED:
        return 4096
    return THREADS * (4 if dtype == torch.float64 else 8)


@cache
def _machine(device: torch.device) -> tuple[int, int]:
    """(multiprocessors, threads in a warp). The interpreter's are few, but several."""
    if device.type == "cpu":
        return 1, 32
    properties = torch.cuda.get_device_properties(device)
    return properties.multi_processor_count, properties.warp_size


# --- rows whose tensors lie otherwise than one run --------------------------------------------------------
def _is_dense(t: Tensor) -> bool:
    """Every element once, no gaps: some order of the dimensions makes it contiguous."""
    return t.is_contiguous() or torch.ops.aten.is_non_overlapping_and_dense(t)


def _as_runs(row: Row) -> Row:
    """The row itself if its tensors lie alike and dense; else with copies laid out as the parameter, or
    contiguous where that has gaps."""
    if all(map(Tensor.is_contiguous, row)):
        return row
    lead = row[0] if _is_dense(row[0]) else row[0].contiguous()
    like = lead.stride()
    if lead is row[0] and all(t.stride() == like for t in row):
        return row
    return tuple(t if t.stride() == like else torch.empty_like(lead, dtype=t.dtype).copy_(t) for t in row)


def _copy_back(row: Row, run: Row) -> None:
    for i, (t, copy) in enumerate(zip(row, run, strict=True)):
        if copy is not t and i != 1:  # the gradient is only read
            t.copy_(copy)


# --- launches ---------------------------------------------------------------------------------------------
def constants(dtype: torch.dtype, decoupled: bool, amsgrad: bool) -> dict[str, Any]:
    """What makes the driver the kernel for this case: its constexpr arguments."""
    return {
        "MAKE": rules.adam_make,
        "RULE": rules.adam,
        "STATES": 3 if amsgrad else 2,
        "COLUMNS": COLUMNS,
        "DECOUPLED": decoupled,
        "VARIANT": amsgrad,
        "S": TL_DTYPES[dtype],
        "BLOCK": block_of(dtype),
    }


def options(warp: int) -> dict[str, Any]:
    """For the compiler. warp: threads in one."""
    return {"num_warps": THREADS // warp, "enable_fp_fusion": True}


def _launch(
    kernel: dict[str, Any],
    rows: Sequence[Row],
    steps: Sequence[Tensor],
    groups: Sequence[int],
    hyper: Tensor,
    scalars: tuple[Tensor | None, Tensor | None],
) -> None:
    """rows: of one parameter dtype, the tensors of a row laid out alike."""
    param = rows[0][0]
    columns = table.columns(list(zip(*rows, strict=True)), steps, groups, kernel["BLOCK"])
    tiles = int(columns[table.FIRST.value, -1])
    multiprocessors, warp = _machine(param.device)
    grid = (max(1, min(tiles, PROGRAMS * multiprocessors)),)  # steps advance without a tile, too
    with torch.cuda.device_of(param):  # Triton launches on the current device
        there = table.build(columns, hyper, *scalars, param.device)
        multi_tensor[grid](there, len(rows), **kernel, **options(warp))


@torch.no_grad()
def _adam(
    decoupled: bool,
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    max_exp_avg_sqs: list[Tensor],
    steps: list[Tensor],
    hyper: Tensor,
    groups: list[int],
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    amsgrad = bool(max_exp_avg_sqs)
    lists = [params, grads, exp_avgs, exp_avg_sqs, *([max_exp_avg_sqs] if amsgrad else [])]
    rows: list[Row] = list(zip(*lists, strict=True))
    runs = [_as_runs(row) for row in rows]
    dtypes = [p.dtype for p in params]
    for dtype in dict.fromkeys(dtypes):
        mine = [dtype == other for other in dtypes]
        _launch(
            constants(dtype, decoupled, amsgrad),
            list(compress(runs, mine)),
            list(compress(steps, mine)),
            list(compress(groups, mine)),
            hyper,
            (grad_scale, found_inf),
        )
    for row, run in zip(rows, runs, strict=True):
        if run is not row:
            _copy_back(row, run)


def adam_(*args, **kwargs) -> None:
    _adam(False, *args, **kwargs)


def adamw_(*args, **kwargs) -> None:
    _adam(True, *args, **kwargs)
