"""The 8-bit products in Triton whose depth is cut in shares, run by its interpreter: any number of shares,
even, uneven and empty, and what is left behind. Tiles in one piece stand in test_triton_int8.py."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise, product
from typing import Any

import pytest
import torch
from conftest import need
from interpreted import asking, serve
from test_triton_int8 import (  # noqa: F401  answers, too
    ACTS,
    DTYPES,
    _whole,
    _with,
    answer_finish,
    answer_weight_only,
    answer_wrong_8_bits,
    answer_wrong_sums,
)

SLOW = pytest.mark.slow


# --- in the interpreter's process -------------------------------------------------------------------------
@contextmanager
def _backwards() -> Iterator[None]:
    """Programs start in the opposite order: the first share is the last to be done."""
    from triton.runtime.interpreter import interpreter_builder as builder

    forwards = builder.set_grid_idx
    builder.set_grid_idx = lambda *at: forwards(
        *(n - 1 - i for n, i in zip(builder.grid_dim, at, strict=True))
    )
    try:
        yield
    finally:
        builder.set_grid_idx = forwards


def answer_backwards(m: int, n: int, k: int, tiles: str) -> list[int]:
    """Wrong sums, and the places in which real ones have other bits than in the usual order of programs."""
    from onepass.kernels.int8 import int8_weight_only_mm

    rng = torch.Generator().manual_seed(k)
    x, w, scale = torch.randn(m, k, generator=rng), _whole(rng, n, k, True), torch.rand(n, generator=rng)
    with _with(tiles):
        usual = int8_weight_only_mm(x, w, scale)
    with _backwards():
        wrong = answer_wrong_sums(m, n, k, tiles=tiles)
        with _with(tiles):
            other = int8_weight_only_mm(x, w, scale)
    return [wrong, int((usual != other).sum())]


def answer_other_order(m: int, n: int, tiles: str, cuts: list[int]) -> int:
    """Places in which real sums have other bits than shares multiplied one by one and added in order.
    cuts: where shares begin and the last one ends."""
    from onepass.kernels.int8 import int8_weight_only_mm

    rng, k, one = torch.Generator().manual_seed(m), cuts[-1], torch.ones(())
    x, w = torch.randn(m, k, generator=rng), _whole(rng, n, k, True)
    with _with(f"{tiles}/{len(cuts) - 1}"):
        got = int8_weight_only_mm(x, w, one)
    want = torch.zeros(m, n)
    with _with(tiles):
        for begin, end in pairwise(cuts):
            want += int8_weight_only_mm(x[:, begin:end], w[:, begin:end], one)
    return int((got != want).sum())


def answer_calls(products: list[list]) -> list:
    """Of products [m, n, k, tiles, op]: kernels started, each called twice; then the number of counters,
    and what is left in them."""
    from onepass.kernels import int8, tickets

    tickets.kept.clear()
    names = []
    for m, n, k, tiles, op in products:
        x, w = torch.ones(m, k, dtype=torch.int8), torch.ones(n, k, dtype=torch.int8)
        with _with(tiles) as started:
            for _ in range(2):
                y = int8.int8_mm(x, w) if op == "int8_mm" else getattr(int8, op)(x.half(), w, torch.ones(()))
                assert bool((y == k).all())
        names += started
    counters = [*tickets.kept.values()]
    return [names, sum(map(len, counters)), sum(int(c.abs().sum()) for c in counters)]


def answer_refused(tiles: str) -> str:
    try:
        answer_wrong_sums(9, 9, 9, tiles=tiles)
    except RuntimeError as error:
        return str(error)
    return "nothing was raised"


def answer_tuned(times: list[float]) -> list:
    """The kinds of tiles, as [rows, is it in shares?], that one product tries and then keeps."""
    import triton
    from onepass.kernels import int8, int8_plan

    clock, before = iter(times), triton.testing.do_bench
    triton.testing.do_bench = lambda run: (run(), next(clock))[1]
    int8_plan._fastest.clear()
    used, x = [], torch.ones(5, 4096, dtype=torch.int8)
    try:
        with _with("autotune"):
            launch = int8_plan.launch
            int8_plan.launch = lambda *a, **c: (used.append([c["ROWS"], len(a[1]) == 2]), launch(*a, **c))
            assert bool((int8.int8_mm(x, x[:3], dtype=torch.int32) == 4096).all())
    finally:
        triton.testing.do_bench = before
    return used


# --- in the tests' process --------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def ask() -> Iterator[Any]:
    need("triton")
    with asking(__file__) as ask:
        yield ask


# Steps of the depth: of flat 256, of low 128.
SHAPES = {"flat": ((5, 33, 1300), (17, 9, 16)), "low": ((3, 70, 640), (65, 64, 333))}
QUICK = {("flat", 2), ("flat", 7), ("low", 4)}
COUNTS = [
    pytest.param(*row, marks=() if row in QUICK else SLOW) for row in product(SHAPES, (2, 3, 4, 5, 6, 7, 19))
]


@pytest.mark.parametrize("tiles, shares", COUNTS)
def test_any_number_of_shares_is_exact(ask, tiles: str, shares: int):
    for m, n, k in SHAPES[tiles]:
        for signed, zeros in ((True, False), (False, True)):
            call = {"m": m, "n": n, "k": k, "signed": signed, "zeros": zeros}
            assert ask("wrong_sums", **call, tiles=f"{tiles}/{shares}") == 0


@pytest.mark.parametrize("tiles, k", (("flat", 16_384), pytest.param("low", 65_536, marks=SLOW)))
def test_extremes_are_exact(ask, tiles: str, k: int):
    for signed in (True, False):
        assert ask("wrong_sums", m=6, n=5, k=k, extreme=True, signed=signed, tiles=f"{tiles}/3") == 0


FINISHED = [("gelu", "float16"), *(pytest.param(a, "float32", marks=SLOW) for a in ACTS)]


@pytest.mark.parametrize("act, dtype", FINISHED)
def test_what_follows_the_sums(ask, act: str | None, dtype: str):
    for tiles, zeros, signed in (("flat/2", False, True), ("low/2", True, False)):
        call = {"m": 9, "act": act, "dtype": dtype, "scales": ["each"] * 3}
        assert ask("finish", **call, zeros=zeros, signed=signed, tiles=tiles) <= 1


@pytest.mark.parametrize("act, zero_point", ((None, None), ("gelu", 99), pytest.param("relu", 0, marks=SLOW)))
def test_8_bits_again_are_those_of_quantize(ask, act: str | None, zero_point: int | None):
    for tiles, signed in (("flat/2", True), ("low/2", False)):
        assert ask("wrong_8_bits", m=9, n=37, act=act, zero_point=zero_point, signed=signed, tiles=tiles) == 0


REAL = [*product(("flat/3",), ("float32", "float16"), (None,)), ("low/4", "float16", "gelu")]
REAL += [pytest.param(*row, marks=SLOW) for row in product(("flat/5", "low/2"), DTYPES, ("silu",))]
REAL += [pytest.param("square/3", "float32", None, marks=SLOW)]


@pytest.mark.parametrize("tiles, dtype, act", REAL)
def test_weight_only(ask, tiles: str, dtype: str, act: str | None):
    assert ask("weight_only", m=9, n=70, k=517, dtype=dtype, act=act, tiles=tiles) <= 1


# Steps of the depth: of flat 64, of low 32.
ORDERS = [("flat", [0, 128, 256, 320]), ("flat", [0, 64, 128, 192, 250])]
ORDERS += [pytest.param("low", [0, 96, 160, 220], marks=SLOW)]


@pytest.mark.parametrize("tiles, cuts", ORDERS)
def test_real_sums_are_added_in_the_order_of_shares(ask, tiles: str, cuts: list[int]):
    assert ask("other_order", m=9, n=40, tiles=tiles, cuts=cuts) == 0


@pytest.mark.parametrize("tiles", ("flat/5", pytest.param("low/4", marks=SLOW)))
def test_whoever_is_last_gets_the_same(ask, tiles: str):
    assert ask("backwards", m=17, n=40, k=1300, tiles=tiles) == [0, 0]


def test_a_deep_product_of_few_tiles_is_one_launch_in_shares(ask):
    """The interpreter's machine has three multiprocessors. Counters are left as they were."""
    names, counters, left = ask(
        "calls",
        products=[
            [6, 5, 2048, None, "int8_mm"],
            [6, 5, 4096, None, "int8_weight_only_mm"],
            [20, 100, 300, "flat/2", "int8_mm"],
        ],
    )
    assert names == ["product_shares", "product_shares", *["weight_only_shares"] * 2, *["product_shares"] * 2]
    assert (counters, left) == (8, 0)  # 2 x 4 tiles


