"""An optimizer's states: how they are made, and how they come back from a state_dict."""

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import _get_scalar_dtype

from .. import checks
from . import packed
from .ema import Ema
from .plans import PLAIN, served


class States(Ema):
    """The part of FusedOptimizer that makes states and loads them."""

    _state_names: tuple[str, ...]  # in the order of the op's lists, the optional ones last
    _required: int  # how many of them are always kept
    _torch_order: tuple[str, ...] = ()  # in which torch makes them, where that is another
    _accepts_sparse = False
    _sparse_advice = ""

    def _variant(self, group: dict[str, Any]) -> tuple[str, int, bool]:
        """The op that steps this group, which of its optional states it keeps, as bits, and whether it
        counts steps."""
        raise NotImplementedError

    def _initial(self, group: dict[str, Any], name: str) -> float:
        """What a new state is filled with."""
        return 0.0

    def _names(self, variant: int) -> list[str]:
        """The states that are kept under this variant."""
        optional = self._state_names[self._required :]
        return [*self._state_names[: self._required]] + [
            name for k, name in enumerate(optional) if variant >> k & 1
        ]

    def _averages(self) -> bool:
        return self.ema_decay is not None

    def _has_sparse(self, group: dict[str, Any]) -> bool:
        """Has it a sparse gradient, or a state that is the sum of some, which torch's own step takes?"""
        if not self._accepts_sparse:
            return False
        held = [p.grad for p in group["params"]]
        if not torch.compiler.is_compiling():
            held += [value for p in group["params"] for value in self.state.get(p, {}).values()]
        return any(isinstance(t, Tensor) and t.is_sparse for t in held)

    def _refuse_sparse(self, group: dict[str, Any]) -> None:
        if any(p.grad is not None and p.grad.is_sparse for p in group["params"]):
            raise RuntimeError(
                f"{type(self).__name__} does not support sparse gradients{self._sparse_advice}"
            )

    def _exact_dtype(self, p: Tensor) -> torch.dtype:
        return torch.float32 if p.dtype in checks.HALF else p.dtype

    def _state_dtype(self, p: Tensor) -> torch.dtype:
        half = self._moments == "bf16" and p.dtype != torch.float64
        return torch.bfloat16 if half else self._exact_dtype(p)

    def _init_group(self, group: dict[str, Any], *lists: list[Tensor]) -> Any:
        """Appends what has a gradient, with its states, to lists: params, grads, one for each of the states,
        the averages of weights, step counters. Makes states that are missing.

        torch's own step calls it, too, for groups that only torch serves; and torch.compile runs it past the
        compiler, since it has this name.
        """
        if not served(group) or self._has_sparse(group):
            return super()._init_group(group, *lists)  # type: ignore[misc]  # of the torch class beside us
        self._refuse_sparse(group)
        self._init_states(group)
        params, grads, *states, emas, steps = lists
        _, variant, counts = self._variant(group)
        names = self._names(variant)
        for p in group["params"]:
            if p.grad is None:
                continue
            params.append(p)
            grads.append(p.grad)
            state = self.state[p] if names or counts or self._averages() else {}
            for name, tensors in zip(self._state_names, states, strict=True):
                if name in names:
                    tensors.append(state[name])
            if self._averages():
                emas.append(state["ema"])
            if counts:
                steps.append(state["step"])
        return False

    def _init_states(self, group: dict[str, Any]) -> None:
        """States and step counters for parameters that have a gradient, or some state, and lack them."""
        _, variant, counts = self._variant(group)
        names = sorted(self._names(variant), key=(self._torch_order or self._state_names).index)
        wanted = [*names, *(["ema"] if self._averages() else []), *(["step"] if counts else [])]
        if not wanted:
            return
        # One that has some, as Adagrad's from the start, gets the others too: a plan knows all or none.
        new = [
            p
            for p in group["params"]
            if self._missing(p, wanted) and (self.state.get(p) if p.grad is None else not p.grad.is_sparse)
        ]
        if new:
            step_dtype = _get_scalar_dtype(is_fused=group.get("fused"))
            self._pack(group, new, names, counts, step_dtype)
            for p in new:
                self._complete(group, p, wanted, step_dtype)

    def _missing(self, p: Tensor, wanted: list[str]) -> bool:
        state = self.state.get(p)
        return not state or any(state.get(name) is None for name in wanted)

    def _complete(self, group: dict[str, Any], p: Tensor, wanted: list[str], step_dtype: torch.dtype) -> None:
        state = self.state[p]
        if "step" in wanted and state.get("step") is None:
            # A parameter with moments and no counter comes from an optimizer that does not count, as torch's
            # SGD, and its first step is behind it.
            done = float(any(state.get(name) is not None for name in self._state_names))
            state["step"] = torch.full((), done, dtype=step_dtype, device=p.device)
        for name in wanted:
            if state.get(name) is not None:
                continue
            if name == "ema":
                state[name] = p.detach().to(self._exact_dtype(p), copy=True)
            else:
                dtype, value = self._state_dtype(p), self._initial(group, name)
                state[name] = torch.full_like(
                    p, value, dtype=dtype, memory_format=torch.preserve_format, requires_grad=False
                )

    def _pack(
        self,
        group: dict[str, Any],
        new: list[Tensor],
        names: list[str],
        counts: bool,
        step_dtype: torch.dtype,
    ) -> None:
        """Zero states and counters of many small parameters, in one block each."""
        small = [p for p in new if not self.state.get(p) and type(p) in PLAIN]
        small = [p for p in small if packed.packable(p, self._state_dtype(p))]
        if len(small) < packed.MANY or torch.compiler.is_compiling():
            return
        if any(self._initial(group, name) != 0 for name in names):
            return
        if counts:
            for p, step in zip(small, packed.zero_scalars(len(small), step_dtype), strict=True):
                self.state[p]["step"] = step
        for dtype in {self._state_dtype(p) for p in small}:
            params = [p for p in small if self._state_dtype(p) == dtype]
            for name in names:
                for p, zeros in zip(params, packed.zeros_like(params, dtype), strict=True):
                    self.state[p][name] = zeros

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state_dict of ours or of torch's. Moments have the dtype that this optimizer keeps them in,
        whatever the file holds."""
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
                self._adopt(p, name, value)

    def _adopt(self, p: Tensor, name: str, value: Any) -> None:
        """One loaded state of a parameter that our kernels serve."""
        state = self.state[p]
        if p.dtype not in checks.SERVED or not isinstance(value, Tensor):
            return
        if name == "step":
            state[name] = state[name].to(p.device)
        elif name in self._state_names or name == "ema":
            dtype = self._exact_dtype(p) if name == "ema" else self._state_dtype(p)
            if state[name].dtype != dtype or value.dtype != state[name].dtype:
                state[name] = value.to(dtype=dtype, device=p.device)
