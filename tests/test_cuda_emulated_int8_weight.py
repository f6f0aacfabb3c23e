"""The CUDA kernels of real numbers by 8-bit weights, executed thread by thread on the CPU, with every way of
cutting a product up. The cases of the table are run by test_cuda_emulated_int8.py, in all its modes."""

from typing import Any

import emulated_int8
import pytest
import test_cuda_emulated_int8 as of_whole_numbers
import torch
from emulated_int8 import WEIGHT_ONLY, multiprocessors
from onepass import backends
from test_cuda_emulated_int8 import SHAPES, each_cut, misaligned, use, whole
from torch import Tensor
from torch.nn import functional

built, cuda = of_whole_numbers.built, of_whole_numbers.cuda
REAL = (torch.float32, torch.bfloat16, torch.float16)
each_dtype = pytest.mark.parametrize("dtype", REAL, ids=lambda dtype: str(dtype).removeprefix("torch."))


def product(
    module: Any, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None, off: int = 0
) -> Tensor:
    """off: numbers that the result begins behind a boundary."""
    m, n = x.shape[0], weight.shape[0]
    out = torch.full((m * n + off,), 77, dtype=x.dtype)[off:].view(m, n)
    call = {"input": x, "weight": weight, "weight_scale": scale, "bias": bias, "act": None}
    emulated_int8.RUN[WEIGHT_ONLY.name](module, call, {"output": out})
    return out


def small(*shape: int, seed: int = 0) -> Tensor:
    """Whole numbers whose sums of products have room in a float32, in any order."""
    return torch.randint(-8, 9, shape, generator=torch.Generator().manual_seed(seed))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- values -----------------------------------------------------------------------------------------------
@each_cut
@each_dtype
def test_unit_vectors_find_each_number_of_the_weight(cuda, cut: str, dtype: torch.dtype):
    """Row i of x is 1 at one k and 0 elsewhere: y[i] is that column of the weight, which a wrong place of any
    fragment would not give. All k of two slabs and a half, by all rows of a tile."""
    m, n = (8, 40) if cut == "rows" else (128, 130)
    module = use(cuda, cut, m, n)
    weight = whole(n, 160, low=-128)
    for first in range(0, 160, m):
        at = (torch.arange(m) * 37 + first) % 160
        x = torch.zeros(m, 160, dtype=dtype)
        x[torch.arange(m), at] = 1
        assert torch.equal(product(module, x, weight, torch.ones(n)), weight[:, at].T.to(dtype))


@each_cut
@each_dtype
@pytest.mark.parametrize("m, n, k", [*SHAPES, (1, 5, 16), (6, 70, 1040), (8, 33, 128)])
def test_sums_are_exact_where_floats_are(cuda, cut: str, dtype: torch.dtype, m: int, n: int, k: int):
    """Rounded once, to the dtype. -128 is no check's business on this device, and a weight like others."""
    count = multiprocessors(cuda[0], cut, m, n)
    if count is None:
        assert (cut == "rows") != (m <= 8) or (cut == "middle" and m <= 64 and n <= 64)
        return
    cuda[1].set_multiprocessors(count)
    x, weight = small(m, k), whole(n, k, seed=1, low=-128)
    want = ((x @ weight.long().T).float() * 2**-5 + 3).to(dtype)
    assert torch.equal(
        product(cuda[0], x.to(dtype), weight, torch.full((n,), 2**-5), torch.full((n,), 3.0)), want
    )