def test_others_need_no_memory_for_it(ask):
    products = [[6, 5, 1024, None, "int8_mm"], [6, 70, 2048, None, "int8_mm"]]
    names, counters, _ = ask("calls", products=products)
    assert set(names) == {"product_tiles_tma"} and counters == 0


@pytest.mark.parametrize("tiles", ("square/2", "flat/0", "flat/x", "flat/", "huge/2"))
def test_shares_that_there_are_not_are_refused(ask, tiles: str):
    fitting = "wide, square, low, flat, low/2, flat/2 or in more shares"
    wanted = f"ONEPASS_INT8_TILES is '{tiles}', expected autotune or what fits here: {fitting}"
    assert ask("refused", tiles=tiles) == wanted


def test_autotune_tries_shares_too(ask):
    tried = [[128, False], [128, False], [64, False], [16, False], [64, True], [16, True]]
    assert ask("tuned", times=[4, 3, 9, 9, 2, 9]) == [*tried, [64, True]]


# --- the rule that chooses ----------------------------------------------------------------------------------
H100 = (
    (16, 768, 3072, "flat", 3),  # each fills its stages once
    (16, 4096, 4096, "flat", 1),  # 128 programs of 132
    (16, 1024, 16_384, "flat", 4),  # no more than there are multiprocessors
    (64, 768, 3072, "low", 4),  # the last one would have too much to read
    (64, 4096, 4096, "low", 2),
    (64, 4096, 11_008, "low", 2),
    (16, 768, 768, "flat", 1),
    (512, 768, 3072, "low", 1),
    (128, 768, 3072, "low", 4),
    (16, 32, 65_536, "flat", 39),
    (16, 32, 0, "flat", 1),
)


@pytest.mark.parametrize("m, n, k, name, shares", H100)
def test_shares_of_bytes(m: int, n: int, k: int, name: str, shares: int):
    need("triton")
    from onepass.kernels import int8_plan
    from onepass.kernels.machine import Machine

    machine = Machine(132, 227 * 1024, True, True)
    tiles = int8_plan.choose(int8_plan.WHOLE, m, n, k, 1, machine, (), None)
    assert tiles == int8_plan.WHOLE[name]._replace(shares=shares)


if __name__ == "__main__":
    serve(globals())
