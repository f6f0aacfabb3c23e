"""Programs that share a piece of work, of which the last to be done adds up what all have left.

Each draws a ticket from a counter that the piece has; nobody waits. Counters are zeros between launches, and
are kept from call to call.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

kept: dict[tuple[torch.device, int], Tensor] = {}


def tickets_of(device: torch.device, n: int) -> Tensor:
    """n zeros, which launches count up and leave as zeros. A stream has its own, and so has a captured graph,
    which may run beside others whatever its stream was."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return torch.zeros(n, dtype=torch.int32, device=device)
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    found = kept.get((device, stream))
    if found is None or len(found) < n:
        size = triton.next_power_of_2(max(1, n))
        found = kept[device, stream] = torch.zeros(size, dtype=torch.int32, device=device)
    return found


@triton.jit
def is_last(ticket, programs):
    """Are all of these programs done with what they share this ticket for? What they wrote before is read
    past the L1 cache."""
    tl.debug_barrier()  # all is written
    last = tl.atomic_add(ticket, 1, sem="acq_rel") == programs - 1
    if last:
        tl.store(ticket, 0)  # as it was: the next call finds it so
    return last
