"""Batch normalization on a GPU (`pytest -m gpu`): modules beside torch's, large layers, bits, and what is
about CUDA itself: launches, waits, graphs, streams, devices. test_gpu.py compares ops with the reference."""

import itertools

import pytest
import torch
from gpu_helpers import DEVICE, each_variant, kernels_of, marks, no_sync
from onepass import nn as onn
from onepass import use_backend
from onepass.testing import Variant
from optim_helpers import randn
from test_gpu_cuda import on_a_side_stream
from torch import Tensor, nn
from torch.nn import functional

pytestmark = marks

SHAPE = (6, 24, 9, 7)
LAYERS = (
    (8, 64, 56, 56),  # a channel fits the shared memory of a few blocks
    (2, 3, 723, 725),  # it does not, and its rows do not begin where vectors do
    (8, 2048, 7, 7),
    (4, 5, 7, 11, 13),
    (2, 3, 4099),
    (1000, 33),
    (300, 40, 1, 1),
)
EDGE = 1e-3  # of a pre-activation, about zero: there a ReLU may be on for one and off for the other
each_layout = pytest.mark.parametrize("layout", ("nchw", "nhwc"))
each_dtype = pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
each_residual = pytest.mark.parametrize("residual", (False, True), ids=("alone", "residual"))
each_momentum = pytest.mark.parametrize("momentum", (0.1, None), ids=("momentum", "average"))
on_cuda = pytest.mark.skipif(DEVICE != "cuda", reason="about CUDA itself")
Images = tuple[Tensor, Tensor | None, Tensor]


class Plain(nn.Module):
    """What a ResNet does with torch's module, and ours stands for."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        y = self.norm(x)
        return functional.relu(y if z is None else y + z)


def images(
    seed: int,
    layout: str = "nchw",
    dtype: torch.dtype = torch.float32,
    residual: bool = True,
    shape: tuple[int, ...] = SHAPE,
) -> Images:
    """Input, residual and the output's gradient; channels differ, and so do batches."""
    offsets = torch.arange(shape[1]).view(1, -1, *[1] * (len(shape) - 2)) % 24 / 4
    x, z, dy = (randn(*shape, seed=10 * seed + i) for i in range(3))
    made = [(x * (1 + offsets) + offsets + seed / 8), z, dy]
    if layout == "nhwc":
        made = [t.movedim(1, -1).contiguous().movedim(-1, 1) for t in made]
    x, z, dy = (t.to(DEVICE, dtype) for t in made)
    return x, z if residual else None, dy


def norm(cls: type = onn.BatchNorm2d, channels: int = SHAPE[1], device: str = DEVICE, **options) -> nn.Module:
    """With parameters of no special value."""
    module = cls(channels, device=device, **options)
    with torch.no_grad():
        for seed, p in enumerate(module.parameters()):
            p.add_(randn(channels, seed=100 + seed).to(device), alpha=0.3)
    return module


def step(module: nn.Module, x: Tensor, z: Tensor | None, dy: Tensor) -> list[Tensor]:
    """Output, and gradients of input, residual and parameters, which come to lie in new memory."""
    leaves = [t.detach().requires_grad_() for t in (x, z) if t is not None]
    y = module(*leaves)
    return [y.detach(), *torch.autograd.grad(y, [*leaves, *module.parameters()], dy)]


def state(module: nn.Module) -> list[Tensor]:
    return [b.clone() for b in module.buffers()]


def same_bits(got: list[Tensor], want: list[Tensor]) -> bool:
    return len(got) == len(want) and all(map(torch.equal, got, want))


def off_the_edge(module: nn.Module, x: Tensor, z: Tensor | None, dy: Tensor) -> Images:
    """With no gradient where rounding decides whether a ReLU is on."""
    v = functional.batch_norm(x.double(), None, None, module.weight.double(), module.bias.double(), True)
    v = v if z is None else v + z.double()
    return x, z, dy * (v.detach().abs() > EDGE)


