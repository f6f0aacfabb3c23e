"""What an optimizer does in a step beside its rule: clipping, L1, the average of weights, the gradients."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch

KEPT, ZEROED, WRITTEN = 0, 1, 2  # grads_after, as the ops have it


class Phase(torch.optim.Optimizer):
    """The phase arguments of an optimizer, as attributes that may be changed between steps.

    They belong to the optimizer, not to its parameter groups, so that a state_dict stays torch's.
    Where max_grad_norm is given, gradients are read once before the step; all else is done in its one pass.

    Attributes:
        max_grad_norm: the norm of all gradients of the optimizer together is clipped to this, as
            torch.nn.utils.clip_grad_norm_ does it; inf only measures it. A step that finds inf or NaN is
            skipped. None: neither measured nor checked.
        l1: l1 * sign(p) is added to each gradient.
        ema_decay: keeps an average of weights, ema <- ema_decay * ema + (1 - ema_decay) * p after each step,
            in the state `ema`, which starts from the parameter. None: no average.
        zero_grads_in_step: gradients are zero after a step, also after a skipped one.
        write_grads: gradients are unscaled and clipped after a step, as torch leaves them.
    """

    max_grad_norm: float | None = None
    l1: float = 0.0
    ema_decay: float | None = None
    zero_grads_in_step: bool = False
    write_grads: bool = False
    _moments: str = "fp32"

    @staticmethod
    def arguments() -> dict[str, Any]:
        """Names and defaults, as constructors take them."""
        public = {name: getattr(Phase, name) for name in Phase.__annotations__ if name != "_moments"}
        return {**public, "state": Phase._moments}

    def _set_phase(self, state: str, **options: Any) -> None:
        if state not in ("fp32", "bf16"):
            raise ValueError(f"Invalid state: {state!r}, expected 'fp32' or 'bf16'")
        for name, below in (("max_grad_norm", None), ("l1", None), ("ema_decay", 1)):
            value = options[name]
            if value is not None and not (value >= 0 and (below is None or value < below)):
                raise ValueError(f"Invalid {name} value: {value}")
        self._moments = state
        for name, value in options.items():
            setattr(self, name, value)
        self._grads_after()

    def _grads_after(self) -> int:
        if self.zero_grads_in_step and self.write_grads:
            raise ValueError("zero_grads_in_step and write_grads exclude each other")
        return ZEROED if self.zero_grads_in_step else WRITTEN if self.write_grads else KEPT

    def _phase_hyper(self) -> list[float]:
        """The columns l1, ema_decay and max_grad_norm of a row of hyperparameters."""
        clip = float("inf") if self.max_grad_norm is None else self.max_grad_norm
        return [self.l1, 0.0 if self.ema_decay is None else self.ema_decay, clip]

    def _phase_state(self) -> dict[str, Any]:
        """What a copy or a pickle of the optimizer has to carry."""
        return {name: getattr(self, name) for name in Phase.__annotations__}

    def _is_plain(self) -> bool:
        """Is nothing asked for that torch's own step does not do?"""
        plain = self.max_grad_norm is None and self.ema_decay is None and not self.l1
        return plain and self._grads_after() == KEPT and self._moments == "fp32"


def refuse(name: str, why: str) -> None:
    raise RuntimeError(
        f"{name}: {why} parameters are stepped by torch's own code, which has no phase arguments "
        "(max_grad_norm, l1, ema_decay, zero_grads_in_step, write_grads, state)"
    )


def on_each_device(
    parts: list[torch.Tensor], devices: Iterable[torch.device] | None = None
) -> dict[torch.device, torch.Tensor]:
    """The stats of all gradients, [norm, found inf or NaN], from those of several calls, by device. devices:
    where they are wanted, if not on those of the parts."""
    wanted = dict.fromkeys(devices if devices is not None else (part.device for part in parts))
    if len(parts) == 1 and [*wanted] == [parts[0].device]:
        return {parts[0].device: parts[0]}
    stats = {}
    for device in wanted:
        wait = device.type == "cpu"  # torch does not: what is copied to the host would be read too early
        here = torch.stack([part.to(device, non_blocking=not wait) for part in parts])
        stats[device] = torch.stack([here[:, 0].square().sum().sqrt(), here[:, 1].amax()])
    return stats


def found_by_torch(groups: Sequence[dict[str, Any]]) -> list[torch.Tensor]:
    """Of gradients that our kernels do not read (sparse, complex, of tensor subclasses): [0, is one inf or
    NaN], for each device, by the kernel of torch.amp.GradScaler. It reads and writes them."""
    by_device: dict[torch.device, list[torch.Tensor]] = {}
    for p in (p for group in groups for p in group["params"] if p.grad is not None):
        grad = p.grad.coalesce()._values() if p.grad.is_sparse else p.grad
        by_device.setdefault(grad.device, []).append(grad)
    parts = []
    for device, grads in by_device.items():
        found, one = torch.zeros((), device=device), torch.ones((), device=device)
        for grad in grads:
            torch._amp_foreach_non_finite_check_and_unscale_([grad], found, one)
        parts.append(torch.stack([torch.zeros_like(found), found]).double())
    return parts
