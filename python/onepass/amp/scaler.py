"""torch.amp.GradScaler, with nothing of its own left to do where the optimizer is one of ours."""

import weakref
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.amp.grad_scaler import OptState, _refresh_per_optimizer_state

from ..optim import measured
from ..optim.base import FusedOptimizer
from ..optim.clip import is_served
from ..optim.devices import by_device, call_each
from ..optim.hooks import untouched
from ..optim.phase import on_each_device
from .overflow import Overflow, overflows

MOST_FLAGS = 256  # that the CUDA kernel has room for: csrc/cuda/table.h
_Stats = dict[torch.device, Tensor]


class GradScaler(torch.amp.GradScaler):
    """Dynamic loss scaling: torch.amp.GradScaler's arguments, methods, errors and state_dict.

    With an optimizer of onepass, nothing waits for the device and no pass over the gradients is the scaler's:
    step() leaves unscaling, the look for inf and NaN and the skipping to the optimizer, which reads the
    gradients once for that, and for their norm where it clips (8 bytes a float32 element less than torch's
    fused optimizers), and once in its own pass. unscale_(), where it is called, unscales and measures in one
    pass (4 bytes read, 4 written); onepass.optim.clip_grad_norm_, and a step with max_grad_norm, then know
    the norm. Any other optimizer is served as by torch, call by call; and so, in step(), is one of ours whose
    step does not find the gradients as they are: behind a step pre-hook, overridden, or under torch.compile.

    What has overflowed is decided by the gradients themselves, never by their norm: 1e25 is finite.

    Args:
        device ... enabled: torch's.
        hysteresis: so many overflows in a row are tolerated: their steps are skipped and the scale stays. The
            next one backs off. torch: 0. (Apex and Megatron-LM count the one that backs off, too: one more.)
        min_scale, max_scale: the scale never backs off below, or grows above, these. None: no bound.

    A state_dict is torch's, in both directions. Where one of the last three arguments is used, it holds them
    and the counters as well.

    Raises:
        ValueError: hysteresis is not a whole number from 0 on; not 0 < min_scale <= init_scale <= max_scale;
            float16 gradients are to be unscaled in place, where they would lose what the scale was for.
        RuntimeError: unscale_() or step() twice before update(); a closure; a state_dict that lacks a key.
        AssertionError: update() without a step.
    """

    _skipped: Tensor | None = None  # int64 [2] on the scale's device: skipped steps, in all and in a row

    def __init__(
        self,
        device: str = "cuda",
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        enabled: bool = True,
        *,
        hysteresis: int = 0,
        min_scale: float | None = None,
        max_scale: float | None = None,
    ) -> None:
        if isinstance(hysteresis, bool) or not isinstance(hysteresis, int) or hysteresis < 0:
            raise ValueError(f"Invalid hysteresis: {hysteresis!r}, expected a whole number from 0 on")
        least, most = 0.0 if min_scale is None else min_scale, _inf_if_none(max_scale)
        if not (least <= init_scale <= most and (min_scale is None or min_scale > 0)):
            raise ValueError(
                f"Invalid scales: expected 0 < min_scale <= init_scale <= max_scale, came {min_scale}, "
                f"{init_scale}, {max_scale}"
            )
        super().__init__(device, init_scale, growth_factor, backoff_factor, growth_interval, enabled)
        self._hysteresis, self._min_scale, self._max_scale = hysteresis, min_scale, max_scale
        self._init_skipped = [0, 0]
        self._stepped: list[weakref.ref[torch.optim.Optimizer]] = []  # since the last update(), or before it
        self._found: list[Tensor] = []
        self._updated = False

    # --- a step -----------------------------------------------------------------------------------------
    def step(self, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> float | None:
        """optimizer.step(*args, **kwargs), or nothing where a gradient is inf or NaN. torch's, otherwise."""
        if not self._enabled:
            return super().step(optimizer, *args, **kwargs)
        if (
            isinstance(optimizer, FusedOptimizer)
            and "closure" not in kwargs
            and self._leaves_it_to(optimizer)
        ):
            result = self._step_ours(optimizer, *args, **kwargs)
        else:
            result = super().step(optimizer, *args, **kwargs)
        self._note(optimizer)
        return result

    def _leaves_it_to(self, optimizer: FusedOptimizer) -> bool:
        """torch looks at the gradients before the step: so may the step itself, where it finds them as they
        are now. Behind unscale_() it is known what they hold."""
        self._check_scale_growth_tracker("step")  # before there is anything about this optimizer
        stage = self._per_optimizer_states[id(optimizer)]["stage"]
        return stage is OptState.UNSCALED or (stage is OptState.READY and untouched(optimizer))

    def _step_ours(self, optimizer: FusedOptimizer, *args: Any, **kwargs: Any) -> float | None:
        """Behind unscale_() the optimizer is told what that has found; else it finds out by itself. As torch
        has it, a grad_scale that the optimizer has already is a factor more; a found_inf is of old."""
        scale, _ = self._check_scale_growth_tracker("step")
        state = self._per_optimizer_states[id(optimizer)]
        given, found_inf = getattr(optimizer, "grad_scale", None), None
        ready = state["stage"] is OptState.READY
        if ready:
            given = scale if given is None else scale * given
        else:
            flags = [t.to(scale.device) for t in state["found_inf_per_device"].values()]
            found_inf = sum(flags[1:], flags[0]) if flags else None
        some = _has_gradients(optimizer)  # before the step, which may let them go
        with optimizer.handed(given, found_inf):
            result = optimizer.step(*args, **kwargs)
        if ready and (some or _has_gradients(optimizer)):
            state["found_inf_per_device"] = _flags(optimizer._stats)
            if not optimizer._stats:  # what was put before the step has not called it
                self._check_inf_per_device(optimizer)
        state["stage"] = OptState.STEPPED
        return result

    def _note(self, optimizer: torch.optim.Optimizer) -> None:
        """For last_overflow()."""
        if self._updated:
            self._stepped, self._found, self._updated = [], [], False
        self._stepped.append(weakref.ref(optimizer))
        self._found += self._found_inf_per_device(optimizer).values()

    def _unscale_grads_(
        self, optimizer: torch.optim.Optimizer, inv_scale: Tensor, found_inf: Tensor, allow_fp16: bool
    ) -> _Stats:
        """unscale_() behind its checks (allow_fp16: they are only looked at)."""
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if allow_fp16 or not isinstance(optimizer, FusedOptimizer) or not all(map(is_served, grads)):
            return super()._unscale_grads_(optimizer, inv_scale, found_inf, allow_fp16)
        if any(g.dtype == torch.float16 for g in grads):
            raise ValueError("Attempting to unscale FP16 gradients.")
        scale, _ = self._check_scale_growth_tracker("unscale_")
        groups = by_device(grads)
        calls = [(here, scale.to(device)) for device, here in groups.items()]
        found = dict(zip(groups, call_each("unscale_", calls), strict=True))
        if grads:
            torch.autograd.graph.increment_version(grads)
            measured.remember(grads, on_each_device([*found.values()]))
        return _flags(found)

    # --- the scale --------------------------------------------------------------------------------------
    def update(self, new_scale: float | Tensor | None = None) -> None:
        """The next scale, by what the steps since the last update() found: torch's."""
        measured.forget()
        self._updated = True
        if not self._enabled or new_scale is not None:
            return super().update(new_scale)
        scale, tracker = self._check_scale_growth_tracker("update")
        assert self._skipped is not None
        found = [
            # Waited for only on the way to the host, where it would be read too early.
            t.to(scale.device, non_blocking=scale.device.type != "cpu")
            for state in self._per_optimizer_states.values()
            for t in state["found_inf_per_device"].values()
        ]
        if not found:
            raise AssertionError("No inf checks were recorded prior to update.")
        if len(found) > MOST_FLAGS:
            found = [torch.stack(found).amax()]
        torch.ops.onepass.update_scale_(
            scale,
            tracker,
            self._skipped,
            found,
            self._growth_factor,
            self._backoff_factor,
            self._growth_interval,
            self._hysteresis,
            0.0 if self._min_scale is None else self._min_scale,
            _inf_if_none(self._max_scale),
        )
        # A backward through a loss that the old scale has scaled is then an error, as in torch.
        torch.autograd.graph.increment_version((scale, tracker))
        self._per_optimizer_states = defaultdict(_refresh_per_optimizer_state)

    def _lazy_init_scale_growth_tracker(self, dev: torch.device) -> None:
        super()._lazy_init_scale_growth_tracker(dev)
        self._skipped = torch.zeros(2, dtype=torch.int64, device=dev)
        self._fill_skipped()

    def _fill_skipped(self) -> None:
        """By kernels: a tensor made on the host would be waited for on its way."""
        assert self._skipped is not None
        for counter, value in zip(self._skipped, self._init_skipped, strict=True):
            counter.fill_(value)

    # --- what happened ----------------------------------------------------------------------------------
    @property
    def skipped_steps(self) -> Tensor:
        """How many update()s have found an overflow: a new int64 tensor of one element on the device."""
        return self._counter(0)

    @property
    def skipped_in_a_row(self) -> Tensor:
        """The same since the last one that found none: where it grows and grows, training has diverged."""
        return self._counter(1)

    def _counter(self, which: int) -> Tensor:
        if self._skipped is None:
            return torch.tensor(self._init_skipped[which] if self._enabled else 0)
        return self._skipped[which].clone()

    def last_overflow(self) -> list[Overflow]:
        """The parameters whose gradients were inf or NaN in the last step() of each optimizer; empty where
        none was skipped. Looks at the gradients now, and waits for the device.

        Raises:
            RuntimeError: there was an overflow, and the gradients are gone: ask between step() and
                zero_grad(), without zero_grads_in_step.
        """
        if not any(t.item() for t in (self._found if self._enabled else ())):
            return []
        optimizers = [o for ref in self._stepped if (o := ref()) is not None]
        found = [overflow for optimizer in optimizers for overflow in overflows(optimizer)]
        if not found:
            raise RuntimeError(
                "GradScaler.last_overflow(): the gradients that were not finite are gone; ask between step() "
                "and zero_grad(), without zero_grads_in_step"
            )
        return found

    # --- to and from files ------------------------------------------------------------------------------
    def _options(self) -> dict[str, Any]:
        return {"hysteresis": self._hysteresis, "min_scale": self._min_scale, "max_scale": self._max_scale}

    def state_dict(self) -> dict[str, Any]:
        """torch's; with the options and counters that torch lacks, where one of these options is used."""
        state = super().state_dict()
        if not self._enabled or not any(self._options().values()):
            return state
        skipped = self._init_skipped if self._skipped is None else self._skipped.tolist()
        return {**state, **self._options(), "_skipped": skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """torch's. What a file of torch's does not hold stays as it is.

        Raises:
            RuntimeError: it is empty, or lacks something. Nothing has been changed then.
        """
        wanted = ("scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker")
        missing = [name for name in wanted if name not in state_dict]
        if self._enabled and state_dict and missing:
            raise RuntimeError(f"The source state dict lacks {', '.join(missing)}: not one of a GradScaler's")
        super().load_state_dict(state_dict)
        if not self._enabled:
            return
        for name, value in self._options().items():
            setattr(self, f"_{name}", state_dict.get(name, value))
        if "_skipped" in state_dict:
            self._init_skipped = [*state_dict["_skipped"]]
            if self._skipped is not None:
                self._fill_skipped()

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        if self._skipped is not None:
            state["_init_skipped"] = self._skipped.tolist()
        return {**state, "_skipped": None, "_stepped": [], "_found": []}


def _has_gradients(optimizer: torch.optim.Optimizer) -> bool:
    return any(p.grad is not None for group in optimizer.param_groups for p in group["params"])


def _flags(stats: _Stats) -> _Stats:
    """As torch keeps them: float32, 1 where something was not finite. New ones: torch adds them in place."""
    return {device: here[1].to(torch.float32) for device, here in stats.items()}


def _inf_if_none(value: float | None) -> float:
    return float("inf") if value is None else value
