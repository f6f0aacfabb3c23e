"""The arguments of one optimizer op, put together from parameter groups."""

from typing import Any

import torch
from torch import Tensor

from .phase import KEPT


class Call:
    """One op call: the groups of one op, variant and device, joined."""

    def __init__(self) -> None:
        self.lists: list[list[Tensor]] = []
        self.rows: list[list[Any]] = []
        self.groups: list[int] = []

    @property
    def grads(self) -> list[Tensor]:
        return self.lists[1]

    def add(self, lists: tuple[list[Tensor], ...], row: list[Any], device: torch.device) -> None:
        """lists: as the op has them; one that is empty has no entry for any parameter."""
        here = [i for i, p in enumerate(lists[0]) if p.device == device]
        self.lists = self.lists or [[] for _ in lists]
        for mine, theirs in zip(self.lists, lists, strict=True):
            mine += [theirs[i] for i in here] if theirs else []
        self.groups += [len(self.rows)] * len(here)
        self.rows.append(row)

    def arguments(self) -> tuple[Any, ...]:
        return *self.lists, self.hyper(), self.groups

    @staticmethod
    def options(grads_after: int) -> dict[str, Any]:
        return {} if grads_after == KEPT else {"grads_after": grads_after}

    def run(
        self,
        op: str,
        device: torch.device,
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
        stats: Tensor | None,
        grads_after: int,
    ) -> None:
        grad_scale, found_inf = (
            None if t is None else t.to(device, torch.float32) for t in (grad_scale, found_inf)
        )
        overloads = getattr(torch.ops.onepass, op)
        step = overloads.default if grads_after == KEPT else overloads.writing
        step(
            *self.arguments(),
            grad_scale=grad_scale,
            found_inf=found_inf,
            stats=stats,
            **self.options(grads_after),
        )
        if not torch.compiler.is_compiling():
            torch.autograd.graph.increment_version(self.lists[0])
            if grads_after != KEPT:
                torch.autograd.graph.increment_version(self.grads)

    def hyper(self) -> Tensor:
        """One float64 tensor [groups, columns], made without a host sync."""
        tensors = [x for row in self.rows for x in row if isinstance(x, Tensor)]
        if not tensors and not torch.compiler.is_compiling():
            return torch.tensor(self.rows, dtype=torch.float64)
        # Under torch.compile a float that is a factor may change without a recompile; a constant may not.
        device = tensors[0].device if tensors else self.lists[0][0].device
        one = torch.ones((), dtype=torch.float64, device=device)
        return torch.stack([torch.stack([one * _scalar(x) for x in row]) for row in self.rows])


def _scalar(x: Any) -> Any:
    return x.reshape(()) if isinstance(x, Tensor) else x
