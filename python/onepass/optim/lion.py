"""Lion."""

from typing import Any

import torch
from torch.optim.optimizer import ParamsT

from .base import FusedOptimizer


class Lion(FusedOptimizer):
    """Lion (Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms", algorithm 2), with the whole
    optimizer phase in one pass over memory (20 bytes per fp32 parameter).

    Args:
        params: as for every torch optimizer: parameters, named parameters or groups.
        lr: a tenth to a third of what AdamW takes.
        betas: of the update, and of the average that is kept.
        weight_decay: decoupled, as AdamW's; three to ten times what AdamW takes, since lr is smaller.
        maximize: go up instead of down.

    The phase arguments are those of every optimizer here: optim/phase.py. Formula: csrc/rules/lion.h.

    step() writes, in place, each parameter that has a gradient and its state `exp_avg`.

    Raises:
        ValueError: an argument out of range.
        RuntimeError: as onepass.optim.Adam; differentiable or complex parameters are not served.
    """

    _state_names = ("exp_avg",)
    _required = 1

    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        max_grad_norm: float | None = None,
        l1: float = 0.0,
        ema_decay: float | None = None,
        zero_grads_in_step: bool = False,
        write_grads: bool = False,
        state: str = "fp32",
    ) -> None:
        if not lr >= 0:
            raise ValueError(f"Invalid learning rate: {lr}")
        for i, beta in enumerate(betas):
            if not 0 <= beta < 1:
                raise ValueError(f"Invalid beta parameter at index {i}: {beta}")
        if not weight_decay >= 0:
            raise ValueError(f"Invalid weight_decay value: {weight_decay}")
        super().__init__(
            params,
            {"lr": lr, "betas": betas, "weight_decay": weight_decay, "maximize": maximize},
            max_grad_norm=max_grad_norm,
            l1=l1,
            ema_decay=ema_decay,
            zero_grads_in_step=zero_grads_in_step,
            write_grads=write_grads,
            state=state,
        )

    def _variant(self, group: dict[str, Any]) -> tuple[str, int, bool]:
        return "lion_", 0, False

    def _rule_hyper(self, group: dict[str, Any]) -> list[Any]:
        return [*group["betas"]]
