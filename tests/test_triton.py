"""The Triton kernels, run by Triton's interpreter: every case of every op against the reference, and what the
cases leave out: lists of thousands, tensors that start anywhere, how often a kernel is launched, the ring.

The interpreter has to be chosen before Triton is imported, so it lives in a process of its own, and tests ask
it: each `answer_NAME` below runs there. It cuts bfloat16 off where hardware rounds, so no bfloat16 here.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from conftest import need
from interpreted import asking, serve
from onepass.ops import BY_NAME, OPS
from onepass.reference import grads as reference_grads
from onepass.reference import optim as reference
from onepass.testing import CASES, compare, layouts, verify
from onepass.testing.cases import optimizer
from onepass.testing.compare import margins
from onepass.testing.verify import written

DTYPES = {"float32": torch.float32, "float16": torch.float16, "float64": torch.float64}
SERVED = [op for op in OPS if op.triton]
SEVERAL = ("plain", "phase", "odd_sizes")  # cases that are quick in every dtype; the others in float32
OFTEN = {"adamw_", "sgd_"}  # what optimizers have in common is tried with these; of the others, SEVERAL
MANY = ("threads", "long_", "than_a_sum_holds")  # elements, of which the interpreter has few a second
# Batch normalization has several hundred rows: quick are each layout, activation and way to be called once.
NORMS = {"plain", "silu", "residual_relu", "leaky_relu_last", "residual_silu_last", "residual_relu_last"}
NORMS |= {"rows", "volumes_last", "misaligned", "half_parameters", "nan", "average", "alone", "plain_given"}


def _quick(op: str, case: str, dtype: str) -> bool:
    if op.startswith("batch_norm_") and case not in NORMS:
        return False
    if BY_NAME[op].bench in ("int8", "fake_quant") and any(word in case for word in MANY):
        return False  # many elements, of which the interpreter has few a second
    if BY_NAME[op].check == "optimizer" and op not in OFTEN:
        return case in SEVERAL
    return dtype == "float32" or case in SEVERAL


ROWS = [
    pytest.param(
        op.name,
        case.name,
        dtype,
        id=f"{op.name}-{case.name}-{dtype}",
        marks=() if _quick(op.name, case.name, dtype) else pytest.mark.slow,
    )
    for op in SERVED
    for case in CASES[op.name]
    for dtype in DTYPES
    if DTYPES[dtype] in case.dtypes and not case.name.startswith("bf16_") and not case.packed
]


# --- in the interpreter's process -------------------------------------------------------------------------
def _kernel(name: str):
    from onepass import backends
    from onepass.ops import BY_NAME

    return backends.target(BY_NAME[name].triton)


def _call(seed: int, op: str, dtype: torch.dtype = torch.float32, **settings: Any) -> dict[str, Any]:
    return optimizer(torch.Generator().manual_seed(seed), dtype, "cpu", op=op, **settings)


def answer_case(op: str, case: str, dtype: str) -> list[str]:
    """A case through the dispatcher, with the Triton kernel in front. Returns what differs."""
    found = next(c for c in CASES[op] if c.name == case)
    row = next(o for o in OPS if o.name == op)
    library = torch.library.Library("onepass", "IMPL")
    for name in row.overloads:
        library.impl(name, _kernel(op), "CPU", allow_override=True)
    try:
        return [str(m) for m in verify(row, found, DTYPES[dtype])]
    finally:
        library._destroy()


def _both(op: str, settings: dict[str, Any], dtype: torch.dtype = torch.float32) -> list[str]:
    """The kernel, called as a function, against the reference, on a call with these settings."""
    before, got, want = (_call(0, op, dtype, **settings) for _ in range(3))
    _kernel(op)(**got)
    getattr(reference, op)(**want)
    row = next(o for o in OPS if o.name == op)
    found = [str(m) for m in compare(op, "call", got, want, before, written(row, got))]
    beside = all(map(torch.equal, margins(got), margins(before)))
    return found if beside else [*found, "beside the tensors was written"]


def answer_sizes(shapes: list, **settings: Any) -> list[str]:
    if "offset" in settings:
        settings["params"] = settings["grads"] = settings["states"] = _offset(settings.pop("offset"))
    return _both("adamw_", {"shapes": [tuple(s) for s in shapes], **settings})


def _offset(elements: int) -> layouts.Layout:
    """Each tensor so many elements behind a 16-byte boundary, in a buffer with a gap at the end."""

    def place(t: torch.Tensor) -> torch.Tensor:
        buffer = t.new_full((t.numel() + elements + 4,), layouts.GAP)
        return buffer[elements : elements + t.numel()].view(t.shape).copy_(t)

    return lambda tensors: [place(t) for t in tensors]


def answer_launches(dtypes: list[str], shapes: list, groups: int = 2) -> list[int]:
    """How many kernels a phase starts for these dtypes, each with all the shapes: to measure, to step."""
    from onepass.kernels import grads, optim

    counts = {"sum_grads": 0, "multi_tensor": 0}

    class Counted:
        def __init__(self, module, name):
            self.module, self.name, self.kernel = module, name, getattr(module, name)

        def __getitem__(self, grid):
            counts[self.name] += 1
            return self.kernel[grid]

    settings = {"shapes": list(map(tuple, shapes)), "rows": ({},) * groups, "ema": True, "grads_after": 1}
    calls = [_call(i, "adam_", DTYPES[d], **settings) for i, d in enumerate(dtypes)]
    merged = {k: [t for call in calls for t in call[k]] for k in calls[0] if isinstance(calls[0][k], list)}
    counted = [Counted(grads, "sum_grads"), Counted(optim, "multi_tensor")]
    for kernel in counted:
        setattr(kernel.module, kernel.name, kernel)
    try:
        stats = grads.grad_stats(merged["grads"]) if merged["grads"] else None
        optim.adam_(**merged, hyper=calls[0]["hyper"], stats=stats, grads_after=1)
    finally:
        for kernel in counted:
            setattr(kernel.module, kernel.name, kernel.kernel)
    assert all(step.item() == 8 for step in merged["steps"])
    return list(counts.values())


def answer_steps(op: str, count: int) -> list[str]:
    """Many phases in a row, every third skipped, the counters on the device."""
    row = next(o for o in OPS if o.name == op)
    settings = {"ema": True, "rows": ({"max_grad_norm": 0.5},), "grads_after": 2}
    before, got, want = (_call(0, op, **settings) for _ in range(3))
    for i in range(count):
        for a, stats, step in (
            (got, _kernel("grad_stats"), _kernel(op)),
            (want, reference_grads.grad_stats, getattr(reference, op)),
        ):
            for k, g in enumerate(a["grads"]):
                g.copy_(torch.randn(g.shape, generator=torch.Generator().manual_seed(100 * i + k)))
            if i % 3 == 1:
                a["grads"][1].view(-1)[5] = float("nan")
            step(**{**a, "stats": stats(a["grads"])})
    return [str(m) for m in compare(op, "steps", got, want, before, written(row, got))]


def answer_same_norm(sizes: list[int]) -> list[float]:
    """The norm of the same gradients, measured several times."""
    grads = [torch.randn(n, generator=torch.Generator().manual_seed(n)) for n in sizes]
    return [_kernel("grad_stats")(grads)[0].item() for _ in range(3)]


# --- in the tests' process --------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def ask() -> Iterator[Any]:
    """ask(NAME, arguments...): the result of answer_NAME in the interpreter's process."""
    need("triton")
    with asking(__file__) as ask:
        yield ask


