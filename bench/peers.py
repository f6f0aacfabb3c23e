"""Who takes part: onepass, torch's own optimizers, the null run and the memory limit.

Each contestant owns its parameters, gradients and states, all made in the same way from the same seed.
"""

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onepass
import torch
from onepass import backends
from onepass.ops import OPS

from .workloads import Workload

OURS, FUSED, NULL, LIMIT = "onepass", "torch-fused", "null", "limit"
OPTIMIZERS = ("adamw", "adam")
DTYPES = ("float32", "bfloat16", "float16", "float64")
HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Peer:
    doc: str
    flags: dict[str, bool]  # of torch.optim's constructor
    temporaries: int  # further tensors the size of all parameters that a step may allocate


PEERS = {
    FUSED: Peer("torch.optim with fused=True", {"fused": True}, 0),
    "torch-foreach": Peer("torch.optim with foreach=True", {"foreach": True}, 2),
    "torch-loop": Peer("torch.optim, tensor by tensor", {"foreach": False, "fused": False}, 2),
}


def in_front(backend: str | None) -> contextlib.AbstractContextManager[object]:
    """Puts a backend of onepass first for a with-block; None changes nothing."""
    return contextlib.nullcontext() if backend is None else backends.use_backend(backend)


@dataclass
class Contestant:
    name: str
    step: Callable[[], object]
    moments: str | None  # dtype of exp_avg and exp_avg_sq; None for the limit, which has none
    bytes_per_element: int  # the least that a step has to move
    backend: str | None = None  # of onepass, first in line while this contestant has its turn
    instances: int = 1  # equal copies that its steps go round


def contestants(peers: Sequence[str]) -> list[str]:
    """Names of all who take part, the most important first. The null run comes with torch-fused, the limit
    with the compiled part."""
    null = [NULL] if FUSED in peers else []
    limit = [LIMIT] if backends.compiled() else []
    return [OURS, *(p for p in PEERS if p in peers and p == FUSED), *limit, *null] + [
        p for p in PEERS if p in peers and p != FUSED
    ]


def bytes_per_element(optimizer: str, dtype: torch.dtype, moments: torch.dtype) -> int:
    """Bytes that one step has to move for an element: read p, g, m, v and write p, m, v."""
    if dtype == moments == torch.float32:
        return next(op.bytes_per_element for op in OPS if op.name == f"{optimizer}_")
    return 3 * dtype.itemsize + 4 * moments.itemsize


def needs(name: str, elements: int, dtype: torch.dtype) -> int:
    """Bytes of memory that a contestant takes while it runs, an upper bound."""
    if name == LIMIT:
        return 4 * 4 * elements
    moments = torch.float32.itemsize if name == OURS and dtype in HALF else dtype.itemsize
    more = PEERS[name].temporaries if name in PEERS else 0
    return elements * ((2 + more) * dtype.itemsize + 2 * moments)


def fit(wanted: Mapping[str, int], free: int | None) -> tuple[list[str], list[str]]:
    """Who fits into the memory that is free, the first ones first, and a line about each who does not.

    Args:
        wanted: bytes by contestant.
        free: bytes, None if not known: then all are let in.
    """
    names, notes = [], []
    left = float("inf") if free is None else 0.9 * free  # the rest is for the process itself and others
    for name, size in wanted.items():
        if size <= left:
            names.append(name)
            left -= size
        else:
            notes.append(f"{name} is left out: it takes {size / 1e9:.1f} GB and {left / 1e9:.1f} GB are left")
    return names, notes


def parameters(workload: Workload, dtype: torch.dtype, device: str = "cpu") -> list[torch.nn.Parameter]:
    """The workload's tensors with their gradients."""
    # Gradients of ordinary size stay what they are, so the moments settle at normal numbers: no denormals,
    # which would be timed instead of the optimizer.
    random = torch.Generator(device).manual_seed(0)
    params = []
    for shape in workload.shapes():
        empty = functools.partial(torch.empty, shape, dtype=dtype, device=device)
        p = torch.nn.Parameter(empty().uniform_(-0.1, 0.1, generator=random))
        p.grad = empty().uniform_(-1, 1, generator=random)
        params.append(p)
    return params


def _limit(elements: int) -> Contestant:
    """The yardstick: p, m and v each plus g, four flat float32 arrays, 4 reads and 3 writes."""
    arrays = [torch.full((elements,), 1e-3) for _ in range(4)]
    return Contestant(LIMIT, functools.partial(backends.rmw_probe, *arrays), None, 28)


def make(name: str, optimizer: str, params: Sequence[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of a contestant."""
    ours = name not in PEERS and name != NULL
    module = onepass.optim if ours else torch.optim
    kind = {"adamw": module.AdamW, "adam": module.Adam}[optimizer]
    return kind(params, **({} if ours else PEERS[FUSED if name == NULL else name].flags))


def build(name: str, workload: Workload, optimizer: str, dtype: torch.dtype) -> Contestant:
    """Makes a contestant and lets it do its first step, so that its states are there.

    Args:
        name: one of contestants().
        optimizer: "adamw" or "adam"; hyperparameters are torch's defaults.
        dtype: of parameters and gradients.
    """
    if name == LIMIT:
        return _limit(workload.elements())
    made = make(name, optimizer, parameters(workload, dtype))
    made.step()
    moments = next(iter(made.state.values()))["exp_avg"].dtype
    size = bytes_per_element(optimizer, dtype, moments)
    return Contestant(name, made.step, str(moments).removeprefix("torch."), size)
