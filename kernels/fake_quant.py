"""Fake quantization: `fake_quant_fwd` and `fake_quant_bwd`, with the arguments of the schemas in
onepass/ops.py.

Memory contract. Forward, by given scales: one launch over memory as it lies, which reads an element once,
and writes the output and a bit of the mask. Scales that are found: where groups lie on bytes of the mask,
one launch, in which a program reads its groups twice, the second time from a cache; else a launch before
finds the scales (of the whole tensor two, the second of which only merges what the first has found).
Backward: one launch, which reads the gradient and a bit of the mask, the input where the gradient of scale
is wanted, and writes the gradient of input; sums of long groups are float64 parts, one for so many
elements, and added up behind it. What is not contiguous is copied first. Nothing waits for the device.

Formulas and order: quant_rules.py. Memory moves in vectors of eight elements, whose bits are a byte.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .machine import THREADS
from .quant import Groups, extents_of, options_of, place_of, programs_for, reached_by_all
from .quant_rules import grid_of, inverse_of, is_inside, merge, scale_grad, steps_of

_TILE = THREADS * 8  # of a program that has groups
_SIZE = THREADS * 16  # of one that has memory as it lies
_PART = 16  # tiles of a group that one program adds up


# --- groups -----------------------------------------------------------------------------------------------
@triton.jit
def _tile_of(begin, length, start, VECTORS: tl.constexpr, ALIGNED: tl.constexpr):
    """Where elements of groups lie, [groups, VECTORS, 8], and which of them are there: whole vectors where
    groups are ALIGNED on them."""
    first, each = start + tl.arange(0, VECTORS)[None, :, None] * 8, tl.arange(0, 8)[None, None, :]
    at = begin[:, None, None] + first
    if ALIGNED:
        at, there = tl.multiple_of(at, [8, 8, 8]) + each, first < length[:, None, None]
    else:
        at, there = at + each, first + each < length[:, None, None]
    return at, there


@triton.jit
def _pack(inside, AXIS: tl.constexpr):
    """Eight bits to a byte, the first lowest. AXIS: the last."""
    each = tl.arange(0, 8)[None, None, :] if AXIS == 2 else tl.arange(0, 8)[None, :]
    return tl.sum(inside.to(tl.int32) << each, AXIS, keep_dims=True).to(tl.uint8)


@triton.jit
def grids_of_groups(
    x, y, bits, scales, zeros, count, columns, size, of_row,
    SYMMETRIC: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr,
    ALIGNED: tl.constexpr, ROWS: tl.constexpr, VECTORS: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """A program finds the scales of ROWS groups, and, where they are ALIGNED, brings them there and back."""
    group = tl.program_id(0).to(INDEX) * ROWS + tl.arange(0, ROWS)
    there = group < count
    begin, length = place_of(group, columns, size, of_row)
    length = tl.where(there, length, 0)
    low = tl.zeros((ROWS, VECTORS, 8), tl.float32)
    high, odd = low, low
    for start in range(0, size, VECTORS * 8):
        at, held = _tile_of(begin, length, start, VECTORS, ALIGNED)
        low, high, odd = merge(tl.load(x + at, mask=held, other=0.0).to(tl.float32), low, high, odd)
    reached = tl.min(tl.min(low, 2), 1), tl.max(tl.max(high, 2), 1), tl.sum(tl.sum(odd, 2), 1)
    scale, _, zero = grid_of(reached, SYMMETRIC, HIGH)
    tl.store(scales + group, scale, mask=there)
    if not SYMMETRIC:
        tl.store(zeros + group, zero, mask=there)
    if ALIGNED:
        scale, zero = scale[:, None, None], zero[:, None, None]
        inverse = inverse_of(scale)
        for start in range(0, size, VECTORS * 8):
            at, held = _tile_of(begin, length, start, VECTORS, ALIGNED)
            v = tl.load(x + at, mask=held, other=0.0).to(tl.float32)
            steps = steps_of(v, inverse, zero, LOW, HIGH)
            tl.store(y + at, (steps * scale).to(y.dtype.element_ty), mask=held)
            byte = (begin[:, None, None] + start) // 8 + tl.arange(0, VECTORS)[None, :, None]
            tl.store(bits + byte, _pack(is_inside(v, inverse, steps), 2), mask=held)


@triton.jit
def grads_of_groups(
    g, x, bits, dx, sums, scales, zeros, count, columns, size, of_row, parts,
    SYMMETRIC: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr,
    ALIGNED: tl.constexpr, ROWS: tl.constexpr, VECTORS: tl.constexpr, INDEX: tl.constexpr,
    TILES: tl.constexpr,
):  # fmt: skip
    """A program has TILES tiles, one of the `parts`, of ROWS groups. sums: [groups, parts]."""
    program = tl.program_id(0).to(INDEX)
    group, part = program // parts * ROWS + tl.arange(0, ROWS), program % parts
    there = group < count
    begin, length = place_of(group, columns, size, of_row)
    length = tl.where(there, length, 0)
    scale = tl.load(scales + group, mask=there, other=1.0)[:, None, None]
    inverse, zero = inverse_of(scale), tl.zeros((ROWS, 1, 1), tl.int32)
    if not SYMMETRIC:
        zero = tl.load(zeros + group, mask=there, other=0)[:, None, None]
    total = tl.zeros((ROWS,), tl.float64)
    first = part * (TILES * VECTORS * 8)
    for start in range(first, tl.minimum(first + TILES * VECTORS * 8, size), VECTORS * 8):
        at, held = _tile_of(begin, length, start, VECTORS, ALIGNED)
        if ALIGNED:
            byte = (begin[:, None, None] + start) // 8 + tl.arange(0, VECTORS)[None, :, None]
            inside = tl.load(bits + byte, mask=held, other=0).to(tl.int32) >> tl.arange(0, 8)[None, None, :]
        else:
            inside = tl.load(bits + at // 8, mask=held, other=0).to(tl.int32) >> (at % 8).to(tl.int32)
        inside = (inside & 1) != 0
        grad = tl.load(g + at, mask=held, other=0.0)
        v = tl.load(x + at, mask=held, other=0.0).to(tl.float32)
        tl.store(dx + at, tl.where(inside, grad, 0.0), mask=held)
        moved = scale_grad(v, steps_of(v, inverse, zero, LOW, HIGH), inside, scale, inverse)
        terms = tl.where(held, grad.to(tl.float32) * moved, 0.0)
        total += tl.sum(tl.sum(terms, 2), 1).to(tl.float64)
    tl.store(sums + group * parts + part, total.to(sums.dtype.element_ty), mask=there)


# --- memory as it lies ------------------------------------------------------------------------------------
@triton.jit
def _vectors_of_program(numel, INDEX: tl.constexpr, SIZE: tl.constexpr):
    """Where the vectors of this program start, and whether all of them are whole."""
    start = tl.program_id(0).to(INDEX) * SIZE
    return start + tl.arange(0, SIZE // 8)[:, None] * 8, start + SIZE <= numel


@triton.jit
def _put_tile(
    x, y, bits, scales, zeros, first, numel, columns, size, of_row,
    FULL: tl.constexpr, SYMMETRIC: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr,
    WHOLE: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    at = first + tl.arange(0, 8)[None, :]
    mask = None if FULL else at < numel
    group, known = tl.zeros((1, 1), tl.int32), None
    if not WHOLE:
        owner = first if ALIGNED else at
        group = owner // columns * of_row + owner % columns // size
        known = None if FULL else owner < numel
    scale, zero = tl.load(scales + group, mask=known), tl.zeros((1, 1), tl.int32)
    if not SYMMETRIC:
        zero = tl.load(zeros + group, mask=known)
    inverse, v = inverse_of(scale), tl.load(x + at, mask=mask).to(tl.float32)
    steps = steps_of(v, inverse, zero, LOW, HIGH)
    tl.store(y + at, (steps * scale).to(y.dtype.element_ty), mask=mask)
    inside = is_inside(v, inverse, steps) if FULL else is_inside(v, inverse, steps) & mask
    tl.store(bits + first // 8, _pack(inside, 1), mask=None if FULL else first < numel)


@triton.jit(do_not_specialize=["numel", "columns", "size", "of_row"])
def put_all(
    x, y, bits, scales, zeros, numel, columns, size, of_row,
    SYMMETRIC: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr,
    WHOLE: tl.constexpr, ALIGNED: tl.constexpr, INDEX: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """By known scales. WHOLE: there is one. ALIGNED: a vector has one."""
    numel, columns = tl.cast(numel, INDEX), tl.cast(columns, INDEX)
    size, of_row = tl.cast(size, INDEX), tl.cast(of_row, INDEX)
    first, full = _vectors_of_program(numel, INDEX, SIZE)
    if full:
        _put_tile(
            x, y, bits, scales, zeros, first, numel, columns, size, of_row,
            True, SYMMETRIC, LOW, HIGH, WHOLE, ALIGNED,
        )  # fmt: skip
    else:
        _put_tile(
            x, y, bits, scales, zeros, first, numel, columns, size, of_row,
            False, SYMMETRIC, LOW, HIGH, WHOLE, ALIGNED,
        )  # fmt: skip


@triton.jit
def settle_grid(
    partials, scales, zeros, programs, SYMMETRIC: tl.constexpr, HIGH: tl.constexpr, PROGRAMS: tl.constexpr
):
    """The scale of the whole tensor."""
    scale, _, zero = grid_of(reached_by_all(partials, programs, PROGRAMS), SYMMETRIC, HIGH)
    tl.store(scales, scale)
    if not SYMMETRIC:
        tl.store(zeros, zero)


@triton.jit
def _pass_tile(g, bits, dx, first, numel, FULL: tl.constexpr):
    at, each = first + tl.arange(0, 8)[None, :], tl.arange(0, 8)[None, :]
    mask = None if FULL else at < numel
    byte = tl.load(bits + first // 8, mask=None if FULL else first < numel).to(tl.int32)
    grad = tl.load(g + at, mask=mask)
    tl.store(dx + at, tl.where(((byte >> each) & 1) != 0, grad, 0.0), mask=mask)


@triton.jit(do_not_specialize=["numel"])
def pass_all(g, bits, dx, numel, INDEX: tl.constexpr, SIZE: tl.constexpr):
    """The gradient of input alone."""
    numel = tl.cast(numel, INDEX)
    first, full = _vectors_of_program(numel, INDEX, SIZE)
    if full:
        _pass_tile(g, bits, dx, first, numel, True)
    else:
        _pass_tile(g, bits, dx, first, numel, False)


# --- launches ---------------------------------------------------------------------------------------------
class _Cut:
    """How a tensor is cut into groups, and groups into tiles."""

    def __init__(self, shape: torch.Size, group_size: int, symmetric: bool, bits: int) -> None:
        half = 2 ** (bits - 1) - 1
        low, high = (-half, half) if symmetric else (0, 2**bits - 1)
        self.groups = Groups(shape, group_size)
        self.levels = {"SYMMETRIC": symmetric, "LOW": low, "HIGH": high}
        self.aligned = self.groups.columns % 8 == 0 and self.groups.size % 8 == 0
        self.vectors = max(1, self.groups.tile // 8)
        self.rows = _TILE // (8 * self.vectors)
        self.programs = triton.cdiv(self.groups.count, self.rows)
        self.parts = triton.cdiv(self.groups.size, _PART * self.vectors * 8)

    def tiles(self, numel: int) -> dict[str, object]:
        return {"ALIGNED": self.aligned, "ROWS": self.rows, "VECTORS": self.vectors, "INDEX": _index(numel)}


def _index(numel: int) -> tl.dtype:
    """Of offsets, which reach a little beyond the last element."""
    return tl.int32 if numel < 2**31 - _PART * _TILE else tl.int64


def _find_whole(x: Tensor, scales: Tensor, zeros: Tensor, cut: _Cut) -> None:
    programs = programs_for(x)
    levels = {"SYMMETRIC": cut.levels["SYMMETRIC"], "HIGH": cut.levels["HIGH"]}
    settle_grid[(1,)](
        extents_of(x, programs), scales, zeros, programs, PROGRAMS=triton.next_power_of_2(programs),
        **levels, **options_of(x.device),
    )  # fmt: skip


@torch.no_grad()
def fake_quant_fwd(
    input: Tensor,
    scale: Tensor | None = None,
    zero_point: Tensor | None = None,
    *,
    group_size: int = -1,
    symmetric: bool = True,
    bits: int = 8,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, cut = input.contiguous(), _Cut(input.shape, group_size, symmetric, bits)
    numel, groups, options = x.numel(), cut.groups, options_of(x.device)
    scales = x.new_empty(groups.shape, dtype=torch.float32)
    zeros = x.new_empty([0] if symmetric else groups.shape, dtype=torch.int32)
    results = torch.empty_like(x), x.new_empty((numel + 7) // 8, dtype=torch.uint8), scales, zeros
    with torch.cuda.device_of(x):
        if scale is not None:
            scales.copy_(scale)
            if zero_point is not None:
                zeros.copy_(zero_point)
        elif groups.count == 1:
            _find_whole(x, scales, zeros, cut)
        elif groups.count > 0:
            grids_of_groups[(cut.programs,)](
                x, *results, *groups.arguments(), **cut.levels, **cut.tiles(numel), **options
            )
            if cut.aligned:  # then it has done all
                return results
        if numel > 0:
            put_all[(triton.cdiv(numel, _SIZE),)](
                x, *results, numel, *groups.arguments()[1:], WHOLE=groups.count == 1, ALIGNED=cut.aligned,
                INDEX=_index(numel), SIZE=_SIZE, **cut.levels, **options,
            )  # fmt: skip
    return results


@torch.no_grad()
def fake_quant_bwd(
    grad_output: Tensor,
    mask: Tensor,
    input: Tensor | None = None,
    scale: Tensor | None = None,
    zero_point: Tensor | None = None,
    *,
    group_size: int = -1,
    symmetric: bool = True,
    bits: int = 8,
) -> tuple[Tensor, Tensor]:
    g, passed = grad_output.contiguous(), mask.contiguous()
    dx, numel, options = torch.empty_like(g), g.numel(), options_of(g.device)
    if input is None or scale is None:
        with torch.cuda.device_of(g):
            if numel > 0:
                pass_all[(triton.cdiv(numel, _SIZE),)](
                    g, passed, dx, numel, INDEX=_index(numel), SIZE=_SIZE, **options
                )
        return dx, g.new_empty(0, dtype=torch.float32)
    cut = _Cut(g.shape, group_size, symmetric, bits)
    count, parts = cut.groups.count, cut.parts
    grad_scale = g.new_empty(cut.groups.shape, dtype=torch.float32)
    sums = grad_scale if parts == 1 else g.new_empty(count, parts, dtype=torch.float64)
    zeros = None if zero_point is None else zero_point.contiguous()
    with torch.cuda.device_of(g):
        if count > 0:
            grads_of_groups[(cut.programs * parts,)](
                g, input.contiguous(), passed, dx, sums, scale.contiguous(), zeros, *cut.groups.arguments(),
                parts, TILES=_PART, **cut.levels, **cut.tiles(numel), **options,
            )  # fmt: skip
    return dx, grad_scale if parts == 1 else sums.sum(1).float().view(grad_scale.shape)
