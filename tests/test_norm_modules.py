"""onepass.nn.BatchNorm1d/2d/3d beside torch's: training, evaluation, options, state, errors, machinery."""

import copy

import pytest
import torch
from onepass import backends
from onepass import nn as onn
from onepass.nn import functional as ours
from onepass.ops import OPS
from onepass.testing import CASES
from torch import Tensor, nn
from torch.nn import functional

BACKENDS = [b for b in ("cpp", "reference") if b in backends.available()]
each_backend = pytest.mark.parametrize("backend", BACKENDS)
SHAPES = {1: (8, 5, 7), 2: (4, 5, 6, 7), 3: (3, 5, 2, 4, 3)}
TORCHS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
OURS = {1: onn.BatchNorm1d, 2: onn.BatchNorm2d, 3: onn.BatchNorm3d}
each_dim = pytest.mark.parametrize("dim", SHAPES)
ACTS = {
    None: lambda v: v,
    "relu": functional.relu,
    "leaky_relu": functional.leaky_relu,
    "silu": functional.silu,
}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def _pair(dim: int, act: str | None = None, **options) -> tuple[nn.Module, nn.Module]:
    """Ours and torch's, with the same random parameters and statistics."""
    mine, its = OURS[dim](5, act=act, **options), TORCHS[dim](5, **options)
    with torch.no_grad():
        for t in its.parameters():
            t.normal_()
        if its.running_mean is not None:
            its.running_mean.normal_()
            its.running_var.uniform_(0.5, 2.0)
    mine.load_state_dict(its.state_dict())
    return mine, its


def _step(module: nn.Module, x: Tensor, z: Tensor | None, act, dy: Tensor) -> list[Tensor]:
    """Output, gradients of input, residual and parameters, and the state behind it."""
    module.zero_grad()
    x, z = x.clone().requires_grad_(), None if z is None else z.clone().requires_grad_()
    if isinstance(module, tuple(OURS.values())):
        y = module(x, z)
    else:
        y = ACTS[act](module(x) if z is None else module(x) + z)
    y.backward(dy)
    grads = [x.grad, *([] if z is None else [z.grad]), *(p.grad for p in module.parameters())]
    return [y.detach(), *grads, *(b.clone() for b in module.buffers())]


def _agree(
    mine: nn.Module, its: nn.Module, x: Tensor, z: Tensor | None = None, act=None, tolerance=2e-5
) -> None:
    dy = torch.randn_like(x)
    for got, want in zip(_step(mine, x, z, act, dy), _step(its, x, z, act, dy), strict=True):
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


# --- beside torch's ---------------------------------------------------------------------------------------
@each_backend
@each_dim
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("residual", (False, True))
def test_many_steps_of_training_and_evaluation(backend: str, dim: int, act: str | None, residual: bool):
    mine, its = _pair(dim, act)
    with backends.use_backend(backend):
        for i in range(6):
            for module in (mine, its):
                module.train(i != 3)
            x = torch.randn(SHAPES[dim]) * 2 + 1
            _agree(mine, its, x, torch.randn(SHAPES[dim]) if residual else None, act)
    assert mine.num_batches_tracked == 5


@each_backend
@pytest.mark.parametrize(
    "options",
    (
        {"affine": False},
        {"bias": False},
        {"momentum": None},
        {"momentum": 0.0},
        {"momentum": 1.0},
        {"track_running_stats": False},
        {"eps": 0.1},
        {"affine": False, "track_running_stats": False},
    ),
    ids=str,
)
@pytest.mark.parametrize("training", (True, False))
def test_options(backend: str, options: dict, training: bool):
    mine, its = _pair(2, **options)
    with backends.use_backend(backend):
        for _ in range(3):
            for module in (mine, its):
                module.train(training)
            _agree(mine, its, torch.randn(SHAPES[2]) + 3)


@each_backend
def test_rows(backend: str):
    mine, its = _pair(1)
    with backends.use_backend(backend):
        _agree(mine, its, torch.randn(16, 5))


@each_backend
def test_without_running_statistics_the_input_is_left_alone(backend: str):
    """A peer writes its statistics over the input."""
    x = torch.randn(SHAPES[2])
    before = x.clone()
    with backends.use_backend(backend):
        onn.BatchNorm2d(5, track_running_stats=False)(x)
    assert torch.equal(x, before)


