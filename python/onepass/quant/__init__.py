"""Models in 8 bits: `quantize_` swaps the linear layers of a trained model for `Int8Linear`."""

from .configs import Int8Config, Int8DynamicConfig, Int8WeightOnlyConfig
from .linear import Int8Linear
from .swap import quantize_

__all__ = ["Int8Config", "Int8DynamicConfig", "Int8Linear", "Int8WeightOnlyConfig", "quantize_"]
