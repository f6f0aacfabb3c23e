"""One case, run by the backend that is first in line now and by the reference: do they agree?"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from .. import backends
from ..ops import Op
from .cases import Call, Case
from .compare import Mismatch, compare, margins
from .threads import threads


@dataclass(frozen=True)
class Variant:
    """A backend and, for the C++ kernels on the CPU, an instruction set."""

    backend: str
    isa: str | None = None

    def __str__(self) -> str:
        return f"{self.backend}/{self.isa}" if self.isa else self.backend

    def takes(self, case: Case, dtype: torch.dtype, device: str = "cpu") -> bool:
        """Triton's interpreter cuts bfloat16 off where hardware rounds it: no result to judge. Packed weights
        are refused wherever the CPU's own kernels are not meant."""
        if case.packed and (device != "cpu" or self.backend == "triton"):
            return False
        cut_off = dtype == torch.bfloat16 or case.name.startswith("bf16_")
        return not (self.backend == "triton" and backends.interpreting() and cut_off)

    @contextmanager
    def use(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(backends.use_backend(self.backend))
            if self.isa is not None:
                stack.enter_context(backends.use_isa(self.isa))
            yield


def variants(device: str) -> list[Variant]:
    """All that can serve this type of device here, the strongest instruction set first."""
    found = []
    for backend in backends.BACKENDS:
        if not backends.serves(backend, device):
            continue
        isas = backends.isas()[::-1] if (backend, device) == ("cpp", "cpu") else [None]
        found += [Variant(backend, isa) for isa in isas]
    return found


def overload(op: Op, arguments: Call) -> torch._ops.OpOverload:
    """The overload that takes these arguments."""
    overloads = getattr(torch.ops.onepass, op.name)
    return overloads.writing if "grads_after" in arguments else overloads.default


def written(op: Op, arguments: Call) -> frozenset[str]:
    """The arguments that the op writes, and its results."""
    schema = overload(op, arguments)._schema
    names = {a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write}
    return frozenset(names.union(result_names(op)))


def result_names(op: Op) -> list[str]:
    """The schema's names of what the op returns; a result alone may be without one."""
    returns = getattr(torch.ops.onepass, op.name).default._schema.returns
    return [r.name or "results" for r in returns]


def call(op: Op, function: Callable, arguments: Call) -> dict[str, Any]:
    """Calls the function and returns its arguments as it leaves them, with its results, if any."""
    results = function(**arguments)
    names = result_names(op)
    return {**arguments, **dict(zip(names, results if len(names) > 1 else [results], strict=False))}


def expected(op: Op, case: Case, seed: int, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """What the reference makes of the case; called past the dispatcher, so no backend can be in its place."""
    with threads(1):
        return call(op, backends.target(op.reference), case(seed, dtype, device))


def verify(
    op: Op,
    case: Case,
    dtype: torch.dtype,
    device: str = "cpu",
    seed: int = 0,
    want: dict[str, Any] | None = None,
) -> list[Mismatch]:
    """Runs the case through the dispatcher and compares with the reference.

    Only the op itself runs on all of torch's threads: its inputs and the comparison are hundreds of small
    torch calls, which a busy machine makes slow when each of them waits for a second thread.

    Args:
        want: the reference's outcome, where it is at hand already.
    """
    want = expected(op, case, seed, dtype, device) if want is None else want
    with threads(1):
        before, arguments = case(seed, dtype, device), case(seed, dtype, device)
    got = call(op, overload(op, arguments), arguments)
    with threads(1):
        found = compare(op.name, case.name, got, want, before, written(op, before))
        for ours, old in zip(margins(got), margins(before), strict=True):
            if not torch.equal(ours, old):
                found.append(Mismatch(op.name, case.name, "memory", "beside the tensors was written"))
    return found
