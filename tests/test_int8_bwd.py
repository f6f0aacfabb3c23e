"""Gradients of the 8-bit product: exact where rounding has nothing to do, near by where it has; unbiased and
the same bits everywhere where it is by chance; and a network that is trained by them."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onepass.quant import int8_matmul
from onepass.reference.philox import philox
from onepass.testing import variants
from onepass.testing.threads import threads
from torch import Tensor, nn
from torch.nn import functional

OPS = torch.ops.onepass
REAL = (torch.float32, torch.bfloat16, torch.float16)
VARIANTS = [v for v in variants("cpu") if v.backend != "triton"]
each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)
each_dtype = pytest.mark.parametrize("dtype", REAL, ids=lambda dtype: str(dtype).removeprefix("torch."))


def _rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _whole(*shape: int, low: int = -127, high: int = 127, seed: int = 0) -> Tensor:
    dtype = torch.uint8 if high > 127 else torch.int8
    return torch.randint(low, high + 1, shape, generator=_rng(seed), dtype=dtype)


def _even(m: int, n: int, seed: int) -> Tensor:
    """Whole numbers with 127 in each row and column: their scale is 1 whichever way it is found."""
    g = _whole(m, n, seed=seed).float()
    if m and n:
        ahead = torch.arange(max(m, n))
        g[ahead % m, ahead % n] = 127
    return g


# --- exact ------------------------------------------------------------------------------------------------
@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 300),
    st.integers(0, 300),
    st.integers(0, 300),
    st.booleans(),
    st.booleans(),
    st.sampled_from((None, 5)),
    st.sampled_from(VARIANTS),
    st.integers(0, 99),
)
def test_any_shape_is_exact_where_there_is_nothing_to_round(
    m: int, n: int, k: int, signed: bool, packed: bool, chance: int | None, variant, seed: int
):
    """By chance, too: a whole number stays what it is. 300 products of 127 * 255 have room in a float32."""
    x = _whole(m, k, seed=seed) if signed else _whole(m, k, low=0, high=255, seed=seed)
    g, weight = _even(m, n, seed), _whole(n, k, seed=seed + 1)
    zero = None if signed else _whole(m, 1, low=0, high=255, seed=seed).int()
    with variant.use():
        w = OPS.int8_pack(weight) if packed else weight
        grad_input, grad_weight = OPS.int8_mm_bwd(g, x, w, input_zero_point=zero, seed=chance)
    shifted = x.long() if zero is None else x.long() - zero
    assert torch.equal(grad_input, (g.long() @ weight.long()).float())
    assert torch.equal(grad_weight, (g.long().T @ shifted).float())


@each_variant
@pytest.mark.parametrize("depth", (65_536, 65_537, 140_000))
@pytest.mark.parametrize("signed", (True, False))
def test_sums_of_extremes_are_right_however_long(variant, depth: int, signed: bool):
    """The largest that an int32 has to hold, and beyond it pieces, whose sums float32 rounds."""
    x = torch.full((depth, 3), -128 if signed else 0, dtype=torch.int8 if signed else torch.uint8)
    x[:, 1] = 127 if signed else 255
    zero = torch.tensor(0 if signed else 255, dtype=torch.int32)
    g, w = torch.full((depth, 2), 127.0), torch.full((depth, 3), -127, dtype=torch.int8)
    with variant.use():
        _, grad_weight = OPS.int8_mm_bwd(g, x, _whole(2, 3), input_zero_point=zero, input_grad=False)
        grad_input, _ = OPS.int8_mm_bwd(g.T, _whole(2, 3), w, weight_grad=False)
    torch.testing.assert_close(grad_weight.double(), g.T.double() @ (x.double() - zero), rtol=2e-7, atol=0)
    torch.testing.assert_close(grad_input.double(), g.T.double() @ w.double(), rtol=2e-7, atol=0)


@each_variant
def test_an_input_of_minus_128_and_zero_points_far_away_are_exact(variant):
    x = torch.full((50, 20), -128, dtype=torch.int8)
    g, zero = _even(50, 33, 0), torch.full((50, 1), 600_000, dtype=torch.int32)
    zero[::2] = -600_000
    with variant.use():
        _, plain = OPS.int8_mm_bwd(g, x, _whole(33, 20))
        _, far = OPS.int8_mm_bwd(g, x, _whole(33, 20), input_zero_point=zero)
    assert torch.equal(plain, (g.T @ x.float()))
    want = g.T.double() @ (x.double() - zero)
    assert ((far - want).abs() <= 2**-24 * 20 * (g.abs().T.double() @ (x.double() - zero).abs())).all()


# --- rounded to nearest -----------------------------------------------------------------------------------
def _half_step(scaled: Tensor, dim: int) -> Tensor:
    """How far an element can be from what is multiplied; and a little for floats."""
    return scaled.abs().amax(dim, keepdim=True) / 254 * (1 + 1e-5)


@each_variant
@each_dtype
@pytest.mark.parametrize("m, n, k", list(product((1, 7, 100), (1, 19, 130), (1, 65))))
def test_error_is_half_a_step_an_element(variant, dtype: torch.dtype, m: int, n: int, k: int):
    g = torch.randn(m, n, generator=_rng(0)).to(dtype)
    x, w, sx, sw = _whole(m, k), _whole(n, k, seed=1), torch.rand(m, 1) + 0.1, torch.rand(n) + 0.1
    with variant.use():
        grad_input, grad_weight = OPS.int8_mm_bwd(g, x, w, sx, sw, dtype=torch.float32)
    by_row, by_column = g.double() * sw, g.double() * sx
    for got, left, right, dim in (
        (grad_input, by_row, w.double(), 1),
        (grad_weight, by_column.T, x.double(), 1),
    ):
        allowed = _half_step(left, dim).expand_as(left) @ right.abs()
        assert ((got - left @ right).abs() <= allowed).all()


@each_variant
@each_dtype
def test_gradients_are_near_autograds(variant, dtype: torch.dtype):
    x, w = torch.randn(64, 96, generator=_rng(0)), torch.randn(48, 96, generator=_rng(1))
    x, w = (t.to(dtype).requires_grad_() for t in (x, w))
    g = torch.randn(64, 48, generator=_rng(2)).to(dtype)
    want = torch.autograd.grad(functional.linear(x, w), (x, w), g)
    with variant.use():
        got = torch.autograd.grad(int8_matmul(x, w), (x, w), g)
    for ours, theirs in zip(got, want, strict=True):
        assert ours.dtype == dtype and (ours - theirs).float().norm() < 0.02 * theirs.float().norm()


@each_variant
@each_dtype
def test_wherever_memory_lies(variant, dtype: torch.dtype):
    g, x, w = torch.randn(24, 26).to(dtype), _whole(24, 20), _whole(26, 20, seed=1)
    sx, sw = torch.rand(24, 1), torch.rand(26)

    def turned(t: Tensor) -> Tensor:
        return t.t().contiguous().t()

    def misaligned(t: Tensor) -> Tensor:
        return torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape)

    with variant.use():
        want = OPS.int8_mm_bwd(g, x, w, sx, sw, seed=3)
        for moved in (turned, misaligned):
            got = OPS.int8_mm_bwd(moved(g), moved(x), moved(w), moved(sx), sw[:, None], seed=3)
            assert all(map(torch.equal, got, want))
        batched = OPS.int8_mm_bwd(g.view(2, 12, 26), x.view(2, 12, 20), w, sx.view(2, 12, 1), sw, seed=3)
        assert torch.equal(batched[0].view(24, 20), want[0]) and torch.equal(batched[1], want[1])
        row = OPS.int8_mm_bwd(g[0], x[0], w, sx[0], sw)
        assert row[0].shape == (20,) and row[1].shape == (26, 20)


@each_variant
@pytest.mark.parametrize("seed", (None, 11))
@pytest.mark.parametrize("bad", (float("nan"), float("inf"), float("-inf")))
def test_inf_and_nan_spoil_their_row_and_column_and_zeros_are_exact(variant, seed: int | None, bad: float):
    g, x, w = torch.randn(21, 40), _whole(21, 18), _whole(40, 18, seed=1)
    g[4, 7], g[9], g[:, 11] = bad, 0, 0
    with variant.use():
        grad_input, grad_weight = OPS.int8_mm_bwd(g, x, w, seed=seed)
    assert grad_input[4].isnan().all() and grad_weight[7].isnan().all()
    assert grad_input.isnan().sum() == 18 and grad_weight.isnan().sum() == 18
    assert not grad_input[9].any() and not grad_weight[11].any()


@each_variant
def test_products_with_scales_overflow_to_nan(variant):
    with variant.use():
        got = OPS.int8_mm_bwd(
            torch.full((2, 3), 1e36), _whole(2, 4), _whole(3, 4), None, torch.full((3,), 1e3)
        )
    assert got[0].isnan().all() and got[1].isfinite().all()


@each_variant
def test_what_is_not_wanted_is_empty(variant):
    g, x, w = torch.randn(6, 5), _whole(6, 4), _whole(5, 4)
    with variant.use():
        both = OPS.int8_mm_bwd(g, x, w)
        of_input, of_weight = (
            OPS.int8_mm_bwd(g, x, w, weight_grad=False),
            OPS.int8_mm_bwd(g, x, w, input_grad=False),
        )
    assert torch.equal(of_input[0], both[0]) and of_input[1].shape == (0,)
    assert torch.equal(of_weight[1], both[1]) and of_weight[0].shape == (0,)


# --- rounded by chance ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "counter, key, words",
    (
        ((0,) * 4, (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ),
)
def test_philox_has_its_authors_known_answers(counter: tuple, key: tuple, words: tuple):
    """Random123's kat_vectors. That C++ has the same words as the reference is the next test's."""
    assert tuple(int(w) for w in philox([torch.tensor([c]) for c in counter], key)) == words


def _rounded(g: Tensor, seed: int | None) -> tuple[Tensor, Tensor]:
    """g as rows and as columns round it: products with the identity, of whole numbers that floats hold."""
    m, n = g.shape
    eye = torch.eye(n, dtype=torch.int8)
    by_row, _ = OPS.int8_mm_bwd(g, torch.zeros(m, n, dtype=torch.int8), eye, seed=seed, weight_grad=False)
    eye = torch.eye(m, dtype=torch.int8)
    _, by_column = OPS.int8_mm_bwd(g, eye, torch.zeros(n, m, dtype=torch.int8), seed=seed, input_grad=False)
    return by_row, by_column.T


@each_variant
@pytest.mark.parametrize("m, n", ((1, 1), (1, 257), (130, 3), (67, 66), (5, 1_003)))
@pytest.mark.parametrize("seed", (0, -1, 2**33 + 5, -(2**63)))
def test_every_backend_draws_the_same(variant, m: int, n: int, seed: int):
    g = torch.randn(m, n, generator=_rng(m))
    want = _rounded(g, seed)
    with variant.use():
        got = _rounded(g, seed)
    assert all(map(torch.equal, got, want))
    assert m * n == 1 or not all(map(torch.equal, got, _rounded(g, seed + 1)))


@each_variant
@pytest.mark.parametrize("seed", (None, 9))
@pytest.mark.parametrize("m, n, k", ((300, 203, 130), (1, 700, 300), (1_100, 17, 90)))
def test_same_bits_for_any_number_of_threads(variant, seed: int | None, m: int, n: int, k: int):
    g, w, sx, sw = torch.randn(m, n), _whole(n, k), torch.rand(m, 1), torch.rand(n)
    x, zero = _whole(m, k, low=0, high=255), _whole(m, 1, low=0, high=255).int()
    with variant.use():
        outcomes = []
        for count in (1, 2, 3, 8):
            with threads(count):
                outcomes.append(OPS.int8_mm_bwd(g, x, w, sx, sw, zero, seed=seed))
    assert all(map(torch.equal, outcomes[0] * 3, (t for outcome in outcomes[1:] for t in outcome)))


def test_the_mean_of_many_seeds_is_what_was_rounded():
    """2000 draws of an element, up with the chance p: their sum is within 4 deviations of 2000 p but for one
    in 16,000; of 2 * 600 elements that are so, none is expected and two are let pass. That to nearest it is
    not so shows that the bound is one."""
    g, count = torch.randn(20, 30, generator=_rng(3)), 2_000
    sums = [torch.zeros(20, 30, dtype=torch.float64) for _ in range(2)]
    for seed in range(count):
        for total, one in zip(sums, _rounded(g, seed), strict=True):
            total += one
    beyond_by_chance = beyond_to_nearest = 0
    for dim, total, nearest in zip((1, 0), sums, _rounded(g, None), strict=True):
        scale = g.double().abs().amax(dim, keepdim=True) / 127
        p = (g / scale) - (g / scale).floor()
        allowed = 4 * scale * (p * (1 - p) / count).sqrt() + 1e-6 * g.abs()
        beyond_by_chance += int(((total / count - g).abs() > allowed).sum())
        beyond_to_nearest += int(((nearest - g).abs() > allowed).sum())
    assert beyond_by_chance <= 2 and beyond_to_nearest > 800


@each_variant
def test_rows_and_columns_are_drawn_apart(variant):
    """The two gradients of a square have scales alike but other numbers."""
    g = torch.rand(64, 64, generator=_rng(1)) * 0.9
    g.fill_diagonal_(1.0)
    with variant.use():
        by_row, by_column = _rounded(g, 4)
    differ = (by_row != by_column).double().mean()
    up = (g * 127) % 1
    assert abs(differ - (2 * up * (1 - up)).mean()) < 0.05


# --- training ---------------------------------------------------------------------------------------------
def _trained(linear, steps: int = 150) -> float:
    """The loss of a network of two layers that learns what another of its kind computes."""
    rng = _rng(0)
    x = torch.randn(512, 32, generator=rng)
    first, second = (nn.Parameter(torch.randn(*s, generator=rng) * s[1] ** -0.5) for s in ((64, 32), (8, 64)))
    teacher = torch.randn(16, 32, generator=rng) / 32**0.5, torch.randn(8, 16, generator=rng) / 4
    want = functional.linear(functional.linear(x, teacher[0]).relu(), teacher[1])
    want = want + 0.3 * torch.randn(512, 8, generator=rng)
    optimizer = torch.optim.Adam([first, second], lr=5e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = functional.mse_loss(linear(linear(x, first).relu(), second), want)
        loss.backward()
        optimizer.step()
    return loss.item()


@each_variant
@pytest.mark.parametrize("stochastic", (False, True))
def test_a_network_learns_as_in_float32(variant, stochastic: bool):
    torch.manual_seed(0)
    with variant.use():
        ours = _trained(lambda x, w: int8_matmul(x, w, stochastic=stochastic))
    theirs = _trained(functional.linear)
    print(f"loss {ours:.5f}, float32 {theirs:.5f}")
    assert theirs < 0.2 and abs(ours - theirs) <= 0.05 * theirs


@each_variant
def test_matmul_has_the_dtypes_and_shapes_of_a_linear_layer(variant):
    x, w = (
        torch.randn(2, 3, 10, dtype=torch.bfloat16, requires_grad=True),
        torch.randn(7, 10, requires_grad=True),
    )
    with variant.use():
        y = int8_matmul(x, w, stochastic=True)
        y.sum().backward()
    assert (y.shape, y.dtype) == ((2, 3, 7), torch.bfloat16)
    assert x.grad is not None and w.grad is not None
    assert (x.grad.dtype, w.grad.dtype) == (x.dtype, w.dtype) and w.grad.shape == w.shape
    frozen = torch.randn(7, 10)
    (only,) = torch.autograd.grad(int8_matmul(x, frozen).sum(), x)
    assert only.shape == x.shape


@pytest.mark.parametrize("stochastic", (False, True))
def test_matmul_compiles_to_the_same_bits(stochastic: bool):
    """In one graph: the seed, drawn anew by each backward, is a number that the graph does not know."""
    x, w = (torch.randn(*s, generator=_rng(4), requires_grad=True) for s in ((50, 80), (30, 80)))

    def loss(x: Tensor, w: Tensor) -> Tensor:
        return int8_matmul(x, w, stochastic=stochastic).square().sum()

    outcomes = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(3)
        outcomes += [torch.autograd.grad(function(x, w), (x, w)) for _ in range(2)]
    assert all(map(torch.equal, outcomes[0] + outcomes[1], outcomes[2] + outcomes[3]))
    assert torch.equal(outcomes[0][1], outcomes[1][1]) != stochastic
