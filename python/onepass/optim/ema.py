"""The average of weights that an optimizer keeps: a look at it, and the model with it in place."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from .phase import Phase


class Ema(Phase):
    """The part of FusedOptimizer that shows the averages of weights."""

    _swapped = False

    def ema_parameters(self) -> list[Tensor]:
        """The averages, one for each parameter in the order of param_groups: the tensors that the next step
        writes (float32 for half parameters). A parameter that has had no gradient yet is its own average.

        Raises:
            RuntimeError: the optimizer keeps no average (ema_decay is None).
        """
        if self.ema_decay is None:
            raise RuntimeError(f"{type(self).__name__} keeps no average of weights: ema_decay is None")
        params = [p for group in self.param_groups for p in group["params"]]
        return [self.state.get(p, {}).get("ema", p.detach()) for p in params]

    @contextmanager
    def swap_ema(self) -> Iterator[None]:
        """Inside the block the parameters hold their averages, rounded to their dtype, in the same memory;
        behind it they hold, bit for bit, what they held before. Takes a copy of them for that time.

        Raises:
            RuntimeError: the optimizer keeps no average; a block inside a block; a step inside it.
        """
        averages = self.ema_parameters()
        self._refuse_swapped()
        params = [p for group in self.param_groups for p in group["params"]]
        with torch.no_grad():
            kept = [p.detach().clone() for p in params]
            for p, average in zip(params, averages, strict=True):
                p.copy_(average)
        self._swapped = True
        try:
            yield
        finally:
            self._swapped = False
            with torch.no_grad():
                for p, value in zip(params, kept, strict=True):
                    p.copy_(value)

    def _refuse_swapped(self) -> None:
        if self._swapped:
            raise RuntimeError(
                f"{type(self).__name__}: parameters hold their averages inside swap_ema(): neither a step "
                "nor another swap can begin"
            )
