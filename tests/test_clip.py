"""onepass.optim.clip_grad_norm_ is torch.nn.utils.clip_grad_norm_, in signature, results and errors."""

import inspect
import math
import warnings

import onepass
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onepass import use_backend
from onepass.testing import TOLERANCES, layouts
from optim_helpers import copy_of, each_backend, frozen, randn
from phase_helpers import HALVES, assert_near, close, each_dtype

SHAPES = ((40, 3), (65,), (), (0,), (4, 3, 5, 7), (2, 0, 4), (33,))
LAYOUTS = {
    name: getattr(layouts, name)
    for name in ("dense", "transposed", "channels_last", "every_second", "one_buffer")
}

ours, torchs = onepass.optim.clip_grad_norm_, torch.nn.utils.clip_grad_norm_


def with_grads(grads):
    params = [torch.nn.Parameter(torch.zeros(g.shape, dtype=g.dtype)) for g in grads]
    for p, g in zip(params, grads, strict=True):
        p.grad = copy_of(g)
    return params


def random_grads(dtype=torch.float32, size=1.0, seed=0, shapes=SHAPES):
    return [
        (randn(*s, seed=10 * seed + i, dtype=torch.float64) * size).to(dtype) for i, s in enumerate(shapes)
    ]


def exactly(grads, max_norm):
    """The norm, correctly rounded, and the clipped gradients in float64, by torch's formula. torch's own sum
    of squares is off by several roundings: 6e-16 in 405 equal gradients."""
    wide = [g.double() for g in grads]
    squares = math.fsum(value for g in wide for value in g.square().flatten().tolist())
    norm = torch.tensor(squares, dtype=torch.float64).sqrt()
    return norm, [g * (max_norm / (norm + 1e-6)).clamp(max=1.0) for g in wide]


def least(dtype):
    """Below the smallest normal number there is nothing but its spacing to be right to."""
    spacing = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    return spacing / TOLERANCES[dtype].rtol


def outcome(call):
    """What it returns, or the type and words of what it raises."""
    try:
        return call()
    except Exception as error:
        return type(error), str(error)


def test_signature():
    assert [(p.name, p.default) for p in inspect.signature(ours).parameters.values()] == [
        (p.name, p.default) for p in inspect.signature(torchs).parameters.values()
    ]


@each_backend
@each_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
def test_norm_and_gradients_are_torchs_in_float64(backend, dtype, layout):
    """Rounded once; gradients within the norm are not touched at all."""
    for seed, max_norm in enumerate((0.0, 0.1, 3, 1e4, math.inf)):
        grads = LAYOUTS[layout](random_grads(dtype, seed=seed))
        params = with_grads(grads)
        norm, wanted = exactly(grads, max_norm)
        assert close(torchs(with_grads([g.double() for g in grads]), max_norm).item(), norm.item(), 4e-15)
        with use_backend(backend):
            got = ours(params, max_norm)
        assert got.shape == () and got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert close(got.item(), norm.item(), 4e-15 if dtype == torch.float64 else 1e-7)
        for p, g, w in zip(params, grads, wanted, strict=True):
            assert p.grad.stride() == g.stride()
            if norm <= max_norm:
                assert torch.equal(p.grad, g)
            assert_near(p.grad, w, dtype)


@each_backend
def test_mixed_dtypes_have_one_norm(backend):
    kinds = (torch.float32, torch.bfloat16, torch.float64, torch.float16)
    grads = [g.to(kinds[i % 4]) for i, g in enumerate(random_grads())]
    norm, wanted = exactly(grads, 2.0)
    params = with_grads(grads)
    with use_backend(backend):
        got = ours(params, 2.0)
    assert got.dtype == torch.float64 and close(got.item(), norm.item())
    for p, w in zip(params, wanted, strict=True):
        assert_near(p.grad, w, p.grad.dtype)


@each_backend
@pytest.mark.parametrize("size", (1e25, 1e-25))
def test_norms_whose_squares_no_float32_holds(backend, size):
    """torch's own norm is inf or 0 then."""
    grads = random_grads(size=size)
    norm, wanted = exactly(grads, size)
    params = with_grads(grads)
    with use_backend(backend):
        assert close(ours(params, size).item(), norm.item())
    for p, w in zip(params, wanted, strict=True):
        assert_near(p.grad, w, p.grad.dtype, least=least(p.grad.dtype))


