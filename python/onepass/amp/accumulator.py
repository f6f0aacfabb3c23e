"""Sums of gradients over several backward passes, in float32."""

from collections.abc import Iterable

import torch
from torch import Tensor

from .. import checks
from ..optim.devices import by_device, call_each


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
        self._grad_dtypes: dict[int, torch.dtype | None] = {}  # what they were before install()

    @torch.no_grad()
    def accumulate(self, inv_scale: Tensor | float | None = None) -> None:
        """sum += inv_scale * p.grad for each parameter that has a gradient; then p.grad is None.

        Args:
            inv_scale: a number, or one float32 element on a device: 1 / loss scale, or 1 / micro-batches.

        Raises:
            RuntimeError: a gradient is no dense tensor of the parameter's shape; the sums are installed. No
                sum has been written then.
        """
        taken = [i for i, p in enumerate(self.params) if p.grad is not None]
        for i in taken:
            self._check_gradient(i)
        sums = by_device([self.grads[i] for i in taken])
        grads = by_device([self.params[i].grad for i in taken])  # type: ignore[misc]
        calls = [(total, grads.get(device, [])) for device, total in sums.items()]
        factors = [_factor(inv_scale, device) for device in sums]
        call_each("accumulate_", calls, inv_scale=factors)
        for i in taken:
            self.params[i].grad = None
            self._touched[i] = True
        if taken:
            torch.autograd.graph.increment_version([self.grads[i] for i in taken])

    def _check_gradient(self, i: int) -> None:
        grad = self.params[i].grad
        if grad is self.grads[i]:
            raise RuntimeError("GradAccumulator.accumulate: the sums are installed; call zero() first")
        if grad is not None and grad.layout != torch.strided:
            raise RuntimeError(
                f"GradAccumulator.accumulate: the gradient of params[{i}] is sparse, expected a dense one"
            )

    def install(self) -> None:
        """p.grad is the sum itself for each parameter that had a gradient, and None for the others.

        Of a half parameter, p.grad_dtype is float32 from now on until zero(), which sets it back: torch's
        leave to have such a gradient.
        """
        for i, (p, total) in enumerate(zip(self.params, self.grads, strict=True)):
            if p.grad is total:
                continue
            p.grad = None
            if not self._touched[i]:
                continue
            if p.dtype != total.dtype:
                self._grad_dtypes.setdefault(i, p.grad_dtype)
                p.grad_dtype = total.dtype
            p.grad = total

    @torch.no_grad()
    def zero(self) -> None:
        """All sums are zero; where they were installed, p.grad is None. One write."""
        for i, (p, total) in enumerate(zip(self.params, self.grads, strict=True)):
            if p.grad is total:
                p.grad = None
            if i in self._grad_dtypes and p.grad is None:
                p.grad_dtype = self._grad_dtypes.pop(i)
        if self.grads:
            torch._foreach_zero_(self.grads)
        self._touched = [False] * len(self.params)


def _factor(inv_scale: Tensor | float | None, device: torch.device) -> Tensor | None:
    if inv_scale is None:
        return None
    if isinstance(inv_scale, Tensor):
        return inv_scale.detach().to(device, torch.float32)
    return torch.full((), inv_scale, dtype=torch.float32, device=device)


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
