"""RMSprop."""

from typing import Any

import torch

from .base import FusedOptimizer


class RMSprop(FusedOptimizer, torch.optim.RMSprop):
    """torch.optim.RMSprop with the whole optimizer phase in one pass over memory (20 bytes per fp32
    parameter, 8 more each for centered and momentum).

    Constructor, defaults, param_groups, state names and state_dict are torch.optim.RMSprop's. Formula:
    csrc/rules/rmsprop.h (Tieleman & Hinton 2012; centered: Graves 2013). The phase arguments are those of
    every optimizer here: optim/phase.py.

    step() writes, in place, each parameter that has a gradient and its state: `square_avg`, with centered
    `grad_avg`, with momentum `momentum_buffer`, and `step`.

    Raises: as onepass.optim.Adam.
    """

    _state_names = ("square_avg", "grad_avg", "momentum_buffer")
    _torch_order = ("square_avg", "momentum_buffer", "grad_avg")
    _required = 1

    def _variant(self, group: dict[str, Any]) -> tuple[str, int, bool]:
        return "rmsprop_", int(group["centered"]) + 2 * int(group["momentum"] > 0), True

    def _rule_hyper(self, group: dict[str, Any]) -> list[Any]:
        return [group["alpha"], group["eps"], group["momentum"]]
