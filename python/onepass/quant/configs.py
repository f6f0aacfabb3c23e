"""What is asked of a quantized layer: a config names the layer's op, and the arguments that are its own."""

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol


class Int8Config(Protocol):
    """Of layers whose weights are 8-bit numbers with a scale an output."""

    op: ClassVar[str]  # called with input, weight, weight_scale, bias, act and the options

    def options(self) -> dict[str, Any]: ...


@dataclass(frozen=True, kw_only=True)
class Int8DynamicConfig:
    """Weights and activations in 8 bits, the latter quantized row by row as they come. Sums are exact.

    A row that holds inf or NaN becomes NaN. The input is read twice (the second time from the cache).

    Args:
        symmetric: activations around zero, in -127..127; else in the range that they have, in 0..255, which
            suits what stands behind a ReLU.
        act_bits: 8, or 7: half as fine, and faster on processors without VNNI.

    Raises:
        ValueError: act_bits is neither.

    Source: W8A8 with a scale a token and a scale an output channel, as in Dettmers et al., arXiv:2208.07339.
    """

    op: ClassVar[str] = "int8_linear"

    symmetric: bool = True
    act_bits: int = 8

    def __post_init__(self) -> None:
        if self.act_bits not in (7, 8):
            raise ValueError(f"act_bits is {self.act_bits}, expected 7 or 8")

    def options(self) -> dict[str, Any]:
        return {"symmetric": self.symmetric, "bits": self.act_bits}


@dataclass(frozen=True, kw_only=True)
class Int8WeightOnlyConfig:
    """Weights in 8 bits, activations as they are: multiplied as floats, summed in float32, then scaled.

    The least error, and a fourth of the bytes of float32 weights, which is what few rows wait for. inf and
    NaN spread as in a product of floats. Sums are 1 / weight_scale times as large as the output and overflow
    where that would not: beyond 3.4e38. The input is read once for each 16 outputs (from the cache).

    Source: W8A16 with a scale an output channel, as torchao's config of this name.
    """

    op: ClassVar[str] = "int8_weight_only_mm"

    def options(self) -> dict[str, Any]:
        return {}
