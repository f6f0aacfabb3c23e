"""An op's call, checked: one function an argument list, named by the `check` column of the table."""

import torch
from torch import Tensor

from . import checks


def adam(
    op,
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    max_exp_avg_sqs: list[Tensor],
    steps: list[Tensor],
    hyper: Tensor,
    groups: list[int],
    *,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    values: bool,
) -> None:
    """values: look at memory and hyperparameters too, which a fake tensor does not have."""
    name, here = op.name, params[0].device if params else torch.device("cpu")
    lists = {"params": params, "grads": grads, "exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs}
    if max_exp_avg_sqs:
        lists["max_exp_avg_sqs"] = max_exp_avg_sqs
    lists["steps"] = steps

    checks.check_lengths(name, {**lists, "groups": groups})
    checks.check_hyper(name, hyper, len(op.hyper), here)
    if values:
        checks.check_storage(f"{name}: hyper", hyper)
        if hyper.device.type == "cpu":  # elsewhere reading it would wait for the device
            checks.check_adam_values(name, hyper)
    checks.check_groups(name, groups, hyper.shape[0])
    for scalar, t in (("grad_scale", grad_scale), ("found_inf", found_inf)):
        checks.check_scalar(name, scalar, t, here)
        if values:
            checks.check_storage(f"{name}: {scalar}", t)
    for i in range(len(params)):
        checks.check_row(name, i, {key: tensors[i] for key, tensors in lists.items()}, here, values)
    if values:
        checks.check_apart(name, params)
