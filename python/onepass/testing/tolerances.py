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
    reason: str
    rtol: float  # of the arithmetic
    ulps: float = 0  # of the store: units in the last place of the stored value
    flips: float = 0  # share of a tensor's elements, or two, that the store may bring beyond rtol


TOLERANCES = {
    torch.float32: Tolerance(
        "float32 arithmetic: about ten roundings of 2^-24 = 6e-8 each",
        rtol=1e-6,
    ),
    torch.float64: Tolerance(
        "float64 arithmetic on both sides, in another order: about ten roundings of 2^-53 = 1.1e-16 each, "
        "and those of the bias correction 1 - beta^t, which cancels",
        rtol=4e-15,
    ),
    torch.bfloat16: Tolerance(
        "float32 arithmetic, rounded to 8 bits at the end: an error of 1e-6 can carry a value across the "
        "middle between two neighbours, which are 4e-3 apart: never further, and in few elements",
        rtol=1e-6,
        ulps=1,
        flips=0.01,
    ),
    torch.float16: Tolerance(
        "float32 arithmetic, rounded to 11 bits at the end: as bfloat16, with neighbours 5e-4 apart",
        rtol=1e-6,
        ulps=1,
        flips=0.01,
    ),
}

# Never off: counters, the loss scale, and every argument that is only read.
EXACT = ("steps", "scale")

# The floor of the scale, as a share of the largest finite value in all of the argument. Two sums can cancel
# and leave nothing but the rounding of numbers that neither the result nor its value before the call shows:
# the gradient and weight_decay * p in a state, and beta1 * exp_avg and the gradient in the update of a
# parameter that is itself close to zero.
FLOOR = 1e-2

# What is summed over a batch, or taken from it: its terms are as large as the largest result and cancel
# freely, so that nothing small is known better than the large.
CANCELS = frozenset({"output", "stats", "moments", "sums", "grad_weight", "grad_bias"})
CANCELS |= {"grad_input", "grad_residual", "grad_scale", "running_mean", "running_var"}
FLOOR_OF_SUMS = 4.0
