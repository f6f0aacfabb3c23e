"""Models in 8 bits: `quantize_` swaps the linear layers of a trained model for `Int8Linear`; `fake_quantize`
is for training with what 8 bits do, `int8_matmul` a product that is trained in them."""

from .configs import Int8Config, Int8DynamicConfig, Int8WeightOnlyConfig
from .fake import fake_quantize
from .linear import Int8Linear
from .matmul import int8_matmul
from .swap import quantize_

__all__ = [
    "Int8Config",
    "Int8DynamicConfig",
    "Int8Linear",
    "Int8WeightOnlyConfig",
    "fake_quantize",
    "int8_matmul",
    "quantize_",
]
