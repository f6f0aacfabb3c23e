"""Ops on gradients alone, of any dtypes in one launch: `grad_stats`, `unscale_` and `clip_grads_`.

Memory contract: `grad_stats` reads each gradient once and writes two doubles in all; `unscale_` does so too
and writes each once; `clip_grads_` reads and writes each once, or nothing where the coefficient is 1. Tiles
are taken from the last one down: the step that follows begins with what was read last, and may find it in the
L2 cache. Gradients that are not one run of memory go through dense copies.

Sums run in float64 and in a fixed order, over a fixed number of programs: the same bits from run to run.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import table
from .machine import INTERPRETED, THREADS, options, programs_of
from .optim import is_dense
from .rules import clip_coefficient
from .table import FIRST, FLAGS, GRAD_SCALE, GROUP, HEADER, IS_ALIGNED, NUMEL, PARAM, TICKET

CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}  # in the GROUP column
BLOCK = 4096 if INTERPRETED else 8 * THREADS
PROGRAMS = 4 if INTERPRETED else 512  # at most; a power of two, as many as there are partial sums


@triton.jit
def _cell(at, count, column: tl.constexpr, row):
    return tl.load(at + HEADER + column * (count + 1) + row)


@triton.jit
def _row_at(at, count, tile):
    """The last row that does not start behind a tile."""
    row, above = tl.zeros_like(tile), tl.zeros_like(tile) + count
    while above - row > 1:
        middle = (row + above) // 2
        starts = _cell(at, count, FIRST, middle) <= tile
        row = tl.where(starts, middle, row)
        above = tl.where(starts, above, middle)
    return row


@triton.jit
def _squares(
    address, start, numel, aligned, factor, DTYPE: tl.constexpr, UNSCALE: tl.constexpr, SIZE: tl.constexpr
):
    """(sum of squares, sum of 0 * x) of a tile, an element each, in float64. UNSCALE: and factor * x."""
    T: tl.constexpr = tl.float64 if DTYPE.is_fp64() else tl.float32
    offsets = start + tl.arange(0, SIZE)
    at = address.to(tl.pointer_type(DTYPE))
    if aligned & (start + SIZE <= numel):
        whole = tl.multiple_of(at, 16) + offsets
        x = tl.load(whole)
        if UNSCALE:
            tl.store(whole, (x.to(T) * factor.to(T)).to(DTYPE))
    else:
        mask = offsets < numel
        x = tl.load(at + offsets, mask=mask, other=0.0)
        if UNSCALE:
            tl.store(at + offsets, (x.to(T) * factor.to(T)).to(DTYPE), mask=mask)
    wide = x.to(tl.float64)
    return wide * wide, wide * 0.0


@triton.jit
def _inv_scale(at):
    """1 / loss scale in float64; 1 where there is none."""
    scale = tl.load(at + GRAD_SCALE)
    value = tl.full((), 1.0, tl.float64)
    if scale != 0:
        value = 1.0 / tl.load(scale.to(tl.pointer_type(tl.float32))).to(tl.float64)
    return value


@triton.jit(do_not_specialize=["count"])
def sum_grads(at, sums, stats, count, UNSCALE: tl.constexpr, SIZE: tl.constexpr, SUMS: tl.constexpr):
    """at: the table. sums: float64 [2, SUMS], of each program. stats: float64 [2]. UNSCALE: leaves the
    gradients unscaled."""
    count = tl.cast(count, tl.int64)
    factor = _inv_scale(at)
    squares, poison = tl.zeros((SIZE,), tl.float64), tl.zeros((SIZE,), tl.float64)
    tile = _cell(at, count, FIRST, count) - 1 - tl.program_id(0)
    while tile >= 0:
        row = _row_at(at, count, tile)
        address, code = _cell(at, count, PARAM, row), _cell(at, count, GROUP, row)
        numel, start = _cell(at, count, NUMEL, row), (tile - _cell(at, count, FIRST, row)) * SIZE
        aligned = (_cell(at, count, FLAGS, row) & IS_ALIGNED) != 0
        if code == 0:
            more, bad = _squares(address, start, numel, aligned, factor, tl.float32, UNSCALE, SIZE)
        elif code == 1:
            more, bad = _squares(address, start, numel, aligned, factor, tl.bfloat16, UNSCALE, SIZE)
        elif code == 2:
            more, bad = _squares(address, start, numel, aligned, factor, tl.float16, UNSCALE, SIZE)
        else:
            more, bad = _squares(address, start, numel, aligned, factor, tl.float64, UNSCALE, SIZE)
        squares += more
        poison += bad
        tile -= tl.num_programs(0)
    tl.store(sums + tl.program_id(0), tl.sum(squares))
    tl.store(sums + SUMS + tl.program_id(0), tl.sum(poison))
    tl.debug_barrier()  # both are written
    if tl.atomic_add(at + TICKET, 1, sem="acq_rel") == tl.num_programs(0) - 1:
        programs = tl.arange(0, SUMS)
        there = programs < tl.num_programs(0)
        all_squares = tl.load(sums + programs, mask=there, other=0.0, cache_modifier=".cg")
        all_poison = tl.load(sums + SUMS + programs, mask=there, other=0.0, cache_modifier=".cg")
        tl.store(stats, tl.sqrt(tl.sum(all_squares)) * tl.abs(factor))
        tl.store(stats + 1, tl.where(tl.sum(all_poison) == 0, 0.0, 1.0).to(tl.float64))


@triton.jit
def _scale(address, start, numel, aligned, factor, DTYPE: tl.constexpr, T: tl.constexpr, SIZE: tl.constexpr):
    offsets = start + tl.arange(0, SIZE)
    at = address.to(tl.pointer_type(DTYPE))
    if aligned & (start + SIZE <= numel):
        whole = tl.multiple_of(at, 16) + offsets
        tl.store(whole, (tl.load(whole).to(T) * factor.to(T)).to(DTYPE))
    else:
        mask = offsets < numel
        some = tl.load(at + offsets, mask=mask)
        tl.store(at + offsets, (some.to(T) * factor.to(T)).to(DTYPE), mask=mask)


@triton.jit(do_not_specialize=["count"])
def scale_grads(at, stats, max_norm, count, SIZE: tl.constexpr):
    """max_norm: float64 [1] on the device."""
    count = tl.cast(count, tl.int64)
    factor = clip_coefficient(tl.load(max_norm), tl.load(stats), 1.0)
    if factor != 1:
        tile = _cell(at, count, FIRST, count) - 1 - tl.program_id(0)
        while tile >= 0:
            row = _row_at(at, count, tile)
            address, code = _cell(at, count, PARAM, row), _cell(at, count, GROUP, row)
            numel, start = _cell(at, count, NUMEL, row), (tile - _cell(at, count, FIRST, row)) * SIZE
            aligned = (_cell(at, count, FLAGS, row) & IS_ALIGNED) != 0
            if code == 0:
                _scale(address, start, numel, aligned, factor, tl.float32, tl.float32, SIZE)
            elif code == 1:
                _scale(address, start, numel, aligned, factor, tl.bfloat16, tl.float32, SIZE)
            elif code == 2:
                _scale(address, start, numel, aligned, factor, tl.float16, tl.float32, SIZE)
            else:
                _scale(address, start, numel, aligned, factor, tl.float64, tl.float64, SIZE)
            tile -= tl.num_programs(0)


def _columns(runs: list[Tensor]):
    return table.columns([runs], [], [CODES[g.dtype] for g in runs], BLOCK)


def _programs(columns, most: int) -> int:
    return max(1, min(int(columns[table.FIRST.value, -1]), most))


def _measure(runs: list[Tensor], device: torch.device, grad_scale: Tensor | None, unscale: bool) -> Tensor:
    columns = _columns(runs)
    stats, sums = (torch.empty(n, dtype=torch.float64, device=device) for n in (2, 2 * PROGRAMS))
    _, warp = programs_of(device)
    with torch.cuda.device_of(stats):
        at = table.build(columns, torch.empty(0, dtype=torch.float64), device, grad_scale=grad_scale)
        grid = (_programs(columns, PROGRAMS),)
        sum_grads[grid](
            at, sums, stats, len(runs), UNSCALE=unscale, SIZE=BLOCK, SUMS=PROGRAMS, **options(warp)
        )
    return stats


def _runs(grads: list[Tensor]) -> list[Tensor]:
    return [g if is_dense(g) else g.contiguous() for g in grads]


def _copy_back(grads: list[Tensor], runs: list[Tensor]) -> None:
    for g, run in zip(grads, runs, strict=True):
        if run is not g:
            g.copy_(run)


@torch.no_grad()
def grad_stats(grads: list[Tensor], *, grad_scale: Tensor | None = None) -> Tensor:
    """float64 [2]: the norm of all unscaled gradients, and 1 where one of them is inf or NaN, else 0."""
    return _measure(_runs(grads), grads[0].device, grad_scale, unscale=False)


@torch.no_grad()
def unscale_(grads: list[Tensor], grad_scale: Tensor) -> Tensor:
    """The same, and the gradients are unscaled."""
    runs = _runs(grads)
    stats = _measure(runs, grad_scale.device, grad_scale, unscale=True)
    _copy_back(grads, runs)
    return stats


@torch.no_grad()
def clip_grads_(grads: list[Tensor], stats: Tensor, max_norm: float) -> None:
    if not grads:
        return
    device, runs = grads[0].device, _runs(grads)
    columns = _columns(runs)
    programs, warp = programs_of(device)
    with torch.cuda.device_of(stats):
        most = torch.full((1,), max_norm, dtype=torch.float64, device=device)
        at = table.build(columns, torch.empty(0, dtype=torch.float64), device)
        grid = (_programs(columns, programs),)
        scale_grads[grid](at, stats, most, len(grads), SIZE=BLOCK, **options(warp))
    _copy_back(grads, runs)
