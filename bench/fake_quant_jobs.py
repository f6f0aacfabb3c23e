"""What is timed of fake quantization: forward or both ways, by given or by learned scales, op against op."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from onepass.ops import BY_NAME

from . import peers
from .peers import Contestant

Step = Callable[[], object]

OURS, TORCH, NULL = "onepass", "torch", "null"
SHAPES = {f"{m}x{n}": (m, n) for m, n in ((512, 768), (4096, 4096))}  # in a cache; far larger than one
SCALES = ("tensor", "row", "learned tensor", "learned row")
DIRECTIONS = ("forward", "both")


@dataclass(frozen=True)
class Job:
    """A float32 tensor, one scale for all of it or one a row, in -127..127."""

    shape: str
    scale: str
    direction: str
    device: str = "cpu"

    @property
    def sizes(self) -> tuple[int, int]:
        return SHAPES[self.shape]

    @property
    def learned(self) -> bool:
        return self.scale.startswith("learned")

    @property
    def title(self) -> str:
        return f"{self.shape} · {self.scale} · {self.direction}"

    def bytes(self) -> int:
        """The fewest that have to be moved, bits of the mask left out: x and y; g and dx, and x once more."""
        m, n = self.sizes
        return m * n * (8 if self.direction == "forward" else 20 if self.learned else 16)

    def needs(self) -> int:
        """Bytes of memory of a contestant, an upper bound."""
        m, n = self.sizes
        return 24 * m * n

    # --- who takes part -----------------------------------------------------------------------------------
    def baselines(self) -> dict[str, str | None]:
        """Everybody, and whom each is compared with."""
        others = {f"{OURS}-{backend}": OURS for backend in self._backends()[1:]}
        return {OURS: None, **others, TORCH: OURS, NULL: TORCH}

    def _backends(self) -> list[str]:
        return peers.serving(BY_NAME["fake_quant_fwd"], self.device)

    def contestant(self, name: str) -> Contestant:
        ours, _, other = name.partition("-")
        served = (other or self._backends()[0]) if ours == OURS else None
        return Contestant(name, self.build(name), None, None, backend=served)

    def build(self, name: str) -> Step:
        m, n = self.sizes
        rng = torch.Generator().manual_seed(0)
        x, grad = (torch.randn(m, n, generator=rng).to(self.device) for _ in range(2))
        by_row = self.scale.endswith("row")
        scale = torch.full((m, 1) if by_row else (), 0.02, device=self.device)
        return self._onepass(x, grad, scale) if name.startswith(OURS) else self._torch(x, grad, scale)

    def _onepass(self, x: torch.Tensor, grad: torch.Tensor, scale: torch.Tensor) -> Step:
        forward, backward = torch.ops.onepass.fake_quant_fwd, torch.ops.onepass.fake_quant_bwd
        groups = 0 if scale.dim() == 0 else -1
        kept = (x, scale) if self.learned else (None, None)

        def step() -> object:
            output, mask, _, _ = forward(x, scale, group_size=groups)
            return output if self.direction == "forward" else backward(grad, mask, *kept, group_size=groups)

        return step

    def _torch(self, x: torch.Tensor, grad: torch.Tensor, scale: torch.Tensor) -> Step:
        """What its autograd calls, in both directions."""
        aten, levels, whole = torch.ops.aten, (-127, 127), scale.dim() == 0
        kind = "per_tensor" if whole else "per_channel"
        axis = () if whole else (0,)
        if self.learned:
            forward = getattr(aten, f"_fake_quantize_learnable_{kind}_affine")
            backward = getattr(aten, f"_fake_quantize_learnable_{kind}_affine_backward")
            given = (x, scale.view(-1), torch.zeros_like(scale).view(-1), *axis, *levels, 1.0)
            return lambda: (forward(*given), *(() if self.direction == "forward" else backward(grad, *given)))
        forward = getattr(aten, f"fake_quantize_{kind}_affine_cachemask")
        backward = getattr(aten, f"fake_quantize_{kind}_affine_cachemask_backward")
        grid = (0.02, 0) if whole else (scale.view(-1), torch.zeros_like(scale).view(-1).int())

        def step() -> object:
            output, mask = forward(x, *grid, *axis, *levels)
            return output if self.direction == "forward" else backward(grad, mask)

        return step
