"""Batch normalization in Triton, run by its interpreter: every case of every op against the reference, and
what the cases leave out.

As in test_triton.py the interpreter lives in a process of its own, and each `answer_NAME` below runs there.
It cuts bfloat16 off where hardware rounds, so no bfloat16 here.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from conftest import need
from interpreted import asking, serve
from onepass.ops import BY_NAME
from onepass.reference import norm as reference
from onepass.testing import CASES, compare
from onepass.testing.compare import margins
from onepass.testing.verify import call, expected, written

DTYPES = {"float32": torch.float32, "float16": torch.float16, "float64": torch.float64}
OPS = [name for name in BY_NAME if name.startswith("batch_norm_")]
LARGE = ("threads", "threads_last", "past_the_caches", "past_the_caches_last")
ROWS = [
    pytest.param(
        op,
        case.name,
        dtype,
        id=f"{op}-{case.name}-{dtype}",
        marks=pytest.mark.slow if dtype == "float64" or case.name in LARGE else (),
    )
    for op in OPS
    for case in CASES[op]
    for dtype in DTYPES
    if DTYPES[dtype] in case.dtypes and (dtype == "float64" or case.name in LARGE)  # others: test_triton.py
]


def _slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


# --- in the interpreter's process -------------------------------------------------------------------------
def _kernel(name: str):
    from onepass.kernels import norm

    return getattr(norm, name)


def answer_case(op: str, case: str, dtype: str, wide: bool = False) -> list[str]:
    """A case by the Triton kernels, called as functions. Returns what differs. wide: offsets of 64 bits."""
    from onepass.kernels import norm_plan

    row, found = BY_NAME[op], next(c for c in CASES[op] if c.name == case)
    norm_plan.NARROW = 0 if wide else 2**31
    want = expected(row, found, 0, DTYPES[dtype], "cpu")
    before, arguments = (found(0, DTYPES[dtype], "cpu") for _ in range(2))
    got = call(row, _kernel(op), arguments)
    differs = [str(m) for m in compare(op, case, got, want, before, written(row, before))]
    beside = all(map(torch.equal, margins(got), margins(before)))
    return differs if beside else [*differs, "beside the tensors was written"]


def _all_ops(x: torch.Tensor, act: str | None = None, training: bool = True, affine: bool = True) -> None:
    norm, channels = _kernel, x.shape[1]
    weight, bias = (torch.ones(channels), torch.ones(channels)) if affine else (None, None)
    running = torch.zeros(channels), torch.ones(channels)
    if training:
        _, stats, mask = norm("batch_norm_fwd")(x, x, weight, bias, *running, torch.tensor(3), act=act)
    else:
        _, stats, mask = norm("batch_norm_eval")(x, x, weight, bias, *running, act=act)
    norm("batch_norm_bwd")(x, x, None, weight, bias, stats, mask, act=act, training=training)


def answer_launches(training: bool, affine: bool) -> list[str]:
    """The kernels that forward and backward start, in order."""
    from onepass.kernels import norm_plan

    launch, started = norm_plan.launch, []

    def counted(kernel: Any, *arguments: Any, **constants: Any) -> None:
        started.append(kernel.fn.__name__)
        launch(kernel, *arguments, **constants)

    norm_plan.launch = counted
    try:
        _all_ops(torch.randn(4, 6, 5, 7), "relu", training, affine)
    finally:
        norm_plan.launch = launch
    return started


def answer_tickets(shapes: list[list[int]]) -> list[int]:
    """What calls leave of the counters."""
    from onepass.kernels import tickets

    for _ in range(2):
        for shape in shapes:
            _all_ops(torch.randn(shape))
    return [int(t.abs().sum()) for t in tickets.kept.values()]


def answer_same_bits(last: bool, shape: list[int]) -> bool:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    moments = [_kernel("batch_norm_stats")(x) for _ in range(2)]
    return torch.equal(*moments)


def answer_strided(dtype: str) -> list[float]:
    """Parameters and statistics of every other channel: how far off, and what was written between."""
    x, every = torch.randn(5, 7, 3, 3), [torch.rand(14) + 0.5 for _ in range(4)]
    every = [t.to(DTYPES[dtype]) for t in every] if dtype != "float64" else every
    x = x.to(DTYPES[dtype]) if dtype != "float64" else x
    want = [t.clone() for t in every]
    options = {"momentum": 0.3, "act": "silu"}
    got = _kernel("batch_norm_fwd")(x, None, *(t[::2] for t in every), torch.tensor(0), **options)
    own = reference.batch_norm_fwd(x, None, *(t[::2] for t in want), torch.tensor(0), **options)
    pairs = [*zip(got[:2], own[:2], strict=True), *zip(every, want, strict=True)]
    return [float((a.double() - b.double()).abs().max()) for a, b in pairs]


def answer_far(last: bool, border: float) -> list[float]:
    """Of a mean 1e4 deviations from zero: errors of the output and of 1 / deviation. border: what stands
    where a program looks first."""
    x = torch.randn(2, 4, 96, 96, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 1e4
    x[0, :, :8] = border
    x = x.float().contiguous(memory_format=torch.channels_last) if last else x.float()
    arguments = (x, None, None, None, None, None, None)
    got, want = _kernel("batch_norm_fwd")(*arguments), reference.batch_norm_fwd(*arguments)
    exact = reference.batch_norm_fwd(x.double(), *arguments[1:])
    inside = (slice(None), slice(None), slice(8, None))
    return [
        float((got[0].double() - exact[0])[inside].abs().max()),
        float((got[1][2] / want[1][2] - 1).abs().max()),
    ]


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


@pytest.mark.parametrize(
    "case", ("residual_relu", "residual_relu_last", _slow("long_run"), _slow("many_channels_last"))
)
@pytest.mark.parametrize("op", ("batch_norm_fwd", "batch_norm_bwd"))
def test_offsets_of_64_bits(ask, op: str, case: str):
    assert ask("case", op=op, case=case, dtype="float32", wide=True) == []


def test_two_launches_each_way(ask):
    two_ways = ["measure", "normalise_all", "measure_grads", "grads_of_inputs"]
    assert ask("launches", training=True, affine=True) == two_ways
    assert ask("launches", training=True, affine=False) == two_ways
    assert ask("launches", training=False, affine=True) == ["settle_running", *two_ways[1:]]
    given = ["settle_running", "normalise_all", "settle_sums", "grads_of_inputs"]
    assert ask("launches", training=False, affine=False) == given


# Shapes that several programs share, in each layout.
@pytest.mark.parametrize("shapes", ([(3, 2, 40, 40)], _slow([(3, 5, 96, 96), (3, 200, 2, 2)])), ids=len)
def test_counters_are_zero_between_launches(ask, shapes: list):
    assert ask("tickets", shapes=shapes) == [0]


@pytest.mark.parametrize("shape", ((3, 2, 40, 40), _slow((3, 8, 64, 64))), ids=str)
@pytest.mark.parametrize("last", (False, True))
def test_moments_have_the_same_bits_from_run_to_run(ask, last: bool, shape: tuple):
    assert ask("same_bits", last=last, shape=shape)


@pytest.mark.parametrize("dtype", ("float32", "float16"))
def test_strided_parameters(ask, dtype: str):
    assert max(ask("strided", dtype=dtype)) < (1e-5 if dtype == "float32" else 4e-3)


@pytest.mark.parametrize("last, border", ((True, 0.0), *map(_slow, (False, False, True), (1e4, 0.0, 1e4))))
def test_a_mean_far_from_zero(ask, last: bool, border: float):
    output, invstd = ask("far", last=last, border=border)
    assert output < 2e-6 and invstd < 1e-6


if __name__ == "__main__":
    serve(globals())
