"""Few rows by all weights: no tensor cores, for there is nothing to share but the weights.

Memory contract: a program reads the weights of its outputs once, 16 bytes a thread at a time, and the rows of
x, which stay in the caches; y is written once. The depth is split over the threads of the program and added
up in one order, so that no sums reach memory and bits are the same from run to run. x is whole or real.
"""

import triton
import triton.language as tl

from .int8_rules import signed
from .int8_tiles import finish


@triton.jit
def product_rows(
    x, w, y, input_scale, input_zero, weight_scale, bias, output_scale, output_zero, m, n, k,
    STEPS: tl.constexpr, ACT: tl.constexpr, CORRECTS: tl.constexpr,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Blocks are [rows, outputs, depth]. All ROWS rows are taken; those beyond the last are it again."""
    T: tl.constexpr = tl.int32 if x.dtype.element_ty.is_int() else tl.float32
    first = tl.program_id(0) * OUTPUTS
    rows = tl.minimum(tl.arange(0, ROWS), m - 1)
    outputs = tl.minimum(first + tl.arange(0, OUTPUTS), n - 1).to(tl.int64)
    deep = tl.arange(0, DEPTH)
    from_x, from_w = x + rows[:, None, None] * k + deep, w + outputs[None, :, None] * k + deep
    sums = tl.zeros((ROWS, OUTPUTS, DEPTH), T)
    weights = tl.zeros((1, OUTPUTS, DEPTH), tl.int32)
    for start in range(0, k, DEPTH):
        inside = (deep < k - start)[None, None]
        a = signed(tl.load(from_x + start, mask=inside, other=0)).to(T)
        b = tl.load(from_w + start, mask=inside, other=0)
        sums += a * b.to(T)
        if CORRECTS:
            weights += b.to(tl.int32)
    of_outputs = tl.sum(tl.sum(weights, 2), 0) if CORRECTS else None
    behind = (y, input_scale, input_zero, weight_scale, bias, output_scale, output_zero, m, n)
    finish(tl.sum(sums, 2), of_outputs, 0, first, behind, x.dtype.element_ty, STEPS, ACT)
