"""A model's layers in 8 bits, in place."""

from collections.abc import Callable

from torch import nn

from .configs import Int8DynamicConfig
from .linear import Int8Linear


def quantize_(
    model: nn.Module,
    config: Int8DynamicConfig | None = None,
    filter_fn: Callable[[nn.Module, str], bool] | None = None,
) -> None:
    """Swaps each torch.nn.Linear of the model for an Int8Linear. As torchao's function of this name.

    Args:
        model: changed in place. A layer that stands in several places stays one layer.
        config: how activations are quantized; Int8DynamicConfig() if not given.
        filter_fn: called with a layer and its name in the model; False leaves the layer as it is.

    Subclasses of Linear stay as they are: they may compute something else.

    Raises:
        ValueError: the model itself is a Linear, which has no place to be swapped in.
    """
    if type(model) is nn.Linear:
        raise ValueError("quantize_: the model is a Linear itself: use Int8Linear.from_float")
    swapped: dict[int, Int8Linear] = {}
    for path, parent in list(model.named_modules()):
        for name, layer in list(parent._modules.items()):  # named_children leaves out who comes again
            full = f"{path}.{name}" if path else name
            if type(layer) is nn.Linear and (filter_fn is None or filter_fn(layer, full)):
                if id(layer) not in swapped:
                    swapped[id(layer)] = Int8Linear.from_float(layer, config)
                setattr(parent, name, swapped[id(layer)])
