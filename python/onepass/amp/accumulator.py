"""Sums of gradients over several backward passes, in float32."""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

from .. import backends, checks


class GradAccumulator:
    """Adds up the gradients of micro-batches in float32, whatever their dtype, and hands the sums to an
    optimizer without a copy.

    >>> acc = GradAccumulator(model.parameters())
    >>> for micro_batch in window:
    ...     loss(model, micro_batch).backward()
    ...     acc.accumulate()  # takes the gradients: p.grad is None again
    >>> acc.install()  # p.grad is the sum
    >>> optimizer.step()
    >>> acc.zero()

    torch adds bfloat16 and float16 gradients up in their own dtype, where a small one is lost beside a large
    sum. Each accumulate() is one pass over the gradients and the sums: 10 bytes an element for half gradients
    (2 read, 4 read, 4 written), 12 for float32, in one launch a device.

    The optimizers of onepass take float32 gradients of half parameters; torch's fused and foreach ones do
    not. An inf or NaN in one micro-batch stays in the sum: under a GradScaler the whole window is skipped.

    Attributes:
        params: as given.
        grads: a float32 sum for each (float64 for a float64 parameter), of its shape and strides, written in
            place. They stay the same tensors.

    Args:
        params: an iterable of float32, float64, bfloat16 or float16 tensors, all of them once.

    Raises:
        TypeError, ValueError: params are no such tensors.
    """

    def __init__(self, params: Iterable[Tensor] | Tensor) -> None:
        if isinstance(params, Tensor):
            raise TypeError("GradAccumulator: params is one Tensor, expected an iterable of them")
        self.params = list(params)
        for i, p in enumerate(self.params):
            _check(i, p)
        if len({id(p) for p in self.params}) != len(self.params):
            raise ValueError("GradAccumulator: a parameter is listed twice")
        self.grads = [
            torch.zeros_like(p, dtype=_sum_dtype(p), requires_grad=False, memory_format=torch.preserve_format)
            for p in self.params
        ]
        self._touched = [False] * len(self.params)
        self._factors: dict[tuple[float, torch.device], Tensor] = {}

    @torch.no_grad()
    def accumulate(self, inv_scale: Tensor | float | None = None) -> None:
        """sum += inv_scale * p.grad for each parameter that has a gradient; then p.grad is None.

        Args:
            inv_scale: a number, or one float32 element on a device: 1 / loss scale, or 1 / micro-batches.

        Raises:
            RuntimeError: a gradient is no dense tensor of the parameter's shape; the sums are installed. No
                sum has been written then.
        """
        by_device: dict[torch.device, list[int]] = defaultdict(list)
        for i, p in enumerate(self.params):
            if p.grad is None:
                continue
            if p.grad is self.grads[i]:
                raise RuntimeError("GradAccumulator.accumulate: the sums are installed; call zero() first")
            if p.grad.layout != torch.strided:
                raise RuntimeError(
                    f"GradAccumulator.accumulate: the gradient of params[{i}] is sparse, expected a dense one"
                )
            by_device[p.device].append(i)
        calls = [(device, *self._lists(indices)) for device, indices in by_device.items()]
        factors = {device: self._factor(inv_scale, device) for device in by_device}
        if len(calls) > 1:  # all checks before the first of several calls writes
            for device, sums, grads in calls:
                backends.check("accumulate_", sums, grads, inv_scale=factors[device])
        for device, sums, grads in calls:
            torch.ops.onepass.accumulate_(sums, grads, inv_scale=factors[device])
            torch.autograd.graph.increment_version(sums)
        for i in (i for indices in by_device.values() for i in indices):
            self.params[i].grad = None
            self._touched[i] = True

    def install(self) -> None:
        """p.grad is the sum itself for each parameter that had a gradient, and None for the others.

        Of a half parameter, p.grad_dtype is float32 from now on until zero(): torch's leave to have such a
        gradient.
        """
        for p, total, touched in zip(self.params, self.grads, self._touched, strict=True):
            if p.grad is total:
                continue
            p.grad = None
            if touched:
                if p.dtype != total.dtype:
                    p.grad_dtype = total.dtype
                p.grad = total

    @torch.no_grad()
    def zero(self) -> None:
        """All sums are zero; where they were installed, p.grad is None. One write."""
        for p, total in zip(self.params, self.grads, strict=True):
            if p.grad is total:
                p.grad = None
            if p.dtype != total.dtype and p.grad is None:
                p.grad_dtype = p.dtype
        if self.grads:
            torch._foreach_zero_(self.grads)
        self._touched = [False] * len(self.params)

    def _lists(self, indices: list[int]) -> tuple[list[Tensor], list[Tensor]]:
        """Sums and gradients of these parameters."""
        return [self.grads[i] for i in indices], [self.params[i].grad for i in indices]  # type: ignore[misc]

    def _factor(self, inv_scale: Tensor | float | None, device: torch.device) -> Tensor | None:
        if inv_scale is None:
            return None
        if isinstance(inv_scale, Tensor):
            return inv_scale.detach().to(device, torch.float32)
        kept = self._factors.get((inv_scale, device))
        if kept is None:
            kept = torch.full((), inv_scale, dtype=torch.float32, device=device)
            self._factors = {(inv_scale, device): kept}
        return kept


def _check(i: int, p: Tensor) -> None:
    arg = f"GradAccumulator: params[{i}]"
    if not isinstance(p, Tensor):
        raise TypeError(f"{arg} is a {type(p).__name__}, expected a Tensor")
    if p.dtype not in checks.SERVED or p.layout != torch.strided:
        served = "float32, float64, bfloat16 or float16"
        raise ValueError(f"{arg} is {p.layout}, {p.dtype}, expected a dense one, {served}")
    if not p.is_leaf:
        raise ValueError(f"{arg} is no leaf: it gets no gradient")


def _sum_dtype(p: Tensor) -> torch.dtype:
    return torch.float32 if p.dtype in checks.HALF else p.dtype
