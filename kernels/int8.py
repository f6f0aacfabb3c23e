"""The 8-bit matrix product: `int8_mm`, `int8_linear` and `int8_weight_only_mm`, with the arguments of the
schemas in onepass/ops.py.

Memory contract. A product is one launch; what it reads and writes stands in int8_rows.py (at most four rows),
int8_tiles.py, int8_weight_only.py and, of few tiles that are deep, int8_shares.py. `int8_linear` is two: x is
quantized row by row (5 bytes an element of float32), and its bytes are multiplied. Sums reach memory where
they are the result, and those of shares. What is not contiguous, or has rows that do not begin at multiples
of 16 bytes, is copied first: weights of such a k are best padded once, by their owner. Nothing waits for the
device, so that a weight of -128 is not looked for; it is multiplied as such.
"""

import math
from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from . import int8_plan as plan
from .int8_rows import product_rows
from .int8_shares import product_shares, weight_only_shares
from .int8_tiles import product_tiles, product_tiles_tma
from .int8_weight_only import weight_only_tiles
from .machine import machine_of
from .quant import quantize
from .tickets import tickets_of

Grid = tuple[Tensor | None, Tensor | None]
Vectors = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]


def plain(op: str, weight: Tensor) -> Tensor:
    if weight.dtype == torch.uint8:
        raise RuntimeError(
            f"{op}: weight is packed, which only kernels of the CPU read: give the torch.int8 weight"
        )
    return weight


def _even(matrix: Tensor) -> Tensor:
    """Dense, with rows that begin at multiples of 16 elements and bytes: itself, or a copy with zeros behind
    each row. Memory moves 16 bytes at a time then; byte by byte it would not fit the registers."""
    rows, k = matrix.shape
    if k % 16 == 0 and matrix.is_contiguous() and matrix.data_ptr() % 16 == 0:
        return matrix
    even = matrix.new_zeros(rows, triton.cdiv(k, 16) * 16)
    even[:, :k] = matrix
    return even


class _Product:
    """A product as its launches see it. vectors: scale and zero point of rows, scale and bias of outputs.
    grid: scale and zero point of a result that is quantized again."""

    def __init__(
        self,
        x: Tensor,
        w: Tensor,
        vectors: Vectors,
        act: str | None,
        dtype: torch.dtype | None,
        grid: Grid = (None, None),
    ) -> None:
        *rows, k = x.shape
        self.m, self.n = math.prod(rows), w.shape[0]
        self.x, self.w = _even(x.reshape(self.m, k)), _even(w)
        self.k = self.x.shape[1]
        self.y = x.new_empty((*rows, self.n), dtype=dtype)
        self.vectors = tuple(None if t is None else t.contiguous() for t in (*vectors, *grid))
        self.machine = machine_of(x.device)
        self.whole = not self.x.is_floating_point()
        self.described = self.machine.descriptors and self.k > 0
        self.corrects = vectors[1] is not None or x.dtype == torch.uint8
        self.wide = self.described and not self.corrects and act != "silu"
        steps = tuple(int(t is not None and t.dim() > 0) for t in vectors)
        self.constants = {"STEPS": steps, "ACT": act, "CORRECTS": self.corrects}

    def _launch(
        self, kernel: Any, grid: tuple[int, ...], x: Any, w: Any, tiles: plan.Tiles, *more: Any
    ) -> None:
        constants = self.constants | plan.constants_of(tiles, self.whole)
        sizes = (self.m, self.n, self.k)
        plan.launch(kernel, grid, x, w, self.y, *self.vectors, *sizes, *more, **constants)

    def by_rows(self) -> None:
        tiles = plan.few(self.m, self.k)
        self._launch(product_rows, (tiles.cover(self.m, self.n),), self.x, self.w, tiles)

    def by_shares(self, tiles: plan.Tiles) -> None:
        grid = tiles.cover(self.m, self.n), tiles.shares
        sums = tiles.rows * tiles.outputs + (tiles.outputs if self.corrects else 0)
        kernel, dtype = (product_shares, torch.int32) if self.whole else (weight_only_shares, torch.float32)
        scratch = self.x.new_empty(*grid, sums, dtype=dtype), tickets_of(self.x.device, grid[0])
        self._launch(kernel, grid, self.x, self.w, tiles, *scratch)

    def by_tiles(self, tiles: plan.Tiles) -> None:
        programs = tiles.cover(self.m, self.n)
        if tiles.shares > 1:
            self.by_shares(tiles)
        elif not self.whole:
            self._launch(weight_only_tiles, (programs,), self.x, self.w, tiles)
        elif self.described:
            x = TensorDescriptor.from_tensor(self.x, [tiles.rows, tiles.depth])
            w = TensorDescriptor.from_tensor(self.w, [tiles.outputs, tiles.depth])
            at_a_time = self.machine.processors * tiles.at_a_time(self.machine, 1)
            self._launch(product_tiles_tma, (min(programs, at_a_time),), x, w, tiles)
        else:
            self._launch(product_tiles, (programs,), self.x, self.w, tiles)

    def run(self) -> Tensor:
        if self.y.numel() == 0:
            return self.y
        with torch.cuda.device_of(self.x):
            if self.m <= plan.FEW and not plan.PINNED:
                self.by_rows()
            else:
                kind = self.x.device, self.x.dtype, self.y.dtype, self.n, self.k, self.corrects, self.wide
                table = plan.table_of(self.x.dtype, self.wide)
                sizes = (self.m, self.n, self.k, self.x.element_size())
                self.by_tiles(plan.choose(table, *sizes, self.machine, kind, run=self.by_tiles))
        return self.y


def int8_mm(
    input: Tensor,
    weight: Tensor,
    input_scale: Tensor | None = None,
    weight_scale: Tensor | None = None,
    input_zero_point: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    act: str | None = None,
    dtype: torch.dtype | None = None,
    output_scale: Tensor | None = None,
    output_zero_point: Tensor | None = None,
) -> Tensor:
    zero, output_zero = (
        None if t is None or t.numel() == 0 else t for t in (input_zero_point, output_zero_point)
    )
    vectors, grid = (input_scale, zero, weight_scale, bias), (output_scale, output_zero)
    w = plain("int8_mm", weight)
    return _Product(input, w, vectors, act, dtype or torch.float32, grid).run()


def int8_linear(
    input: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    *,
    symmetric: bool = True,
    bits: int = 8,
    act: str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    w = plain("int8_linear", weight)
    q, scale, zero = quantize(input, symmetric=symmetric, bits=bits)
    vectors = (scale, None if symmetric else zero, weight_scale, bias)
    return _Product(q, w, vectors, act, dtype or input.dtype).run()


def int8_weight_only_mm(
    input: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None = None, *, act: str | None = None
) -> Tensor:
    w = plain("int8_weight_only_mm", weight)
    return _Product(input, w, (None, None, weight_scale, bias), act, input.dtype).run()