@each_backend
@pytest.mark.parametrize("spoil", (math.inf, -math.inf, math.nan))
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
def test_inf_and_nan_leave_what_torch_leaves(backend, spoil, dtype):
    """inf: zeros, and NaN in its place; NaN: NaN everywhere."""
    grads = random_grads(dtype)
    grads[1][7] = spoil
    params, theirs = with_grads(grads), with_grads(grads)
    with use_backend(backend):
        got = ours(params, 1.0)
    norm = torchs(theirs, 1.0)
    torch.testing.assert_close(got, norm, equal_nan=True, rtol=0, atol=0)
    for p, q in zip(params, theirs, strict=True):
        torch.testing.assert_close(p.grad, q.grad, equal_nan=True, rtol=0, atol=0)


@each_backend
@pytest.mark.parametrize("spoil", (math.inf, math.nan))
@pytest.mark.parametrize("norm_type", (2.0, 2, 1.0, math.inf))
def test_error_if_nonfinite(backend, spoil, norm_type):
    """torch's words, and nothing written."""
    grads = random_grads(shapes=SHAPES[:3])  # torch has no infinity norm of empty tensors
    grads[1][7] = spoil
    params, theirs = with_grads(grads), with_grads(grads)
    before = frozen(p.grad for p in params)
    with use_backend(backend):
        raised = outcome(lambda: ours(params, 1.0, norm_type, error_if_nonfinite=True))
    assert raised == outcome(lambda: torchs(theirs, 1.0, norm_type, error_if_nonfinite=True))
    assert raised[0] is RuntimeError and "non-finite" in raised[1]
    assert frozen(p.grad for p in params) == before


@each_backend
def test_a_finite_norm_is_no_error(backend):
    params = with_grads(random_grads())
    with use_backend(backend):
        assert ours(params, 1.0, error_if_nonfinite=True).isfinite()


@each_backend
@pytest.mark.parametrize("norm_type", (1, 1.0, 3.0, math.inf, "inf"))
def test_other_norms_go_through_torch(backend, norm_type):
    grads = random_grads(shapes=SHAPES[:3])
    params, theirs = with_grads(grads), with_grads(grads)
    with use_backend(backend):
        assert torch.equal(ours(params, 1.0, norm_type), torchs(theirs, 1.0, norm_type))
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(params, theirs, strict=True))


# --- what may be handed over --------------------------------------------------------------------------------
GIVEN = {
    "a list": lambda params: params,
    "a tuple": tuple,
    "a generator": lambda params: (p for p in params),
    "an iterator": iter,
    "one tensor": lambda params: params[0],
    "a dict's values": lambda params: dict(enumerate(params)).values(),
    "some without gradients": lambda params: [*params, torch.nn.Parameter(torch.ones(2))],
    "none with gradients": lambda _: [torch.nn.Parameter(torch.ones(2))],
    "an empty list": lambda _: [],
    "an empty generator": lambda _: (p for p in ()),
}


@each_backend
@pytest.mark.parametrize("what", GIVEN)
@pytest.mark.parametrize("foreach", (None, True, False))
def test_whatever_torch_takes(backend, what, foreach):
    """The same result, the same warnings."""
    results = []
    for clip in (ours, torchs):
        params = with_grads(random_grads())
        with use_backend(backend), warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            norm = clip(GIVEN[what](params), 1.5, foreach=foreach)
        results.append((norm, [p.grad for p in params], [str(w.message) for w in seen]))
    torch.testing.assert_close(results[0][:2], results[1][:2], rtol=1e-6, atol=0.0)
    assert results[0][2] == results[1][2]
    assert (what == "an empty generator") == bool(results[1][2])


@each_backend
def test_max_norm_as_a_tensor_and_below_zero(backend):
    """torch takes both: float(max_norm), and a coefficient below zero."""
    for max_norm in (torch.tensor(1.5), torch.tensor([0.5]), -2.0, True):
        grads = random_grads()
        params, theirs = with_grads(grads), with_grads(grads)
        with use_backend(backend):
            ours(params, max_norm)
        torchs(theirs, max_norm)
        for p, q in zip(params, theirs, strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-6, atol=0.0)


