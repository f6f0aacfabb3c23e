"""What is timed: an optimizer over a workload, its step alone or the whole phase around it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from .workloads import Workload

OURS, FUSED, FOREACH, LOOP = "onepass", "torch-fused", "torch-foreach", "torch-loop"
DTYPES = ("float32", "bfloat16", "float16", "float64")
STATES = ("fp32", "bf16")
HALF = (torch.bfloat16, torch.float16)

# The phase: unscale the gradients, clip them by their norm, step; then they are let go or become zero.
PHASES = ("set-to-none", "zeroed")
# Under a GradScaler: clipping by max_grad_norm, or by calls of unscale_ and clip_grad_norm_; both with
# update. And sums of gradients in float32 over micro-batches.
SCALED, EXPLICIT, ACCUMULATE = "scaled", "scaled-explicit", "accumulate"
AMP_PHASES = (SCALED, EXPLICIT, ACCUMULATE)
MAX_GRAD_NORM = 1.0


@dataclass(frozen=True)
class Kind:
    """An optimizer of onepass.optim with torch's default hyperparameters, but for `arguments`."""

    cls: str
    op: str
    states: tuple[str, ...]  # that it keeps, by their names in its state
    arguments: dict[str, Any] = field(default_factory=dict)
    torchs: tuple[str, ...] = (FUSED, FOREACH, LOOP)  # who in torch can do it


OPTIMIZERS = {
    "adamw": Kind("AdamW", "adamw_", ("exp_avg", "exp_avg_sq")),
    "adam": Kind("Adam", "adam_", ("exp_avg", "exp_avg_sq")),
    "sgd": Kind("SGD", "sgd_", ()),
    "sgd-momentum": Kind("SGD", "sgd_", ("momentum_buffer",), {"momentum": 0.9}),
    "rmsprop": Kind("RMSprop", "rmsprop_", ("square_avg",), torchs=(FOREACH, LOOP)),
    "adagrad": Kind("Adagrad", "adagrad_", ("sum",)),
    "lion": Kind("Lion", "lion_", ("exp_avg",), torchs=()),
}


@dataclass(frozen=True)
class Job:
    """What all contestants of a block do."""

    workload: Workload
    optimizer: str
    dtype: torch.dtype = torch.float32  # of parameters and gradients
    state: str = "fp32"  # of onepass's moments; torch's have the dtype of the parameters
    phase: str | None = None  # None: the step alone

    @property
    def kind(self) -> Kind:
        return OPTIMIZERS[self.optimizer]

    @property
    def area(self) -> str:
        return "amp" if self.phase in AMP_PHASES else "optim"

    @property
    def torchs(self) -> tuple[str, ...]:
        """Who in torch can do it, the most important first."""
        return (LOOP, FOREACH) if self.phase == ACCUMULATE else self.kind.torchs

    @property
    def what(self) -> str:
        return "sum" if self.phase == ACCUMULATE else self.kind.cls

    @property
    def title(self) -> str:
        state = f", {self.state} states" if self.state != "fp32" else ""
        phase = f" · {'' if self.phase in AMP_PHASES else 'phase, '}{self.phase}" if self.phase else ""
        return f"{self.workload.name} · {self.optimizer} {_name(self.dtype)}{state}{phase}"

    def elements(self) -> int:
        return self.workload.elements()

    def moments(self, name: str) -> torch.dtype | None:
        """In which dtype a contestant keeps its states; None where it has none."""
        if not self.kind.states or self.phase == ACCUMULATE:
            return None
        if not name.startswith(OURS):
            return self.dtype
        if self.state == "bf16":
            return torch.bfloat16
        return torch.float32 if self.dtype in HALF else self.dtype

    def states_bytes(self, name: str) -> int:
        """Bytes of a contestant's states for an element."""
        moments = self.moments(name)
        return 0 if moments is None else len(self.kind.states) * moments.itemsize

    def step_bytes(self, name: str) -> int:
        """The least that a step moves for an element: p and states read and written, g read; and g written
        where it becomes zero."""
        zeroed = self.dtype.itemsize * (self.phase == "zeroed")
        return 3 * self.dtype.itemsize + 2 * self.states_bytes(name) + zeroed

    def bytes(self, name: str) -> int:
        """The least that all of it moves for an element: the norm has to be known before the step, so that a
        phase reads the gradients once more. Of explicit calls, what each of them has to leave behind."""
        if self.phase == ACCUMULATE:
            return self.dtype.itemsize + 2 * (8 if self.dtype == torch.float64 else 4)
        if self.phase == EXPLICIT:
            return self.step_bytes(name) + 4 * self.dtype.itemsize
        return self.step_bytes(name) + self.dtype.itemsize * (self.phase is not None)

    def against(self, asked: Sequence[str]) -> list[str]:
        """Of the peers asked for, those that torch has, the most important first."""
        return [name for name in self.torchs if name in asked]

    def lacks(self, asked: Sequence[str]) -> list[str]:
        """A line about each peer that torch does not have."""
        missing = [name for name in asked if name not in self.torchs]
        return [f"{name} is left out: torch has no such {self.what}" for name in missing]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
