"""How far a result may be from the reference, which computes in float64 and rounds once. One table, by the
dtype that is stored.

    allowed = rtol * max(|wanted|, |value before the call|, floor) + ulps * (spacing of the dtype at |wanted|)

The value before the call is in the scale because an update that brings a value close to zero leaves the
rounding of the larger numbers it came from.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Tolerance:
    rtol: float  # of the arithmetic
    ulps: float  # of the store: units in the last place of the stored value
    reason: str


TOLERANCES = {
    torch.float32: Tolerance(
        rtol=1e-6,
        ulps=0,
        reason="float32 arithmetic: about ten roundings of 2^-24 = 6e-8 each",
    ),
    torch.float64: Tolerance(
        rtol=4e-15,
        ulps=0,
        reason="float64 arithmetic on both sides, in another order: about ten roundings of 2^-53 = 1.1e-16 "
        "each, and two more in the bias correction 1 - beta^t, which cancels",
    ),
    torch.bfloat16: Tolerance(
        rtol=1e-6,
        ulps=1,
        reason="float32 arithmetic, rounded to 8 bits at the end: an error of 1e-6 can carry a value across "
        "the middle between two neighbours, never further",
    ),
    torch.float16: Tolerance(
        rtol=1e-6,
        ulps=1,
        reason="float32 arithmetic, rounded to 11 bits at the end: as bfloat16",
    ),
}

# Never off: counters, and every argument that is only read.
EXACT = ("steps",)

# The floor of the scale, as a share of the largest finite value in all of the argument. Two sums can cancel
# and leave nothing but the rounding of numbers that neither the result nor its value before the call shows:
# the gradient and weight_decay * p in a state, and beta1 * exp_avg and the gradient in the update of a
# parameter that is itself close to zero.
FLOOR = 1e-2
