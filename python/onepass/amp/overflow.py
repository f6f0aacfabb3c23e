"""Which parameters held inf or NaN: the report of an overflow, computed when it is asked for."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False, repr=False)
class Overflow:
    """A parameter whose gradient is not finite.

    Attributes:
        optimizer, group, index: where it stands: optimizer.param_groups[group]["params"][index].
        name: the one that the optimizer was given with it (named_parameters), else None.
        param: the parameter itself.
        inf, nan: elements of its gradient that are inf (of either sign), and NaN.
    """

    optimizer: torch.optim.Optimizer
    group: int
    index: int
    name: str | None
    param: Tensor
    inf: int
    nan: int

    def __str__(self) -> str:
        name = self.name or f"parameter {self.index}"
        return f"{name} of group {self.group}: {self.inf} inf, {self.nan} NaN of {self.param.numel()}"

    def __repr__(self) -> str:
        return f"<Overflow: {self}>"


def overflows(optimizer: torch.optim.Optimizer) -> list[Overflow]:
    """Waits for the device."""
    places, counts = [], []
    for place in _with_gradient(optimizer):
        grad = place["param"].grad
        values = grad.coalesce().values() if grad.is_sparse else grad
        places.append(place)
        counts.append(torch.stack([values.isinf().sum(), values.isnan().sum()]).cpu())
    return [
        Overflow(optimizer, **place, inf=inf, nan=nan)
        for place, (inf, nan) in zip(places, map(Tensor.tolist, counts), strict=True)
        if inf or nan
    ]


def _with_gradient(optimizer: torch.optim.Optimizer) -> Iterator[dict[str, Any]]:
    for g, group in enumerate(optimizer.param_groups):
        names = group.get("param_names", [None] * len(group["params"]))
        for i, (name, param) in enumerate(zip(names, group["params"], strict=True)):
            if param.grad is not None:
                yield {"group": g, "index": i, "name": name, "param": param}
