"""The driver of all optimizers: ONE launch for all tensors and groups of a parameter dtype.

Memory contract: every stream is read once, and written once if it changes. Adam in float32 moves 28 bytes a
parameter: 16 read (p, g, exp_avg, exp_avg_sq), 12 written (p, exp_avg, exp_avg_sq); AMSGrad 8 more, an
average of weights 8 more, 4 more where the step leaves zeros or its clipped values in the gradient. A step
that is skipped for inf writes nothing but such zeros.

A persistent grid: program i takes tiles i, i + programs, ... of BLOCK elements, and makes the coefficients of
a row once, not once a tile. Full tiles of rows that lie on 16-byte boundaries go in 128-bit accesses without
a mask; all else (tails, misaligned views) by the element, under a mask. What a row is: kernels/table.py.
"""

import triton
import triton.language as tl

from .rules import average, clipped, step, step_make
from .table import (
    FIRST,
    FLAGS,
    FOUND_INF,
    GRAD,
    GRAD_SCALE,
    GROUP,
    HEADER,
    HYPER,
    IS_ALIGNED,
    NUMEL,
    PARAM,
    STATE,
    STATS,
    STEP,
    STEP_IS_FLOAT64,
    TICKET,
)

KEPT = tl.constexpr(0)  # what a step leaves in the gradients
ZEROED = tl.constexpr(1)


@triton.jit
def _cell(table, count, column: tl.constexpr, row):
    """One number of the table."""
    return tl.load(table + HEADER + column * (count + 1) + row)


@triton.jit
def _scalar(table, entry: tl.constexpr, missing: tl.constexpr):
    """The float32 that an entry of the header points to; `missing` where it points nowhere."""
    address = tl.load(table + entry)
    value = tl.full((), missing, tl.float32)
    if address != 0:
        value = tl.load(address.to(tl.pointer_type(tl.float32)))
    return value


@triton.jit
def _stat(table, entry: tl.constexpr):
    """The norm (0) or the flag for inf (1) that was measured; 0 where nobody has."""
    address = tl.load(table + STATS)
    value = tl.full((), 0.0, tl.float64)
    if address != 0:
        value = tl.load(address.to(tl.pointer_type(tl.float64)) + entry)
    return value


@triton.jit
def _number_of_step(table, count, row, COUNTS: tl.constexpr):
    """Of this one, from 1, as float64; 2 where nobody counts: the first is behind us."""
    done = tl.full((), 1.0, tl.float64)
    if COUNTS:
        address = _cell(table, count, STEP, row)
        if _cell(table, count, FLAGS, row) & STEP_IS_FLOAT64:
            done = tl.load(address.to(tl.pointer_type(tl.float64)))
        else:
            done = tl.load(address.to(tl.pointer_type(tl.float32))).to(tl.float64)
    return done + 1


@triton.jit
def _row_of(table, count, row, tile):
    """The row that a tile belongs to: the last one that does not start behind it, `row` or a later one."""
    above = tl.zeros_like(row) + count
    while above - row > 1:
        middle = (row + above) // 2
        starts = _cell(table, count, FIRST, middle) <= tile
        row = tl.where(starts, middle, row)
        above = tl.where(starts, above, middle)
    return row


@triton.jit
def _address(table, count, column: tl.constexpr, row, there: tl.constexpr):
    """Where a row's stream starts. A state that the rule does not keep is never read: any address will do."""
    return _cell(table, count, column if there else PARAM, row)


