"""Real x by 8-bit weights, which become numbers of x's dtype in registers: exactly, as 8 bits hold them.

Memory contract: as product_tiles in int8_tiles.py, by pointers; the weights move as bytes. Tiles are made as
outputs x rows: w is then the operand that tensor cores take from registers, where it was converted, and few
rows are padded to 16 and not to 64. float32 is multiplied as such, without TF32.
"""

import triton
import triton.language as tl

from .int8_tiles import finish, place


@triton.jit
def real_sums_of_tile(
    x, w, row, output, begin, end, m, n, k, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, DEPTH: tl.constexpr
):
    """[rows, outputs], over the depth from begin to end."""
    rows = tl.minimum(row * ROWS + tl.arange(0, ROWS), m - 1).to(tl.int64)  # beyond the last: that again
    outputs = tl.minimum(output * OUTPUTS + tl.arange(0, OUTPUTS), n - 1).to(tl.int64)
    deep = tl.arange(0, DEPTH)
    from_x, from_w = x + rows[None, :] * k + deep[:, None], w + outputs[:, None] * k + deep[None, :]
    sums = tl.zeros((OUTPUTS, ROWS), tl.float32)
    for start in range(begin, end, DEPTH):
        inside = deep < end - start
        a = tl.load(from_w + start, mask=inside[None, :], other=0).to(x.dtype.element_ty)
        b = tl.load(from_x + start, mask=inside[:, None], other=0.0)
        sums = tl.dot(a, b, sums, input_precision="ieee")
    return tl.trans(sums)


@triton.jit
def weight_only_tiles(
    x, w, y, input_scale, input_zero, weight_scale, bias, output_scale, output_zero, m, n, k,
    STEPS: tl.constexpr, ACT: tl.constexpr, CORRECTS: tl.constexpr,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    row, output = place(tl.program_id(0), m, n, ROWS, OUTPUTS)
    sums = real_sums_of_tile(x, w, row, output, 0, k, m, n, k, ROWS, OUTPUTS, DEPTH)
    behind = (y, None, None, weight_scale, bias, None, None, m, n)
    finish(sums, None, row * ROWS, output * OUTPUTS, behind, x.dtype.element_ty, STEPS, ACT)
