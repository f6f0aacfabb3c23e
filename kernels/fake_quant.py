"""Fake quantization: `fake_quant_fwd` and `fake_quant_bwd`, with the arguments of the schemas in
onepass/ops.py.

Memory contract. Forward, by given scales: one launch over memory as it lies, which reads an element once,
and writes the output and a bit of the mask. Scales that are found: where groups lie on bytes of the mask,
one launch, in which a program reads its groups twice, the second time from a cache; else a launch before
finds the scales (of the whole tensor two, the second of which only merges what the first has found).
Backward: one launch, which reads the gradient and a bit of the mask, the input where the gradient of scale
is wanted, and writes the gradient of input; sums of long groups are float64 parts, one for so many
elements, and added up behind it. What is not contiguous is copied first. Nothing waits for the device.

Kernels: fake_quant_kernels.py; formulas and order: quant_rules.py.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .fake_quant_kernels import grads_of_groups, grids_of_groups, pass_all, put_all, settle_grid
from .machine import THREADS
from .quant import Groups, extents_of, levels_of, options_of, programs_for

_TILE = THREADS * 8  # of a program that has groups
_SIZE = THREADS * 16  # of one that has memory as it lies
_PART = 16  # tiles of a group that one program adds up


class _Cut:
    """How a tensor is cut into groups, and groups into tiles."""

    def __init__(self, shape: torch.Size, group_size: int, symmetric: bool, bits: int) -> None:
        low, high = levels_of(symmetric, bits)
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
