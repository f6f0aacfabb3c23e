"""torch's hook around step(), only where somebody is there to be served."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.optim.optimizer import (
    _global_optimizer_post_hooks,
    _global_optimizer_pre_hooks,
    _use_grad_for_differentiable,
)


def _watched(optimizer: torch.optim.Optimizer) -> bool:
    """Is there anybody whom torch's hook around step() would serve?"""
    return bool(
        torch.compiler.is_compiling()
        or torch.autograd._profiler_enabled()
        or optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or _global_optimizer_pre_hooks
        or _global_optimizer_post_hooks
    )


def hooked(step: Callable) -> Callable:
    """torch's own hook around step(), where somebody is there to be served.

    torch puts it around every optimizer's step: profiler range, hooks, grad mode. With nobody watching it
    costs 9 us a step when all is in cache and a hundred when it is not, which is the time of 500 tensors.
    """
    hook = torch.optim.Optimizer.profile_hook_step
    # By whether an optimizer can be differentiable: torch's own grad mode asks for that argument.
    served = {True: hook(_use_grad_for_differentiable(step)), False: hook(torch.no_grad()(step))}

    @functools.wraps(step)
    def step_or_hook(*args: Any, **kwargs: Any) -> Any:
        overridden = type(args[0]).step is not step_or_hook  # then torch has put its hook around that one
        if overridden or not _watched(args[0]):
            return step(*args, **kwargs)
        return served["differentiable" in args[0].defaults](*args, **kwargs)

    step_or_hook.hooked = True  # type: ignore[attr-defined]  # torch need not put its own around
    step_or_hook.is_ours = True  # type: ignore[attr-defined]  # and a subclass has not put its own in its place
    return step_or_hook


def untouched(optimizer: Any) -> bool:
    """Does our step, called now, find the gradients as they are now? Not behind somebody's hook, not where a
    subclass has another in its place, and not where it is compiled, or is being so."""
    return not (
        optimizer._optimizer_step_pre_hooks
        or _global_optimizer_pre_hooks
        or not getattr(type(optimizer).step, "is_ours", False)
        or hasattr(optimizer.step, "_torchdynamo_orig_callable")
        or torch.compiler.is_compiling()
    )
