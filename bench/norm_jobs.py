"""What is timed of normalizations: a layer of ResNet-50, in a layout, a dtype, alone or with what follows
it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from onepass.nn import functional as ours
from torch import Tensor
from torch.nn import functional

Step = Callable[[], object]

# Channels and pixels across of the batch normalizations in ResNet-50 (v1.5) at 224 x 224.
SHAPES = {
    f"{c}x{n}": (c, n)
    for c, n in (
        (64, 112), (64, 56), (256, 56), (128, 56), (128, 28), (512, 28),
        (256, 28), (256, 14), (1024, 14), (512, 14), (512, 7), (2048, 7),
    )
}  # fmt: skip
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# What follows: (residual, activation).
FUSIONS: dict[str, tuple[bool, str | None]] = {
    "bn": (False, None),
    "bn+relu": (False, "relu"),
    "bn+add+relu": (True, "relu"),
}
FORWARD, BACKWARD = "forward", "backward"


@dataclass(frozen=True)
class Job:
    """What all contestants of a block do."""

    shape: str
    batch: int
    layout: str
    dtype: str
    fusion: str

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        channels, across = SHAPES[self.shape]
        return self.batch, channels, across, across

    @property
    def title(self) -> str:
        return f"{self.batch}x{self.shape} · {self.fusion} {self.dtype} {self.layout}"

    def elements(self) -> int:
        return torch.Size(self.sizes).numel()

    def bytes(self, direction: str) -> int:
        """What two passes move for an element: the input, for backward also the output's gradient, twice; the
        result once; the residual, or its gradient, once; a bit of the mask is not counted."""
        residual, _ = FUSIONS[self.fusion]
        streams = (3 if direction == FORWARD else 5) + residual
        return streams * DTYPES[self.dtype].itemsize


class Tensors:
    """The inputs of a job, each contestant's own: gradients are asked of them."""

    def __init__(self, job: Job) -> None:
        rng = torch.Generator().manual_seed(0)

        def image() -> Tensor:
            values = torch.randn(job.sizes, generator=rng).to(DTYPES[job.dtype])
            return values.contiguous(memory_format=LAYOUTS[job.layout])

        channels = job.sizes[1]
        residual, self.act = FUSIONS[job.fusion]
        self.x, self.dy = image().requires_grad_(), image()
        self.z = image().requires_grad_() if residual else None
        self.weight = (torch.rand(channels, generator=rng) + 0.5).requires_grad_()
        self.bias = torch.randn(channels, generator=rng).requires_grad_()
        self.mean, self.var = torch.zeros(channels), torch.ones(channels)
        self.wanted = [t for t in (self.x, self.z, self.weight, self.bias) if t is not None]

    def onepass(self) -> Tensor:
        return ours.batch_norm(
            self.x, self.mean, self.var, self.weight, self.bias, True, act=self.act, residual=self.z
        )

    def torch(self) -> Tensor:
        """As a ResNet has it: sum and ReLU in place."""
        y = functional.batch_norm(self.x, self.mean, self.var, self.weight, self.bias, True)
        if self.z is not None:
            y += self.z
        return y if self.act is None else functional.relu(y, inplace=True)

    def steps(self, forward: Callable[[], Tensor]) -> dict[str, Step]:
        """Forward and backward; backward is that of one forward, again and again."""
        y = forward()
        return {
            FORWARD: forward,
            BACKWARD: lambda: torch.autograd.grad(y, self.wanted, self.dy, retain_graph=True),
        }
