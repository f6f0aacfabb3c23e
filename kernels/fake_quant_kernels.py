"""Fake quantization: its kernels, group by group and over memory as it lies. fake_quant.py launches them,
and has the memory contract.

Memory moves in vectors of eight elements, whose bits are a byte.
"""

import triton
import triton.language as tl

from .quant import place_of, reached_by_all
from .quant_rules import grid_of, inverse_of, is_inside, merge, scale_grad, steps_of


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
