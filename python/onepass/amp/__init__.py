"""Loss scaling without a host sync or a pass of its own, and sums of gradients in float32."""

from .accumulator import GradAccumulator
from .overflow import Overflow
from .scaler import GradScaler

__all__ = ["GradAccumulator", "GradScaler", "Overflow"]
