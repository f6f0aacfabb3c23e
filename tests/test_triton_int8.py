"""The 8-bit products in Triton, run by its interpreter: every kernel and every kind of tiles, by pointers and
by descriptors. The ops' cases stand in test_triton.py.

It cuts bfloat16 off where hardware rounds, so no bfloat16 here.
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
from onepass.reference import int8 as reference
from torch import Tensor
from torch.nn import functional

TILES = ("wide", "square", "low", "flat")
ACTS = (None, "relu", "gelu", "silu")
DTYPES = {"float32": torch.float32, "float16": torch.float16}
PACKED = "weight is packed, which only kernels of the CPU read: give the torch.int8 weight"


# --- in the interpreter's process -------------------------------------------------------------------------
@contextmanager
def _with(tiles: str | None = None, descriptors: bool = True) -> Iterator[list[str]]:
    """These tiles pinned, and loads by descriptors or pointers. Gives the names of kernels as they start."""
    from onepass.kernels import int8, int8_plan

    before = int8_plan.PINNED, int8_plan.launch, int8.machine_of
    machine, started = int8.machine_of(torch.device("cpu")), []

    def launch(kernel: Any, *arguments: Any, **constants: Any) -> None:
        started.append(kernel.fn.__name__)
        before[1](kernel, *arguments, **constants)

    int8_plan.PINNED, int8_plan.launch = tiles, launch
    int8.machine_of = lambda _: machine._replace(descriptors=descriptors)
    try:
        yield started
    finally:
        int8_plan.PINNED, int8_plan.launch, int8.machine_of = before


def _whole(rng: torch.Generator, m: int, k: int, signed: bool, extreme: bool = False) -> Tensor:
    low, high, dtype = (-127, 127, torch.int8) if signed else (0, 255, torch.uint8)
    if extreme:
        return torch.tensor([low, high], dtype=dtype)[torch.randint(2, (m, k), generator=rng)]
    return torch.randint(low, high + 1, (m, k), generator=rng, dtype=dtype)


def answer_wrong_sums(
    m: int, n: int, k: int, signed: bool = True, extreme: bool = False, zeros: bool = False, **way: Any
) -> int:
    """How many of the exact sums are not those of 64-bit numbers."""
    from onepass.kernels.int8 import int8_mm

    rng = torch.Generator().manual_seed(m + n + k)
    x, w = _whole(rng, m, k, signed, extreme), _whole(rng, n, k, True, extreme)
    zero = torch.randint(-300, 300, (m, 1), generator=rng, dtype=torch.int32) if zeros else None
    with _with(**way):
        got = int8_mm(x, w, input_zero_point=zero, dtype=torch.int32)
    want = ((x.long() - (0 if zero is None else zero)) @ w.long().T).int()
    return int((got != want).sum()) if got.dtype == want.dtype and got.shape == want.shape else -1


def _off(got: Tensor, want: Tensor, terms: Tensor | float) -> float:
    """The largest error, as a share of what is allowed: the sum of magnitudes in float32, a rounding of the
    output's dtype."""
    allowed = 1e-6 * terms + torch.finfo(got.dtype).eps * 0.5001 * want.abs() + torch.finfo(got.dtype).tiny
    return float(((got.double() - want).abs() / allowed).max())


def answer_finish(
    m: int, act: str | None, dtype: str, scales: list[str], zeros: bool, signed: bool, **way: Any
) -> float:
    """scales: shapes of input_scale, weight_scale and bias: "each", "one" or none."""
    from onepass.kernels.int8 import int8_mm

    rng, n, k = torch.Generator().manual_seed(m), 37, 70
    x, w = _whole(rng, m, k, signed), _whole(rng, n, k, True)
    shapes = [{"each": each, "one": ()}.get(s) for s, each in zip(scales, [(m, 1), (n,), (n,)], strict=True)]
    of_row, of_output, bias = (None if s is None else torch.rand(s, generator=rng) * 0.02 for s in shapes)
    zero = torch.randint(0, 99, (m, 1), generator=rng, dtype=torch.int32) if zeros else None
    call = (x, w, of_row, of_output, zero, bias)
    with _with(**way):
        got = int8_mm(*call, act=act, dtype=DTYPES[dtype])
    want, before = (reference.int8_mm(*call, act=a, dtype=torch.float64) for a in (act, None))
    assert got.dtype == DTYPES[dtype]
    return _off(got, want, before.abs() + (0 if bias is None else bias.abs()))


