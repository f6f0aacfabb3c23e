"""The gradients of the 8-bit product in Triton, run by its interpreter: the same 8-bit numbers as the
reference's, bit for bit; exact products in every kind of tiles. The op's cases stand in test_triton.py.

It cuts bfloat16 off where hardware rounds, so none is written here; reading it is right.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import pytest
import torch
from conftest import need
from interpreted import asking, serve
from onepass.reference import int8 as packing
from onepass.reference import int8_backward as reference
from onepass.reference.philox import philox
from torch import Tensor

TILES = ("wide", "square", "low", "flat")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SEEDS = (None, 0, 1, -1, 7, 2**33 + 5, -(2**63), 2**63 - 1)
PACKED = "weight is packed, which only kernels of the CPU read: give the torch.int8 weight"


# --- in the interpreter's process -------------------------------------------------------------------------
@contextmanager
def _with(tiles: str | None = None, descriptors: bool = True) -> Iterator[list[str]]:
    """These tiles pinned, and loads by descriptors or pointers. Gives the names of kernels as they start."""
    from onepass.kernels import int8_backward, int8_plan

    plain_launch, machine, started = int8_plan.launch, int8_backward.machine_of(torch.device("cpu")), []

    def launch(kernel: Any, *arguments: Any, **constants: Any) -> None:
        started.append(kernel.fn.__name__)
        plain_launch(kernel, *arguments, **constants)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(int8_plan, "PINNED", tiles)
        patch.setattr(int8_plan, "launch", launch)
        patch.setattr(int8_backward, "machine_of", lambda _: machine._replace(descriptors=descriptors))
        yield started


def _whole(rng: torch.Generator, m: int, k: int, signed: bool = True) -> Tensor:
    low, high, dtype = (-127, 128, torch.int8) if signed else (0, 256, torch.uint8)
    return torch.randint(low, high, (m, k), generator=rng, dtype=dtype)


def _even(rng: torch.Generator, m: int, n: int) -> Tensor:
    """Whole numbers with 127 in each row and column, whose scale is 1: nothing is rounded."""
    g, ahead = _whole(rng, m, n).float(), torch.arange(max(m, n))
    if m and n:
        g[ahead % m, ahead % n] = 127
    return g


def answer_words(counter: list[int], key: list[int]) -> list[int]:
    from philox_kernel import draw

    low, high, stream = counter
    to = torch.empty(4, 4, dtype=torch.int64)
    draw(to, key[0] | key[1] << 32, low | high << 32, stream)
    return to[3].tolist()


def answer_lines_that_differ(m: int, n: int, seed: int | None, dtype: str, factors: str) -> list[str]:
    """Rows and columns of g, whose 8-bit numbers or scales are not the reference's. factors: "each", "one" or
    none."""
    from onepass.kernels.int8_backward import _Gradient

    rng, wrong = torch.Generator().manual_seed(m + n), []
    g = torch.randn(m, n, generator=rng).to(DTYPES[dtype])
    for name, lines, stream in (("rows", g, 0), ("columns", g.t(), 1), ("turned", g.t().contiguous().t(), 0)):
        count, depth = lines.shape
        shape = {"each": (depth,), "one": ()}.get(factors)
        factor = None if shape is None else torch.rand(shape, generator=rng)
        y = torch.empty(count, 3)
        gradient = _Gradient(lines, torch.ones(depth, 3, dtype=torch.int8), y, corrects=True)
        with _with():
            gradient.make_ready(factor, None, seed, stream)
        scaled = lines.float() if factor is None else lines.float() * factor
        q, scale = reference._quantize(scaled.contiguous(), seed, stream)
        ours = gradient.q[:, :depth].double(), gradient.scales[:, None], gradient.starts
        same = map(torch.equal, ours, (q.double(), scale, torch.zeros_like(ours[2])))
        behind = not gradient.q[:, depth:].any() and not gradient.turned[:, depth:].any()
        wrong += [] if all(same) and behind else [name]
    return wrong


def answer_wrong_gradients(
    m: int, n: int, k: int, signed: bool = True, zeros: int | None = None, seed: int | None = None, **way: Any
) -> list[int]:
    """How many numbers of each gradient are not those of 64-bit sums, rounded to float32 once. zeros: how far
    zero points are from 0."""
    from onepass.kernels.int8_backward import int8_mm_bwd

    rng = torch.Generator().manual_seed(m + n + k)
    g, x, w = _even(rng, m, n), _whole(rng, m, k, signed), _whole(rng, n, k)
    zero = None if zeros is None else torch.randint(-zeros, zeros + 1, (m, 1), generator=rng).int()
    with _with(**way):
        got = int8_mm_bwd(g, x, w, input_zero_point=zero, seed=seed)
    shifted = x.long() if zero is None else x.long() - zero
    want = (g.long() @ w.long()).float(), (g.long().t() @ shifted).float()
    assert all(a.shape == b.shape and a.dtype == b.dtype for a, b in zip(got, want, strict=True))
    return [int((a != b).sum()) for a, b in zip(got, want, strict=True)]


def answer_wrong_long_sums(depth: int, signed: bool, zero: int, **way: Any) -> list[int]:
    """Of sums of the largest numbers; the first are all -128 or 0, the second all 127 or 255."""
    from onepass.kernels.int8_backward import int8_mm_bwd

    x = torch.full((depth, 3), -128 if signed else 0, dtype=torch.int8 if signed else torch.uint8)
    x[:, 1] = 127 if signed else 255
    g, w = torch.full((depth, 2), 127.0), torch.full((depth, 3), -127, dtype=torch.int8)
    few, zeros = torch.ones(2, 3, dtype=torch.int8), torch.tensor(zero, dtype=torch.int32)
    with _with(**way):
        _, grad_weight = int8_mm_bwd(g, x, few, input_zero_point=zeros, input_grad=False)
        grad_input, _ = int8_mm_bwd(g.t(), few, w, weight_grad=False)
    want = (g.long().t() @ w.long()).float(), (g.long().t() @ (x.long() - zero)).float()
    return [int((a != b).sum()) for a, b in zip((grad_input, grad_weight), want, strict=True)]


def answer_started(**options: Any) -> list[str]:
    """Names of all kernels that the op starts."""
    from onepass.kernels.int8_backward import int8_mm_bwd

    g, x, w = torch.ones(5, 4), torch.ones(5, 7, dtype=torch.int8), torch.ones(4, 7, dtype=torch.int8)
    way = {name: options.pop(name) for name in ("descriptors",) if name in options}
    with _with(**way) as started:
        int8_mm_bwd(g, x, w, **options)
    return started


def answer_ways_that_differ(seed: int | None) -> int:
    """Of one call, cut in all ways."""
    from onepass.kernels.int8_backward import int8_mm_bwd

    rng = torch.Generator().manual_seed(0)
    g, x, w = torch.randn(70, 50, generator=rng), _whole(rng, 70, 90, False), _whole(rng, 50, 90)
    call = (g, x, w, torch.rand(70, 1), torch.rand(50), torch.randint(0, 255, (70, 1)).int())
    whole, wrong = int8_mm_bwd(*call, seed=seed), 0
    for tiles, descriptors in product((None, *TILES[1:]), (True, False)):
        with _with(tiles, descriptors):
            wrong += not all(map(torch.equal, int8_mm_bwd(*call, seed=seed), whole))
    return wrong


def _layouts(t: Tensor) -> dict[str, Tensor]:
    return {
        "turned": t.t().contiguous().t(),
        "misaligned": torch.cat([t.new_zeros(3), t.flatten()])[3:].view(t.shape),
        "every second": t.repeat_interleave(2, 1)[:, ::2],
        "every second row": t.repeat_interleave(2, 0)[::2],
    }


def answer_layouts(m: int, n: int, k: int, seed: int | None) -> list[str]:
    """Those in which memory is not read as it should be; one of them batched."""
    from onepass.kernels.int8_backward import int8_mm_bwd

    rng = torch.Generator().manual_seed(k)
    g, x, w, scale = torch.randn(m, n), _whole(rng, m, k), _whole(rng, n, k), torch.rand(n)
    want = int8_mm_bwd(g, x, w, None, scale, seed=seed)
    moved = [_layouts(t) for t in (g, x, w)]
    calls = {name: (*(each[name] for each in moved), None, scale[:, None]) for name in moved[0]}
    calls["batched"] = (g.view(2, m // 2, n), x.view(2, m // 2, k), w, None, scale)
    found = {name: int8_mm_bwd(*call, seed=seed) for name, call in calls.items()}
    return [
        name
        for name, got in found.items()
        if not all(torch.equal(a.reshape(b.shape), b) for a, b in zip(got, want, strict=True))
    ]


def answer_spoilt(bad: str, seed: int | None) -> bool:
    """Are a row and a column with inf or NaN no numbers, and all others numbers, and zeros zeros?"""
    from onepass.kernels.int8_backward import int8_mm_bwd

    rng = torch.Generator().manual_seed(0)
    g, x, w = torch.randn(21, 40, generator=rng), _whole(rng, 21, 18), _whole(rng, 40, 18)
    g[4, 7], g[9], g[:, 11] = float(bad), 0, 0
    grad_input, grad_weight = int8_mm_bwd(g, x, w, seed=seed)
    spoilt = grad_input[4].isnan().all() and grad_weight[7].isnan().all()
    others = grad_input.isnan().sum() == 18 and grad_weight.isnan().sum() == 18
    return bool(spoilt and others and not grad_input[9].any() and not grad_weight[11].any())


def answer_refused() -> str:
    from onepass.kernels.int8_backward import int8_mm_bwd

    packed = packing.int8_pack(torch.ones(3, 6, dtype=torch.int8))
    try:
        int8_mm_bwd(torch.ones(2, 3), torch.ones(2, 6, dtype=torch.int8), packed)
    except RuntimeError as error:
        return str(error)
    return "nothing was raised"


# --- in the tests' process --------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def ask() -> Iterator[Any]:
    need("triton")
    with asking(__file__) as ask:
        yield ask


COUNTERS = ((3, 0, 0), (2**32 - 1, 2**31 - 1, 1), (0x243F6A88, 0x05A308D3, 1))
KEYS = ((0, 0), (2**32 - 1, 2**31 - 1), (0xA4093822, 0x299F31D0), (5, 0))


@pytest.mark.parametrize("counter, key", [*product(COUNTERS, KEYS)])
def test_words_are_the_references(ask, counter: tuple, key: tuple):
    want = philox([torch.tensor([c]) for c in (*counter, 0)], key)
    assert ask("words", counter=counter, key=key) == [int(w) for w in want]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("m, n", ((1, 1), (1, 257), (130, 3), (67, 66), (5, 4099), (64, 48)))
def test_lines_are_the_references_bit_for_bit(ask, m: int, n: int, seed: int | None):
    """Lines that begin at blocks of four random numbers and that do not; shorter and longer than a tile."""
    assert ask("lines_that_differ", m=m, n=n, seed=seed, dtype="float32", factors="each") == []


@pytest.mark.parametrize("seed", (None, 3))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("factors", ("each", "one", ""))
def test_lines_of_every_dtype_and_by_all_factors(ask, dtype: str, factors: str, seed: int | None):
    assert ask("lines_that_differ", m=37, n=70, seed=seed, dtype=dtype, factors=factors) == []


def _shapes(count: int) -> list[tuple[int, int, int]]:
    drawn = random.Random(0)
    return [tuple(drawn.randint(1, 300) for _ in range(3)) for _ in range(count)]


SHAPES = [(1, 1, 1), (1, 300, 299), (4, 9, 2049), (5, 3, 512), (17, 257, 31), (129, 130, 128), *_shapes(6)]
EMPTY = [(0, 5, 7), (5, 0, 7), (5, 7, 0), (0, 0, 0), (0, 0, 3)]


@pytest.mark.parametrize("signed", (True, False))
@pytest.mark.parametrize("descriptors", (True, False))
@pytest.mark.parametrize("m, n, k", SHAPES + EMPTY)
def test_any_shape_is_exact_where_there_is_nothing_to_round(
    ask, m: int, n: int, k: int, signed: bool, descriptors: bool
):
    """By chance, too: a whole number stays what it is."""
    for zeros, seed in ((None, None), (255, 5)):
        call = {"signed": signed, "descriptors": descriptors, "zeros": zeros, "seed": seed}
        assert ask("wrong_gradients", m=m, n=n, k=k, **call) == [0, 0]


@pytest.mark.parametrize("tiles, descriptors", [("wide", True), *product(TILES[1:], (True, False))])
def test_all_tiles_are_exact(ask, tiles: str, descriptors: bool):
    for m, n, k in ((140, 33, 270), (33, 140, 290)):
        assert ask("wrong_gradients", m=m, n=n, k=k, tiles=tiles, descriptors=descriptors) == [0, 0]


@pytest.mark.parametrize("signed", (True, False))
def test_zero_points_far_away_are_exact(ask, signed: bool):
    for zeros in (600_000, 2**31 - 1):
        assert ask("wrong_gradients", m=50, n=33, k=20, signed=signed, zeros=zeros) == [0, 0]


LONG = [*product((65_536, 65_537, 140_000), ((True, 0), (False, 255), (False, 0)), (True, False))]
QUICK = ((65_536, (True, 0), False), (65_537, (False, 255), True))  # the interpreter takes its time


@pytest.mark.parametrize(
    "depth, kind, descriptors",
    [pytest.param(*row, marks=() if row in QUICK else pytest.mark.slow) for row in LONG],
)
def test_sums_of_extremes_are_exact_however_long(ask, depth: int, kind: tuple[bool, int], descriptors: bool):
    signed, zero = kind
    call = {"depth": depth, "signed": signed, "zero": zero, "descriptors": descriptors}
    assert ask("wrong_long_sums", **call) == [0, 0]


def test_launches(ask):
    """Two for each gradient that is wanted."""
    both = ["make_ready", "gradient_tiles_tma"]
    assert ask("started") == both * 2
    assert ask("started", seed=5, descriptors=False) == ["make_ready", "gradient_tiles"] * 2
    assert ask("started", weight_grad=False) == ask("started", input_grad=False) == both
    assert ask("started", weight_grad=False, input_grad=False) == []


@pytest.mark.parametrize("seed", (None, 9))
def test_same_bits_however_a_product_is_cut(ask, seed: int | None):
    assert ask("ways_that_differ", seed=seed) == 0


@pytest.mark.parametrize("seed", (None, 11))
@pytest.mark.parametrize("m, n, k", ((24, 26, 20), (32, 48, 64)))
def test_memory_of_any_layout(ask, m: int, n: int, k: int, seed: int | None):
    assert ask("layouts", m=m, n=n, k=k, seed=seed) == []


@pytest.mark.parametrize("seed", (None, 11))
@pytest.mark.parametrize("bad", ("nan", "inf", "-inf"))
def test_inf_and_nan_spoil_their_row_and_column_and_zeros_are_exact(ask, bad: str, seed: int | None):
    assert ask("spoilt", bad=bad, seed=seed)


def test_a_packed_weight_is_refused(ask):
    assert ask("refused") == f"int8_mm_bwd: {PACKED}"


if __name__ == "__main__":
    serve(globals())
