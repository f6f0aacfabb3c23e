"""Linear layers in 8 bits of torchao and bitsandbytes, where they are installed.

Nobody who builds onepass needs them: whatever they are short of is a RuntimeError with their name.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

Step = Callable[[], object]


@contextlib.contextmanager
def _of(package: str) -> Iterator[None]:
    try:
        yield
    except ImportError as missing:
        raise RuntimeError(f"{package} is not installed ({missing})") from missing
    except Exception as error:
        raise RuntimeError(f"{type(error).__name__} in {package}: {error}") from error


def _linear(weight: Tensor, bias: Tensor) -> torch.nn.Linear:
    """The layer in floats, with numbers of its own, without gradients."""
    n, k = weight.shape
    layer = torch.nn.Linear(k, n)
    layer.weight.data, layer.bias.data = weight.clone(), bias.clone()
    return layer.requires_grad_(False)


def torchao(x: Tensor, weight: Tensor, bias: Tensor) -> Step:
    """x, weight and bias: of one dtype and device. The step was done once."""
    with _of("torchao"):
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

        model = torch.nn.Sequential(_linear(weight, bias))
        quantize_(model, Int8DynamicActivationInt8WeightConfig())
        model(x)
    return lambda: model(x)


def bitsandbytes(x: Tensor, weight: Tensor, bias: Tensor) -> Step:
    """As torchao."""
    with _of("bitsandbytes"):
        from bitsandbytes.nn import Linear8bitLt

        n, k = weight.shape
        layer = Linear8bitLt(k, n, has_fp16_weights=False)
        layer.load_state_dict(_linear(weight, bias).state_dict())
        layer = layer.to(x.device)
        layer(x)
    return lambda: layer(x)
