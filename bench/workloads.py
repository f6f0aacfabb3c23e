"""What is stepped: lists of parameter shapes, by name."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Shape = tuple[int, ...]


def _conv_bn(out: int, into: int, kernel: int) -> list[Shape]:
    """A convolution without bias and the weight and bias of the batch norm after it."""
    return [(out, into, kernel, kernel), (out,), (out,)]


def _resnet50() -> list[Shape]:
    """He et al. 2016, as torchvision builds it: 53 convolutions, 53 batch norms, one linear layer."""
    shapes, into = _conv_bn(64, 3, 7), 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            shapes += _conv_bn(width, into, 1) + _conv_bn(width, width, 3) + _conv_bn(4 * width, width, 1)
            if block == 0:
                shapes += _conv_bn(4 * width, into, 1)  # the shortcut changes the width once a stage
            into = 4 * width
    return [*shapes, (1000, into), (1000,)]


def _gpt2() -> list[Shape]:
    """GPT-2 small (Radford et al. 2019); the output layer shares the token embedding."""
    width = 768
    norm: list[Shape] = [(width,), (width,)]

    def linear(into: int, out: int) -> list[Shape]:
        return [(into, out), (out,)]

    attention = linear(width, 3 * width) + linear(width, width)
    mlp = linear(width, 4 * width) + linear(4 * width, width)
    return [(50257, width), (1024, width), *12 * (norm + attention + norm + mlp), *norm]


def _llama() -> list[Shape]:
    """The 291 tensors of Llama-2-7B (Touvron et al. 2023) at 5/8 of its width: all of them with gradients and
    two float32 moments, and a foreach step's temporaries, fit into 80 GB."""
    width, inner, vocabulary = 2560, 6880, 32000
    matrices: list[Shape] = [*4 * [(width, width)], (inner, width), (width, inner), (inner, width)]
    layer: list[Shape] = [*matrices, (width,), (width,)]
    return [(vocabulary, width), *32 * layer, (width,), (vocabulary, width)]


def _tiny2000() -> list[Shape]:
    draw = random.Random(2000)
    return [(draw.randint(1, 512),) for _ in range(2000)]


@dataclass(frozen=True)
class Workload:
    name: str
    doc: str  # one line: what it stands for
    shapes: Callable[[], Sequence[Shape]]
    devices: tuple[str, ...] = ("cpu", "cuda")  # where it is measured when none is asked for by name

    def elements(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes())


def usual(device: str) -> list[str]:
    """The workloads to measure on this type of device when none is asked for by name."""
    return [w.name for w in WORKLOADS.values() if device in w.devices]


WORKLOADS = {
    w.name: w
    for w in (
        Workload("resnet50", "the parameters of ResNet-50: a few large tensors, many small ones", _resnet50),
        Workload("gpt2", "the parameters of GPT-2 small: far larger than any cache", _gpt2),
        Workload("20M", "one tensor: memory bandwidth and nothing else", lambda: [(20_000_000,)], ("cpu",)),
        Workload("tiny2000", "2000 tensors of 1..512 elements: the cost of a tensor", _tiny2000),
        Workload(
            "50x4096",
            "50 tensors of 4096 elements: a small model, within the caches",
            lambda: 50 * [(4096,)],
            ("cpu",),
        ),
        Workload("1B", "one tensor of 1e9 elements: a GPU's memory bandwidth", lambda: [(10**9,)], ("cuda",)),
        Workload("llama", "Llama-2-7B at 5/8 of its width: a large model", _llama, ("cuda",)),
    )
}
