"""Models in 8 bits: `quantize_` swaps the linear layers of a trained model for `Int8Linear`."""

from .configs import Int8DynamicConfig
from .linear import Int8Linear
from .swap import quantize_

__all__ = ["Int8DynamicConfig", "Int8Linear", "quantize_"]
