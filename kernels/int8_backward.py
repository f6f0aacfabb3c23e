"""The gradients of the 8-bit product: `int8_mm_bwd`, with the arguments of the schema in onepass/ops.py.

Memory contract, for each gradient, two launches. The first quantizes lines of g and turns the other factor
(int8_backward_lines.py): g is read twice, the second time from a cache, and left as a byte an element; the
other factor is read and written once, a byte an element. The second multiplies them
(int8_backward_tiles.py), with scales and zero points behind the sums, which are in registers alone. Memory
may lie in any way: the first launch reads it by its strides. Nothing waits for the device, so that a weight
of -128 is not looked for; it is multiplied as such.

Formulas: csrc/common/int8_backward.h. Other than there, sums of any length, with any zero points, are exact
before they are rounded to float32. None of it has been timed on a GPU.
"""

from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from . import int8_plan as plan
from .int8 import plain
from .int8_backward_lines import make_ready
from .int8_backward_tiles import LONGEST, gradient_tiles, gradient_tiles_tma
from .machine import THREADS, machine_of, programs_of

_OF_ROWS, _OF_COLUMNS = 0, 1  # Philox's streams
_TILE, _COLUMNS = 4096, 32  # elements of g at a time; columns side by side, of a long g
_SIDE = 64  # of a square that is turned


def _step(vector: Tensor | None) -> int:
    return int(vector is not None and vector.dim() > 0)


class _Gradient:
    """y[line, output] = scale[line] * sum of q[line, d] * (right[d, output] - zero[d]), where q * scale are
    lines of g times a factor for each d. g: [lines, depth], right: [depth, outputs]."""

    def __init__(self, g: Tensor, right: Tensor, y: Tensor, corrects: bool) -> None:
        (self.lines, depth), self.outputs = g.shape, right.shape[1]
        self.g, self.right, self.y = g, right, y
        self.width = triton.cdiv(depth, 16) * 16
        self.q = g.new_empty(self.lines, self.width, dtype=torch.int8)
        self.turned = g.new_empty(self.outputs, self.width, dtype=torch.int8)
        self.scales = g.new_empty(self.lines, dtype=torch.float32)
        self.starts = g.new_empty(self.lines, dtype=torch.int64) if corrects else None
        self.machine = machine_of(g.device)
        self.described = self.machine.descriptors and self.width > 0
        self.long = self.width > LONGEST

    def make_ready(self, factors: Tensor | None, zeros: Tensor | None, seed: int | None, stream: int) -> None:
        depth = self.g.shape[1]
        even = seed is None or depth % 4 == 0
        tile = _TILE if even else _TILE // 2  # else every line has places of its own, in registers
        widest = tile if self.g.stride(1) == 1 else tile // _COLUMNS
        deep = min(triton.next_power_of_2(max(16, self.width)), widest)
        programs = triton.cdiv(self.lines, tile // deep)
        turning = triton.cdiv(self.width, _SIDE) * triton.cdiv(self.outputs, _SIDE)
        plan.launch(
            make_ready, (programs + turning,), self.g, factors, zeros, seed, self.q, self.scales, self.starts,
            self.right, self.turned, self.lines, depth, self.width, self.outputs, programs,
            *self.g.stride(), *self.right.stride(),
            STEPS=(_step(factors), _step(zeros)), STREAM=stream, EVEN=even,
            LINES=tile // deep, DEPTH=deep, SIDE=_SIDE,
            num_warps=2 * THREADS // programs_of(self.g.device)[1], enable_fp_fusion=False,
        )  # fmt: skip

    def multiply(self, tiles: plan.Tiles) -> None:
        kernel, programs = gradient_tiles, tiles.cover(self.lines, self.outputs)
        q, right, constants = self.q, self.turned, plan.constants_of(tiles, whole=True)
        if self.described:
            kernel, at_a_time = gradient_tiles_tma, tiles.at_a_time(self.machine, 1)
            programs = min(programs, self.machine.processors * at_a_time)
            q = TensorDescriptor.from_tensor(q, [tiles.rows, tiles.depth])
            right = TensorDescriptor.from_tensor(right, [tiles.outputs, tiles.depth])
        vectors, sizes = (self.scales, self.starts), (self.lines, self.outputs, self.width)
        plan.launch(kernel, (programs,), q, right, self.y, *vectors, *sizes, LONG=self.long, **constants)

    def run(self, *how: Any) -> None:
        if self.y.numel() == 0:
            return
        wide = self.described and self.starts is None and not self.long  # else there are too few registers
        kind = "gradient", self.y.device, self.y.dtype, self.outputs, self.width, wide, self.starts is None
        with torch.cuda.device_of(self.y):
            self.make_ready(*how)
            table = plan.LONG if self.long else plan.table_of(torch.int8, wide)
            sizes = (self.lines, self.outputs, 0, 1)  # no depth: it is not cut in shares
            self.multiply(plan.choose(table, *sizes, self.machine, kind, run=self.multiply))


def _dense(vector: Tensor | None) -> Tensor | None:
    return None if vector is None or vector.numel() == 0 else vector.contiguous()


def int8_mm_bwd(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    input_scale: Tensor | None = None,
    weight_scale: Tensor | None = None,
    input_zero_point: Tensor | None = None,
    *,
    seed: int | None = None,
    input_grad: bool = True,
    weight_grad: bool = True,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    w, result = plain("int8_mm_bwd", weight), dtype or grad_output.dtype
    (n, k), rows = w.shape, input.shape[:-1].numel()
    g, x, zeros = grad_output.reshape(rows, n), input.reshape(rows, k), _dense(input_zero_point)
    grad_input = input.new_empty(input.shape if input_grad else 0, dtype=result)
    grad_weight = input.new_empty((n, k) if weight_grad else 0, dtype=result)
    if input_grad:
        of_rows = _Gradient(g, w, grad_input.view(rows, k), corrects=False)
        of_rows.run(_dense(weight_scale), None, seed, _OF_ROWS)
    if weight_grad:
        corrects = zeros is not None or x.dtype == torch.uint8
        of_columns = _Gradient(g.t(), x, grad_weight, corrects)
        of_columns.run(_dense(input_scale), zeros, seed, _OF_COLUMNS)
    return grad_input, grad_weight
