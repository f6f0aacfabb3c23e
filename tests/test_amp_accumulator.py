"""onepass.amp.GradAccumulator: float32 sums of gradients, handed to an optimizer without a copy."""

import math

import onepass
import pytest
import torch
from amp_helpers import OURS, TORCH
from hypothesis import given, settings
from hypothesis import strategies as st
from onepass import use_backend
from onepass.amp import GradAccumulator
from onepass.testing import layouts
from optim_helpers import each_backend, frozen, memory_given_back, needs_cpp, params_of, randn
from phase_helpers import KINDS, each_dtype, each_kind
from test_host_path import WAITS, Watch

HALVES = (torch.bfloat16, torch.float16)
each_half = pytest.mark.parametrize("dtype", HALVES, ids=str)


def parameters(dtype=torch.bfloat16, shapes=((4, 3), (7,), ())):
    return [torch.nn.Parameter(randn(*s, seed=i).to(dtype)) for i, s in enumerate(shapes)]


def give(params, t, size=1.0):
    for i, p in enumerate(params):
        p.grad = (randn(*p.shape, seed=100 * t + i) * size).to(p.grad_dtype)


def sums_of(params, count, factor=1.0):
    """In float64, of the gradients as they are stored."""
    out = [torch.zeros(p.shape, dtype=torch.float64) for p in params]
    for t in range(count):
        give(params, t)
        for total, p in zip(out, params, strict=True):
            total += p.grad.double() * factor
            p.grad = None
    return out


@each_dtype
@each_backend
@pytest.mark.parametrize("inv_scale", (None, 0.125, "tensor"))
def test_sums_are_those_of_float64(dtype, backend, inv_scale):
    params = parameters(dtype)
    factor = {None: 1.0, "tensor": 0.25}.get(inv_scale, inv_scale)
    wanted, acc = sums_of(params, 8, factor), GradAccumulator(params)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    with use_backend(backend):
        for t in range(8):
            give(params, t)
            acc.accumulate(torch.tensor([0.25]) if inv_scale == "tensor" else inv_scale)
            assert all(p.grad is None for p in params)
    for total, want in zip(acc.grads, wanted, strict=True):
        assert total.dtype == exact
        torch.testing.assert_close(total.double(), want, rtol=2e-6, atol=2e-6)


@each_half
def test_small_gradients_are_not_lost_beside_a_large_sum(dtype):
    """As they are where torch adds them up in the dtype of the parameter."""
    torchs, ours = (torch.nn.Parameter(torch.zeros(1, dtype=dtype)) for _ in range(2))
    acc = GradAccumulator([ours])
    for value in (256.0, *[0.125] * 64):
        (torchs * value).sum().backward()
        (ours * value).sum().backward()
        acc.accumulate()
    assert acc.grads[0].item() == 264.0 and torchs.grad.item() == 256.0


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(0, 9), max_size=3),
    dtype=st.sampled_from((*HALVES, torch.float32, torch.float64)),
    layout=st.sampled_from((layouts.dense, layouts.transposed, layouts.every_second, layouts.one_buffer)),
    values=st.sampled_from((1.0, 1e30, 1e-30, math.inf, math.nan)),
)
def test_any_shape_stride_and_value(shape, dtype, layout, values):
    """Gradients of any layout, over parameters of any layout."""
    data = layout([randn(*shape).to(dtype)])[0]
    p = torch.nn.Parameter(data)
    acc = GradAccumulator([p])
    wanted = torch.zeros(p.shape, dtype=torch.float64)
    for t in range(3):
        p.grad = layout([(randn(*shape, seed=t) * values).to(dtype)])[0]
        wanted += p.grad.double()
        acc.accumulate()
    (total,) = acc.grads
    expected = wanted.to(total.dtype)
    torch.testing.assert_close(
        total, expected, rtol=3e-6, atol=1e-6 * (values if values < 1e31 else 1), equal_nan=True
    )


