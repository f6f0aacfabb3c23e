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
FORWARD, BACKWARD, BOTH = "forward", "backward", "both"


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

    @property
    def residual(self) -> bool:
        return FUSIONS[self.fusion][0]

    @property
    def act(self) -> str | None:
        return FUSIONS[self.fusion][1]

    def elements(self) -> int:
        return torch.Size(self.sizes).numel()

    def image(self) -> int:
        """Bytes of the input, and of all that is as large."""
        return self.elements() * DTYPES[self.dtype].itemsize

    def streams(self, direction: str) -> int:
        """How often two passes read or write a whole image: the input, for backward also the output's
        gradient, twice; the result once; the residual, or its gradient, once."""
        return (3 if direction == FORWARD else 5) + self.residual

    def bytes(self, direction: str) -> int:
        """What two passes move. Behind a residual it cannot be seen in the input where the activation was on:
        a mask of one bit an element is written, and in backward read in both passes."""
        if direction == BOTH:
            return self.bytes(FORWARD) + self.bytes(BACKWARD)
        bits = (1 if direction == FORWARD else 2) if self.residual and self.act is not None else 0
        return self.streams(direction) * self.image() + bits * self.elements() // 8


@dataclass(frozen=True)
class Images:
    """Input, residual and the output's gradient."""

    x: Tensor
    z: Tensor | None
    dy: Tensor

    @classmethod
    def of(cls, job: Job, device: str) -> "Images":
        rng = torch.Generator(device).manual_seed(0)

        def image() -> Tensor:
            values = torch.randn(job.sizes, generator=rng, device=device).to(DTYPES[job.dtype])
            return values.contiguous(memory_format=LAYOUTS[job.layout])

        x, dy = image().requires_grad_(), image()
        return cls(x, image().requires_grad_() if job.residual else None, dy)


class Tensors:
    """The inputs of a job, whose gradients are asked for. Parameters and running statistics are a
    contestant's own, and so are the images if none are given."""

    def __init__(self, job: Job, device: str = "cpu", images: Images | None = None) -> None:
        images = images or Images.of(job, device)
        self.x, self.z, self.dy, self.act = images.x, images.z, images.dy, job.act
        channels, rng = job.sizes[1], torch.Generator().manual_seed(1)
        self.weight = (torch.rand(channels, generator=rng) + 0.5).to(device).requires_grad_()
        self.bias = torch.randn(channels, generator=rng).to(device).requires_grad_()
        self.mean, self.var = torch.zeros(channels, device=device), torch.ones(channels, device=device)
        self.wanted = [t for t in (self.x, self.z, self.weight, self.bias) if t is not None]

    def onepass(self) -> Tensor:
        return ours.batch_norm(
            self.x, self.mean, self.var, self.weight, self.bias, True, act=self.act, residual=self.z
        )

    def torch(self) -> Tensor:
        """As functional code has it: each call makes a tensor."""
        y = functional.batch_norm(self.x, self.mean, self.var, self.weight, self.bias, True)
        if self.z is not None:
            y = y + self.z
        return y if self.act is None else functional.relu(y)

    def torch_in_place(self) -> Tensor:
        """As torchvision's ResNet has it."""
        y = functional.batch_norm(self.x, self.mean, self.var, self.weight, self.bias, True)
        if self.z is not None:
            y += self.z
        return y if self.act is None else functional.relu(y, inplace=True)

    def steps(self, forward: Callable[[], Tensor], wanted: list[Tensor] | None = None) -> dict[str, Step]:
        """Forward and backward; backward is that of one forward, again and again. wanted: where the
        parameters are others than these."""
        y, wanted = forward(), wanted or self.wanted
        return {
            FORWARD: forward,
            BACKWARD: lambda: torch.autograd.grad(y, wanted, self.dy, retain_graph=True),
        }
