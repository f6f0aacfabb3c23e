"""What the emulated rooms have in common: a case as the kernels leave it, against the reference."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from onepass.ops import Op
from onepass.testing import CASES, Case, Mismatch, compare, expected
from onepass.testing.compare import margins
from onepass.testing.verify import written

Outcome = dict[str, Any]


def mismatches(
    op: Op, case: Case, dtype: torch.dtype, run: Callable[[Outcome, Outcome], Outcome]
) -> list[Mismatch]:
    """What `run`, given a call and the outcome that is wanted, leaves otherwise than the reference."""
    want, before, got = expected(op, case, 0, dtype, "cpu"), case(0, dtype), case(0, dtype)
    got = run(got, want)
    found = compare(op.name, case.name, got, want, before, written(op, before))
    for ours, old in zip(margins(got), margins(before), strict=True):
        if not torch.equal(ours, old):
            found.append(Mismatch(op.name, case.name, "memory", "beside the tensors was written"))
    return found


def assert_agreement(
    ops: Iterable[Op], names: Iterable[str], find: Callable[[Op, Case, torch.dtype], list[Mismatch]]
) -> int:
    """Runs the cases of these names, in each of their dtypes. Returns how many there were."""
    count = 0
    for op in ops:
        for case in CASES[op.name]:
            for dtype in case.dtypes if case.name in names else ():
                found = find(op, case, dtype)
                assert not found, "\n".join(map(str, found))
                count += 1
    return count