@each_backend
@pytest.mark.parametrize("shape", ((0, 5, 6, 7), (3, 5, 0, 7)), ids=str)
def test_empty_batch(backend: str, shape: tuple[int, ...]):
    module = onn.BatchNorm2d(5, act="relu")
    x = torch.empty(shape, requires_grad=True)
    before = [module.running_mean.clone(), module.running_var.clone()]
    with backends.use_backend(backend):
        y = module(x)
        y.sum().backward()
    assert y.shape == x.grad.shape == shape
    assert torch.equal(module.weight.grad, torch.zeros(5)) and torch.equal(module.bias.grad, torch.zeros(5))
    assert torch.equal(module.running_mean, before[0]) and torch.equal(module.running_var, before[1])
    assert module.num_batches_tracked == 1


@each_backend
@pytest.mark.parametrize("act", ACTS)
def test_empty_batch_with_residual(backend: str, act: str | None):
    x, z = (torch.empty(0, 5, 6, 7, requires_grad=True) for _ in range(2))
    with backends.use_backend(backend):
        onn.BatchNorm2d(5, act=act)(x, z).sum().backward()
    assert x.grad.shape == z.grad.shape == x.shape


@each_backend
@pytest.mark.parametrize("parameters", (torch.float32, torch.bfloat16))
def test_half_model(backend: str, parameters: torch.dtype):
    module = onn.BatchNorm2d(5, act="relu").to(parameters)
    x = torch.randn(SHAPES[2]).bfloat16().requires_grad_()
    with backends.use_backend(backend):
        y = module(x)
        y.backward(torch.ones_like(y))
    assert (y.dtype, x.grad.dtype, module.weight.grad.dtype) == (torch.bfloat16, torch.bfloat16, parameters)
    want = functional.relu(functional.batch_norm(x.detach().float(), None, None, training=True))
    torch.testing.assert_close(y.float(), want, rtol=8e-3, atol=8e-3)


def test_memory_format_is_kept():
    module = onn.BatchNorm2d(5, act="relu")
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(4, 5, 6, 7).contiguous(memory_format=layout).requires_grad_()
        z = torch.randn(4, 5, 6, 7).contiguous(memory_format=layout).requires_grad_()
        y = module(x, z)
        y.backward(torch.ones(4, 5, 6, 7))
        for t in (y, x.grad, z.grad):
            assert t.is_contiguous(memory_format=layout)


# --- memory -----------------------------------------------------------------------------------------------
def _saved(run) -> list[Tensor]:
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        run()
    return kept


def _bytes_beside(kept: list[Tensor], *known: Tensor) -> int:
    addresses = {t.data_ptr() for t in known}
    return sum(t.numel() * t.element_size() for t in kept if t.data_ptr() not in addresses)


@pytest.mark.parametrize("layout", (torch.contiguous_format, torch.channels_last))
@pytest.mark.parametrize("size", ((16, 24, 7, 7), (3, 5, 7, 3)), ids=str)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_saved_for_backward(layout, size, dtype):
    """The input and three values a channel; behind a residual a bit an element; for silu the residual."""
    x, z = (torch.randn(size).to(dtype).contiguous(memory_format=layout).requires_grad_() for _ in range(2))
    modules = {act: onn.BatchNorm2d(size[1], act=act) for act in ACTS}
    known = (x, z, *(p for m in modules.values() for p in m.parameters()))
    statistics = 3 * 4 * size[1]
    for act in ACTS:
        assert _bytes_beside(_saved(lambda m=modules[act]: m(x)), *known) == statistics
    for act in ("relu", "leaky_relu"):
        more = _bytes_beside(_saved(lambda m=modules[act]: m(x, z)), *known) - statistics
        assert more == (x.numel() + 7) // 8
    for act in (None, "silu"):
        kept = _saved(lambda m=modules[act]: m(x, z))
        assert _bytes_beside(kept, *known) == statistics
        assert any(t.data_ptr() == z.data_ptr() for t in kept) == (act == "silu")


