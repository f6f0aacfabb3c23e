"""The 8-bit products of Triton on a GPU: what the interpreter and machine code cannot show. test_gpu.py
compares the ops' cases."""

from collections.abc import Callable

import pytest
import torch
from gpu_helpers import DEVICE, HERE, marks
from onepass import backends, use_backend
from torch import Tensor

OPS = torch.ops.onepass
SERVED = HERE and backends.serves("triton", DEVICE)
pytestmark = [*marks, pytest.mark.skipif(not SERVED, reason="Triton does not serve this device")]
TILES = ("wide", "square", "low", "flat")
SHAPES = (
    (1, 4096, 4096),
    (4, 770, 770),
    (16, 4096, 1024),
    (60, 768, 3072),
    (513, 1030, 2000),
    (4096, 4096, 512),
)


def _whole(m: int, k: int, signed: bool = True, extreme: bool = False) -> Tensor:
    low, high, dtype = (-127, 127, torch.int8) if signed else (0, 255, torch.uint8)
    if extreme:
        return torch.tensor([low, high], dtype=dtype)[torch.randint(2, (m, k))].to(DEVICE)
    return torch.randint(low, high + 1, (m, k), dtype=dtype).to(DEVICE)


def _exact(x: Tensor, w: Tensor) -> Tensor:
    """float64 holds such sums; CUDA has no product of whole numbers."""
    return (x.double() @ w.double().T).to(torch.int32)


@pytest.fixture(params=(None, *TILES))
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str | None:
    from onepass.kernels import int8_plan

    if request.param == "wide" and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("sm_80 has no wide tiles")
    monkeypatch.setattr(int8_plan, "PINNED", request.param)
    return request.param


@pytest.mark.parametrize("extreme", (True, False))
@pytest.mark.parametrize("m, n, k", SHAPES)
def test_sums_are_exact(tiles: str | None, m: int, n: int, k: int, extreme: bool):
    x, w = _whole(m, k, extreme=extreme), _whole(n, k, extreme=extreme)
    with use_backend("triton"):
        assert torch.equal(OPS.int8_mm(x, w, dtype=torch.int32), _exact(x, w))


@pytest.mark.parametrize("m, n, k", SHAPES)
def test_unsigned_sums_are_exact(m: int, n: int, k: int):
    x, w = _whole(m, k, signed=False), _whole(n, k)
    zero = torch.randint(0, 256, (m, 1), dtype=torch.int32, device=DEVICE)
    with use_backend("triton"):
        got = OPS.int8_mm(x, w, input_zero_point=zero, dtype=torch.int32)
    assert torch.equal(got, ((x.double() - zero) @ w.double().T).to(torch.int32))


@pytest.mark.parametrize("act", (None, "relu", "gelu", "silu"))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16), ids=str)
def test_same_bits_from_run_to_run_and_for_any_rows(act: str | None, dtype: torch.dtype):
    x, w = torch.randn(300, 1000).to(DEVICE, dtype), _whole(500, 1000)
    scale, bias = torch.rand(500, device=DEVICE) * 0.01, torch.randn(500, device=DEVICE)
    run: Callable[[int], Tensor] = lambda m: OPS.int8_linear(x[:m], w, scale, bias, act=act)  # noqa: E731
    with use_backend("triton"):
        whole = run(300)
        assert all(torch.equal(run(300), whole) for _ in range(3))
        for m in (1, 3, 16, 64):
            assert torch.equal(run(m), whole[:m])


def test_no_wait_for_the_device_and_in_a_graph():
    x, w, scale = torch.randn(64, 512, device=DEVICE), _whole(256, 512), torch.rand(256, device=DEVICE)
    with use_backend("triton"):
        want = OPS.int8_linear(x, w, scale)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            again = OPS.int8_linear(x, w, scale)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = OPS.int8_linear(x, w, scale)
        graph.replay()
    assert torch.equal(again, want) and torch.equal(captured, want)


@pytest.mark.parametrize("m", (1, 4, 16, 64, 1000))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16), ids=str)
def test_weight_only(m: int, dtype: torch.dtype):
    """Beyond float16 where the dtype is."""
    from onepass.kernels.int8 import int8_weight_only_mm

    x, w = torch.randn(m, 1000).to(DEVICE, dtype), _whole(300, 1000)
    x *= 1 if dtype == torch.float16 else 1e6
    scale = torch.rand(300, device=DEVICE) * 0.01
    want = x.double() @ w.double().T * scale
    terms = x.double().abs() @ w.double().abs().T * scale
    allowed = 2e-6 * terms + torch.finfo(dtype).eps * 0.5001 * want.abs()
    assert bool(((int8_weight_only_mm(x, w, scale).double() - want).abs() <= allowed).all())


def test_a_packed_weight_is_refused():
    packed = OPS.int8_pack(torch.ones(3, 6, dtype=torch.int8)).to(DEVICE)
    with use_backend("triton"), pytest.raises(RuntimeError, match="int8_mm: weight is packed, which only"):
        OPS.int8_mm(torch.ones(2, 6, dtype=torch.int8, device=DEVICE), packed)
