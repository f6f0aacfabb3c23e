"""Batch normalization: what the passes of several ops have in common, as launches over an image.

Memory contract: a pass is one launch that leaves coefficients on the device, by measuring or from what is
given, and one that goes over all of memory. Nothing waits for the device.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from .amp import _bits
from .norm_apply import normalise_all
from .norm_backward import grads_of_inputs, measure_grads
from .norm_channels import settle_sums
from .norm_plan import Image

Results = tuple[Tensor, Tensor, Tensor]


@contextmanager
def without_gaps(*tensors: Tensor | None) -> Iterator[tuple[Tensor | None, ...]]:
    """One value a channel each, side by side; what is written to copies is copied back."""
    dense = tuple(None if t is None else t.contiguous() for t in tensors)
    yield dense
    for t, run in zip(tensors, dense, strict=True):
        if t is not None and run is not None and run is not t:
            t.copy_(run)


def vector(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous()


def _or_none(t: Tensor) -> Tensor | None:
    return t if t.numel() > 0 else None


# --- forward ----------------------------------------------------------------------------------------------
def forward(
    image: Image,
    settle: Callable[[Tensor, Tensor], None],
    residual: Tensor | None,
    batches: Tensor | None,
    act: str | None,
    negative_slope: float,
    saving: bool,
) -> Results:
    """settle(stats, table): the launch that comes first."""
    stats, table = image.new(3, image.channels), image.new(3, max(1, image.channels))
    output, bits = torch.empty_like(image.x), image.new_bits(act, residual, saving)
    settle(stats, table)
    tensors = (image.x, image.like(residual), output, _or_none(bits), table, batches)
    image.everywhere(normalise_all, *tensors, _bits(negative_slope), ACT=act)
    return output, stats, bits


# --- backward ---------------------------------------------------------------------------------------------
class Backward:
    """What a backward pass begins with, all in the input's order of memory."""

    def __init__(
        self,
        grad_output: Tensor,
        input: Tensor,
        residual: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        stats: Tensor,
        mask: Tensor,
        act: str | None,
        negative_slope: float,
    ) -> None:
        self.image = Image(input)
        self.wants_residual = mask.numel() > 0 or residual is not None
        self.weight, self.bias, self.stats = vector(weight), vector(bias), stats
        self.act, self.negative_slope = act, _bits(negative_slope)
        bits = _or_none(mask) if act in ("relu", "leaky_relu") else None
        needed = residual if bits is None and act is not None else None
        self.streams = (self.image.like(grad_output), self.image.x, self.image.like(needed), bits)

    def affine_grads(self, fill: bool) -> tuple[Tensor, Tensor]:
        """Empty where there is no such parameter. fill: with zeros."""
        dweight, dbias = (
            self.image.x.new_empty(0) if t is None else torch.empty_like(t) for t in (self.weight, self.bias)
        )
        return (dweight.zero_(), dbias.zero_()) if fill else (dweight, dbias)

    def measure(self, table: Tensor | None, sums: Tensor | None, grads: tuple[Tensor, Tensor]) -> None:
        vectors = (self.stats, table, sums, self.weight, self.bias, *map(_or_none, grads))
        after = (*vectors, self.negative_slope)
        self.image.measure(measure_grads, 2, self.streams, after, ACT=self.act)

    def settle(self, table: Tensor, sums: Tensor | None) -> None:
        self.image.settle(settle_sums, sums, self.stats, table, self.weight, self.bias)

    def table(self) -> Tensor:
        return self.image.new(5, max(1, self.image.channels))

    def input_grads(self, table: Tensor, given: bool) -> tuple[Tensor, Tensor]:
        dx = torch.empty_like(self.image.x)
        dresidual = torch.empty_like(dx) if self.wants_residual else dx.new_empty(0)
        if self.image.numel > 0:
            arguments = (*self.streams, dx, _or_none(dresidual), table, self.negative_slope)
            self.image.everywhere(grads_of_inputs, *arguments, GIVEN=given, ACT=self.act)
        return dx, dresidual
