"""An op's call, checked: one function an argument list, named by the `check` column of the table."""

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
    lists = {"params": params, "grads": grads, "exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs}
    if max_exp_avg_sqs:
        lists["max_exp_avg_sqs"] = max_exp_avg_sqs
    lists["steps"] = steps
    checks.check_optim(op.name, lists, hyper, groups, len(op.hyper))
    checks.check_scalar(op.name, "grad_scale", grad_scale)
    checks.check_scalar(op.name, "found_inf", found_inf)
    if values:
        if hyper.device.type == "cpu":  # elsewhere reading it would wait for the device
            checks.check_adam_values(op.name, hyper)
        checks.check_memory(op.name, lists)