def answer_wrong_8_bits(
    m: int, n: int, act: str | None, zero_point: int | None, signed: bool = True, **way: Any
) -> int:
    """How many outputs that are quantized again are not what `quantize` makes of them in float32; rows that
    have no scale, or an infinite one, are among them."""
    from onepass.kernels.int8 import int8_mm
    from onepass.kernels.quant import quantize

    rng, k = torch.Generator().manual_seed(m + n), 70
    x, w, rows = _whole(rng, m, k, signed), _whole(rng, n, k, True), torch.rand(m, 1, generator=rng) * 0.02
    rows[-1:], rows[1:2] = float("nan"), float("inf")
    call = {"input": x, "weight": w, "input_scale": rows, "act": act, "bias": torch.randn(n, generator=rng)}
    call |= {"weight_scale": torch.rand(n, generator=rng) * 0.02}
    zero, scale = (
        None if zero_point is None else torch.tensor(zero_point, dtype=torch.int32),
        torch.tensor(0.1),
    )
    grid = {"output_scale": scale, "output_zero_point": zero}
    with _with(**way):
        got = int8_mm(**call, dtype=torch.int8 if zero is None else torch.uint8, **grid)
        real = int8_mm(**call)
    want = quantize(real, scale, zero, group_size=0, symmetric=zero is None)[0]
    return int((got != want).sum()) if got.dtype == want.dtype and got.shape == want.shape else -1


def answer_weight_only(
    m: int,
    n: int,
    k: int,
    dtype: str,
    act: str | None = None,
    bias: bool = True,
    scale: str = "each",
    **way: Any,
) -> float:
    from onepass.kernels.int8 import int8_weight_only_mm

    rng = torch.Generator().manual_seed(m + n + k)
    x, w = torch.randn(m, k, generator=rng).to(DTYPES[dtype]), _whole(rng, n, k, True)
    scales = torch.rand({"each": (n,), "column": (n, 1), "one": ()}[scale], generator=rng) * 0.02
    added = torch.randn(n, generator=rng) if bias else None
    with _with(**way):
        got = int8_weight_only_mm(x, w, scales, added, act=act)
    flat, add = scales.double().view(-1), torch.zeros(n) if added is None else added
    want = x.double() @ w.double().T * flat + add
    want = want if act is None else getattr(functional, act)(want)
    assert got.dtype == x.dtype
    return _off(got, want, x.double().abs() @ w.double().abs().T * flat + add.abs()) if got.numel() else 0.0


def answer_started(m: int, n: int, k: int, op: str, descriptors: bool = True) -> list[str]:
    """Names of all kernels that an op starts."""
    from onepass.kernels import int8, quant

    x, w, scale, quantize = (
        torch.ones(m, k),
        torch.ones(n, k, dtype=torch.int8),
        torch.ones(n),
        quant.quantize_groups,
    )

    class Counted:
        def __getitem__(self, grid):
            started.append("quantize_groups")
            return quantize[grid]

    with _with(descriptors=descriptors) as started:
        quant.quantize_groups = Counted()
        try:
            int8.int8_mm(x.to(torch.int8), w) if op == "int8_mm" else getattr(int8, op)(x, w, scale)
        finally:
            quant.quantize_groups = quantize
    return started


def answer_rows_that_differ(act: str | None) -> int:
    """Of one product, cut in all ways: rows alone, few, all, in each kind of tiles."""
    from onepass.kernels.int8 import int8_linear

    rng = torch.Generator().manual_seed(0)
    x, w = torch.randn(20, 100, generator=rng), _whole(rng, 50, 100, True)
    call = {"weight": w, "weight_scale": torch.rand(50, generator=rng), "bias": torch.rand(50), "act": act}
    whole, wrong = int8_linear(x, **call), 0
    for tiles, descriptors in product((None, *TILES[1:]), (True, False)):
        with _with(tiles, descriptors):
            for m in (1, 2, 3, 4, 16, 20):
                wrong += not torch.equal(int8_linear(x[:m], **call), whole[:m])
    return wrong


