"""What is asked of a quantized layer."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Int8DynamicConfig:
    """Weights and activations in 8 bits, the latter quantized row by row as they come.

    Args:
        symmetric: activations around zero, in -127..127; else in the range that they have, in 0..255, which
            suits what stands behind a ReLU.
        act_bits: 8, or 7: half as fine, and faster on processors without VNNI.

    Raises:
        ValueError: act_bits is neither.
    """

    symmetric: bool = True
    act_bits: int = 8

    def __post_init__(self) -> None:
        if self.act_bits not in (7, 8):
            raise ValueError(f"act_bits is {self.act_bits}, expected 7 or 8")
