"""Batch normalization: sizes and grids of launches, and the memory they are given.

Memory contract: an input that is dense in one of two orders of memory is taken as it lies, anything else is
copied once. Beside results a pass takes float64 [kinds, splits, channels] for partial results, and a counter
a block of channels, which is kept from call to call.

A program that measures keeps the sums of its tiles in registers, so registers decide how many programs a
multiprocessor holds. The numbers below are reasoned: none has been timed on a GPU.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .machine import INTERPRETED, THREADS, options, programs_of
from .norm_memory import CROSSING, EACH, NEXT, SAME, WRAPPED
from .optim import TL_DTYPES
from .tickets import tickets_of

# The interpreter's numbers are small, so that small shapes have several programs, tiles and chunks.
# Elements that a program takes at a time; of float64 half. 16 a thread are four accesses of 128 bits in
# float32, two in a half, and their two sums take 32 of the 128 registers that four programs leave a thread.
TILE = 2048 if INTERPRETED else 16 * THREADS
# Of a measuring launch, at most: four on each of an H100's 132 multiprocessors are one set.
PROGRAMS = 16 if INTERPRETED else 512
# Of a measuring program, at least: its first tile is read twice, which should be a small part of its work.
TILES = 1 if INTERPRETED else 4
# Tiles that are summed in the arithmetic type before they are merged: a thread adds up few numbers, and a
# merge, which all threads wait for, is rare.
CHUNK = 2 if INTERPRETED else 16
SEGMENT = 64  # bytes of a row that a program reads where channels are innermost: two sectors of the L2 cache
FOLD = 512  # partial results that a last program takes at a time: four a thread of each kind
SETTLED = THREADS  # channels of a program that only makes coefficients: one a thread
NARROW = 2**31  # elements whose offsets 32 bits hold


class Cut(NamedTuple):
    """How a launch that measures is cut: a tile has `rows` vectors of `run` elements of each of `block`
    channels; where channels are innermost, `rows` elements, in vectors of `run` channels."""

    last: bool  # channels are innermost
    block: int
    rows: int
    run: int
    even: bool  # all elements of a vector are of the channel
    whole: bool  # no vector reaches beyond the end of memory
    chunk: int
    index: Any  # the integer type of an offset
    shape: tuple[int, ...]  # of a tile: rows, vectors, elements of one; or channels, vectors, elements


# --- memory -----------------------------------------------------------------------------------------------
def _is_dense(t: Tensor, last: bool) -> bool:
    """Do elements lie without gaps as images, channels, pixels (or images, pixels, channels)?"""
    if t.numel() == 0:
        return True
    pixels = sorted((t.stride(d), t.shape[d]) for d in range(2, t.dim()))
    channels, images = (t.stride(1), t.shape[1]), (t.stride(0), t.shape[0])
    step = 1
    for stride, size in [channels, *pixels, images] if last else [*pixels, channels, images]:
        if size != 1 and stride != step:
            return False
        step *= size
    return True


def _dense(t: Tensor) -> Tensor:
    """The tensor itself where it is dense in one of the two orders, else a copy that is."""
    if t.is_contiguous() or _is_dense(t, True) or _is_dense(t, False):
        return t
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    last = t.dim() in formats and t.shape[1] > 1 and t.stride(1) == 1
    return t.contiguous(memory_format=formats[t.dim()] if last else torch.contiguous_format)


def _same_strides(a: Tensor, b: Tensor) -> bool:
    return all(n == 1 or a.stride(d) == b.stride(d) for d, n in enumerate(a.shape))


def _up(n: int) -> int:
    return triton.next_power_of_2(max(1, n))


# --- launches ---------------------------------------------------------------------------------------------
def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """All launches come through here."""
    kernel[grid](*arguments, **constants)


class Image:
    """What is normalized, dense, and how launches over it are cut."""

    def __init__(self, input: Tensor) -> None:
        self.x = _dense(input)
        self.numel, self.channels = input.numel(), input.shape[1]
        self.count = self.numel // max(1, self.channels)  # elements of a channel
        self.last = self.channels > 1 and _is_dense(self.x, True)
        self.images, self.pixels = input.shape[0], max(1, self.count // max(1, input.shape[0]))
        if self.last:
            self.images, self.pixels = self.count, 1
        elif self.channels == 1:
            self.images, self.pixels = 1, max(1, self.count)
        self.dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
        self.T = TL_DTYPES[self.dtype]
        self.tile = TILE // 2 if self.dtype == torch.float64 else TILE
        self.warp = programs_of(input.device)[1]

    # --- tensors ------------------------------------------------------------------------------------------
    def like(self, t: Tensor | None) -> Tensor | None:
        """A tensor of the same shape in the same order of memory."""
        if t is None:
            return None
        dense = _dense(t)
        return dense if _same_strides(dense, self.x) else torch.empty_like(self.x).copy_(dense)

    def new(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Of the arithmetic type, if no other is named."""
        return self.x.new_empty(shape, dtype=dtype or self.dtype)

    def new_bits(self, act: str | None, residual: Tensor | None, saving: bool) -> Tensor:
        wanted = saving and residual is not None and act in ("relu", "leaky_relu")
        return self.new((self.numel + 7) // 8 if wanted else 0, dtype=torch.uint8)

    # --- how it is cut ------------------------------------------------------------------------------------
    @property
    def index(self) -> Any:
        """Of an offset, and of what lies behind the last one in tiles that are read at once."""
        behind = self.tile * (PROGRAMS + self.channels)
        return tl.int32 if self.numel + behind < NARROW else tl.int64

    @property
    def vectors(self) -> int:
        """That hold the run of pixels which an image has of a channel, wherever it starts among eight."""
        return 1 if self.last else (self.pixels + 15 - min(self.pixels & -self.pixels, 8)) // 8

    @property
    def how(self) -> int:
        if self.last:
            wide = NEXT if self.channels % 8 == 0 else WRAPPED
            return (wide if self.channels >= 8 else EACH).value
        if self.pixels % 8 == 0 or self.channels == 1:
            return SAME.value
        return (CROSSING if self.pixels >= 8 else EACH).value

    def cut(self) -> Cut:
        size, most = self.x.element_size(), _up(self.channels)
        shape: tuple[int, ...]
        if self.last:
            rows = min(self.tile // min(most, SEGMENT // size), _up(self.images))
            block = min(most, self.tile // rows)
            run = next(n for n in (8, 4, 1) if self.channels % n == 0)
            even, whole, shape = True, True, (rows, block // run, run)
        else:
            run, lanes = 8, self.tile // 8
            rows = min(lanes, _up(self.images * self.vectors))
            block = min(most, lanes // rows)
            even, whole = self.pixels % 8 == 0, self.numel % 8 == 0
            shape = (block, rows, run)
        return Cut(self.last, block, rows, run, even, whole, CHUNK, self.index, shape)

    # --- launches -----------------------------------------------------------------------------------------
    def measure(self, kernel: Any, kinds: int, before: tuple, after: tuple, **constants: Any) -> None:
        """before, after: the kernel's arguments on both sides of partial results, of so many kinds, and
        tickets; then come the sizes."""
        cut = self.cut()
        blocks, tiles = (
            triton.cdiv(self.channels, cut.block),
            triton.cdiv(self.images * self.vectors, cut.rows),
        )
        splits = max(1, min(PROGRAMS // blocks, triton.cdiv(tiles, TILES)))
        partials = self.new(kinds, splits, self.channels, dtype=torch.float64)
        scratch = (partials, tickets_of(self.x.device, blocks))
        sizes = (self.images, self.pixels, self.channels, self.vectors)
        constants |= {"CUT": cut, "FOLDED": min(max(1, FOLD // cut.block), _up(splits)), "T": self.T}
        launch(kernel, (blocks, splits), *before, *scratch, *after, *sizes, **constants, **options(self.warp))

    def settle(self, kernel: Any, *arguments: Any, **constants: Any) -> None:
        grid = (max(1, triton.cdiv(self.channels, SETTLED)),)
        constants |= {"T": self.T, "SIZE": SETTLED}
        launch(kernel, grid, *arguments, self.channels, **constants, **options(self.warp))

    def everywhere(self, kernel: Any, *arguments: Any, **constants: Any) -> None:
        grid = (max(1, triton.cdiv(self.numel, self.tile)),)
        sizes = (self.numel, self.pixels, max(1, self.channels))
        constants |= {"HOW": self.how, "INDEX": self.index, "T": self.T, "SIZE": self.tile}
        launch(kernel, grid, *arguments, *sizes, **constants, **options(self.warp))
