"""Quantization to 8 bits: `quantize` and `dequantize`, with the arguments of the schemas in onepass/ops.py.

Memory contract. Groups: one launch, in which a program reads the groups it has (a second time from the cache
where they are longer than a tile) and writes a byte an element. The whole tensor: two launches, the first of
which reads it for its extent and leaves that on the device. `dequantize`: one launch. What is not contiguous
is copied first. Nothing waits for the device.

Formulas and order: quant_rules.py.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .machine import THREADS, programs_of
from .quant_rules import grid_of, inverse_of, merge, quantized

_TILE = THREADS * 8


# --- groups -----------------------------------------------------------------------------------------------
@triton.jit
def place_of(group, columns, size, of_row):
    """Where a group begins, and how long it is."""
    first = group % of_row * size
    return group // of_row * columns + first, tl.minimum(columns - first, size)


@triton.jit
def quantize_groups(
    x, q, scales, zeros, count, columns, size, of_row,
    GIVEN: tl.constexpr, SYMMETRIC: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """A program has ROWS groups, and takes COLUMNS elements of each at a time."""
    group = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    there = group < count
    begin, length = place_of(group, columns, size, of_row)
    length = tl.where(there, length, 0)
    if GIVEN:
        inverse = inverse_of(tl.load(scales + group, mask=there, other=1.0))
        zero = tl.zeros((ROWS,), tl.int32)
        if not SYMMETRIC:
            zero = tl.load(zeros + group, mask=there, other=0)
    else:
        low = tl.zeros((ROWS, COLUMNS), tl.float32)
        high, odd = low, low
        for start in range(0, size, COLUMNS):
            at = start + tl.arange(0, COLUMNS)
            inside = at[None, :] < length[:, None]
            values = tl.load(x + begin[:, None] + at[None, :], mask=inside, other=0.0).to(tl.float32)
            low, high, odd = merge(values, low, high, odd)
        reached = tl.min(low, 1), tl.max(high, 1), tl.sum(odd, 1)
        scale, inverse, zero = grid_of(reached, SYMMETRIC, HIGH)
        tl.store(scales + group, scale, mask=there)
        if not SYMMETRIC:
            tl.store(zeros + group, zero, mask=there)
    for start in range(0, size, COLUMNS):
        at = start + tl.arange(0, COLUMNS)
        inside = at[None, :] < length[:, None]
        values = tl.load(x + begin[:, None] + at[None, :], mask=inside, other=0.0).to(tl.float32)
        whole = quantized(values, inverse[:, None], zero[:, None], LOW, HIGH)
        tl.store(q + begin[:, None] + at[None, :], whole.to(q.dtype.element_ty), mask=inside)


@triton.jit
def dequantize_groups(
    q, x, scales, zeros, count, columns, size, of_row, tiles,
    HAS_ZEROS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """A program has one of the `tiles` of ROWS groups."""
    program = tl.program_id(0).to(tl.int64)
    group = program // tiles * ROWS + tl.arange(0, ROWS)
    there = group < count
    begin, length = place_of(group, columns, size, of_row)
    at = program % tiles * COLUMNS + tl.arange(0, COLUMNS)
    inside = there[:, None] & (at[None, :] < length[:, None])
    steps = tl.load(q + begin[:, None] + at[None, :], mask=inside, other=0).to(tl.int32)
    if HAS_ZEROS:
        steps -= tl.load(zeros + group, mask=there, other=0)[:, None]
    scale = tl.load(scales + group, mask=there, other=1.0)
    values = steps.to(tl.float32) * scale[:, None]
    tl.store(x + begin[:, None] + at[None, :], values.to(x.dtype.element_ty), mask=inside)


# --- the whole tensor -------------------------------------------------------------------------------------
@triton.jit
def extents(x, partials, numel, TILE: tl.constexpr):
    """Each program leaves [low, high, odd] of its tiles."""
    low = tl.zeros((TILE,), tl.float32)
    high, odd = low, low
    step = tl.num_programs(0).to(tl.int64) * TILE
    for start in range(tl.program_id(0).to(tl.int64) * TILE, numel, step):
        at = start + tl.arange(0, TILE)
        values = tl.load(x + at, mask=at < numel, other=0.0).to(tl.float32)
        low, high, odd = merge(values, low, high, odd)
    to = partials + tl.program_id(0) * 3
    tl.store(to, tl.min(low, 0))
    tl.store(to + 1, tl.max(high, 0))
    tl.store(to + 2, tl.sum(odd, 0))


@triton.jit
def reached_by_all(partials, programs, PROGRAMS: tl.constexpr):
    """What all programs have left."""
    mine = tl.arange(0, PROGRAMS)
    there = mine < programs
    low = tl.load(partials + mine * 3, mask=there, other=0.0)
    high = tl.load(partials + mine * 3 + 1, mask=there, other=0.0)
    odd = tl.load(partials + mine * 3 + 2, mask=there, other=0.0)
    return tl.min(low, 0), tl.max(high, 0), tl.sum(odd, 0)


@triton.jit
def quantize_whole(
    x, q, partials, scales, zeros, numel, programs,
    GIVEN: tl.constexpr, SYMMETRIC: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr,
    PROGRAMS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Every program merges what all have left, and quantizes its tiles."""
    if GIVEN:
        inverse = inverse_of(tl.load(scales))
        zero = tl.full((), 0, tl.int32)
        if not SYMMETRIC:
            zero = tl.load(zeros)
    else:
        scale, inverse, zero = grid_of(reached_by_all(partials, programs, PROGRAMS), SYMMETRIC, HIGH)
        if tl.program_id(0) == 0:
            tl.store(scales, scale)
            if not SYMMETRIC:
                tl.store(zeros, zero)
    step = tl.num_programs(0).to(tl.int64) * TILE
    for start in range(tl.program_id(0).to(tl.int64) * TILE, numel, step):
        at = start + tl.arange(0, TILE)
        values = tl.load(x + at, mask=at < numel, other=0.0).to(tl.float32)
        tl.store(q + at, quantized(values, inverse, zero, LOW, HIGH).to(q.dtype.element_ty), mask=at < numel)


