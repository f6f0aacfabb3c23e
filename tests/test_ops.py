"""Every op x backend x instruction set x case x dtype against the reference; opcheck and torch.compile."""

import functools
import itertools
from typing import Any

import pytest
import torch
from conftest import need
from onepass.ops import OPS, Op
from onepass.testing import CASES, Case, Variant, call, compare, expected, variants, verify
from onepass.testing.compare import margins, spacing
from onepass.testing.threads import threads
from onepass.testing.verify import overload, result_names, written
from torch import Tensor

VARIANTS = variants("cpu")
ROWS = [
    pytest.param(op, case, dtype, id=f"{op.name}-{case.name}-{str(dtype).removeprefix('torch.')}")
    for op in OPS
    for case in CASES[op.name]
    for dtype in case.dtypes
]
# Cases in which not everything that may be written changes: a step that is skipped, no learning rate, nothing
# to move, gradients that are within the norm.
STILL = ("skipped", "skipped_by_stats", "skipped_and_zeroed", "groups", "groups_amsgrad", "no_tensors")
STILL += ("empty_and_0_dim", "within", "no_limit", "only_empty", "by_one", "float32_grads_zeroed")

# `make test` tries the instruction set that is picked here; of the weaker ones these cases, the rest is slow.
WEAKER = [v for v in VARIANTS if v.isa is not None][1:]
TRIED_ON_ALL = (
    "plain",
    "phase",
    "odd_sizes",
    "misaligned",
    "residual_relu",
    "residual_relu_last",
    "silu_last",
)

each_variant = pytest.mark.parametrize(
    "variant", [pytest.param(v, marks=pytest.mark.slow if v in WEAKER else ()) for v in VARIANTS], ids=str
)


def _on_each_variant() -> list:
    rows = []
    for row, variant in itertools.product(ROWS, VARIANTS):
        slow = variant in WEAKER and row.values[1].name not in TRIED_ON_ALL
        marks = pytest.mark.slow if slow else ()
        rows.append(pytest.param(*row.values, variant, id=f"{row.id}-{variant}", marks=marks))
    return rows


def _case(op: Op, name: str) -> Case:
    return next(case for case in CASES[op.name] if case.name == name)


def _some(*names: str) -> list:
    """These cases, of every op that has them; and of ops that have none of them the first two."""
    rows = []
    for op in OPS:
        found = [case.name for case in CASES[op.name] if case.name in names]
        found = found or [case.name for case in CASES[op.name][:2]]
        rows += [pytest.param(op, name, id=f"{op.name}-{name}") for name in found]
    return rows


def _run(op: Op, arguments: dict[str, Any]) -> dict[str, Any]:
    return call(op, overload(op, arguments), arguments)


def _bits(value: Any) -> list[bytes]:
    """Every tensor in a call's outcome, bit for bit."""
    if isinstance(value, Tensor):
        return [value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()]
    if isinstance(value, dict):
        return [bits for entry in value.values() for bits in _bits(entry)]
    return [bits for entry in value for bits in _bits(entry)] if isinstance(value, list) else []


@functools.cache
def _want(op: Op, case: Case, dtype: torch.dtype) -> dict[str, Any]:
    return expected(op, case, 0, dtype, "cpu")


# --- values -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("op, case, dtype, variant", _on_each_variant())
def test_agrees_with_the_reference(op: Op, case: Case, dtype: torch.dtype, variant: Variant):
    with variant.use():
        mismatches = verify(op, case, dtype, want=_want(op, case, dtype))
    assert not mismatches, "\n".join(map(str, mismatches))


@each_variant
@pytest.mark.parametrize("op, name", _some("threads"))
def test_same_bits_for_any_number_of_threads_and_from_run_to_run(op: Op, name: str, variant: Variant):
    case = _case(op, name)
    for dtype in case.dtypes:
        outcomes = []
        for count in (1, 2, 3, 8, 8, 1):
            with variant.use(), threads(count):
                outcomes.append(_bits(_run(op, case(0, dtype))))
        assert all(outcome == outcomes[0] for outcome in outcomes[1:])


# --- torch's machinery ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "op, name",
    _some("plain", "amsgrad", "groups", "param_sliced", "grad_one_value", "scaled_finite", "phase"),
)
def test_opcheck(op: Op, name: str):
    case = _case(op, name)
    for dtype, checks in ((torch.float32, None), (torch.bfloat16, "test_faketensor")):
        if dtype in case.dtypes:
            arguments = case(0, dtype)
            more = {} if checks is None else {"test_utils": checks}
            torch.library.opcheck(overload(op, arguments), (), arguments, **more)


def _compiles(op: Op, name: str, backend: str) -> None:
    torch._dynamo.reset()
    case = _case(op, name)

    eager, compiled = case(0, torch.float32), case(0, torch.float32)
    chosen = overload(op, eager)

    def step(arguments: dict[str, Any]) -> Any:
        return chosen(**arguments)

    results = step(eager), torch.compile(step, fullgraph=True, backend=backend)(compiled)
    assert _bits(compiled) == _bits(eager)
    if results[0] is not None:
        assert _bits(results[1]) == _bits(results[0])
    else:
        assert name in STILL or _bits(compiled) != _bits(case(0, torch.float32))


