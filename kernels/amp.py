"""Loss scaling: `accumulate_`, float32 sums of gradients of any dtype, and `update_scale_`.

Memory contract: `accumulate_` reads each gradient and reads and writes its sum once, for all of them in one
launch; rows that do not lie alike in one run of memory go through dense copies. `update_scale_` is one
program, behind a copy of the flags where there are several.
"""

import struct

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import table
from .grads import BLOCK, CODES, _cell, _row_at
from .machine import options, programs_of
from .optim import _as_runs
from .rules import scale_rule
from .table import FIRST, FLAGS, GRAD, GRAD_SCALE, GROUP, IS_ALIGNED, NUMEL, PARAM


@triton.jit
def _add(
    to, address, start, numel, aligned, factor, DTYPE: tl.constexpr, T: tl.constexpr, SIZE: tl.constexpr
):
    offsets = start + tl.arange(0, SIZE)
    sums, grads = to.to(tl.pointer_type(T)), address.to(tl.pointer_type(DTYPE))
    if aligned & (start + SIZE <= numel):
        here, g = tl.multiple_of(sums, 16) + offsets, tl.load(tl.multiple_of(grads, 16) + offsets)
        tl.store(here, tl.load(here) + factor.to(T) * g.to(T))
    else:
        mask = offsets < numel
        g = tl.load(grads + offsets, mask=mask)
        tl.store(sums + offsets, tl.load(sums + offsets, mask=mask) + factor.to(T) * g.to(T), mask=mask)


@triton.jit(do_not_specialize=["count"])
def add_grads(at, count, SIZE: tl.constexpr):
    """at: the table; its loss scale is the factor of the gradients."""
    count = tl.cast(count, tl.int64)
    scale = tl.load(at + GRAD_SCALE)
    factor = tl.full((), 1.0, tl.float32)
    if scale != 0:
        factor = tl.load(scale.to(tl.pointer_type(tl.float32)))
    tile = _cell(at, count, FIRST, count) - 1 - tl.program_id(0)
    while tile >= 0:
        row = _row_at(at, count, tile)
        to, address = _cell(at, count, PARAM, row), _cell(at, count, GRAD, row)
        code, numel = _cell(at, count, GROUP, row), _cell(at, count, NUMEL, row)
        start = (tile - _cell(at, count, FIRST, row)) * SIZE
        aligned = (_cell(at, count, FLAGS, row) & IS_ALIGNED) != 0
        if code == 0:
            _add(to, address, start, numel, aligned, factor, tl.float32, tl.float32, SIZE)
        elif code == 1:
            _add(to, address, start, numel, aligned, factor, tl.bfloat16, tl.float32, SIZE)
        elif code == 2:
            _add(to, address, start, numel, aligned, factor, tl.float16, tl.float32, SIZE)
        else:
            _add(to, address, start, numel, aligned, factor, tl.float64, tl.float64, SIZE)
        tile -= tl.num_programs(0)


@torch.no_grad()
def accumulate_(sums: list[Tensor], grads: list[Tensor], *, inv_scale: Tensor | None = None) -> None:
    if not sums:
        return
    rows = list(zip(sums, grads, strict=True))
    runs = [_as_runs(row) for row in rows]
    totals, parts = (list(stream) for stream in zip(*runs, strict=True))
    columns = table.columns([totals, parts], [], [CODES[g.dtype] for g in grads], BLOCK)
    programs, warp = programs_of(sums[0].device)
    with torch.cuda.device_of(sums[0]):
        none = torch.empty(0, dtype=torch.float64)
        at = table.build(columns, none, sums[0].device, grad_scale=inv_scale)
        grid = (max(1, min(int(columns[FIRST.value, -1]), programs)),)
        add_grads[grid](at, len(sums), SIZE=BLOCK, **options(warp))
    for total, run in zip(sums, totals, strict=True):
        if run is not total:
            total.copy_(run)


@triton.jit
def _float64(bits):
    return tl.cast(bits, tl.int64).to(tl.float64, bitcast=True)


_NUMBERS = [
    "count",
    "growth_factor",
    "backoff_factor",
    "min_scale",
    "max_scale",
    "growth_interval",
    "hysteresis",
]


@triton.jit(do_not_specialize=_NUMBERS)
def move_scale(
    scale,
    tracker,
    skipped,
    found_infs,
    count,
    growth_factor,
    backoff_factor,
    min_scale,
    max_scale,
    growth_interval,
    hysteresis,
):
    """found_infs: float32 [count]. Factors and bounds: the bits of a float64 each, as Triton would round a
    float argument to float32."""
    overflow = tl.full((), 0, tl.int64)
    for i in range(count):
        overflow |= (tl.load(found_infs + i) != 0).to(tl.int64)
    moved, successes, total, in_a_row = scale_rule(
        overflow,
        tl.load(scale),
        tl.load(tracker),
        tl.load(skipped),
        tl.load(skipped + 1),
        _float64(growth_factor),
        _float64(backoff_factor),
        _float64(min_scale),
        _float64(max_scale),
        growth_interval,
        hysteresis,
    )
    tl.store(scale, moved)
    tl.store(tracker, successes)
    tl.store(skipped, total)
    tl.store(skipped + 1, in_a_row)


def _bits(number: float) -> int:
    return struct.unpack("q", struct.pack("d", number))[0]


@torch.no_grad()
def update_scale_(
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
) -> None:
    with torch.cuda.device_of(scale):
        found = torch.cat([t.reshape(1) for t in found_infs]) if found_infs else scale
        numbers = map(_bits, (growth_factor, backoff_factor, min_scale, max_scale))
        states = (scale, growth_tracker, skipped, found, len(found_infs))
        move_scale[(1,)](*states, *numbers, growth_interval, hysteresis)