# --- launches ---------------------------------------------------------------------------------------------
class Groups:
    """How a tensor is cut: count, columns, size and groups of a row, and the tiles of a program."""

    def __init__(self, shape: torch.Size, group_size: int) -> None:
        whole = group_size == 0
        rows = 1 if whole else shape[:-1].numel()
        self.columns = shape.numel() if whole else shape[-1] if len(shape) else 1
        self.size = max(1, self.columns if group_size < 1 else min(group_size, self.columns))
        self.of_row = max(1, triton.cdiv(self.columns, self.size))
        self.count = rows * self.of_row
        self.shape = [] if whole else [*shape[:-1], self.of_row]  # of what has a value a group
        self.tile = min(triton.next_power_of_2(min(self.size, max(1, self.columns))), _TILE)
        self.rows = max(1, _TILE // self.tile)

    def arguments(self) -> tuple[int, int, int, int]:
        return self.count, self.columns, self.size, self.of_row

    def programs(self) -> int:
        return triton.cdiv(self.count, self.rows)


def options_of(device: torch.device) -> dict[str, object]:
    return {"num_warps": THREADS // programs_of(device)[1], "enable_fp_fusion": False}


def programs_for(x: Tensor) -> int:
    """So many go over the whole tensor, by tiles."""
    return max(1, min(triton.cdiv(x.numel(), _TILE), programs_of(x.device)[0]))


def extents_of(x: Tensor, programs: int) -> Tensor:
    partials = x.new_empty(programs, 3, dtype=torch.float32)
    extents[(programs,)](x, partials, x.numel(), TILE=_TILE, **options_of(x.device))
    return partials


def levels_of(symmetric: bool, bits: int) -> tuple[int, int]:
    """The whole numbers that are in use, as csrc/rules/quant.h has them."""
    half = 2 ** (bits - 1) - 1
    return (-half, half) if symmetric else (0, 2**bits - 1)


@torch.no_grad()
def quantize(
    input: Tensor,
    scale: Tensor | None = None,
    zero_point: Tensor | None = None,
    *,
    group_size: int = -1,
    symmetric: bool = True,
    bits: int = 8,
) -> tuple[Tensor, Tensor, Tensor]:
    low, high = levels_of(symmetric, bits)
    x, groups, given = input.contiguous(), Groups(input.shape, group_size), scale is not None
    values = torch.empty_like(x, dtype=torch.int8 if symmetric else torch.uint8)
    scales = x.new_empty(groups.shape, dtype=torch.float32)
    zeros = x.new_empty([0] if symmetric else groups.shape, dtype=torch.int32)
    if scale is not None:
        scales.copy_(scale)
    if zero_point is not None:
        zeros.copy_(zero_point)
    common = {"GIVEN": given, "SYMMETRIC": symmetric, "LOW": low, "HIGH": high, **options_of(x.device)}
    if groups.count == 0:
        return values, scales, zeros
    with torch.cuda.device_of(x):
        if group_size == 0:
            programs = programs_for(x)
            partials = None if given else extents_of(x, programs)
            tiles = {"PROGRAMS": triton.next_power_of_2(programs), "TILE": _TILE}
            outputs = (values, partials, scales, zeros)
            quantize_whole[(programs,)](x, *outputs, x.numel(), programs, **tiles, **common)
        else:
            tiles = {"ROWS": groups.rows, "COLUMNS": groups.tile}
            quantize_groups[(groups.programs(),)](
                x, values, scales, zeros, *groups.arguments(), **tiles, **common
            )
    return values, scales, zeros


@torch.no_grad()
def dequantize(
    input: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    group_size: int = -1,
    dtype: torch.dtype | None = None,
) -> Tensor:
    q, groups = input.contiguous(), Groups(input.shape, group_size)
    x = torch.empty_like(q, dtype=dtype or torch.float32)
    zeros = None if zero_point is None or zero_point.numel() == 0 else zero_point.contiguous()
    if x.numel() == 0:
        return x
    tiles = triton.cdiv(min(groups.size, groups.columns), groups.tile)
    with torch.cuda.device_of(q):
        dequantize_groups[(groups.programs() * tiles,)](
            q, x, scale.contiguous(), zeros, *groups.arguments(), tiles, HAS_ZEROS=zeros is not None,
            ROWS=groups.rows, COLUMNS=groups.tile, **options_of(q.device),
        )  # fmt: skip
    return x