@each_cut
@each_dtype
@pytest.mark.parametrize("k", (96, 61))
def test_inf_and_nan_spread_as_in_a_product_of_floats(cuda, cut: str, dtype: torch.dtype, k: int):
    """Also to where a weight is 0, and not to outputs and k that fill a tile up."""
    m, n = (5, 30) if cut == "rows" else (70, 67)
    module = use(cuda, cut, m, n)
    x, weight = random(m, k).to(dtype), whole(n, k)
    weight[4], weight[5, 7] = 0, 0
    x[0, 7], x[m // 2, k - 1], x[m - 1, 3] = float("inf"), float("-inf"), float("nan")
    want = functional.linear(x.double(), weight.double()) * 0.01
    got = product(module, x, weight, torch.full((n,), 0.01)).double()
    assert torch.equal(got.isnan(), want.isnan()) and torch.equal(got.isinf(), want.isinf())
    assert torch.equal(got.sign()[want.isinf()], want.sign()[want.isinf()])
    assert got[m - 1].isnan().all() and not got[1].isnan().any()


@each_cut
def test_float32_is_multiplied_as_such(cuda, cut: str):
    """Errors are those of float32 sums, of which each takes a rounding a product at most."""
    m, n, k = (7, 33, 1_000) if cut == "rows" else (70, 67, 1_000)
    module = use(cuda, cut, m, n)
    x, weight, scale = random(m, k), whole(n, k), torch.rand(n)
    want = x.double() @ weight.double().T * scale
    size = x.double().abs() @ weight.double().abs().T * scale
    assert ((product(module, x, weight, scale) - want).abs() <= 1e-6 * size).all()


# --- the same bits ----------------------------------------------------------------------------------------
@each_dtype
@pytest.mark.parametrize("k", (512, 301))
def test_of_few_rows_none_depends_on_the_others(cuda, dtype: torch.dtype, k: int):
    x, weight, scale = random(8, k).to(dtype), whole(21, k), torch.rand(21)
    together = product(cuda[0], x, weight, scale)
    for m in range(1, 8):
        assert torch.equal(product(cuda[0], x[:m], weight, scale), together[:m]), m


@each_cut
@pytest.mark.parametrize("dtype", REAL[:2], ids=str)
@pytest.mark.parametrize("which", ("input", "weight", "weight_scale", "bias", "output"))
def test_wherever_memory_begins(cuda, cut: str, which: str, dtype: torch.dtype):
    """Of sizes that move in 16-byte pieces where a tensor begins as such a piece does. What does not may be
    added up in another order, which is nothing to whole numbers."""
    m, n, k = (8, 40, 64) if cut == "rows" else (70, 72, 64)
    module = use(cuda, cut, m, n)
    given = {
        "x": small(m, k).to(dtype),
        "weight": whole(n, k, seed=1),
        "scale": torch.full((n,), 2**-5),
        "bias": random(n, seed=2),
    }
    want = product(module, **given)
    name = {"input": "x", "weight_scale": "scale"}.get(which, which)
    if name in given:
        given[name] = misaligned(given[name])
    assert torch.equal(product(module, **given, off=int(which == "output")), want)


# --- memory -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("m", (1, 8, 9, 64))
@each_dtype
def test_it_is_one_launch(cuda, m: int, dtype: torch.dtype):
    x, weight, scale = small(m, 70).to(dtype), whole(37, 70), torch.rand(37)
    want = backends.target(WEIGHT_ONLY.reference)(x, weight, scale)
    cuda[1].reset_counts()
    got = product(cuda[0], x, weight, scale)
    assert cuda[1].launches == 1 and cuda[1].copies == 0
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("m", (1, 2, 4, 8))
@each_dtype
def test_few_rows_read_weights_once(cuda, m: int, dtype: torch.dtype):
    """And x once for every four outputs."""
    x, weight = random(m, 512).to(dtype), whole(40, 512)
    cuda[1].reset_counts()
    product(cuda[0], x, weight, torch.rand(40))
    assert cuda[1].loaded_bytes == weight.numel() + 40 // 4 * x.numel() * x.itemsize


@pytest.mark.parametrize("m, n, k", ((0, 5, 7), (5, 0, 7), (9, 5, 0), (3, 5, 0)))
def test_empty(cuda, m: int, n: int, k: int):
    """Without products there is the bias; without outputs no launch."""
    cuda[1].reset_counts()
    y = product(cuda[0], torch.ones(m, k), whole(n, k), torch.ones(n), bias := random(n))
    assert torch.equal(y, bias.expand(m, n)) and cuda[1].launches == (1 if m * n else 0)
