"""Optimizer steps in plain PyTorch; no host sync on any device. Formulas and references: csrc/rules/."""

import torch
from torch import Tensor


def _store(target: Tensor, value: Tensor, found_inf: Tensor | None) -> None:
    """target <- value, or nothing where inf was found."""
    if found_inf is not None:
        value = torch.where(found_inf.to(value.device).reshape(()) != 0, target, value)
    target.copy_(value.reshape(target.shape))


@torch.no_grad()
def _adam(
    decoupled: bool,
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    max_exp_avg_sqs: list[Tensor],
    steps: list[Tensor],
    hyper: Tensor,
    groups: list[int],
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    for i, param in enumerate(params):
        lr, beta1, beta2, eps, weight_decay, maximize = hyper[groups[i]].unbind()
        p, t = param.double(), steps[i].double().reshape(()) + 1
        g = grads[i].double() * (1 - 2 * maximize)
        if grad_scale is not None:
            g = g / grad_scale.double().reshape(())
        if not decoupled:
            g = g + weight_decay * p
        m = beta1 * exp_avgs[i].double() + (1 - beta1) * g
        v = beta2 * exp_avg_sqs[i].double() + (1 - beta2) * g * g
        largest = torch.maximum(max_exp_avg_sqs[i].double(), v) if max_exp_avg_sqs else v
        update = lr / (1 - beta1**t) * m / ((largest / (1 - beta2**t)).sqrt() + eps)
        if decoupled:
            update = lr * weight_decay * p + update

        _store(param, p - update, found_inf)
        _store(exp_avgs[i], m, found_inf)
        _store(exp_avg_sqs[i], v, found_inf)
        if max_exp_avg_sqs:
            _store(max_exp_avg_sqs[i], largest, found_inf)
        _store(steps[i], t, found_inf)


def adam_(*args, **kwargs) -> None:
    _adam(False, *args, **kwargs)


def adamw_(*args, **kwargs) -> None:
    _adam(True, *args, **kwargs)