def test_nothing_is_kept_without_gradients():
    x = torch.randn(SHAPES[2])
    with torch.no_grad():
        assert not _saved(lambda: onn.BatchNorm2d(5, act="relu")(x, x))
    y = ours.batch_norm(x, None, None, training=True)
    assert not y.requires_grad


# --- gradients of gradients -------------------------------------------------------------------------------
@each_backend
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("residual", (False, True))
@pytest.mark.parametrize("training", (True, False))
def test_gradcheck(backend: str, act: str | None, residual: bool, training: bool):
    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, requires_grad=True)

    weight, bias, x = leaf(3), leaf(3), leaf(4, 3, 2, 2)
    z = leaf(4, 3, 2, 2) if residual else None
    mean, var = torch.randn(3, dtype=torch.float64), torch.rand(3, dtype=torch.float64) + 0.5

    def run(x: Tensor, z: Tensor | None, weight: Tensor, bias: Tensor) -> Tensor:
        return ours.batch_norm(x, mean.clone(), var.clone(), weight, bias, training, act=act, residual=z)

    with backends.use_backend(backend):
        assert torch.autograd.gradcheck(run, (x, z, weight, bias))
        assert torch.autograd.gradgradcheck(run, (x, z, weight, bias))


def test_second_gradient_of_a_penalty_is_torchs():
    """As gradient penalties take it: through the input's gradient, with parameters in the middle."""
    mine, its = _pair(2, "relu")
    x = torch.randn(SHAPES[2])
    found = []
    for module, run in ((mine, lambda t: mine(t)), (its, lambda t: functional.relu(its(t)))):
        leaf = x.clone().requires_grad_()
        (g,) = torch.autograd.grad(run(leaf).square().sum(), leaf, create_graph=True)
        g.square().sum().backward()
        found.append([leaf.grad, *(p.grad for p in module.parameters())])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


# --- state ------------------------------------------------------------------------------------------------
@each_dim
def test_state_dicts_interchange(dim: int):
    mine, its = _pair(dim)
    mine(torch.randn(SHAPES[dim]))
    assert list(mine.state_dict()) == list(its.state_dict())
    its.load_state_dict(mine.state_dict())
    for key, value in mine.state_dict().items():
        assert torch.equal(its.state_dict()[key], value) and its.state_dict()[key].dtype == value.dtype


def test_copies_and_pickles(tmp_path):
    module = onn.BatchNorm2d(5, act="leaky_relu", negative_slope=0.2)
    torch.save(module, tmp_path / "module.pt")
    x = torch.randn(SHAPES[2])
    for other in (copy.deepcopy(module), torch.load(tmp_path / "module.pt", weights_only=False)):
        assert torch.equal(other(x), copy.deepcopy(module)(x))
    assert "act='leaky_relu', negative_slope=0.2" in repr(module)
    assert repr(onn.BatchNorm2d(5)) == repr(nn.BatchNorm2d(5))
    assert isinstance(module, nn.BatchNorm2d)


# --- errors -----------------------------------------------------------------------------------------------
def test_torchs_own_errors():
    for module, its, x in (
        (onn.BatchNorm2d(5), nn.BatchNorm2d(5), torch.randn(1, 5, 1, 1)),
        (onn.BatchNorm1d(5), nn.BatchNorm1d(5), torch.randn(1, 5)),
        (onn.BatchNorm2d(5), nn.BatchNorm2d(5), torch.randn(4, 5, 6)),
        (onn.BatchNorm3d(5), nn.BatchNorm3d(5), torch.randn(4, 5, 6, 7)),
        (onn.BatchNorm2d(5, eps=0.0), nn.BatchNorm2d(5, eps=0.0), torch.randn(4, 5, 6, 7)),
    ):
        with pytest.raises(ValueError) as wanted:
            its(x)
        with pytest.raises(ValueError) as got:
            module(x)
        assert str(got.value) == str(wanted.value)


def test_unknown_activation():
    with pytest.raises(ValueError, match="BatchNorm2d: act is 'gelu', expected one of"):
        onn.BatchNorm2d(5, act="gelu")


def test_evaluation_needs_both_statistics():
    with pytest.raises(ValueError, match="needs both running_mean and running_var"):
        ours.batch_norm(torch.randn(SHAPES[2]), torch.zeros(5), None)