@each_backend
@pytest.mark.parametrize("kind", ("sparse", "complex"))
def test_gradients_that_no_kernel_serves_go_through_torch(backend, kind):
    def made():
        p = torch.nn.Parameter(torch.zeros(4, 3, dtype=torch.complex64 if kind == "complex" else None))
        dense = torch.arange(12.0).reshape(4, 3).to(p.dtype)
        p.grad = dense.to_sparse() if kind == "sparse" else dense
        return [p, *with_grads(random_grads())]

    results = []
    for clip in (ours, torchs):
        params = made()
        with use_backend(backend):
            results.append((outcome(lambda c=clip, p=params: c(p, 1.0)), [p.grad for p in params]))
    if isinstance(results[1][0], torch.Tensor):
        torch.testing.assert_close(results[0][0], results[1][0])
        assert all(
            torch.equal(a.to_dense(), b.to_dense()) for a, b in zip(results[0][1], results[1][1], strict=True)
        )
    else:
        assert results[0][0] == results[1][0]


@each_backend
def test_the_meta_device(backend):
    """Shapes and dtypes without memory: a norm without a value."""
    p = torch.nn.Parameter(torch.zeros(3, 4, device="meta"))
    p.grad = torch.zeros(3, 4, device="meta")
    with use_backend(backend):
        norm = ours([p], 1.0)
    assert norm.device.type == "meta" and norm.shape == torchs([p], 1.0).shape


@each_backend
def test_autograd_hears_of_it(backend):
    """In a graph that holds the gradient a stale backward raises, and no graph is recorded."""
    (p,) = with_grads([randn(8)])
    loss = (torch.ones(8, requires_grad=True) * p.grad).sum()
    with use_backend(backend):
        norm = ours(p, 0.1)
    assert not norm.requires_grad
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@each_backend
def test_expanded_gradients_are_refused_as_torch_refuses_them(backend):
    """Nothing is written then."""
    params = with_grads([randn(4), randn(5)])
    params[1].grad = torch.ones(()).expand(5)
    before = frozen(p.grad for p in params)
    with use_backend(backend), pytest.raises(RuntimeError, match=r"grads\[1\] has several elements at one"):
        ours(params, 0.1)
    assert frozen(p.grad for p in params) == before
    with pytest.raises(RuntimeError, match="more than one element"):
        torchs(params, 0.1)


# --- any gradients ------------------------------------------------------------------------------------------
numbers = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-1e4, max_value=1e4),
    st.sampled_from((0.0, -0.0, 1e-30, 1e20, -3e37)),
)
specs = st.tuples(
    st.lists(st.integers(0, 9), max_size=3),
    st.sampled_from((torch.float32, torch.float64, *HALVES)),
    st.sampled_from(sorted(LAYOUTS)),
    st.lists(numbers, min_size=1, max_size=5),
)


@each_backend
@settings(deadline=None, max_examples=60)
@given(specs=st.lists(specs, min_size=1, max_size=6), max_norm=st.floats(0.0, 1e6))
def test_any_gradients(backend, specs, max_norm):
    """Shapes, dtypes, layouts and values as they come, and any coefficient that float32 has all digits of."""
    grads = []
    for shape, dtype, layout, values in specs:
        count = math.prod(shape)
        flat = torch.tensor((values * count)[:count], dtype=torch.float64)
        limit = torch.finfo(dtype).max
        grads += LAYOUTS[layout]([flat.clamp(-limit, limit).reshape(shape).to(dtype)])
    params = with_grads(grads)
    norm, wanted = exactly(grads, max_norm)
    assume(max_norm == 0 or max_norm / (norm + 1e-6) >= torch.finfo(torch.float32).smallest_normal)
    with use_backend(backend):
        got = ours(params, max_norm)
    assert close(got.item(), norm.to(got.dtype).item()) or norm < 1e-37  # inf where float32 ends
    for p, w in zip(params, wanted, strict=True):
        assert_near(p.grad, w, p.grad.dtype, least=least(p.grad.dtype))
