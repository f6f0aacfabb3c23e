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
        not group.get("differentiable", False)
        and all(p.dtype in checks.SERVED and not p.is_sparse for p in params)
        and not any(is_traceable_wrapper_subclass(p) for p in params)
        and len({_place(p) for p in params}) == len(params)
    )


def _place(p: torch.Tensor) -> int:
    """Where a parameter's memory starts, or its identity where that cannot be asked."""
    plain = type(p) in PLAIN and not torch.compiler.is_compiling()
    return (p.data_ptr() if plain else 0) or id(p)


def plan_device(group: dict[str, Any]) -> torch.device | None:
    """The one device on which a C++ plan can step this group; None where no plan can."""
    params = group["params"]
    devices = {p.device for p in params}
    if len(devices) != 1 or not all(type(p) in PLAIN and not p.is_neg() for p in params):
        return None
    (device,) = devices
    tensors = [x for x in (*group.values(), *group.get("betas", ())) if isinstance(x, torch.Tensor)]
    if device.type != "cpu" and any(x.device.type != "cpu" for x in tensors):
        return None  # reading it would wait for the device; the op's kernel reads it there
    return device if backends.optim_plan(device.type) else None


class Plans:
    """C++ plans for the groups that can have one, and the indices of the `rest`."""

    def __init__(self, owner: "FusedOptimizer", use: bool = True) -> None:
        self._key = self._key_of(owner)
        indices_of: dict[tuple[tuple[str, int, bool], torch.device], list[int]] = defaultdict(list)
        for i, group in enumerate(owner.param_groups if use else ()):
            mine = group["params"] and served(group) and not owner._has_sparse(group)
            device = plan_device(group) if mine else None
            if device is not None:
                indices_of[owner._variant(group), device].append(i)
        self._plans = [
            (self._plan(owner, variant, device, indices), indices, device)
            for (variant, device), indices in indices_of.items()
        ]
        planned = {i for _, indices, _ in self._plans for i in indices}
        self.rest = [i for i in range(len(owner.param_groups)) if i not in planned]
        self.on_cuda = any(device.type != "cpu" for _, _, device in self._plans)
        # One pair of numbers a plan, written by every step that measures its gradients.
        self._stats = [torch.zeros(2, dtype=torch.float64, device=device) for _, _, device in self._plans]

    def __len__(self) -> int:
        return len(self._plans)

    @staticmethod
    def _plan(
        owner: "FusedOptimizer", variant: tuple[str, int, bool], device: torch.device, indices: list[int]
    ) -> Any:
        plan_class = backends.optim_plan(device.type)
        assert plan_class is not None
        op, optional, counts = variant
        averages = owner._averages()
        names = owner._names(optional) + (["ema"] if averages else [])
        return plan_class(
            op, optional, owner.param_groups, indices, owner.state, names, averages, counts, device.index
        )

    @staticmethod
    def _key_of(owner: "FusedOptimizer") -> Any:
        """What the choice of plans hangs on. What a plan itself compares at every step is not in it."""
        flags = [(owner._variant(group), group.get("differentiable", False)) for group in owner.param_groups]
        return backends.changes(), id(owner.state), id(owner.param_groups), owner._averages(), flags

    def fit(self, owner: "FusedOptimizer") -> bool:
        return self._key == self._key_of(owner)

    def gather(self, hypers: list[list[Any]], grads_after: int) -> bool:
        return all(plan.gather([hypers[i] for i in served], grads_after) for plan, served, _ in self._plans)

    def grad_stats(self, grad_scale: torch.Tensor | None) -> list[torch.Tensor]:
        """Measures the gradients of each plan."""
        for (plan, _, device), stats in zip(self._plans, self._stats, strict=True):
            scale = None if grad_scale is None else grad_scale.to(device, torch.float32)
            plan.grad_stats(0 if scale is None else scale.data_ptr(), stats.data_ptr())
        return self._stats

    def run(
        self,
        grad_scale: torch.Tensor | None,
        found_inf: torch.Tensor | None,
        stats: dict[torch.device, torch.Tensor],
    ) -> None:
        """Scaling is read on each plan's device, by the kernel."""
        for plan, _, device in self._plans:
            here = [None if t is None else t.to(device, torch.float32) for t in (grad_scale, found_inf)]
            measured = stats.get(device)
            plan.run(*(0 if t is None else t.data_ptr() for t in (*here, measured)))
