"""The trained network in 8 bits, beside itself in float32: accuracy, bytes, latency.

Linear layers alone are swapped; convolutions, with their batch norms folded into them, stay float32. So the
linear layers are measured by themselves too, each on the input that it has in the float32 network.
"""

import copy
import functools
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from onepass.bench import clock

from ..nn import fold_bn
from ..quant import Int8Config, Int8DynamicConfig, Int8Linear, Int8WeightOnlyConfig, quantize_
from ..testing.threads import threads as torch_threads
from .data import Digits

BATCHES = (1, 256)
ROUNDS, SECONDS = 9, 1.5  # of the race: whichever ends first, but not below clock.MIN_ROUNDS


@dataclass(frozen=True)
class Way:
    """One way to run the network. The first of WAYS is the one that the others are compared with."""

    name: str
    config: Int8Config | None  # None: linear layers as they are


WAYS = (
    Way("float32", None),
    Way("int8", Int8DynamicConfig()),
    Way("int8 weights", Int8WeightOnlyConfig()),
)


@dataclass(frozen=True)
class Cost:
    """Of a whole network, or of its linear layers."""

    bytes: int  # of parameters and buffers, as a state_dict saves them
    batch_1_ms_median: float
    batch_256_ms_median: float


@dataclass(frozen=True)
class Network:
    """What one way has shown."""

    name: str
    accuracy_percent: float  # of the test set
    differing_predictions: int  # from those of the first way
    network: Cost
    linear_layers: Cost


@torch.no_grad()
def compare(
    model: nn.Module, digits: Digits, threads: int, tick: Callable[[float], None] = lambda done: None
) -> list[Network]:
    """Runs a trained model in each of WAYS, in turns.

    Args:
        model: left as it is, but in evaluation mode.
        threads: torch's, as in training. With one, latencies are CPU time of that thread; else wall time.
        tick: called after each round of the timing with the part that is done, 0..1.
    """
    folded = fold_bn(model.eval())
    networks = {way.name: _in_8_bits(folded, way.config) for way in WAYS}
    with torch_threads(threads):
        predictions = {name: network(digits.test_images).argmax(dim=1) for name, network in networks.items()}
        costs = _costs(networks, digits.test_images, clock.headline(threads), tick)
    base = predictions[WAYS[0].name]
    return [
        Network(
            name=name,
            accuracy_percent=100 * (predicted == digits.test_labels).double().mean().item(),
            differing_predictions=int((predicted != base).sum()),
            **costs[name],
        )
        for name, predicted in predictions.items()
    ]


def _in_8_bits(model: nn.Module, config: Int8Config | None) -> nn.Module:
    """A copy."""
    model = copy.deepcopy(model)
    if config is not None:
        quantize_(model, config)
    return model


def _linear_layers(network: nn.Module) -> list[nn.Module]:
    return [layer for layer in network.modules() if isinstance(layer, nn.Linear | Int8Linear)]


def _bytes(modules: list[nn.Module]) -> int:
    return sum(t.numel() * t.element_size() for module in modules for t in module.state_dict().values())


# --- timing -------------------------------------------------------------------------------------------------
def _parts(network: nn.Module) -> dict[str, list[nn.Module]]:
    """The modules of which a Cost is asked, by Network's name for it."""
    return {"network": [network], "linear_layers": _linear_layers(network)}


def _costs(
    networks: dict[str, nn.Module], images: Tensor, by: clock.Clock, tick: Callable[[float], None]
) -> dict[str, dict[str, Cost]]:
    """Of each part of each network; all are timed in the same rounds."""
    steps: dict[str, Callable[[], object]] = {}
    for batch in BATCHES:
        first = networks[WAYS[0].name]
        inputs = {"network": [images[:batch]], "linear_layers": _inputs(first, images[:batch])}
        for name, network in networks.items():
            for part, modules in _parts(network).items():
                steps[f"{name} {part} {batch}"] = functools.partial(_call, modules, inputs[part])
    laps = clock.race(steps, rounds=ROUNDS, seconds=SECONDS, tick=tick)
    ms = {step: 1e3 * statistics.median(lap.by(by)) for step, lap in laps.items()}
    return {
        name: {
            part: Cost(_bytes(modules), *(ms[f"{name} {part} {batch}"] for batch in BATCHES))
            for part, modules in _parts(network).items()
        }
        for name, network in networks.items()
    }


def _inputs(network: nn.Module, images: Tensor) -> list[Tensor]:
    """What each linear layer gets."""
    seen: list[Tensor] = []
    hooks = [
        layer.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        for layer in _linear_layers(network)
    ]
    network(images)
    for hook in hooks:
        hook.remove()
    return seen


def _call(modules: list[nn.Module], inputs: list[Tensor]) -> None:
    for module, input in zip(modules, inputs, strict=True):
        module(input)