def near(got: Tensor, want: Tensor, tolerance: float) -> None:
    """As far off as the largest of all allows: what cancels is as wrong as what it was made of."""
    scale = max(1.0, float(want.detach().double().abs().max()))
    torch.testing.assert_close(
        got.detach().double(), want.detach().double(), rtol=0.0, atol=tolerance * scale
    )


# --- results ------------------------------------------------------------------------------------------------
@each_variant
@each_layout
@each_dtype
@each_residual
@each_momentum
def test_trains_as_torch_does(
    variant: Variant, layout: str, dtype: torch.dtype, residual: bool, momentum: float | None
):
    """Steps of SGD, and evaluation after them. torch computes in float32, from the same inputs."""
    mine = norm(act="relu", momentum=momentum)
    its = Plain(norm(nn.BatchNorm2d, momentum=momentum))
    tolerance = 2e-5 if dtype == torch.float32 else 1e-2
    with variant.use():
        for t in range(5):
            given = off_the_edge(mine, *images(t, layout, dtype, residual))
            found = step(mine, *given)
            right = step(its, *(None if i is None else i.float() for i in given))
            assert found[0].stride() == found[1].stride() == given[0].stride() and found[0].dtype == dtype
            pairs = [*zip(found, right, strict=True), *zip(state(mine), state(its), strict=True)]
            for got, want in pairs:
                near(got, want, tolerance)
            for module, grads in ((mine, found), (its, right)):
                with torch.no_grad():
                    for p, g in zip(module.parameters(), grads[-2:], strict=True):
                        p.sub_(g, alpha=1e-3)
        x, z, _ = images(7, layout, dtype, residual)
        y = mine.eval()(x, z)
    near(y, its.eval()(x.float(), None if z is None else z.float()), tolerance)


@each_variant
@each_layout
@each_residual
@pytest.mark.parametrize("shape", LAYERS, ids=lambda shape: "x".join(map(str, shape)))
def test_layers_of_all_sizes(variant: Variant, layout: str, residual: bool, shape: tuple[int, ...]):
    """Against the reference in float64, on the same device."""
    cls = {4: onn.BatchNorm2d, 5: onn.BatchNorm3d}.get(len(shape), onn.BatchNorm1d)
    mine, its = (norm(cls, shape[1], act="relu") for _ in range(2))
    given = off_the_edge(mine, *images(0, layout, residual=residual, shape=shape))
    with variant.use():
        found = step(mine, *given)
    with use_backend("reference"):
        right = step(its, *given)
    for got, want in zip([*found, *state(mine)], [*right, *state(its)], strict=True):
        near(got, want, 2e-5)


@each_variant
@each_layout
@each_dtype
@pytest.mark.parametrize("shape", (SHAPE, LAYERS[0]), ids=("small", "large"))
def test_same_bits_from_run_to_run(variant: Variant, layout: str, dtype: torch.dtype, shape: tuple[int, ...]):
    given = images(0, layout, dtype, shape=shape)

    def run() -> list[Tensor]:
        module = norm(channels=shape[1], act="relu")
        return [*step(module, *given), *state(module)]

    with variant.use():
        first = run()
        assert all(same_bits(run(), first) for _ in range(3))


# --- launches and waits -------------------------------------------------------------------------------------
@on_cuda
@each_variant
@each_layout
@each_residual
@each_momentum
def test_at_most_two_kernels_each_way(variant: Variant, layout: str, residual: bool, momentum: float | None):
    if not kernels_of(lambda: torch.ones(3, device=DEVICE).add_(1)):
        pytest.skip("torch.profiler sees no kernels on this machine")
    module, (x, z, dy) = norm(act="relu", momentum=momentum), images(0, layout, residual=residual)
    leaves = [t.requires_grad_() for t in (x, z) if t is not None]
    made: list[Tensor] = []
    with variant.use():
        step(module, x, z, dy)
        forward = kernels_of(lambda: made.append(module(*leaves)))
        wanted = [*leaves, *module.parameters()]
        backward = kernels_of(lambda: torch.autograd.grad(made[0], wanted, dy))
    assert 1 <= len(forward) <= 2 and 1 <= len(backward) <= 2, (forward, backward)