@triton.jit
def _pointer(address, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """The hint needs a cast of its own: it holds wherever the pointer that it is put on is used."""
    at = address.to(tl.pointer_type(DTYPE))
    if ALIGNED:
        at = tl.multiple_of(at, 16)
    return at


@triton.jit
def _update(
    addresses,
    coefficients,
    offsets,
    mask,
    RULE: tl.constexpr,
    STATES: tl.constexpr,
    L2: tl.constexpr,
    VARIANT: tl.constexpr,
    EMA: tl.constexpr,
    GRADS_AFTER: tl.constexpr,
    S: tl.constexpr,
    G: tl.constexpr,
    Q: tl.constexpr,
    T: tl.constexpr,
):
    """Reads a block of each stream, applies the step, writes what changed. No mask: all is there, aligned."""
    ALIGNED: tl.constexpr = mask is None
    p_at = _pointer(addresses[0], S, ALIGNED) + offsets
    g_at = _pointer(addresses[1], G, ALIGNED) + offsets
    a_at = _pointer(addresses[2], Q, ALIGNED) + offsets
    b_at = _pointer(addresses[3], Q, ALIGNED) + offsets
    c_at = _pointer(addresses[4], Q, ALIGNED) + offsets
    e_at = _pointer(addresses[5], T, ALIGNED) + offsets
    g, p = tl.load(g_at, mask=mask).to(T), tl.load(p_at, mask=mask).to(T)
    a = tl.load(a_at, mask=mask).to(T) if STATES > 0 else g
    b = tl.load(b_at, mask=mask).to(T) if STATES > 1 else g
    c = tl.load(c_at, mask=mask).to(T) if STATES > 2 else g
    if GRADS_AFTER != KEPT and GRADS_AFTER != ZEROED:
        tl.store(g_at, clipped(coefficients, g).to(G), mask=mask)
    p, a, b, c = step(coefficients, g, p, a, b, c, RULE, L2, VARIANT, T)
    tl.store(p_at, p.to(S), mask=mask)
    if STATES > 0:
        tl.store(a_at, a.to(Q), mask=mask)
    if STATES > 1:
        tl.store(b_at, b.to(Q), mask=mask)
    if STATES > 2:
        tl.store(c_at, c.to(Q), mask=mask)
    if EMA:
        e = tl.load(e_at, mask=mask)  # late: registers
        tl.store(e_at, average(coefficients, e, p), mask=mask)
    if GRADS_AFTER == ZEROED:
        tl.store(g_at, tl.zeros_like(p).to(G), mask=mask)


@triton.jit
def _walk(
    table,
    count,
    MAKE: tl.constexpr,
    RULE: tl.constexpr,
    STATES: tl.constexpr,
    COLUMNS: tl.constexpr,
    L2: tl.constexpr,
    VARIANT: tl.constexpr,
    COUNTS: tl.constexpr,
    EMA: tl.constexpr,
    GRADS_AFTER: tl.constexpr,
    S: tl.constexpr,
    G: tl.constexpr,
    Q: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """All tiles of this program. S: the parameters' dtype; G: that of gradients; Q: of states; T: of the
    arithmetic."""
    T: tl.constexpr = tl.float64 if S.is_fp64() else tl.float32
    PART: tl.constexpr = BLOCK // 8  # under a mask every element has an address of its own: registers
    programs = tl.num_programs(0)
    tile = tl.program_id(0).to(tl.int64)
    row = tl.zeros_like(tile)
    while tile < _cell(table, count, FIRST, count):  # read anew for each row: registers are for elements
        row = _row_of(table, count, row, tile)
        first, behind = _cell(table, count, FIRST, row), _cell(table, count, FIRST, row + 1)
        aligned = (_cell(table, count, FLAGS, row) & IS_ALIGNED) != 0
        full = first + tl.where(aligned, _cell(table, count, NUMEL, row) // BLOCK, 0)
        addresses = (
            _address(table, count, PARAM, row, True),
            _address(table, count, GRAD, row, True),
            _address(table, count, STATE, row, STATES > 0),
            _address(table, count, STATE + 1, row, STATES > 1),
            _address(table, count, STATE + 2, row, STATES > 2),
            _address(table, count, STATE + STATES, row, EMA),
        )
        hyper = tl.load(table + HYPER).to(tl.pointer_type(tl.float64))
        hyper += _cell(table, count, GROUP, row) * COLUMNS
        scale = _scalar(table, GRAD_SCALE, 1.0).to(tl.float64)
        t = _number_of_step(table, count, row, COUNTS)
        coefficients = step_make(hyper, t, scale, _stat(table, 0), MAKE, T)
        while tile < behind:
            start = (tile - first) * BLOCK  # int64: tensors of 2^31 elements and more
            if tile < full:
                offsets = start + tl.arange(0, BLOCK)
                _update(
                    addresses, coefficients, offsets, None,
                    RULE, STATES, L2, VARIANT, EMA, GRADS_AFTER, S, G, Q, T,
                )  # fmt: skip
            else:
                numel = _cell(table, count, NUMEL, row)
                for part in range(0, tl.minimum(numel - start, BLOCK), PART):
                    some = start + part + tl.arange(0, PART)
                    mask = some < numel
                    _update(
                        addresses, coefficients, some, mask,
                        RULE, STATES, L2, VARIANT, EMA, GRADS_AFTER, S, G, Q, T,
                    )  # fmt: skip
            tile += programs


@triton.jit
def _zero_grads(table, count, G: tl.constexpr, BLOCK: tl.constexpr):
    """What is left of a step that is skipped, where it was to leave zeros in the gradients."""
    PART: tl.constexpr = BLOCK // 8
    tile = tl.program_id(0).to(tl.int64)
    row = tl.zeros_like(tile)
    while tile < _cell(table, count, FIRST, count):
        row = _row_of(table, count, row, tile)
        start = (tile - _cell(table, count, FIRST, row)) * BLOCK
        at, numel = _cell(table, count, GRAD, row).to(tl.pointer_type(G)), _cell(table, count, NUMEL, row)
        for part in range(0, BLOCK, PART):
            offsets = start + part + tl.arange(0, PART)
            tl.store(at + offsets, tl.zeros((PART,), G), mask=offsets < numel)
        tile += tl.num_programs(0)


@triton.jit
def _advance_steps(table, count, BLOCK: tl.constexpr):
    """Every counter goes one step further, in the program that finishes last: until then others read them."""
    tl.debug_barrier()  # this program's own reads are done
    if tl.atomic_add(table + TICKET, 1, sem="acq_rel") == tl.num_programs(0) - 1:
        column = table + HEADER
        for start in range(0, count, BLOCK):
            rows = start + tl.arange(0, BLOCK)
            there = rows < count
            address = tl.load(column + STEP * (count + 1) + rows, mask=there, other=0)
            flags = tl.load(column + FLAGS * (count + 1) + rows, mask=there, other=0)
            wide = there & ((flags & STEP_IS_FLOAT64) != 0)
            narrow = there & ((flags & STEP_IS_FLOAT64) == 0)
            at64, at32 = address.to(tl.pointer_type(tl.float64)), address.to(tl.pointer_type(tl.float32))
            tl.store(at64, tl.load(at64, mask=wide) + 1, mask=wide)
            tl.store(at32, tl.load(at32, mask=narrow) + 1, mask=narrow)
        tl.store(table + TICKET, 0)  # as it was


@triton.jit(do_not_specialize=["count"])
def multi_tensor(
    table,
    count,
    MAKE: tl.constexpr,
    RULE: tl.constexpr,
    STATES: tl.constexpr,
    COLUMNS: tl.constexpr,
    L2: tl.constexpr,
    VARIANT: tl.constexpr,
    COUNTS: tl.constexpr,
    EMA: tl.constexpr,
    GRADS_AFTER: tl.constexpr,
    S: tl.constexpr,
    G: tl.constexpr,
    Q: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """table: int64 on the device. count: of its rows, int32. The rest picks the rule, options and dtypes."""
    count = tl.cast(count, tl.int64)
    found = (_scalar(table, FOUND_INF, 0.0) != 0) | (_stat(table, 1) != 0)
    if found == 0:
        _walk(
            table, count, MAKE, RULE, STATES, COLUMNS, L2, VARIANT, COUNTS, EMA, GRADS_AFTER, S, G, Q, BLOCK
        )  # fmt: skip
        if COUNTS:
            _advance_steps(table, count, BLOCK)
    elif GRADS_AFTER == ZEROED:
        _zero_grads(table, count, G, BLOCK)
