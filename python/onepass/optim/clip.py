"""Clipping of gradients by their norm, without an optimizer."""

from collections.abc import Iterable
from types import GeneratorType

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .. import checks
from . import measured
from .devices import by_device, call_each
from .phase import on_each_device


@torch.no_grad()
def clip_grad_norm_(
    parameters: Iterable[Tensor] | Tensor,
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """torch.nn.utils.clip_grad_norm_ in one read, and one more pass only where there is something to clip.
    Behind GradScaler.unscale_ (onepass.amp) without that read, where the norm is known: optim/measured.py.

    Args: torch's. `foreach` is accepted and changes nothing.

    Gradients may be float32, float64, bfloat16 or float16, of any layout, on several devices; all else
    (another norm_type, sparse or complex gradients, tensor subclasses) goes through torch's own function.
    They are written in place, where the norm is above max_norm. The norm is summed in float64: it is right
    where a sum of float32 squares overflows.

    Returns:
        The norm of all gradients before clipping, one element on the first gradient's device: float64 if a
        gradient is, else float32. Nothing waits for the device, unless error_if_nonfinite is set.

    Raises:
        RuntimeError: with error_if_nonfinite, if the norm is inf or NaN. Nothing has been written then.
    """
    parameters = [parameters] if isinstance(parameters, Tensor) else parameters
    listed = list(parameters)
    grads = [p.grad for p in listed if p.grad is not None]
    if norm_type != 2.0 or not grads or not all(map(is_served, grads)):
        # A generator again: torch warns of one that is empty.
        given = (p for p in listed) if isinstance(parameters, GeneratorType) else listed
        return torch.nn.utils.clip_grad_norm_(given, max_norm, norm_type, error_if_nonfinite, foreach)
    groups = by_device(grads)
    stats = measured.recall(grads)
    if stats is None:
        stats = on_each_device(call_each("grad_stats", [(here,) for here in groups.values()]))
    norm = stats[grads[0].device][0]
    if error_if_nonfinite and not norm.isfinite():
        raise RuntimeError(
            f"The total norm of order {float(norm_type)} for gradients from `parameters` is non-finite, so "
            "it cannot be clipped. To disable this error and scale the gradients by the non-finite norm "
            "anyway, set `error_if_nonfinite=False`"
        )
    call_each("clip_grads_", [(here, stats[device], max_norm) for device, here in groups.items()])
    torch.autograd.graph.increment_version(grads)
    return norm.to(torch.float64 if any(g.dtype == torch.float64 for g in grads) else torch.float32)


def is_served(g: Tensor) -> bool:
    plain = type(g) is Tensor or not is_traceable_wrapper_subclass(g)
    return plain and g.dtype in checks.SERVED and g.layout == torch.strided
