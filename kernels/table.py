"""The table of a launch: what the driver reads of every parameter. transfer.py takes it to the device.

A flat int64 array. A header; then columns of count + 1 entries, one a row (parameter), and the last of FIRST
is the number of tiles; then the hyperparameters, where they came on the CPU.
"""

from collections.abc import Sequence

import numpy as np
import torch
import triton.language as tl
from torch import Tensor

from .transfer import writing

# Entries of the header. Pointers are 0 where there is nothing.
TICKET = tl.constexpr(0)  # how many programs are done; 0 between launches
FOUND_INF = tl.constexpr(1)
GRAD_SCALE = tl.constexpr(2)
STATS = tl.constexpr(3)
HYPER = tl.constexpr(4)  # where the rows of hyperparameters start
HEADER = tl.constexpr(5)
# Columns.
FIRST = tl.constexpr(0)  # the first tile of a row
NUMEL = tl.constexpr(1)
GROUP = tl.constexpr(2)  # of gradients alone: their dtype, see grads.py
FLAGS = tl.constexpr(3)
STEP = tl.constexpr(4)  # a pointer, as all that follow
PARAM = tl.constexpr(5)
GRAD = tl.constexpr(6)
STATE = tl.constexpr(7)  # and as many more as the rule has states; then the average of weights
# Flags.
IS_ALIGNED = tl.constexpr(1)  # every stream starts on a 16-byte boundary
STEP_IS_FLOAT64 = tl.constexpr(2)  # else float32


def _addresses(tensors: Sequence[Tensor]) -> np.ndarray:
    return np.fromiter(map(Tensor.data_ptr, tensors), np.int64, len(tensors))


def columns(
    streams: Sequence[Sequence[Tensor]],
    steps: Sequence[Tensor],
    groups: Sequence[int],
    block: int,
) -> np.ndarray:
    """The columns, as an array [columns, count + 1].

    Args:
        streams: lists of parameters, gradients, states, averages of weights, or of gradients alone. The
            tensors of a row are dense and laid out alike.
        steps: empty where nobody counts.
        block: elements in a tile.
    """
    count = len(streams[0])
    out = np.zeros((PARAM.value + len(streams), count + 1), np.int64)
    rows = out[:, :count]
    rows[NUMEL.value] = np.fromiter(map(Tensor.numel, streams[0]), np.int64, count)
    rows[GROUP.value] = groups
    rows[STEP.value] = _addresses(steps) if steps else 0
    for i, tensors in enumerate(streams):
        rows[PARAM.value + i] = _addresses(tensors)
    aligned = (rows[PARAM.value :] % 16 == 0).all(axis=0)
    wide = np.fromiter((t.dtype == torch.float64 for t in steps), bool, count) if steps else 0
    rows[FLAGS.value] = aligned * IS_ALIGNED.value + wide * STEP_IS_FLOAT64.value
    out[FIRST.value, 1:] = np.cumsum(-(-rows[NUMEL.value] // block))
    return out


def build(
    columns: np.ndarray,
    hyper: Tensor,
    device: torch.device,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    stats: Tensor | None = None,
) -> Tensor:
    """The table on the device, in the order of the current stream. Whoever launches keeps it until then."""
    behind = HEADER.value + columns.size
    travels = hyper.device.type == "cpu"
    table = torch.empty(behind + hyper.numel() * travels, dtype=torch.int64, device=device)
    with writing(table) as host:
        host[TICKET.value] = 0
        host[FOUND_INF.value] = 0 if found_inf is None else found_inf.data_ptr()
        host[GRAD_SCALE.value] = 0 if grad_scale is None else grad_scale.data_ptr()
        host[STATS.value] = 0 if stats is None else stats.data_ptr()
        host[HYPER.value] = table.data_ptr() + behind * 8 if travels else hyper.data_ptr()
        host[HEADER.value : behind] = columns.ravel()
        if travels:
            host[behind:] = hyper.detach().numpy().ravel().view(np.int64)
    return table
