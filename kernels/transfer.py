"""Host memory for tables on their way to a device: a ring of pinned buffers.

A copy from pinned memory runs later, when the stream comes to it, so a buffer may be written again only once
its copy is over: an event behind each copy says so. Who comes to a buffer still on its way waits for it.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

SLOTS = 8  # steps that the host may be ahead


@dataclass(eq=False)
class Slot:
    memory: Tensor  # pinned, int64
    copied: Any  # the event behind its last copy


def _pinned(size: int) -> Slot:
    return Slot(torch.empty(size, dtype=torch.int64, pin_memory=True), torch.cuda.Event())


class Ring:
    """The buffers of one device. make: a new slot of at least so many elements."""

    def __init__(self, make: Callable[[int], Slot] = _pinned) -> None:
        self._make = make
        self._slots: list[Slot | None] = [None] * SLOTS
        self._turn = 0
        self._captured: list[Slot] = []

    def take(self, size: int) -> Slot:
        """The next slot, free to be written."""
        self._turn = (self._turn + 1) % SLOTS
        slot = self._slots[self._turn]
        if slot is not None:
            slot.copied.synchronize()
        if slot is None or slot.memory.numel() < size:
            slot = self._slots[self._turn] = self._make(2 * size)
        return slot

    def take_for_good(self, size: int) -> Slot:
        """A slot that leaves the ring: a captured graph copies from it at every replay. No event may be asked
        during a capture; torch.cuda.graph has waited for all earlier copies before it began. A slot that is
        there already, made by the graph's warm-up, is preferred to a new one."""
        fitting = (
            i for i, slot in enumerate(self._slots) if slot is not None and slot.memory.numel() >= size
        )
        at = next(fitting, None)
        slot = self._make(size) if at is None else self._slots[at]
        assert slot is not None
        if at is not None:
            self._slots[at] = None
        self._captured.append(slot)
        return slot


_rings: dict[torch.device, Ring] = defaultdict(Ring)
_lock = Lock()  # two threads may step optimizers on one device


@contextmanager
def writing(table: Tensor) -> Iterator[np.ndarray]:
    """An array to be filled with what the table shall hold. Behind the block it is on its way, in the order
    of the current stream. On the CPU it is the table itself."""
    if table.device.type == "cpu":
        yield table.numpy()
        return
    size = table.numel()
    with _lock:
        ring, capturing = _rings[table.device], torch.cuda.is_current_stream_capturing()
        slot = ring.take_for_good(size) if capturing else ring.take(size)
        host = slot.memory[:size]
        yield host.numpy()
        table.copy_(host, non_blocking=True)
        if not capturing:
            slot.copied.record()