@pytest.mark.parametrize(
    "op, name", _some("plain", "amsgrad", "sliced", "grad_transposed", "skipped", "phase")
)
def test_compiles_to_the_same_bits(op: Op, name: str):
    _compiles(op, name, "aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize("op, name", _some("plain", "amsgrad", "param_sliced", "scaled_finite", "phase"))
def test_inductor_compiles_to_the_same_bits(op: Op, name: str):
    need("g++")
    _compiles(op, name, "inductor")


# --- the comparison itself can fail -----------------------------------------------------------------------
@pytest.mark.parametrize(
    "op, case, dtype",
    [
        pytest.param(op, case, dtype, id=row.id, marks=() if dtype == case.dtypes[0] else pytest.mark.slow)
        for row in ROWS
        for op, case, dtype in [row.values]
        if case.name not in STILL
    ],
)
def test_cases_notice_what_was_left_undone(op: Op, case: Case, dtype: torch.dtype):
    want, before = _want(op, case, dtype), case(0, dtype)
    for name in result_names(op):
        before[name] = torch.zeros_like(want[name])
    may = written(op, before) & want.keys()
    noticed = {m.argument for m in compare(op.name, case.name, before, want, before, may)}
    if "params" not in want:  # what of it moves is the case's own
        may = frozenset(name for name in may if _bits(want[name]) != _bits(before[name]))
    assert noticed == {place for name in may for place in _places(name, want[name])}


def _places(name: str, value: Any) -> list[str]:
    return [name] if isinstance(value, Tensor) else [f"{name}[{i}]" for i in range(len(value))]


def _one(got: Tensor, want: Tensor, name: str = "params") -> list[str]:
    found = compare("op", "case", {name: [got]}, {name: [want]}, {name: [want]}, frozenset({name}))
    return [str(mismatch) for mismatch in found]


def test_compare_names_the_worst_element():
    want = torch.linspace(1, 2, 12).reshape(3, 4)
    got = want.clone()
    got[1, 2] += 1e-4
    got[2, 3] += 1e-3
    (text,) = _one(got, want)
    assert "op case: params[0] differs in 2 of 12 elements, most at [2, 3]" in text


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_compare_allows_roundings_only(dtype: torch.dtype):
    want = torch.tensor([1.0, -3.0], dtype=dtype)
    eps = torch.finfo(dtype).eps
    assert not _one(want * (1 + 4 * eps), want)
    assert _one(want * (1 + 40 * eps), want)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
@pytest.mark.parametrize("value", (1.0, 1.99, -0.37, 1e-3))
def test_compare_allows_one_unit_in_the_last_place_of_halves(value: float, dtype: torch.dtype):
    want = torch.tensor([value, 1.0], dtype=dtype)
    step = torch.tensor([1, 0], dtype=torch.int16)
    assert not _one((want.view(torch.int16) + step).view(dtype), want)
    assert _one((want.view(torch.int16) + 2 * step).view(dtype), want)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_compare_notices_halves_that_are_cut_off_and_not_rounded(dtype: torch.dtype):
    exact = torch.linspace(1, 2, 1000)
    want, kept_bits = exact.to(dtype), {torch.bfloat16: 16, torch.float16: 13}[dtype]
    cut_off = (exact.view(torch.int32) >> kept_bits << kept_bits).view(torch.float32).to(dtype)
    (text,) = _one(cut_off, want)
    assert "not rounded to nearest" in text


def test_compare_of_infinities_and_nan():
    inf, nan = float("inf"), float("nan")
    want = torch.tensor([inf, -inf, nan, 1.0])
    assert not _one(want.clone(), want)
    for place, wrong in ((0, -inf), (0, 3e38), (1, nan), (2, 0.0), (2, inf), (3, nan), (3, inf)):
        got = want.clone()
        got[place] = wrong
        assert len(_one(got, want)) == 1, (place, wrong)


def test_compare_is_exact_for_counters():
    assert _one(torch.tensor(100_001.0), torch.tensor(100_000.0), "steps")
    assert _one(torch.tensor(1.0).nextafter(torch.tensor(2.0)), torch.tensor(1.0), "steps")


def test_compare_looks_at_dtype_and_shape():
    assert "dtype" in _one(torch.ones(2, dtype=torch.float64), torch.ones(2))[0]
    assert "shape" in _one(torch.ones(1, 2), torch.ones(2))[0]


def test_compare_notices_a_write_to_what_is_only_read():
    before, got = {"grads": [torch.zeros(2)], "groups": [0]}, {"grads": [-torch.zeros(2)], "groups": [1]}
    found = compare("op", "case", got, before, before, frozenset({"params"}))
    assert [m.argument for m in found] == ["grads[0]", "groups[0]"]


def test_margins_show_a_write_beside_the_tensor():
    buffer = torch.ones(9)
    arguments = {"params": [buffer[1:4], buffer[5:8:2]]}
    before = margins(arguments)
    arguments["params"][0].fill_(5.0)
    assert all(map(torch.equal, margins(arguments), before))
    buffer[6] = 2.0
    assert not all(map(torch.equal, margins(arguments), before))


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16, torch.float32))
def test_spacing_is_the_distance_to_the_next_number(dtype: torch.dtype):
    bits = {2: torch.int16, 4: torch.int32}[dtype.itemsize]
    values = torch.tensor([0.0, 1e-6, 0.37, 1.0, 1.99, 300.0], dtype=dtype)
    following = (values.view(bits) + 1).view(dtype)
    assert torch.equal(spacing(values), following.double() - values.double())
