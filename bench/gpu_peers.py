"""Who takes part on a GPU, and the memory that they share.

All contestants step the same parameters, gradients and, where their dtype is the same, moments: a GPU has
room for one large model and not for five. Nobody profits by it, as the caches are flushed before each step.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from onepass import backends

from .peers import (
    FUSED,
    HALF,
    LIMIT,
    NULL,
    OURS,
    PEERS,
    Contestant,
    bytes_per_element,
    in_front,
    make,
    parameters,
)
from .workloads import Workload

USUAL = (FUSED, "torch-foreach")  # the peers if none is named
COPY = 14  # bytes of the limit's copy for an element, each way: 28 in all, as a float32 step moves
CHUNK = 2**30  # bytes copied at once at most
MAX_INSTANCES = 4


def contestants(peers: Sequence[str], device: str = "cuda") -> list[str]:
    """Names of all who take part, the most important first. onepass is the backend that serves a user there;
    each other backend with kernels comes as onepass-BACKEND."""
    default = backends.backend_of(device)
    others = [b for b in backends.BACKENDS if b not in (default, "reference") and backends.serves(b, device)]
    fused = [FUSED] if FUSED in peers else []
    null = [NULL] if fused else []
    rest = [p for p in PEERS if p in peers and p != FUSED]
    return [OURS, *fused, LIMIT, *(f"{OURS}-{b}" for b in others), *null, *rest]


def backend(name: str, device: str = "cuda") -> str | None:
    """The backend of a contestant that is onepass."""
    first, _, second = name.partition("-")
    return (second or backends.backend_of(device)) if first == OURS else None


def moments_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if name.startswith(OURS) and dtype in HALF else dtype


def instances(size: int, cache_bytes: int) -> int:
    """How many sets of so many bytes to go round: one that is larger than the cache is enough."""
    return 1 if size > cache_bytes else min(MAX_INSTANCES, cache_bytes // size + 2)


def needs(
    names: Sequence[str], workload: Workload, dtype: torch.dtype, sets: int = 1, device: str = "cuda"
) -> dict[str, int]:
    """Bytes that each contestant adds to those before it, an upper bound."""
    elements, largest = workload.elements(), max(math.prod(shape) for shape in workload.shapes())
    added, have = {}, set()
    for name in names:
        size = 2 * sets * elements * dtype.itemsize if name == OURS else 0
        if name == LIMIT:
            added[name] = 2 * sets * min(COPY * elements, CHUNK)
            continue
        if (moments := moments_dtype(name, dtype)) not in have:
            have.add(moments)
            size += 2 * sets * elements * moments.itemsize
        if name in PEERS:
            size += PEERS[name].temporaries * elements * dtype.itemsize
        if backend(name, device) == "reference":
            size += 6 * 8 * largest  # it works in float64, tensor by tensor
        added[name] = size
    return added


@dataclass
class Pool:
    """One set of tensors: parameters with gradients, and what an optimizer keeps, by the moments' dtype."""

    params: list[torch.nn.Parameter]
    states: dict[torch.dtype, dict[Any, Any]] = field(default_factory=dict)

    def optimizer(self, name: str, optimizer: str, dtype: torch.dtype) -> torch.optim.Optimizer:
        """An optimizer over this pool that has done a step. The first one's moments serve the next ones."""
        made, moments = make(name, optimizer, self.params), moments_dtype(name, dtype)
        if moments in self.states:  # load_state_dict keeps tensors that have the right dtype and device
            on_host = name in PEERS and not PEERS[name].flags.get("fused")
            step = torch.zeros((), device="cpu" if on_host else self.params[0].device)
            state = {i: {**s, "step": step.clone()} for i, s in self.states[moments].items()}
            made.load_state_dict({"state": state, "param_groups": made.state_dict()["param_groups"]})
        made.step()
        self.states.setdefault(moments, made.state_dict()["state"])
        return made


def pools(workload: Workload, dtype: torch.dtype, sets: int, device: str = "cuda") -> list[Pool]:
    return [Pool(parameters(workload, dtype, device)) for _ in range(sets)]


def _copy(elements: int, device: str) -> Callable[[], None]:
    """A copy of COPY bytes an element from one buffer to another, in chunks far larger than any cache."""
    total = COPY * elements
    size = min(total, CHUNK)
    source, target = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))

    def step() -> None:
        for start in range(0, total, size):
            count = min(size, total - start)
            target[:count].copy_(source[:count])

    return step


def turning(steps: Sequence[Callable[[], object]]) -> Callable[[], object]:
    """A step that goes round: another instance each time."""
    endless = itertools.cycle(steps)
    return lambda: next(endless)()


def build(
    name: str, workload: Workload, optimizer: str, dtype: torch.dtype, shared: Sequence[Pool], device: str
) -> Contestant:
    """Makes a contestant over the shared pools and lets each of its instances do a step."""
    if name == LIMIT:
        steps = [_copy(workload.elements(), device) for _ in shared]
        return Contestant(LIMIT, turning(steps), None, 2 * COPY, instances=len(steps))
    served, moments = backend(name, device), moments_dtype(name, dtype)
    with in_front(served):
        made = [pool.optimizer(name, optimizer, dtype).step for pool in shared]
    size, kept = bytes_per_element(optimizer, dtype, moments), str(moments).removeprefix("torch.")
    return Contestant(name, turning(made), kept, size, served, instances=len(made))
