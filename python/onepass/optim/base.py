"""What every optimizer of ours has in common: torch's surroundings, our step.

A step takes one of three ways, group by group:
  plan    eager mode with the C++ kernels of a device: one call into C++ for all tensors of all groups
  op      torch.ops.onepass.*: other devices, tensor subclasses, under torch.compile, other backends
  torch   what no kernel serves (plans.served says what): torch's own function
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import _get_scalar_dtype

from .. import backends, checks
from . import packed
from .call import Call
from .hooks import hooked
from .plans import PLAIN, Plans, served


class FusedOptimizer(torch.optim.Optimizer):
    """Put before a torch.optim class: keeps its constructor and state_dict, replaces its step().

    A subclass names its states in `_state_names`, in the order of its op, and writes `_variant`, `_hyper` and
    `_torch_step`.
    """

    _state_names: tuple[str, ...]
    _plans: "Plans | None" = None  # None: to be built by the next step

    # --- what a subclass says of itself -----------------------------------------------------------------
    def _variant(self, group: dict[str, Any]) -> tuple[str, bool]:
        """The op that steps this group, and whether it keeps the rule's optional last state."""
        raise NotImplementedError

    def _hyper(self, group: dict[str, Any]) -> list[Any]:
        """The group's hyperparameters in the order of the op's columns; floats or one-element tensors."""
        raise NotImplementedError

    def _torch_step(self, group: dict[str, Any], lists: tuple[list[Tensor], ...], has_complex: bool) -> None:
        """torch's own functional step, on the lists that torch's _init_group filled."""
        raise NotImplementedError

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

    def _eager_step(self) -> None:
        plans, hypers = self._plans, [self._hyper(group) for group in self.param_groups]
        if plans is None or not plans.fit(self) or not plans.gather(hypers):
            plans = self._new_plans(hypers)
        if plans.rest:
            rest = [self.param_groups[i] for i in plans.rest]
            self._check_capture(rest)
            with torch.set_grad_enabled(self.defaults["differentiable"]):
                self._op_step(rest, alone=len(rest) == len(self.param_groups))
        if plans.on_cuda:
            self._accelerator_graph_capture_health_check()
        plans.run(*self._scaling())

    def _scaling(self) -> tuple[Tensor | None, Tensor | None]:
        """Loss scale and overflow flag, as torch.amp.GradScaler leaves them with an optimizer made with
        fused=True: it then neither unscales the gradients nor decides about the step itself."""
        return getattr(self, "grad_scale", None), getattr(self, "found_inf", None)

    def _new_plans(self, hypers: list[list[Any]]) -> Plans:
        """Plans for what is there now, checked and ready to run. Raises what is wrong with a tensor."""
        self._plans = None
        with torch.no_grad():
            self._check_all()
            plans = Plans(self)
        if not plans.gather(hypers):
            return Plans(self, use=False)  # a negative bit, say: the ops take what plans do not
        self._plans = plans
        return plans

    def _op_step(self, groups: list[dict[str, Any]], alone: bool = True) -> None:
        """alone: nothing else is done in this step, so that one op's own checks come before any write."""
        calls, others = self._collect(groups)
        if not torch.compiler.is_compiling() and not (alone and len(calls) + len(others) == 1):
            for (op, _, _), call in calls.items():
                backends.check(op, *call.arguments())
        for group, lists, has_complex in others:
            self._torch_step(group, lists, has_complex)
        for (op, _, device), call in calls.items():
            scaling = [None if t is None else t.to(device, torch.float32) for t in self._scaling()]
            getattr(torch.ops.onepass, op)(*call.arguments(), grad_scale=scaling[0], found_inf=scaling[1])
            if not torch.compiler.is_compiling():
                torch.autograd.graph.increment_version(call.lists[0])

    def _collect(self, groups: list[dict[str, Any]]) -> tuple[dict[Any, Call], list[Any]]:
        """What these groups need: op calls by (op, variant, device), and steps through torch's functions."""
        calls: dict[Any, Call] = defaultdict(Call)
        others = []
        for group in groups:
            lists: tuple[list[Tensor], ...] = tuple([] for _ in range(3 + len(self._state_names)))
            has_complex = self._init_group(group, *lists)
            if not lists[0]:
                continue
            if not served(group):
                others.append((group, lists, has_complex))
                continue
            op, _ = variant = self._variant(group)
            for device in {p.device for p in lists[0]}:
                calls[op, variant, device].add(lists, self._hyper(group), device)
        return calls, others

    def _check_all(self) -> None:
        """Raises what is wrong with any tensor, in the words of the op, and leaves everything as it was."""
        fresh = [p for group in self.param_groups for p in group["params"] if not self.state.get(p)]
        try:
            for group in self.param_groups:
                if any(p.grad is not None and p.grad.is_sparse for p in group["params"]):
                    raise RuntimeError(
                        f"{type(self).__name__} does not support sparse gradients, "
                        "please consider SparseAdam instead"
                    )
            calls, _ = self._collect(self.param_groups)
            for (op, _, _), call in calls.items():
                backends.check(op, *call.arguments())
        except BaseException:
            for p in fresh:
                self.state.pop(p, None)
            raise

    def _check_capture(self, groups: list[dict[str, Any]]) -> None:
        if any(p.device.type != "cpu" for g in groups for p in g["params"]):
            self._accelerator_graph_capture_health_check()

    def _names(self, variant: tuple[str, bool]) -> list[str]:
        """The states that an op keeps under this variant."""
        _, optional = variant
        return list(self._state_names if optional else self._state_names[:-1])

    # --- the state --------------------------------------------------------------------------------------
    def _state_dtype(self, p: Tensor) -> torch.dtype:
        return torch.float32 if p.dtype in checks.HALF else p.dtype

    def _init_states(self, group: dict[str, Any]) -> None:
        """Zero states and step counters, as torch makes them, for parameters with a gradient and no state."""
        new = [
            p for p in group["params"] if p.grad is not None and not p.grad.is_sparse and not self.state[p]
        ]
        names, step_dtype = self._names(self._variant(group)), _get_scalar_dtype(is_fused=group["fused"])
        small = [p for p in new if type(p) in PLAIN and packed.packable(p)]
        if len(small) < packed.MANY or torch.compiler.is_compiling():
            small = []
        for dtype in {self._state_dtype(p) for p in small}:
            self._init_packed([p for p in small if self._state_dtype(p) == dtype], names, dtype, step_dtype)
        for p in new:
            if self.state[p]:
                continue
            self.state[p]["step"] = torch.zeros((), dtype=step_dtype, device=p.device)
            for name in names:
                zeros = torch.zeros_like(p, dtype=self._state_dtype(p), memory_format=torch.preserve_format)
                self.state[p][name] = zeros

    def _init_packed(
        self, params: list[Tensor], names: list[str], dtype: torch.dtype, step_dtype: torch.dtype
    ) -> None:
        for p, step in zip(params, packed.zero_scalars(len(params), step_dtype), strict=True):
            self.state[p]["step"] = step
        for name in names:
            for p, zeros in zip(params, packed.zeros_like(params, dtype), strict=True):
                self.state[p][name] = zeros

    def _init_group(self, group: dict[str, Any], *lists: list[Tensor]) -> bool:
        if served(group):
            self._init_states(group)
        return super()._init_group(group, *lists)  # type: ignore[misc]  # of the torch class beside us

    # --- torch's surroundings ---------------------------------------------------------------------------
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        self._plans = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._plans = None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state_dict of ours or of torch's. Moments of half parameters stay, or become, float32."""
        seen: dict[str, Any] = {}
        # After the user's hooks on the way in, before them on the way out.
        before = self.register_load_state_dict_pre_hook(lambda _, loaded: seen.update(loaded))
        after = self.register_load_state_dict_post_hook(lambda _: self._keep_precision(seen), prepend=True)
        try:
            super().load_state_dict(state_dict)
        finally:
            before.remove()
            after.remove()

    def _keep_precision(self, loaded: dict[str, Any]) -> None:
        """torch casts a loaded state to its parameter's dtype: take it from what was loaded instead."""
        ids = [i for group in loaded["param_groups"] for i in group["params"]]
        params = [p for group in self.param_groups for p in group["params"]]
        for i, p in zip(ids, params, strict=True):
            for name, value in loaded["state"].get(i, {}).items():
                if name == "step":
                    self.state[p][name] = self.state[p][name].to(p.device)
                elif p.dtype in checks.HALF and name in self._state_names:
                    self.state[p][name] = value.to(dtype=self._state_dtype(p), device=p.device)
