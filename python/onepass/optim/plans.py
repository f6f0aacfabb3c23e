"""The C++ plans of an optimizer: which groups get one, and when they have to be built anew."""

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .. import backends, checks

if TYPE_CHECKING:
    from .base import FusedOptimizer

PLAIN = (torch.Tensor, torch.nn.Parameter)


def served(group: dict[str, Any]) -> bool:
    """Do our kernels serve this group, whatever the backend? torch's own loop does the rest.

    Among the rest: memory that is listed twice, under one name or two, and has to be updated once after the
    other; and tensors that run an op once for each tensor they wrap, where a step counter would count twice.
    """
    params = group["params"]
    return (
        not group["differentiable"]
        and all(p.dtype in checks.SERVED and not p.is_sparse for p in params)
        and not any(is_traceable_wrapper_subclass(p) for p in params)
        and len({_place(p) for p in params}) == len(params)
    )


def _place(p: torch.Tensor) -> int:
    """Where a parameter's memory starts, or its identity where that cannot be asked."""
    plain = type(p) in PLAIN and not torch.compiler.is_compiling()
    return (p.data_ptr() if plain else 0) or id(p)


def plannable(group: dict[str, Any]) -> bool:
    """Can a C++ plan read these parameters itself?"""
    return all(type(p) in PLAIN and p.device.type == "cpu" and not p.is_neg() for p in group["params"])


class Plans:
    """C++ plans for the groups that can have one, and the indices of the `rest`."""

    def __init__(self, owner: "FusedOptimizer", use: bool = True) -> None:
        self._key = self._key_of(owner)
        plan_class = backends.optim_plan("cpu") if use else None
        indices_of: dict[tuple[str, bool], list[int]] = defaultdict(list)
        for i, group in enumerate(owner.param_groups):
            if plan_class is not None and group["params"] and served(group) and plannable(group):
                indices_of[owner._variant(group)].append(i)
        self._plans = [
            (plan_class(*variant, owner.param_groups, indices, owner.state, owner._names(variant)), indices)
            for variant, indices in indices_of.items()
            if plan_class is not None
        ]
        planned = {i for _, indices in self._plans for i in indices}
        self.rest = [i for i in range(len(owner.param_groups)) if i not in planned]

    @staticmethod
    def _key_of(owner: "FusedOptimizer") -> Any:
        """What the choice of plans hangs on. What a plan itself compares at every step is not in it."""
        flags = [(owner._variant(group), group["differentiable"]) for group in owner.param_groups]
        return backends.changes(), id(owner.state), id(owner.param_groups), flags

    def fit(self, owner: "FusedOptimizer") -> bool:
        return self._key == self._key_of(owner)

    def gather(self, hypers: list[list[Any]]) -> bool:
        return all(plan.gather([float(x) for i in served for x in hypers[i]]) for plan, served in self._plans)

    def run(self, grad_scale: torch.Tensor | None, found_inf: torch.Tensor | None) -> None:
        if found_inf is not None and float(found_inf) != 0:
            return
        for plan, _ in self._plans:
            plan.run(1.0 if grad_scale is None else 1.0 / float(grad_scale))
