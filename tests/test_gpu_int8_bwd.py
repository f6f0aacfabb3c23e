"""The gradients of the 8-bit product on a GPU: what emulator, interpreter and machine code cannot show.
test_gpu.py compares the op's cases."""

import pytest
import torch
from gpu_helpers import DEVICE, HERE, VARIANTS, each_variant, kernels_of, marks, no_sync
from onepass import backends, use_backend
from onepass.reference.int8_backward import int8_mm_bwd as reference
from onepass.testing import Variant
from torch import Tensor

OPS = torch.ops.onepass
TRITON = HERE and backends.serves("triton", DEVICE)
pytestmark = marks
# With 132 multiprocessors, tiles of every size of csrc/cuda/int8.h.
SHAPES = ((1, 4096, 512), (60, 768, 3072), (513, 1030, 770), (4096, 512, 1024))
PACKED = "weight is packed, which only kernels of the CPU read: give the torch.int8 weight"


def _whole(m: int, k: int, signed: bool = True) -> Tensor:
    low, high, dtype = (-127, 128, torch.int8) if signed else (0, 256, torch.uint8)
    return torch.randint(low, high, (m, k), dtype=dtype, device=DEVICE)


def _even(m: int, n: int) -> Tensor:
    """Whole numbers with 127 in each row and column, whose scale is 1: nothing is rounded."""
    g, ahead = _whole(m, n).float(), torch.arange(max(m, n), device=DEVICE)
    g[ahead % m, ahead % n] = 127
    return g


def _assert_exact(variant: Variant, m: int, n: int, k: int, signed: bool) -> None:
    """float64 holds such sums; CUDA has no product of whole numbers."""
    g, x, w = _even(m, n), _whole(m, k, signed), _whole(n, k)
    zero = None if signed else torch.randint(0, 256, (m, 1), dtype=torch.int32, device=DEVICE)
    with variant.use():
        grad_input, grad_weight = OPS.int8_mm_bwd(g, x, w, input_zero_point=zero)
    shifted = x.double() if zero is None else x.double() - zero
    assert torch.equal(grad_input, (g.double() @ w.double()).float())
    assert torch.equal(grad_weight, (g.double().t() @ shifted).float())


@each_variant
@pytest.mark.parametrize("signed", (True, False))
@pytest.mark.parametrize("m, n, k", SHAPES)
def test_products_are_exact(variant: Variant, m: int, n: int, k: int, signed: bool):
    _assert_exact(variant, m, n, k, signed)


@pytest.mark.skipif(not TRITON, reason="Triton does not serve this device")
@pytest.mark.parametrize("tiles", ("square", "low", "flat", "wide"))
@pytest.mark.parametrize("signed", (True, False))
def test_all_tiles_of_triton_are_exact(tiles: str, signed: bool, monkeypatch: pytest.MonkeyPatch):
    from onepass.kernels import int8_plan

    if tiles == "wide" and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("sm_80 has no wide tiles")
    monkeypatch.setattr(int8_plan, "PINNED", tiles)
    for shape in SHAPES[2:3] if tiles == "wide" else SHAPES:
        _assert_exact(Variant("triton"), *shape, signed or tiles == "wide")


@each_variant
@pytest.mark.parametrize("signed", (True, False))
@pytest.mark.parametrize("outputs", (3, 9000))
@pytest.mark.parametrize("depth", (65_536, 65_537, 140_000))
def test_sums_of_extremes_are_exact_however_long(variant: Variant, depth: int, outputs: int, signed: bool):
    x = torch.full((depth, outputs), -128 if signed else 0, dtype=torch.int16, device=DEVICE)
    x = x.to(torch.int8 if signed else torch.uint8)
    x[:, 1] = 127 if signed else 255
    zero = torch.tensor(0 if signed else 255, dtype=torch.int32, device=DEVICE)
    g = torch.full((depth, 2), 127.0, device=DEVICE)
    with variant.use():
        _, got = OPS.int8_mm_bwd(g, x, _whole(2, outputs), input_zero_point=zero, input_grad=False)
    assert torch.equal(got, (g.double().t() @ (x.double() - zero)).float())