@each_kind
@each_backend
@each_half
def test_an_optimizer_takes_the_sums_themselves(kind, backend, dtype):
    """A step from them is one from their values; parameters are rounded to their dtype at its end."""
    ours = KINDS[kind].make(parameters(dtype))
    wide = KINDS[kind].make([torch.nn.Parameter(p.detach().float()) for p in params_of(ours)])
    acc = GradAccumulator(params_of(ours))
    with use_backend(backend):
        for window in range(3):
            for t in range(2):
                give(params_of(ours), 10 * window + t)
                acc.accumulate(0.5)
            acc.install()
            assert all(p.grad is total for p, total in zip(params_of(ours), acc.grads, strict=True))
            for p, q in zip(params_of(ours), params_of(wide), strict=True):
                q.data.copy_(p.detach())
                q.grad = p.grad.clone()
            ours.step()
            wide.step()
            for p, q in zip(params_of(ours), params_of(wide), strict=True):
                torch.testing.assert_close(p, q.to(dtype), rtol=0, atol=0)
            acc.zero()
            assert all((total == 0).all() for total in acc.grads)
            assert all(p.grad is None and p.grad_dtype == dtype for p in params_of(ours))


@needs_cpp
@each_half
def test_a_plan_steps_from_sums_and_from_plain_gradients_in_turn(dtype):
    """Without being built anew: the gradient's dtype is read at every step."""
    optimizer = onepass.optim.AdamW(parameters(dtype), max_grad_norm=1.0)
    acc = GradAccumulator(params_of(optimizer))
    give(params_of(optimizer), 0)
    optimizer.step()
    plans = optimizer._plans
    for t in range(4):
        give(params_of(optimizer), t)
        if t % 2:
            acc.accumulate()
            acc.install()
        optimizer.step()
        acc.zero()
        assert optimizer._plans is plans


@each_backend
@pytest.mark.parametrize("scaler", (OURS, TORCH), ids=("ours", "torch"))
@pytest.mark.parametrize("unscale", (False, True), ids=("scaled", "unscaled"))
def test_a_window_that_overflows_midway_is_skipped(backend, scaler, unscale):
    """float16 gradients under a loss scale; unscale_ takes their sums, which are float32."""
    optimizer = onepass.optim.AdamW(parameters(torch.float16), max_grad_norm=1.0)
    params, scaler = params_of(optimizer), scaler("cpu", init_scale=8.0)
    acc, before = GradAccumulator(params), frozen(params_of(optimizer))
    scaler.scale(torch.ones(()))
    with use_backend(backend):
        for window in (True, False):
            for t in range(3):
                give(params, t, size=8.0)
                if window and t == 1:
                    params[0].grad[0, 0] = math.inf
                acc.accumulate()
            acc.install()
            if unscale:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
            acc.zero()
            assert (frozen(params) == before) == window
    assert scaler.get_scale() == 4.0


def test_a_parameter_without_gradients_is_left_alone():
    """Its gradient stays None, so that an optimizer does not decay it."""
    optimizer = onepass.optim.AdamW(parameters(), weight_decay=0.5)
    params = params_of(optimizer)
    acc, before = GradAccumulator(params), frozen(params)
    give(params, 0)
    params[1].grad = None
    acc.accumulate()
    acc.install()
    assert params[1].grad is None
    optimizer.step()
    assert [a == b for a, b in zip(frozen(params), before, strict=True)] == [False, True, False]


def test_real_backwards_of_a_model():
    model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    acc, x = GradAccumulator(model.parameters()), randn(12, 5)
    model(x).square().mean().backward()
    wanted = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    for part in x.chunk(4):
        model(part).square().mean().backward()
        acc.accumulate(0.25)
    acc.install()
    for p, want in zip(model.parameters(), wanted, strict=True):
        torch.testing.assert_close(p.grad, want, rtol=1e-5, atol=1e-6)


