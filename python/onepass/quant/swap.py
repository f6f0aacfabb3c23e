"""A model's layers in 8 bits, in place."""

from collections.abc import Callable

from torch import nn

from .configs import Int8Config
from .linear import Int8Linear


def quantize_(
    model: nn.Module,
    config: Int8Config | None = None,
    filter_fn: Callable[[nn.Module, str], bool] | None = None,
) -> None:
    """Swaps each torch.nn.Linear of the model for an Int8Linear. As torchao's function of this name.

    Args:
        model: changed in place. A layer that stands in several places stays one layer.
        config: what becomes of activations: Int8DynamicConfig() if not given, or Int8WeightOnlyConfig().
        filter_fn: called with a layer and its name in the model; False leaves the layer as it is.

    Subclasses of Linear stay as they are: they may compute something else. So do the layers of torch's
    TransformerEncoderLayer, which hands their weights to a kernel of its own.

    Raises:
        ValueError: the model itself is a Linear, which has no place to be swapped in.
    """
    if type(model) is nn.Linear:
        raise ValueError("quantize_: the model is a Linear itself: use Int8Linear.from_float")
    made: dict[int, Int8Linear] = {}
    places = []  # all are made before the first is swapped in: a failure leaves the model as it was
    for path, parent in model.named_modules():
        if isinstance(parent, nn.TransformerEncoderLayer):
            continue
        for name, layer in parent._modules.items():  # named_children leaves out who comes again
            full = f"{path}.{name}" if path else name
            if type(layer) is nn.Linear and (filter_fn is None or filter_fn(layer, full)):
                if id(layer) not in made:
                    made[id(layer)] = Int8Linear.from_float(layer, config)
                places.append((parent, name, made[id(layer)]))
    for parent, name, new in places:
        setattr(parent, name, new)
