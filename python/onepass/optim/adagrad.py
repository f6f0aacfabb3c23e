"""Adagrad."""

from typing import Any

import torch

from .base import FusedOptimizer
from .plans import served


class Adagrad(FusedOptimizer, torch.optim.Adagrad):
    """torch.optim.Adagrad with the whole optimizer phase in one pass over memory (20 bytes per fp32
    parameter).

    Constructor, defaults, param_groups, state names and state_dict are torch.optim.Adagrad's; so are its
    states there before the first step. Formula: csrc/rules/adagrad.h (Duchi et al. 2011). The phase arguments
    are those of every optimizer here: optim/phase.py.

    step() writes, in place, each parameter that has a gradient and its states `sum` and `step`. Sparse
    gradients go through torch's own step.

    Raises: as onepass.optim.Adam.
    """

    _state_names = ("sum",)
    _required = 1
    _accepts_sparse = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for group in self.param_groups:
            if served(group):
                for p in group["params"]:  # torch has made them, in its dtypes and places
                    self._adopt(p, "sum", self._exact_sum(group, p))
                    self._adopt(p, "step", self.state[p]["step"])

    def _exact_sum(self, group: dict[str, Any], p: torch.Tensor) -> torch.Tensor:
        """Where torch rounds the initial value to a half parameter's dtype, a float32 sum that does not."""
        made = self.state[p]["sum"]
        exact = self._exact_dtype(p)
        return (
            made if made.dtype == exact else torch.full_like(made, self._initial(group, "sum"), dtype=exact)
        )

    def _variant(self, group: dict[str, Any]) -> tuple[str, int, bool]:
        return "adagrad_", 0, True

    def _rule_hyper(self, group: dict[str, Any]) -> list[Any]:
        return [group["lr_decay"], group["eps"]]

    def _initial(self, group: dict[str, Any], name: str) -> float:
        return group["initial_accumulator_value"]
