"""What is about CUDA itself in batch normalization: launches, waits, graphs, streams, devices."""

import itertools

import pytest
import torch
from gpu_helpers import DEVICE, each_variant, kernels_of, marks, no_sync, on_a_side_stream
from gpu_norm_helpers import (
    each_dtype,
    each_layout,
    each_momentum,
    each_residual,
    images,
    near,
    norm,
    same_bits,
    state,
    step,
)
from onepass.testing import Variant
from torch import Tensor

pytestmark = [*marks, pytest.mark.skipif(DEVICE != "cuda", reason="about CUDA itself")]


# --- launches and waits -------------------------------------------------------------------------------------
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