def _layouts(t: Tensor) -> dict[str, Tensor]:
    buffer = t.new_zeros(t.numel() + 3)
    buffer[3:] = t.flatten()
    return {
        "turned": t.t().contiguous().t(),
        "misaligned": buffer[3:].view(t.shape),
        "every second": t.repeat_interleave(2, 1)[:, ::2],
        "one row for all": t[:1].expand_as(t),
    }


def answer_layouts(k: int) -> list[str]:
    """Those in which memory is not read as it should be."""
    from onepass.kernels.int8 import int8_mm

    rng = torch.Generator().manual_seed(k)
    x, w = _whole(rng, 20, k, True), _whole(rng, 33, k, True)
    wrong = []
    for (name, a), b in zip(_layouts(x).items(), _layouts(w).values(), strict=True):
        for left, right in ((a, w), (x, b)):
            same = torch.equal(int8_mm(left, right, dtype=torch.int32), (left.long() @ right.long().T).int())
            wrong += [] if same else [name]
    return wrong


def answer_spoilt() -> list[bool]:
    """Is a row with inf or NaN not a number, and are the others numbers? With real and with whole sums."""
    from onepass.kernels.int8 import int8_linear, int8_weight_only_mm

    x, w, scale = torch.randn(20, 60), torch.ones(33, 60, dtype=torch.int8), torch.ones(33)
    x[1, 3], x[2, 5] = float("nan"), float("inf")
    bad = torch.zeros(20, dtype=torch.bool)
    bad[1:3] = True
    whole, real = (op(x, w, scale).isfinite() for op in (int8_linear, int8_weight_only_mm))
    return [torch.equal(found, ~bad[:, None].expand(20, 33)) for found in (whole, real)]


def answer_refused(op: str) -> str:
    from onepass.kernels import int8

    packed = reference.int8_pack(torch.ones(3, 6, dtype=torch.int8))
    calls = {"int8_mm": (torch.ones(2, 6, dtype=torch.int8), packed)}
    try:
        getattr(int8, op)(*calls.get(op, (torch.ones(2, 6), packed, torch.ones(3))))
    except RuntimeError as error:
        return str(error)
    return "nothing was raised"


def answer_layer(op: str) -> list:
    """The kernel behind a layer that C++ kernels had packed; its output next to theirs, and theirs again."""
    from onepass import use_backend
    from onepass.quant import Int8DynamicConfig, Int8Linear, Int8WeightOnlyConfig

    config = {"int8_linear": Int8DynamicConfig, "int8_weight_only_mm": Int8WeightOnlyConfig}[op]()
    layer, x = Int8Linear.from_float(torch.nn.Linear(60, 33), config), torch.randn(9, 60)
    with torch.no_grad():
        want = layer(x)
        with use_backend("triton"), _with() as started:
            got = layer(x)
        return [started, torch.allclose(got, want, atol=1e-5), torch.equal(layer(x), want)]


def answer_pinned_wrongly() -> str:
    try:
        answer_wrong_sums(9, 9, 9, tiles="huge")
    except RuntimeError as error:
        return str(error)
    return "nothing was raised"


def answer_tuned(times: dict[str, float]) -> list:
    """The tiles of three products of two kinds, where each name takes so long; and how often was timed."""
    import triton
    from onepass.kernels import int8, int8_plan

    clock, before, used = iter([*times.values()] * 3), triton.testing.do_bench, []

    def bench(run: Any) -> float:
        run()
        return next(clock)

    triton.testing.do_bench = bench
    int8_plan._fastest.clear()
    try:
        for m in (5, 7, 40):
            with _with("autotune"):
                launch = int8_plan.launch
                int8_plan.launch = lambda *a, launch=launch, **c: (used.append(c["ROWS"]), launch(*a, **c))
                x = torch.ones(m, 16, dtype=torch.int8)
                assert bool((int8.int8_mm(x, x[:3], dtype=torch.int32) == 16).all())
    finally:
        triton.testing.do_bench = before
    return used


# --- in the tests' process --------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def ask() -> Iterator[Any]:
    need("triton")
    with asking(__file__) as ask:
        yield ask


def _shapes(count: int) -> list[tuple[int, int, int]]:
    drawn = random.Random(0)
    return [tuple(drawn.randint(1, 300) for _ in range(3)) for _ in range(count)]