@pytest.mark.parametrize("op, case, dtype", ROWS)
def test_agrees_with_the_reference(ask, op: str, case: str, dtype: str):
    assert ask("case", op=op, case=case, dtype=dtype) == []


def test_selftest_passes_under_the_interpreter():
    """It leaves bfloat16 out there, and says so by a dash."""
    need("triton")
    command = [sys.executable, "-m", "onepass", "selftest", "--case", "plain"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "COLUMNS": "120"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    rows = [line for line in done.stdout.splitlines() if " triton " in line]
    plain = sum(any(case.name == "plain" for case in CASES[op.name]) for op in OPS)
    assert len(rows) == plain and all("1 of 1" in row and " - " in row for row in rows), done.stdout


def test_sizes_around_a_tile(ask):
    around = (1023, 1024, 1025, 4095, 4096, 4097, 8191, 8192, 12_289)
    assert ask("sizes", shapes=[[n] for n in around]) == []


@pytest.mark.parametrize("offset", (1, 2, 3))
def test_tensors_that_start_anywhere(ask, offset: int):
    assert (
        ask("sizes", shapes=[[1], [511], [4096], [5000]], offset=offset, variant=1, ema=True, grads_after=2)
        == []
    )


@pytest.mark.parametrize("shapes", ([[0]], [[0], [0, 3]], [[5], [0]], [[0], [4097], [0]]), ids=str)
def test_empty_tensors_anywhere(ask, shapes: list):
    assert ask("sizes", shapes=shapes) == []


@pytest.mark.parametrize("count", (1, 2, 100, pytest.param(5000, marks=pytest.mark.slow)))
def test_number_of_tensors(ask, count: int):
    rows = [{"lr": 1e-2}, {"lr": 2e-2, "beta1": 0.5}, {"weight_decay": 0.0, "maximize": 1.0}]
    shapes = [[i % 7] for i in range(count)]
    assert ask("sizes", shapes=shapes, rows=rows, steps=[1, 50]) == []


@pytest.mark.parametrize("op", [op.name for op in SERVED if op.hyper])
def test_counters_ticket_and_skipped_steps_over_many_phases(ask, op: str):
    assert ask("steps", op=op, count=9) == []


def test_the_norm_has_the_same_bits_from_run_to_run(ask):
    assert len(set(ask("same_norm", sizes=[70_001, 5, 300_000]))) == 1


def test_launches_of_a_phase(ask):
    """One that measures, whatever the dtypes, and one a dtype that steps, for any number of groups."""
    shapes = [[4097], [3], [0], [9000], [5, 7]]
    assert ask("launches", dtypes=["float32"], shapes=shapes, groups=4) == [1, 1]
    assert ask("launches", dtypes=["float32", "float64", "float16"], shapes=shapes) == [1, 3]
    assert ask("launches", dtypes=["float32"], shapes=[[0]]) == [1, 1]
    assert ask("launches", dtypes=["float32"], shapes=[]) == [0, 0]


# --- the ring ---------------------------------------------------------------------------------------------
class _Event:
    def __init__(self) -> None:
        self.waited = 0

    def synchronize(self) -> None:
        self.waited += 1


@pytest.fixture
def ring():
    need("triton")
    from onepass.kernels.transfer import Ring, Slot

    return Ring(lambda size: Slot(torch.empty(size, dtype=torch.int64), _Event()))


def test_a_slot_is_waited_for_before_it_is_written_again(ring):
    from onepass.kernels.transfer import SLOTS

    first = [ring.take(10) for _ in range(SLOTS)]
    assert len({id(slot) for slot in first}) == SLOTS and not any(slot.copied.waited for slot in first)
    assert ring.take(10) is first[0] and first[0].copied.waited == 1


def test_a_larger_table_gets_a_larger_slot(ring):
    from onepass.kernels.transfer import SLOTS

    sizes = [ring.take(10 * (i + 1)).memory.numel() >= 10 * (i + 1) for i in range(3 * SLOTS)]
    assert all(sizes)


def test_a_captured_slot_never_comes_back(ring):
    from onepass.kernels.transfer import SLOTS

    used = [ring.take(10) for _ in range(SLOTS)]
    captured = [ring.take_for_good(10), ring.take_for_good(10), ring.take_for_good(1000)]
    assert captured[0] in used and captured[1] in used and captured[0] is not captured[1]
    assert not any(slot.copied.waited for slot in captured)  # an event must not be asked while capturing
    later = [ring.take(10) for _ in range(3 * SLOTS)]
    assert not {id(slot) for slot in captured} & {id(slot) for slot in later}


def test_columns_of_a_table():
    need("triton")
    from onepass.kernels import table

    params = [torch.zeros(5), torch.zeros(0), torch.zeros(9)[1:]]
    steps = [torch.zeros(()), torch.zeros((), dtype=torch.float64), torch.zeros(())]
    columns = table.columns([params, params], steps, [0, 1, 0], block=4)
    assert columns.dtype == np.int64
    assert columns[table.FIRST.value].tolist() == [0, 2, 2, 4]
    assert columns[table.NUMEL.value, :3].tolist() == [5, 0, 8]
    assert columns[table.FLAGS.value, :3].tolist()[:1] == [table.IS_ALIGNED.value]
    assert columns[table.FLAGS.value, 1] & table.STEP_IS_FLOAT64.value
    assert not columns[table.FLAGS.value, 2] & table.IS_ALIGNED.value


if __name__ == "__main__":
    serve(globals())
