"""SGD."""

from typing import Any

import torch
from torch import Tensor

from .base import FusedOptimizer


class SGD(FusedOptimizer, torch.optim.SGD):
    """torch.optim.SGD with the whole optimizer phase in one pass over memory (12 bytes per fp32 parameter, 20
    with momentum).

    Constructor, defaults, param_groups, state names and state_dict are torch.optim.SGD's. Formula:
    csrc/rules/sgd.h. The phase arguments are those of every optimizer here: optim/phase.py.

    step() writes, in place, each parameter that has a gradient and, with momentum, its `momentum_buffer`. A
    first step sets the buffer to the gradient. With dampening a counter `step` beside the buffer tells that
    it is the first; a state_dict does not show it: as in torch, a buffer that is None has had no step.
    Without dampening a buffer of zeros comes to the same. Sparse gradients go through torch's own step.

    Raises: as onepass.optim.Adam.
    """

    _state_names = ("momentum_buffer",)
    _required = 0
    _accepts_sparse = True

    def _variant(self, group: dict[str, Any]) -> tuple[str, int, bool]:
        momentum = group["momentum"] != 0
        return "sgd_", int(momentum), momentum and group["dampening"] != 0

    def _rule_hyper(self, group: dict[str, Any]) -> list[Any]:
        return [group["momentum"], group["dampening"], group["nesterov"]]

    def state_dict(self) -> dict[str, Any]:
        """torch's. Waits for the device where a buffer may not have had its first step yet."""
        whole = super().state_dict()
        whole["state"] = {i: _as_torch(state) for i, state in whole["state"].items()}
        return whole


def _as_torch(state: Any) -> Any:
    if not isinstance(state, dict) or not isinstance(state.get("step"), Tensor):
        return state
    shown = {name: value for name, value in state.items() if name != "step"}
    if state["step"].item() == 0:
        shown["momentum_buffer"] = None
    return shown