SHAPES = [(1, 1, 1), (1, 300, 299), (4, 9, 2049), (5, 3, 512), (17, 257, 31), (129, 130, 128), *_shapes(9)]
EMPTY = [(0, 5, 7), (5, 0, 7), (1, 3, 0), (20, 3, 0), (0, 0, 0)]


@pytest.mark.parametrize("signed", (True, False))
@pytest.mark.parametrize("descriptors", (True, False))
@pytest.mark.parametrize("m, n, k", SHAPES + EMPTY)
def test_any_shape_is_exact(ask, m: int, n: int, k: int, signed: bool, descriptors: bool):
    for zeros in (False, True):
        assert ask("wrong_sums", m=m, n=n, k=k, signed=signed, zeros=zeros, descriptors=descriptors) == 0


@pytest.mark.parametrize(
    "tiles, descriptors, signed", [("wide", True, True), *product(TILES[1:], (True, False), (True, False))]
)
def test_all_tiles_are_exact(ask, tiles: str, descriptors: bool, signed: bool):
    for m, n, k in ((1, 300, 130), (140, 33, 270), (270, 530, 33)):
        assert ask("wrong_sums", m=m, n=n, k=k, tiles=tiles, descriptors=descriptors, signed=signed) == 0


@pytest.mark.parametrize("signed", (True, False))
@pytest.mark.parametrize("m", (1, 3, 6))
@pytest.mark.parametrize("k", (16_384, pytest.param(65_536, marks=pytest.mark.slow)))
def test_extremes_are_exact(ask, m: int, k: int, signed: bool):
    assert ask("wrong_sums", m=m, n=5, k=k, extreme=True, signed=signed) == 0


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("m, dtype", ((3, "float32"), (9, "float16"), (70, "float32"), (70, "float16")))
def test_what_follows_the_sums(ask, m: int, act: str | None, dtype: str):
    for zeros, signed, descriptors in ((False, True, True), (True, False, True), (True, True, False)):
        call = {"m": m, "act": act, "dtype": dtype, "scales": ["each"] * 3}
        assert ask("finish", **call, zeros=zeros, signed=signed, descriptors=descriptors) <= 1


@pytest.mark.parametrize("zero_point", (None, 0, 99), ids=str)
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("m", (1, 3, 9, 70))
def test_8_bits_again_are_those_of_quantize(ask, m: int, act: str | None, zero_point: int | None):
    call = {"m": m, "act": act, "zero_point": zero_point}
    for n, signed, descriptors in ((37, True, True), (37, False, False), (48, True, False)):
        assert ask("wrong_8_bits", **call, n=n, signed=signed, descriptors=descriptors) == 0


@pytest.mark.parametrize("tiles", TILES)
def test_8_bits_again_in_all_tiles(ask, tiles: str):
    for act, zero_point in ((None, None), ("gelu", 99)):
        assert ask("wrong_8_bits", m=130, n=270, act=act, zero_point=zero_point, tiles=tiles) == 0


@pytest.mark.parametrize("scales", [*product(("each", "one", ""), repeat=3)], ids="-".join)
def test_vectors_of_one_value_and_none(ask, scales: tuple[str, ...]):
    for m in (2, 9):
        call = {"m": m, "act": None, "dtype": "float32", "zeros": True, "signed": True}
        assert ask("finish", **call, scales=list(scales)) <= 1


def test_a_wide_tile_is_finished_in_halves(ask):
    call = {"act": "gelu", "dtype": "float32", "scales": ["each"] * 3, "zeros": False, "signed": True}
    assert ask("finish", m=130, tiles="wide", **call) <= 1


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("m, dtype", ((1, "float16"), (3, "float32"), (9, "float16"), (70, "float32")))
def test_weight_only(ask, m: int, dtype: str, act: str | None):
    assert ask("weight_only", m=m, n=37, k=70, dtype=dtype, act=act) <= 1
    assert ask("weight_only", m=m, n=70, k=517, dtype=dtype, act=act, bias=False, scale="column") <= 1


@pytest.mark.parametrize("tiles, dtype", [*product(TILES, ("float16",)), *product(TILES[1:], ("float32",))])
def test_weight_only_in_all_tiles(ask, tiles: str, dtype: str):
    for m, n, k in ((1, 300, 130), (140, 270, 33)):
        assert ask("weight_only", m=m, n=n, k=k, dtype=dtype, tiles=tiles, scale="one") <= 1