@on_cuda
@each_variant
@each_layout
@each_residual
@each_momentum
def test_no_host_sync(variant: Variant, layout: str, residual: bool, momentum: float | None):
    module, given = norm(act="relu", momentum=momentum), images(0, layout, residual=residual)
    with variant.use():
        for training in (True, False):
            module.train(training)
            step(module, *given)  # compiles, where that is left to do
            with no_sync():
                step(module, *given)


@on_cuda
@each_variant
@each_layout
def test_returns_before_the_device_is_done(variant: Variant, layout: str):
    """What the debug mode cannot see: a wait in C++."""
    module, given = norm(act="relu"), images(0, layout)
    with variant.use():
        step(module, *given)
        torch.cuda.synchronize()
        torch.cuda._sleep(1_000_000_000)  # about half a second
        done = torch.cuda.Event()
        done.record()
        step(module, *given)
        assert not done.query()
    torch.cuda.synchronize()


# --- graphs -------------------------------------------------------------------------------------------------
@on_cuda
@each_variant
@each_layout
@each_dtype
@each_momentum
def test_replays_are_eager_steps(variant: Variant, layout: str, dtype: torch.dtype, momentum: float | None):
    """Forward, backward and running statistics, while the images change in their memory."""
    captured, eager = (norm(act="relu", momentum=momentum) for _ in range(2))
    given, batches = images(0, layout, dtype), [images(t, layout, dtype) for t in range(1, 6)]

    def warm_up() -> None:
        for _ in range(3):
            step(captured, *given)
            step(eager, *given)

    with variant.use():
        on_a_side_stream(warm_up)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = step(captured, *given)
        for batch in batches:
            for memory, values in zip(given, batch, strict=True):
                memory.copy_(values)
            graph.replay()
            assert same_bits(results, step(eager, *batch))
            assert same_bits(state(captured), state(eager))


# --- streams and devices ------------------------------------------------------------------------------------
@on_cuda
@each_variant
@each_layout
def test_runs_on_the_current_stream(variant: Variant, layout: str):
    """The input is there only after a sleep on the side stream: a step on another misses it."""
    plain, aside = norm(act="relu"), norm(act="relu")
    x, z, dy = images(0, layout)
    late, found = torch.zeros_like(x), []

    def work() -> None:
        torch.cuda._sleep(100_000_000)
        late.copy_(x)
        found.extend([*step(aside, late, z, dy), *state(aside)])

    with variant.use():
        wanted = [*step(plain, x, z, dy), *state(plain)]
        on_a_side_stream(work)
    torch.cuda.synchronize()
    assert same_bits(found, wanted)


@on_cuda
@each_variant
@each_layout
def test_two_streams_at_once(variant: Variant, layout: str):
    """Each launch has sums and counters of its own: forty steps, twenty a stream, in turn."""
    modules, given = [norm(act="relu") for _ in range(2)], [images(t, layout) for t in range(2)]
    streams = [torch.cuda.Stream() for _ in range(2)]
    with variant.use():
        wanted = [step(norm(act="relu"), *batch) for batch in given]
        torch.cuda.synchronize()
        found: list[list[Tensor]] = []
        for _, side in itertools.product(range(20), range(2)):
            with torch.cuda.stream(streams[side]):
                found.append(step(modules[side], *given[side]))
        torch.cuda.synchronize()
    assert all(same_bits(results, wanted[i % 2]) for i, results in enumerate(found))


@on_cuda
@each_variant
def test_second_device_while_the_first_is_current(variant: Variant):
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU only")
    given = images(0)
    with torch.cuda.device(0), variant.use():
        wanted = step(norm(act="relu", device="cuda:0"), *given)
        found = step(norm(act="relu", device="cuda:1"), *(t.to("cuda:1") for t in given))
        assert torch.cuda.current_device() == 0
    assert {t.device.index for t in found} == {1}
    for got, want in zip(found, wanted, strict=True):
        near(got.cpu(), want.cpu(), 1e-6)
