"""The gradients of the 8-bit product on a GPU: what the interpreter and machine code cannot show. test_gpu.py
compares the op's cases."""

import pytest
import torch
from gpu_helpers import DEVICE, HERE, marks
from onepass import backends, use_backend
from onepass.reference.int8_backward import int8_mm_bwd as reference
from torch import Tensor

OPS = torch.ops.onepass
SERVED = HERE and backends.serves("triton", DEVICE)
pytestmark = [*marks, pytest.mark.skipif(not SERVED, reason="Triton does not serve this device")]
TILES = (None, "square", "low", "flat")
SHAPES = ((1, 4096, 512), (60, 768, 3072), (513, 1030, 770), (4096, 512, 1024))


def _whole(m: int, k: int, signed: bool = True) -> Tensor:
    low, high, dtype = (-127, 128, torch.int8) if signed else (0, 256, torch.uint8)
    return torch.randint(low, high, (m, k), dtype=dtype, device=DEVICE)


def _even(m: int, n: int) -> Tensor:
    """Whole numbers with 127 in each row and column, whose scale is 1: nothing is rounded."""
    g, ahead = _whole(m, n).float(), torch.arange(max(m, n), device=DEVICE)
    g[ahead % m, ahead % n] = 127
    return g


@pytest.mark.parametrize("tiles", TILES)
@pytest.mark.parametrize("signed", (True, False))
@pytest.mark.parametrize("m, n, k", SHAPES)
def test_products_are_exact(
    tiles: str | None, m: int, n: int, k: int, signed: bool, monkeypatch: pytest.MonkeyPatch
):
    """float64 holds such sums; CUDA has no product of whole numbers."""
    from onepass.kernels import int8_plan

    monkeypatch.setattr(int8_plan, "PINNED", tiles)
    g, x, w = _even(m, n), _whole(m, k, signed), _whole(n, k)
    zero = None if signed else torch.randint(0, 256, (m, 1), dtype=torch.int32, device=DEVICE)
    with use_backend("triton"):
        grad_input, grad_weight = OPS.int8_mm_bwd(g, x, w, input_zero_point=zero)
    shifted = x.double() if zero is None else x.double() - zero
    assert torch.equal(grad_input, (g.double() @ w.double()).float())
    assert torch.equal(grad_weight, (g.double().t() @ shifted).float())


def test_wide_tiles_are_exact(monkeypatch: pytest.MonkeyPatch):
    if torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("sm_80 has no wide tiles")
    test_products_are_exact("wide", *SHAPES[2], True, monkeypatch)


@pytest.mark.parametrize("signed", (True, False))
@pytest.mark.parametrize("depth", (65_536, 65_537, 140_000))
def test_sums_of_extremes_are_exact_however_long(depth: int, signed: bool):
    x = torch.full((depth, 3), -128 if signed else 0, device=DEVICE).to(torch.int8 if signed else torch.uint8)
    x[:, 1] = 127 if signed else 255
    zero = torch.tensor(0 if signed else 255, dtype=torch.int32, device=DEVICE)
    g = torch.full((depth, 2), 127.0, device=DEVICE)
    with use_backend("triton"):
        _, got = OPS.int8_mm_bwd(g, x, _whole(2, 3), input_zero_point=zero, input_grad=False)
    assert torch.equal(got, (g.double().t() @ (x.double() - zero)).float())


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("seed", (None, 0, -1, 2**33 + 5, -(2**63)))
@pytest.mark.parametrize("m, n", ((1, 257), (67, 66), (130, 4099), (512, 768)))
def test_every_number_is_rounded_as_the_reference_does(m: int, n: int, seed: int | None, dtype: torch.dtype):
    """Products with the identity, of whole numbers that floats hold; the reference's are made on the CPU."""
    g = torch.randn(m, n).to(dtype)
    rows = g, torch.zeros(m, n, dtype=torch.int8), torch.eye(n, dtype=torch.int8)
    columns = g, torch.eye(m, dtype=torch.int8), torch.zeros(n, m, dtype=torch.int8)
    options = {"seed": seed, "dtype": torch.float32}
    for call, which in ((rows, 0), (columns, 1)):
        with use_backend("triton"):
            got = OPS.int8_mm_bwd(*(t.to(DEVICE) for t in call), **options)[which]
        assert torch.equal(got.cpu(), reference(*call, **options)[which])


def test_no_wait_for_the_device_in_a_graph_and_same_bits_from_run_to_run():
    g, x, w = torch.randn(300, 500, device=DEVICE), _whole(300, 640), _whole(500, 640)
    call = (g, x, w, torch.rand(300, 1, device=DEVICE), torch.rand(500, device=DEVICE))
    with use_backend("triton"):
        want = OPS.int8_mm_bwd(*call, seed=3)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            again = OPS.int8_mm_bwd(*call, seed=3)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = OPS.int8_mm_bwd(*call, seed=3)
        graph.replay()
    assert all(map(torch.equal, again, want)) and all(map(torch.equal, captured, want))