@pytest.mark.parametrize("m, n, k", EMPTY)
def test_weight_only_of_nothing(ask, m: int, n: int, k: int):
    assert ask("weight_only", m=m, n=n, k=k, dtype="float16") <= 1


def test_launches(ask):
    """A product is one, and quantizing what it multiplies is one more."""
    assert ask("started", m=4, n=5, k=7, op="int8_mm") == ["product_rows"]
    assert ask("started", m=5, n=5, k=7, op="int8_mm") == ["product_tiles_tma"]
    assert ask("started", m=5, n=5, k=7, op="int8_mm", descriptors=False) == ["product_tiles"]
    assert ask("started", m=5, n=5, k=7, op="int8_linear") == ["quantize_groups", "product_tiles_tma"]
    assert ask("started", m=5, n=5, k=7, op="int8_weight_only_mm") == ["weight_only_tiles"]
    assert ask("started", m=0, n=5, k=7, op="int8_mm") == []


@pytest.mark.parametrize("act", (None, "silu"))
def test_a_row_has_the_same_bits_however_a_product_is_cut(ask, act: str | None):
    assert ask("rows_that_differ", act=act) == 0


@pytest.mark.parametrize("k", (48, 70))
def test_memory_of_any_layout(ask, k: int):
    assert ask("layouts", k=k) == []


def test_rows_with_inf_or_nan(ask):
    assert ask("spoilt") == [True, True]


@pytest.mark.parametrize("op", ("int8_mm", "int8_linear", "int8_weight_only_mm"))
def test_a_packed_weight_is_refused(ask, op: str):
    assert ask("refused", op=op) == f"{op}: {PACKED}"


@pytest.mark.parametrize(
    "op, kernel", (("int8_linear", "product_tiles_tma"), ("int8_weight_only_mm", "weight_only_tiles"))
)
def test_a_layer_gives_its_plain_weight(ask, op: str, kernel: str):
    assert ask("layer", op=op) == [[kernel], True, True]


def test_tiles_that_there_are_not_are_refused(ask):
    fitting = "wide, square, low, flat, low/2, flat/2 or in more shares"
    wanted = f"ONEPASS_INT8_TILES is 'huge', expected autotune or what fits here: {fitting}"
    assert ask("pinned_wrongly") == wanted


def test_autotune_keeps_the_fastest_of_a_kind(ask):
    """Four are tried for 5 rows; 7 are of the same kind; 40 are of another, and tried again."""
    rows = [128, 128, 64, 16]
    times = {"wide": 4.0, "square": 3.0, "low": 1.0, "flat": 2.0}
    assert ask("tuned", times=times) == [*rows, 64, 64, *rows, 64]


# --- the rule that chooses ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "m, n, wanted",
    (
        (5, 4096, "flat"),
        (16, 4096, "flat"),
        (17, 4096, "low"),
        (64, 11008, "low"),
        (512, 768, "low"),
        (512, 4096, "low"),
        (4096, 768, "square"),
        (4096, 4096, "wide"),
        (65, 40_000, "wide"),
    ),
)
def test_the_largest_tiles_that_give_every_multiprocessor_one(m: int, n: int, wanted: str):
    need("triton")
    from onepass.kernels import int8_plan
    from onepass.kernels.machine import Machine

    machine = Machine(132, 227 * 1024, True, True)
    assert int8_plan.largest(int8_plan.WHOLE, m, n, machine) == wanted


@pytest.mark.parametrize(
    "kilobytes, nvidia, wanted",
    ((227, True, TILES), (99, True, TILES[1:]), (48, False, TILES), (32, False, TILES[1:])),
)
def test_tiles_fit_the_shared_memory(kilobytes: int, nvidia: bool, wanted: tuple[str, ...]):
    need("triton")
    from onepass.kernels import int8_plan
    from onepass.kernels.machine import Machine

    machine = Machine(132, kilobytes * 1024, nvidia, nvidia)
    assert [name for name, tiles in int8_plan.WHOLE.items() if tiles.on(machine, 1)] == list(wanted)


if __name__ == "__main__":
    serve(globals())