def test_nothing_waits_and_installing_copies_nothing():
    params = parameters()
    acc = GradAccumulator(params)
    with Watch() as watch:
        give(params, 0)
    begun = watch.calls
    for inv_scale in (None, 0.5, torch.tensor(0.5)):
        give(params, 0)
        with Watch() as watch:
            acc.accumulate(inv_scale)
        assert not [name for name in watch.calls if name in WAITS] and begun
        assert watch.calls["accumulate_"] == 1
    with Watch() as watch:
        acc.install()
    assert not {name for name in watch.calls if name not in ("detach",)}


def test_the_same_bits_for_any_number_of_threads():
    from onepass.testing.threads import threads

    found = []
    for count in (1, 2, 3, 8):
        params = parameters(shapes=((300_001,), (17,), (400, 301)))
        acc = GradAccumulator(params)
        with threads(count):
            for t in range(2):
                give(params, t)
                acc.accumulate(0.3)
        found.append(frozen(acc.grads))
    assert all(sums == found[0] for sums in found)


def test_zero_gives_back_the_dtype_that_gradients_had():
    """Also one that the user chose."""
    params = parameters()
    params[0].grad_dtype = torch.float32
    acc = GradAccumulator(params)
    for _ in range(2):
        acc.zero()
        assert [p.grad_dtype for p in params] == [torch.float32, torch.bfloat16, torch.bfloat16]
        give(params, 0)
        acc.accumulate()
        acc.install()
        assert all(p.grad_dtype == torch.float32 for p in params)
        acc.zero()
        assert [p.grad_dtype for p in params] == [torch.float32, torch.bfloat16, torch.bfloat16]


# --- what is refused ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "params, error, message",
    (
        (torch.ones(3), TypeError, "params is one Tensor"),
        ([1.0], TypeError, r"params\[0\] is a float, expected a Tensor"),
        ([torch.ones(3), torch.ones(3, dtype=torch.int64)], ValueError, r"params\[1\] is .*int64"),
        ([torch.ones(3, dtype=torch.complex64)], ValueError, r"params\[0\] is .*complex64"),
        ([torch.ones(2, requires_grad=True) * 2], ValueError, r"params\[0\] is no leaf"),
        ([torch.ones(2)] * 2, ValueError, "listed twice"),
    ),
)
def test_what_are_no_parameters(params, error, message):
    with pytest.raises(error, match=message):
        GradAccumulator(params)


def test_no_parameters_at_all():
    acc = GradAccumulator([])
    acc.accumulate()
    acc.install()
    acc.zero()
    assert acc.grads == []


def test_installed_sums_are_not_added_to_themselves():
    params = parameters()
    acc = GradAccumulator(params)
    give(params, 0)
    acc.accumulate()
    acc.install()
    before = frozen(acc.grads)
    with pytest.raises(RuntimeError, match=r"the sums are installed; call zero\(\) first"):
        acc.accumulate()
    assert frozen(acc.grads) == before


def test_a_sparse_gradient_is_refused_and_no_sum_written():
    embedding = torch.nn.Embedding(4, 2, sparse=True)
    dense = torch.nn.Parameter(torch.ones(3))
    acc = GradAccumulator([dense, embedding.weight])
    (embedding(torch.tensor([1])).sum() + dense.sum()).backward()
    with pytest.raises(RuntimeError, match=r"the gradient of params\[1\] is sparse"):
        acc.accumulate()
    assert all((total == 0).all() for total in acc.grads) and dense.grad is not None


@each_backend
def test_a_freed_gradient_is_refused_and_no_sum_written(backend):
    params = parameters()
    acc = GradAccumulator(params)
    give(params, 0)
    grads = [p.grad for p in params]
    with use_backend(backend), memory_given_back(lambda: grads):
        grads[1].untyped_storage().resize_(0)
        with pytest.raises(RuntimeError, match=r"accumulate_: grads\[1\] has no storage: it was freed"):
            acc.accumulate()
    assert all((total == 0).all() for total in acc.grads)