# --- torch's machinery ------------------------------------------------------------------------------------
def _compiled(backend: str) -> None:
    torch._dynamo.reset()
    mine = onn.BatchNorm2d(5, act="relu")
    other = copy.deepcopy(mine)
    compiled = torch.compile(other, fullgraph=True, backend=backend)
    for training in (True, True, False):
        x, z = torch.randn(SHAPES[2]), torch.randn(SHAPES[2])
        for module in (mine, other):
            module.train(training)
        leaves = [[t.clone().requires_grad_() for t in (x, z)] for _ in range(2)]
        mine(*leaves[0]).sum().backward()
        compiled(*leaves[1]).sum().backward()
        for a, b in zip(*leaves, strict=True):
            assert torch.equal(a.grad, b.grad)
        for a, b in zip(mine.state_dict().values(), other.state_dict().values(), strict=True):
            assert torch.equal(a, b)
    assert mine.num_batches_tracked == 2


def test_compiles_whole():
    _compiled("aot_eager")


@pytest.mark.slow
def test_inductor_compiles_whole():
    _compiled("inductor")


def test_autocast():
    model = nn.Sequential(nn.Conv2d(3, 5, 3), onn.BatchNorm2d(5, act="relu"), nn.Conv2d(5, 2, 3))
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(torch.randn(2, 3, 9, 9)).float().square().mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model[1].weight.grad.dtype == torch.float32


def test_checkpointing_recomputes_the_same():
    module = onn.BatchNorm2d(5, act="relu", momentum=0.0)
    x = torch.randn(SHAPES[2], requires_grad=True)
    plain = torch.autograd.grad(module(x).square().sum(), x)[0]
    y = torch.utils.checkpoint.checkpoint(module, x, use_reentrant=False)
    assert torch.equal(torch.autograd.grad(y.square().sum(), x)[0], plain)


@pytest.mark.parametrize("name", [op.name for op in OPS if op.bench == "norm"])
def test_the_reference_asks_nothing_of_the_host(name: str):
    """torch reads num_batches_tracked, which on a GPU waits for it. What an op does inside is seen only where
    it is called past the dispatcher; C++ reads it where it is."""
    cases = {case.name: case for case in CASES[name]}
    arguments = cases.get("average", cases.get("residual_relu", cases["rows"]))(0, torch.float32)
    seen = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func.name())
            return func(*args, **(kwargs or {}))

    with Watch():
        backends.target(f"onepass.reference.norm:{name}")(**arguments)
    assert not {"aten::_local_scalar_dense", "aten::item"} & set(seen)
    assert any(called.startswith("aten::") for called in seen)


@each_backend
def test_without_a_counter_an_average_stays_where_it_is(backend: str):
    """There is nothing to divide by, and nothing to read."""
    x = torch.randn(SHAPES[2])
    with backends.use_backend(backend):
        for training in (True, False):
            y = ours.batch_norm(x, None, None, training=training, momentum=None)
            want = functional.batch_norm(x, None, None, training=True)
            torch.testing.assert_close(y, want, rtol=1e-5, atol=1e-5)
        mean, var = torch.zeros(5), torch.ones(5)
        ours.batch_norm(x, mean, var, training=True, momentum=float("nan"))
    assert mean.isnan().all() and var.isnan().all()


@each_backend
@pytest.mark.parametrize("training", (True, False))
def test_no_channels(backend: str, training: bool):
    module = onn.BatchNorm1d(0).train(training)
    with backends.use_backend(backend):
        assert module(torch.zeros(5, 0)).shape == (5, 0)


def test_forward_mode_says_that_it_is_not_implemented():
    """Rather than a tangent of zero."""
    x = torch.randn(SHAPES[2])
    with pytest.raises((NotImplementedError, RuntimeError), match=r"jvp|forward"):
        torch.func.jvp(lambda t: ours.batch_norm(t, None, None, training=True), (x,), (x,))


def test_given_statistics_are_not_differentiable():
    mean = torch.zeros(5, requires_grad=True)
    with pytest.raises(RuntimeError, match="not differentiable with respect to running_mean"):
        ours.batch_norm(torch.randn(SHAPES[2]), mean, torch.ones(5))
