"""Adam and AdamW."""

import torch
from torch import Tensor
from torch.optim.adam import adam

from .base import FusedOptimizer


class Adam(FusedOptimizer, torch.optim.Adam):
    """torch.optim.Adam with the whole step in one pass over memory (28 bytes per fp32 parameter).

    Constructor, defaults, param_groups, state names and state_dict are torch.optim.Adam's; see there for the
    arguments. `foreach` and `fused` are accepted and kept, but do not change how a step is done. Formula and
    order of rounding: csrc/rules/adam.h (Kingma & Ba 2015; AMSGrad: Reddi et al. 2018).

    step() writes, in place, each parameter that has a gradient and its state: `exp_avg`, `exp_avg_sq` and,
    with amsgrad, `max_exp_avg_sq`, of the parameter's shape (float32 for bfloat16 and float16 parameters,
    whatever dtype a loaded state_dict holds; else the parameter's dtype), and `step`, one element. Gradients
    are only read.

    Raises:
        ValueError: an argument of the constructor or of a param group is out of range (torch's words).
        RuntimeError: sparse gradients; a gradient or state of the wrong shape, dtype or device; freed
            storage. No tensor has been written then.
    """

    _state_names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")

    def _variant(self, group: dict) -> tuple[str, bool]:
        return "adamw_" if group["decoupled_weight_decay"] else "adam_", group["amsgrad"]

    def _hyper(self, group: dict) -> list[float | Tensor]:
        beta1, beta2 = group["betas"]  # in the order of onepass.ops.ADAM_HYPER
        return [group["lr"], beta1, beta2, group["eps"], group["weight_decay"], group["maximize"]]

    def _torch_step(self, group: dict, lists: tuple[list[Tensor], ...], has_complex: bool) -> None:
        params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps = lists
        beta1, beta2 = group["betas"]
        adam(
            params,
            grads,
            exp_avgs,
            exp_avg_sqs,
            max_exp_avg_sqs,
            steps,
            foreach=group["foreach"],
            capturable=group["capturable"],
            differentiable=group["differentiable"],
            fused=group["fused"],
            grad_scale=getattr(self, "grad_scale", None),
            found_inf=getattr(self, "found_inf", None),
            has_complex=has_complex,
            decoupled_weight_decay=group["decoupled_weight_decay"],
            amsgrad=group["amsgrad"],
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=group["maximize"],
        )


class AdamW(Adam, torch.optim.AdamW):
    """torch.optim.AdamW with the whole step in one pass over memory (28 bytes per fp32 parameter).

    Constructor, defaults, param_groups, state names and state_dict are torch.optim.AdamW's (Loshchilov &
    Hutter 2019). For all else see onepass.optim.Adam.
    """