@each_variant
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("seed", (None, 0, -1, 2**33 + 5, -(2**63)))
@pytest.mark.parametrize("m, n", ((1, 257), (67, 66), (130, 4099), (512, 768)))
def test_every_number_is_rounded_as_the_reference_does(
    variant: Variant, m: int, n: int, seed: int | None, dtype: torch.dtype
):
    """Products with the identity, of whole numbers that floats hold; the reference's are made on the CPU."""
    g = torch.randn(m, n).to(dtype)
    rows = g, torch.zeros(m, n, dtype=torch.int8), torch.eye(n, dtype=torch.int8)
    columns = g, torch.eye(m, dtype=torch.int8), torch.zeros(n, m, dtype=torch.int8)
    options = {"seed": seed, "dtype": torch.float32}
    for call, which in ((rows, 0), (columns, 1)):
        with variant.use():
            got = OPS.int8_mm_bwd(*(t.to(DEVICE) for t in call), **options)[which]
        assert torch.equal(got.cpu(), reference(*call, **options)[which])


@each_variant
def test_no_wait_for_the_device_in_a_graph_and_same_bits_from_run_to_run(variant: Variant):
    g, x, w = torch.randn(300, 500, device=DEVICE), _whole(300, 640), _whole(500, 640)
    call = (g, x, w, torch.rand(300, 1, device=DEVICE), torch.rand(500, device=DEVICE))
    with variant.use():
        want = OPS.int8_mm_bwd(*call, seed=3)
        torch.cuda.synchronize()
        with no_sync():
            again = OPS.int8_mm_bwd(*call, seed=3)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = OPS.int8_mm_bwd(*call, seed=3)
        graph.replay()
    assert all(map(torch.equal, again, want)) and all(map(torch.equal, captured, want))


@pytest.mark.skipif(len(VARIANTS) < 2, reason="there is one backend alone")
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("seed", (None, 5))
def test_backends_have_the_same_bits(seed: int | None, dtype: torch.dtype):
    """Wherever memory begins, of rows that consist of 16-byte pieces and not."""
    for m, n, k in ((300, 512, 640), (301, 511, 637)):
        g, x, w = torch.randn(m, n, device=DEVICE).to(dtype), _whole(m, k, signed=False), _whole(n, k)
        scales = torch.rand(m, 1, device=DEVICE), torch.rand(n, device=DEVICE)
        zero = torch.randint(0, 256, (m, 1), dtype=torch.int32, device=DEVICE)
        for moved in (False, True):
            given = [
                torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape) if moved else t for t in (g, x, w)
            ]
            found = []
            for variant in VARIANTS:
                with variant.use():
                    found.append(OPS.int8_mm_bwd(*given, *scales, zero, seed=seed))
            assert all(torch.equal(a, b) for a, b in zip(*found[:2], strict=True))


@pytest.mark.skipif(DEVICE != "cuda" or not HERE, reason="about CUDA itself")
def test_a_gradient_is_two_kernels():
    if not kernels_of(lambda: torch.ones(3, device=DEVICE).add_(1)):
        pytest.skip("torch.profiler sees no kernels on this machine")
    if not backends.serves("cpp", DEVICE):
        pytest.skip("onepass._cuda is not built")
    call = torch.randn(70, 50, device=DEVICE), _whole(70, 40), _whole(50, 40)
    with use_backend("cpp"):
        OPS.int8_mm_bwd(*call)
        assert len(kernels_of(lambda: OPS.int8_mm_bwd(*call))) == 4
        assert len(kernels_of(lambda: OPS.int8_mm_bwd(*call, weight_grad=False))) == 2


@each_variant
@pytest.mark.skipif(DEVICE != "cuda", reason="about CUDA itself")
def test_what_is_refused(variant: Variant):
    packed = OPS.int8_pack(torch.ones(3, 6, dtype=torch.int8)).to(DEVICE)
    g, x = torch.ones(4, 3, device=DEVICE), _whole(4, 6)
    with variant.use():
        with pytest.raises(RuntimeError, match=PACKED):
            OPS.int8_mm_bwd(g, x, packed)
        with pytest.raises(RuntimeError, match="grad_output is on another device than input"):
            OPS.int8_mm_bwd(g.cpu(), x, _whole(3, 6))
        with pytest.raises(RuntimeError, match="weight is on another device than input"):
            OPS.int8_mm_bwd(g, x, _whole(3, 6).cpu())
