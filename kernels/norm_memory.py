"""Batch normalization: where the elements of a channel lie, and where a program leaves what it has found.

Two orders of memory: planar (images, channels, pixels: NCHW) and interleaved (images, pixels, channels).

The launches that measure go over the elements of a block of channels, by tiles. All memory is read in vectors
that start on a multiple of their length, eight elements of planar memory: the run of pixels that an image has
of a channel may start and end within a vector, whose other elements belong to the neighbours. They are read
with the others, as they are in the same sector of the cache, and left out of the sums.

The launches that write go over all of memory as it lies, eight elements a vector; `channels_of` tells whose
they are, and coefficients come through the L1 cache.

Memory contract: the partial results of a measuring launch are float64 [kinds, splits, channels]; each program
writes its own once, and the last one of a block of channels to finish reads those of the block once.
"""

import triton
import triton.language as tl

from .tickets import is_last

# How an element's channel is found from where it lies, eight elements at a time.
SAME = tl.constexpr(0)  # the eight are of one channel
CROSSING = tl.constexpr(1)  # of one channel, or the last of them of the next one
NEXT = tl.constexpr(2)  # of eight channels in a row
WRAPPED = tl.constexpr(3)  # the same, and after the last one comes the first
EACH = tl.constexpr(4)  # any


# --- the elements of a block of channels ------------------------------------------------------------------
@triton.jit
def sizes_of(images, pixels, channels, vectors, CUT: tl.constexpr):
    """As integers of the type that offsets have. vectors: so many hold what an image has of a channel, where
    ever that starts. Interleaved memory has as many images as pixels, of one pixel and one vector each."""
    INDEX: tl.constexpr = CUT.index
    return tl.cast(images, INDEX), tl.cast(pixels, INDEX), tl.cast(channels, INDEX), tl.cast(vectors, INDEX)


@triton.jit
def tiles_of(sizes, CUT: tl.constexpr):
    return tl.cdiv(sizes[0] * sizes[3], CUT.rows)


@triton.jit
def channels_of_block(sizes, CUT: tl.constexpr):
    """(channels, are they there?) of this program."""
    c = tl.program_id(0).to(CUT.index) * CUT.block + tl.arange(0, CUT.block)
    return c, c < sizes[2]


@triton.jit
def tile_of(tile, sizes, CUT: tl.constexpr):
    """Where the vectors of a tile start, which are read, which elements are of the channel, and how many.

    In shapes that CUT.shape can be had from: the last of `there` is 1, so that a vector is one access.
    """
    images, pixels, channels, vectors = sizes
    first = tl.program_id(0).to(CUT.index) * CUT.block
    if CUT.last:
        c = first + tl.arange(0, CUT.block // CUT.run)[None, :, None] * CUT.run
        row = tile * CUT.rows + tl.arange(0, CUT.rows)[:, None, None]
        start = row * channels + c
        there = (row < images) & (c < channels)
        inside = there
        held = tl.maximum(tl.minimum(images - tile * CUT.rows, CUT.rows), 0).to(tl.int32)
    else:
        c = first + tl.arange(0, CUT.block)[:, None, None]
        vector = tile * CUT.rows + tl.arange(0, CUT.rows)[None, :, None]
        image = vector // vectors
        begin = (image * channels + c) * pixels
        start = (begin // CUT.run + vector - image * vectors) * CUT.run
        there = (image < images) & (c < channels)
        if CUT.even:
            inside = there
            held = tl.where(there, CUT.run, 0)
        else:
            low = tl.maximum(begin - start, 0)
            high = tl.where(there, tl.minimum(begin + pixels - start, CUT.run), 0)
            held = tl.maximum(high - low, 0)
            there = held > 0
            # One bit an element: so few instructions tell it, where a comparison or two would take more.
            bits = tl.where(there, (1 << high.to(tl.int32)) - (1 << low.to(tl.int32)), 0)
            inside = (bits & (1 << tl.arange(0, CUT.run)[None, None, :])) != 0
        held = held.to(tl.int32)
    start = tl.multiple_of(start, [CUT.run, CUT.run, CUT.run])
    return start, there if CUT.whole else inside, inside, held


@triton.jit
def none_held(CUT: tl.constexpr):
    return tl.full((), 0, tl.int32) if CUT.last else tl.zeros((CUT.block, CUT.rows, 1), tl.int32)


@triton.jit
def sum_held(held, CUT: tl.constexpr):
    """Elements of each channel."""
    return tl.zeros((CUT.block,), tl.int32) + (held if CUT.last else tl.sum(tl.sum(held, 2), 1))


@triton.jit
def read_tile(x, start, there, CUT: tl.constexpr, T: tl.constexpr):
    return tl.load(x + (start + tl.arange(0, CUT.run)[None, None, :]), mask=there, other=0.0).to(T)


@triton.jit
def over_tile(v, CUT: tl.constexpr):
    """A value a channel, to be read by the elements of a tile."""
    return tl.reshape(v, (1, CUT.block // CUT.run, CUT.run)) if CUT.last else v[:, None, None]


@triton.jit
def sum_tile(v, CUT: tl.constexpr):
    """The sum over all of a channel's elements in a tile."""
    return tl.reshape(tl.sum(v, 0), (CUT.block,)) if CUT.last else tl.sum(tl.sum(v, 2), 1)


# --- partial results, and the last program of a block of channels -----------------------------------------
@triton.jit
def leave(partials, kind: tl.constexpr, c, there, channels, value):
    """A result of this program."""
    row = kind * tl.num_programs(1) + tl.program_id(1)
    tl.store(partials + row * channels + c, value, mask=there)


@triton.jit
def is_last_of_block(tickets):
    """Are all programs of this block of channels done?"""
    return is_last(tickets + tl.program_id(0), tl.num_programs(1))


@triton.jit
def left(partials, kind: tl.constexpr, rows, c, there, channels):
    """What the programs `rows` have left: [rows, channels]; zeros of those that there are not."""
    splits = tl.num_programs(1)
    at = partials + (kind * splits + rows)[:, None] * channels + c[None, :]
    mask = (rows < splits)[:, None] & there[None, :]
    return tl.load(at, mask=mask, other=0.0, cache_modifier=".cg")


# --- eight elements anywhere in memory --------------------------------------------------------------------
@triton.jit
def channels_of(first, inner, channels, HOW: tl.constexpr):
    """Of eight elements from `first` on: their channels; the next channel, and who belongs to it, where they
    may be CROSSING. inner: elements of a channel side by side."""
    more = tl.arange(0, 8)[None, :].to(first.dtype)
    run = first // inner
    here, next, crossed = run % channels, run, more < 0
    if HOW == CROSSING:
        next = tl.where(here + 1 < channels, here + 1, 0)
        crossed = first - run * inner + more >= inner
    elif HOW == EACH:
        here = (first + more) // inner % channels
    elif HOW == NEXT:
        here = tl.multiple_of(first % channels, [8, 8]) + more
    elif HOW == WRAPPED:
        here = first % channels + more
        here = tl.where(here >= channels, here - channels, here)
    return here, next, crossed


@triton.jit
def coefficient(table, row: tl.constexpr, owners, channels, HOW: tl.constexpr):
    """Of each element, from a row of the table. One access serves the elements of a channel."""
    here, next, crossed = owners
    # Rows start on multiples of eight where there are so many channels: the compiler has to see it.
    at = table + row * (channels // 8 * 8 if HOW == NEXT else channels)
    value = tl.load(at + here)
    if HOW == CROSSING:
        value = tl.where(crossed, tl.load(at + next), value)
    return value
