"""The 8-bit products of Triton on a GPU: what the interpreter and machine code cannot show. test_gpu.py
compares the ops' cases."""

from collections.abc import Callable

import pytest
import torch
from gpu_helpers import DEVICE, HERE, kernels_of, marks, no_sync
from onepass import backends, use_backend
from torch import Tensor

OPS = torch.ops.onepass
SERVED = HERE and backends.serves("triton", DEVICE)
pytestmark = [*marks, pytest.mark.skipif(not SERVED, reason="Triton does not serve this device")]
TILES = ("wide", "square", "low", "flat")
SHARES = ("low/5", "flat/7")
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


@pytest.fixture(params=(None, *TILES, *SHARES))
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
def test_unsigned_sums_are_exact(tiles: str | None, m: int, n: int, k: int):
    if tiles == "wide":
        pytest.skip("beside sums of weights there are no wide tiles")
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


# --- in shares ----------------------------------------------------------------------------------------------
def _deep(m: int, dtype: torch.dtype) -> Callable[[], Tensor]:
    """A product of few tiles: a linear layer in 8 bits, or of real x where there is a dtype of it."""
    x, w = torch.randn(m, 8192, device=DEVICE), _whole(96, 8192)
    scale, bias = torch.rand(96, device=DEVICE) * 0.01, torch.randn(96, device=DEVICE)
    if dtype == torch.int8:
        return lambda: OPS.int8_linear(x, w, scale, bias, act="gelu")
    real = x.to(dtype)
    return lambda: OPS.int8_weight_only_mm(real, w, scale, bias, act="gelu")


each_kind = pytest.mark.parametrize("dtype", (torch.int8, torch.bfloat16, torch.float32), ids=str)


@each_kind
@pytest.mark.parametrize("m", (5, 16, 60))
def test_shares_have_the_same_bits_from_run_to_run(dtype: torch.dtype, m: int):
    """Whichever program is last; and every counter is left at zero."""
    from onepass.kernels import tickets

    run = _deep(m, dtype)
    with use_backend("triton"):
        assert any("shares" in name for name in kernels_of(run))
        first = run()
        assert all(torch.equal(run(), first) for _ in range(200))
    assert not any(bool(counters.any()) for counters in tickets.kept.values())


@each_kind
def test_shares_on_two_streams_and_in_graphs(dtype: torch.dtype):
    """Each has counters of its own; nothing waits for the device."""
    runs = [_deep(16, dtype) for _ in range(2)]
    streams, graphs, captured = [torch.cuda.Stream() for _ in runs], [], []
    with use_backend("triton"):
        wanted = [run() for run in runs]
        torch.cuda.synchronize()
        with no_sync():
            found: list[list[Tensor]] = [[], []]
            for _ in range(50):
                for run, stream, results in zip(runs, streams, found, strict=True):
                    with torch.cuda.stream(stream):
                        results.append(run())
        for run in runs:
            graphs.append(torch.cuda.CUDAGraph())
            with torch.cuda.graph(graphs[-1]):
                captured.append(run())
        torch.cuda.synchronize()
        for _ in range(20):
            for graph, stream in zip(graphs, streams, strict=True):
                with torch.cuda.stream(stream):
                    graph.replay()
        torch.cuda.synchronize()
    for want, results, last in zip(wanted, found, captured, strict=True):
        assert torch.equal(last, want) and all(torch.equal(got, want) for got in results)


# --- weights alone ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("m", (1, 4, 16, 64, 1000))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16), ids=str)
def test_weight_only(tiles: str | None, m: int, dtype: torch.dtype):
    """Beyond float16 where the dtype is."""
    from onepass.kernels.int8 import int8_weight_only_mm

    if tiles == "wide" and dtype == torch.float32:
        pytest.skip("float32 has no wide tiles")
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
