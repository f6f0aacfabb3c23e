"""What every optimizer of ours has in common: torch's surroundings, our step.

A step takes one of three ways, group by group:
  plan    eager mode with the C++ kernels of a device: one call into C++ for all tensors of all groups
  op      torch.ops.onepass.*: other devices, tensor subclasses, under torch.compile, other backends
  torch   what no kernel serves (plans.served says what): torch's own step
"""

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .. import backends
from . import measured
from .call import Call
from .hooks import hooked
from .init import Parameters, inherited_init, own_arguments, with_signature
from .phase import found_by_torch, on_each_device, refuse
from .plans import Plans, served
from .state import States

Calls = dict[tuple[str, tuple[int, bool], torch.device], Call]


class FusedOptimizer(States):
    """Put before a torch.optim class: keeps its constructor and state_dict, replaces its step().

    A subclass names its states in `_state_names`, in the order of its op, how many of them are `_required`,
    and writes `_variant` and `_rule_hyper`.
    """

    _step_supports_amp_scaling = True  # torch.amp.GradScaler then leaves unscaling and skipping to the step
    _torch_step: Callable[..., Any] | None = None  # torch's own step(), without hooks
    _own_arguments: Parameters = {}  # of its constructor, beside torch's and the phase's  # noqa: RUF012
    _plans: "Plans | None" = None  # None: to be built by the next step
    _stats: "dict[torch.device, Tensor]"  # what the last step measured, by device
    _found_inf: "Tensor | None" = None  # what the last step was told
    _looks_for_inf = False  # by itself, also where nothing is clipped

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        torch_class: Any = next((c for c in cls.__mro__ if c.__module__.startswith("torch.optim.")), None)
        if torch_class not in (None, torch.optim.Optimizer):
            cls._torch_step = inspect.unwrap(torch_class.step)
            given = vars(cls).get("__init__")
            cls._own_arguments = {**cls._own_arguments, **own_arguments(given)}
            init = with_signature(given or inherited_init(cls), torch_class, cls._own_arguments)
            cls.__init__ = init  # type: ignore[method-assign]

    def __init__(
        self,
        *args: Any,
        max_grad_norm: float | None = None,
        l1: float = 0.0,
        ema_decay: float | None = None,
        zero_grads_in_step: bool = False,
        write_grads: bool = False,
        state: str = "fp32",
        **kwargs: Any,
    ) -> None:
        """torch's arguments, then, keyword-only, those of Phase and the dtype of the moments.

        Args:
            state: "fp32": float32, whatever the parameter's dtype (float64 for float64 parameters). "bf16":
                half of their memory and traffic, at a hundredth of their precision.
        """
        self._set_phase(
            state,
            max_grad_norm=max_grad_norm,
            l1=l1,
            ema_decay=ema_decay,
            zero_grads_in_step=zero_grads_in_step,
            write_grads=write_grads,
        )
        self._stats = {}
        super().__init__(*args, **kwargs)

    # --- what a subclass says of itself -----------------------------------------------------------------
    def _rule_hyper(self, group: dict[str, Any]) -> list[Any]:
        """The op's own hyperparameters, in the order of its columns; floats or one-element tensors."""
        raise NotImplementedError

    def _hyper(self, group: dict[str, Any]) -> list[Any]:
        """A row of the op's hyperparameters: the columns of ops.STEP_HYPER, then the rule's own."""
        shared = [group["lr"], group["weight_decay"], group.get("maximize", False)]
        return [*shared, *self._phase_hyper(), *self._rule_hyper(group)]

    # --- the step ---------------------------------------------------------------------------------------
    @hooked
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Does one step. Arguments and result are torch.optim.Optimizer.step's."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if torch.compiler.is_compiling():
            self._op_step(self.param_groups)
        else:
            self._eager_step()
        return loss

    @property
    def last_grad_norm(self) -> Tensor | None:
        """The norm of all unscaled gradients before the last step, a new one-element tensor on the device;
        None where max_grad_norm was not given."""
        stats = self._stats_of_last()
        return None if stats is None else stats[0].to(self._norm_dtype(), copy=True)

    @property
    def last_skipped(self) -> Tensor:
        """Was the last step skipped for inf or NaN? A new bool tensor of one element on the device."""
        stats = self._stats_of_last()
        device = self.param_groups[0]["params"][0].device if stats is None else stats.device
        skipped = torch.zeros((), dtype=torch.bool, device=device) if stats is None else stats[1] != 0
        return skipped if self._found_inf is None else skipped | (self._found_inf.to(device).reshape(()) != 0)

    @contextmanager
    def handed(self, grad_scale: Tensor | None, found_inf: Tensor | None) -> Iterator[None]:
        """Steps inside the block unscale their gradients by grad_scale, where there is one, and are skipped
        where found_inf is not 0. None: nobody has looked at the gradients, so the step measures them, and is
        skipped for inf or NaN, also without max_grad_norm. Both are one element on any device."""
        self.grad_scale, self.found_inf, self._looks_for_inf = grad_scale, found_inf, found_inf is None
        self._stats = {}  # a step that is overridden and does nothing leaves none
        try:
            yield
        finally:
            del self.grad_scale, self.found_inf
            self._looks_for_inf = False

    def _measures(self) -> bool:
        return self.max_grad_norm is not None or self._looks_for_inf

    def _stats_of_last(self) -> Tensor | None:
        return next(iter(self._stats.values()), None)

    def _norm_dtype(self) -> torch.dtype:
        exact = any(p.dtype == torch.float64 for group in self.param_groups for p in group["params"])
        return torch.float64 if exact else torch.float32

    def _scaling(self) -> tuple[Tensor | None, Tensor | None]:
        """Loss scale and overflow flag, as torch.amp.GradScaler leaves them. Where no parameter has a
        gradient it leaves the number 0."""
        found_inf = getattr(self, "found_inf", None)
        return getattr(self, "grad_scale", None), found_inf if isinstance(found_inf, Tensor) else None

    def _eager_step(self) -> None:
        self._refuse_swapped()
        after, plans = self._grads_after(), self._plans
        hypers = [self._hyper(group) for group in self.param_groups]
        if plans is None or not plans.fit(self) or not plans.gather(hypers, after):
            plans = self._new_plans(hypers, after)
        grad_scale, self._found_inf = self._scaling()
        if plans.rest:
            return self._mixed_step(plans)
        if plans.on_cuda:
            self._check_capture()
        self._stats = self._measure({}, plans, grad_scale) if self._measures() else {}
        plans.run(grad_scale, self._found_inf, self._stats)

    def _mixed_step(self, plans: Plans) -> None:
        """Some groups have no plan."""
        rest = [self.param_groups[i] for i in plans.rest]
        if plans.on_cuda or any(p.device.type != "cpu" for g in rest for p in g["params"]):
            self._check_capture()
        with torch.set_grad_enabled(self.defaults.get("differentiable", False)):
            self._op_step(rest, plans)

    def _check_capture(self) -> None:
        """torch's check for an argument that not all optimizers have; those without may be captured."""
        if all("capturable" in group for group in self.param_groups):
            self._accelerator_graph_capture_health_check()

    def _new_plans(self, hypers: list[list[Any]], after: int) -> Plans:
        """Plans for what is there now, checked and ready to run. Raises what is wrong with a tensor."""
        self._plans = None
        with torch.no_grad():
            self._check_all()
            plans = Plans(self)
        if not plans.gather(hypers, after):
            return Plans(self, use=False)  # a negative bit, say: the ops take what plans do not
        self._plans = plans
        return plans

    def _op_step(self, groups: list[dict[str, Any]], plans: Plans | None = None) -> None:
        """Steps these groups through ops, and torch's code; then runs the plans of all others."""
        calls, others = self._collect(groups)
        planned = plans is not None and len(plans) > 0
        compiling = torch.compiler.is_compiling()
        if not compiling and (planned or len(calls) + len(others) > 1):
            for (op, _, _), call in calls.items():  # alone, an op's own checks come before any write
                backends.check(op, *call.arguments(), **call.options(self._grads_after()))
        grad_scale, found_inf = self._scaling()
        stats = self._measure(calls, plans, grad_scale, others) if self._measures() else {}
        if others:
            self._step_by_torch(others, grad_scale, found_inf, stats)
        for (op, _, device), call in calls.items():
            call.run(op, device, grad_scale, found_inf, stats.get(device), self._grads_after())
        if not compiling:
            self._stats, self._found_inf = stats, found_inf
        if plans is not None and planned:
            plans.run(grad_scale, found_inf, stats)

    def _measure(
        self,
        calls: Calls,
        plans: Plans | None,
        grad_scale: Tensor | None,
        others: Sequence[dict[str, Any]] = (),
    ) -> dict[Any, Tensor]:
        """What is to be known of all gradients, on each device that needs to know it.

        others: groups that torch's own code will step; of their gradients, only whether they are finite.
        """
        unasked = grad_scale is not None or bool(others) or torch.compiler.is_compiling()
        known = None if unasked else measured.recall(self._gradients)
        if known is not None:
            return known
        by_device: dict[torch.device, list[Tensor]] = defaultdict(list)
        for (_, _, device), call in calls.items():
            by_device[device] += call.grads
        parts = [self._grad_stats(grads, grad_scale) for grads in by_device.values()]
        parts += [] if plans is None else plans.grad_stats(grad_scale)
        parts += found_by_torch(others)
        if not parts:  # no gradients
            here = self.param_groups[0]["params"][0].device
            parts = [torch.zeros(2, dtype=torch.float64, device=here)]
        return on_each_device(parts)

    @staticmethod
    def _grad_stats(grads: list[Tensor], grad_scale: Tensor | None) -> Tensor:
        scale = None if grad_scale is None else grad_scale.to(grads[0].device, torch.float32)
        return torch.ops.onepass.grad_stats(grads, grad_scale=scale)

    def _step_by_torch(
        self,
        groups: list[dict[str, Any]],
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
        stats: dict[Any, Tensor],
    ) -> None:
        """torch's own step over these groups alone. It knows no loss scale: that waits for the device."""
        if not self._is_plain():
            refuse(type(self).__name__, "complex, sparse, differentiable and doubly listed")
        if self._torch_step is None:
            raise RuntimeError(
                f"{type(self).__name__} serves float32, float64, bfloat16 and float16 parameters, each once"
            )
        flags = [*([] if found_inf is None else [found_inf]), *(here[1] for here in stats.values())]
        if any(flag.item() != 0 for flag in flags):
            return
        if grad_scale is not None:
            scale = grad_scale.item()
            for p in (p for group in groups for p in group["params"] if p.grad is not None):
                p.grad.div_(scale)
        scaling: dict[str, Any] = {
            name: self.__dict__.pop(name) for name in ("grad_scale", "found_inf") if name in self.__dict__
        }
        whole, self.param_groups = self.param_groups, groups
        try:
            self._torch_step()
        finally:
            self.param_groups = whole
            self.__dict__.update(scaling)

    def _gradients(self) -> list[Tensor]:
        return [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]

    def _collect(self, groups: list[dict[str, Any]]) -> tuple[Calls, list[dict[str, Any]]]:
        """What these groups need: op calls by (op, variant, device), and groups for torch's own step."""
        calls: Calls = defaultdict(Call)
        others = []
        for group in groups:
            if not served(group) or self._has_sparse(group):
                others.append(group)
                continue
            lists: tuple[list[Tensor], ...] = tuple([] for _ in range(4 + len(self._state_names)))
            self._init_group(group, *lists)
            op, optional, counts = self._variant(group)
            for device in {p.device for p in lists[0]}:
                calls[op, (optional, counts), device].add(lists, self._hyper(group), device)
        return calls, others

    def _check_all(self) -> None:
        """Raises what is wrong with any tensor, in the words of the op, and leaves everything as it was."""
        before = {p: dict(self.state[p]) for p in list(self.state)}
        try:
            calls, _ = self._collect(self.param_groups)
            for (op, _, _), call in calls.items():
                backends.check(op, *call.arguments(), **call.options(self._grads_after()))
        except BaseException:
            for p in list(self.state):
                if p not in before:
                    del self.state[p]
                elif self.state[p].keys() != before[p].keys():
                    self.state[p] = before[p]
            raise

    # --- torch's surroundings ---------------------------------------------------------------------------
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        self._plans = None
        if self._moments != "fp32" and any(p.dtype == torch.float64 for p in self.param_groups[-1]["params"]):
            del self.param_groups[-1]
            raise ValueError("state='bf16' is for float32, bfloat16 and float16 parameters, not for float64")

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), **self._phase_state()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._plans = None
        self._stats = {}
        self._found_inf = None
