"""Adam and AdamW."""

from typing import Any

import torch

from .. import backends
from .base import FusedOptimizer


class Adam(FusedOptimizer, torch.optim.Adam):
    """torch.optim.Adam with the whole optimizer phase in one pass over memory (28 bytes per fp32 parameter).

    Constructor, defaults, param_groups, state names and state_dict are torch.optim.Adam's; see there for the
    arguments. `foreach` and `fused` are accepted and kept, but do not change how a step is done. The phase
    arguments behind them (max_grad_norm ... state) are those of every optimizer here: optim/phase.py. Formula
    and order of rounding: csrc/rules/adam.h (Kingma & Ba 2015; AMSGrad: Reddi et al. 2018).

    step() writes, in place, each parameter that has a gradient and its state: `exp_avg`, `exp_avg_sq` and,
    with amsgrad, `max_exp_avg_sq`, of the parameter's shape (float32 for bfloat16 and float16 parameters,
    whatever dtype a loaded state_dict holds; bfloat16 with state="bf16"; else the parameter's dtype), `ema`
    with ema_decay, and `step`, one element. Gradients are only read, unless a phase argument says otherwise.

    `rounding="torch"`, for float32 parameters on the CPU with the compiled kernels: the order of rounding of
    torch's own fused kernel instead of the more accurate one, to reproduce a run of torch's bit by bit.

    Raises:
        ValueError: an argument of the constructor or of a param group is out of range (torch's words).
        RuntimeError: sparse gradients; a gradient or state of the wrong shape, dtype or device; freed
            storage. No tensor has been written then.
    """

    _rounding = "onepass"
    _state_names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
    _required = 2
    _sparse_advice = ", please consider SparseAdam instead"

    def __init__(self, *args: Any, rounding: str = "onepass", **kwargs: Any) -> None:
        if rounding not in ("onepass", "torch"):
            raise ValueError(f"Invalid rounding: {rounding!r}, expected 'onepass' or 'torch'")
        if rounding == "torch" and not backends.compiled():
            raise RuntimeError("rounding='torch' needs the compiled kernels, which are not built here")
        self._rounding = rounding
        super().__init__(*args, **kwargs)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        single = all(
            p.device.type == "cpu" and p.dtype == torch.float32 for p in self.param_groups[-1]["params"]
        )
        if self._rounding == "torch" and not single:
            del self.param_groups[-1]
            raise ValueError("rounding='torch' is for float32 parameters on the CPU")

    def _phase_state(self) -> dict[str, Any]:
        return {**super()._phase_state(), "_rounding": self._rounding}

    def _variant(self, group: dict[str, Any]) -> tuple[str, int, bool]:
        op = "adamw_" if group["decoupled_weight_decay"] else "adam_"
        if self._rounding == "torch":
            op += "as_torch_"
        return op, int(group["amsgrad"]), True

    def _rule_hyper(self, group: dict[str, Any]) -> list[Any]:
        return [*group["betas"], group["eps"]]


class AdamW(Adam, torch.optim.AdamW):
    """torch.optim.AdamW with the whole optimizer phase in one pass over memory (28 bytes per fp32 parameter).

    Constructor, defaults, param_groups, state names and state_dict are torch.optim.AdamW's (Loshchilov &
    Hutter 2019). For all else see onepass.optim.Adam.
    """
