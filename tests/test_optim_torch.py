"""Adam and AdamW among torch's surroundings: what holds for torch.optim's classes holds for ours."""

import copy
import inspect
import io
import pickle
import warnings

import pytest
import torch
from onepass import backends, use_backend
from onepass.optim.phase import Phase
from onepass.testing.threads import threads
from optim_helpers import (
    OURS,
    TORCH,
    assert_same_training,
    assert_trained_alike,
    both,
    each_backend,
    feed,
    make_torch,
    names,
    needs_cpp,
    params_of,
    randn,
    train,
    values,
)
from torch.optim import lr_scheduler
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook


def parameters(*shapes, seed=0):
    shapes = shapes or ((5,), (3, 4))
    return [torch.nn.Parameter(randn(*shape, seed=seed + i)) for i, shape in enumerate(shapes)]


def network(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))


def loss_of(model, t=0):
    return ((model(randn(10, 6, seed=t)) - randn(10, 2, seed=t + 1)) ** 2).mean()


def outcome(call):
    """(what it raised: type and words) or what it returned."""
    try:
        return call()
    except Exception as error:
        return type(error), str(error)


# --- constructor --------------------------------------------------------------------------------------------
@names
def test_is_torchs_optimizer(name):
    optimizer = OURS[name](parameters())
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert isinstance(optimizer, TORCH[name])
    assert type(optimizer).__name__ == TORCH[name].__name__


def test_adamw_is_an_adam_as_in_torch():
    assert issubclass(torch.optim.AdamW, torch.optim.Adam) == issubclass(OURS["adamw"], OURS["adam"])


@names
@pytest.mark.parametrize(
    "method", ("__init__", "step", "zero_grad", "add_param_group", "load_state_dict", "state_dict")
)
def test_signatures_are_torchs(name, method):
    ours, theirs = (inspect.signature(getattr(cls, method)) for cls in (OURS[name], TORCH[name]))
    as_given = [[(p.name, p.kind, p.default) for p in s.parameters.values()] for s in (ours, theirs)]
    assert as_given[0][: len(as_given[1])] == as_given[1]
    more = {name: default for name, _, default in as_given[0][len(as_given[1]) :]}
    assert more == ({"rounding": "onepass", **Phase.arguments()} if method == "__init__" else {})


@names
def test_defaults_and_groups_are_torchs(name):
    ours, theirs = OURS[name](parameters()), TORCH[name](parameters())
    assert ours.defaults == theirs.defaults
    assert list(ours.defaults) == list(theirs.defaults)
    for mine, group in zip(ours.param_groups, theirs.param_groups, strict=True):
        assert list(mine) == list(group)
        assert all(mine[key] == group[key] for key in group if key != "params")
    assert repr(ours) == repr(theirs)


NAN = float("nan")
BAD = {
    "negative lr": {"lr": -1.0},
    "NaN lr": {"lr": NAN},
    "tensor lr of 2 elements": {"lr": torch.tensor([1e-3, 1e-3])},
    "tensor lr with foreach": {"lr": torch.tensor(1e-3), "foreach": True},
    "NaN beta1": {"betas": (NAN, 0.999)},
    "NaN beta2": {"betas": (0.9, NAN)},
    "beta1 of 1": {"betas": (1.0, 0.999)},
    "beta2 of 1": {"betas": (0.9, 1.0)},
    "negative beta1": {"betas": (-0.1, 0.999)},
    "one beta a tensor": {"betas": (torch.tensor(0.9), 0.999)},
    "negative eps": {"eps": -1e-8},
    "NaN eps": {"eps": NAN},
    "negative weight decay": {"weight_decay": -0.1},
    "NaN weight decay": {"weight_decay": NAN},
    "fused and foreach": {"fused": True, "foreach": True},
    "fused and differentiable": {"fused": True, "differentiable": True},
    "unknown argument": {"learning_rate": 1e-3},
}


@names
@pytest.mark.parametrize("what", BAD)
def test_wrong_arguments_raise_torchs_errors(name, what):
    ours, theirs = (outcome(lambda c=cls: c(parameters(), **BAD[what])) for cls in (OURS[name], TORCH[name]))
    assert issubclass(theirs[0], Exception)
    assert ours == theirs


def twice_in_two_groups():
    (p,) = parameters((3,))
    return [{"params": [p]}, {"params": [p]}]


BAD_PARAMS = {
    "empty list": lambda: [],
    "a tensor": lambda: torch.nn.Parameter(torch.ones(3)),
    "not tensors": lambda: [1, 2],
    "not a leaf": lambda: [torch.nn.Parameter(torch.ones(3)) * 2],
    "in two groups": twice_in_two_groups,
    "a set": lambda: [{"params": set(parameters())}],
    "some with names": lambda: [("a", parameters()[0]), parameters()[1]],
    "no params": lambda: [{"lr": 1e-3}],
}


@names
@pytest.mark.parametrize("what", BAD_PARAMS)
def test_wrong_parameters_raise_torchs_errors(name, what):
    ours, theirs = (outcome(lambda c=cls: c(BAD_PARAMS[what]())) for cls in (OURS[name], TORCH[name]))
    assert issubclass(theirs[0], Exception)
    assert ours == theirs


@names
def test_parameters_with_names(name):
    def scenario(make):
        model = network()
        optimizer = make(model.named_parameters(), lr=1e-2)
        train(optimizer, 3)
        for groups in (optimizer.param_groups, optimizer.state_dict()["param_groups"]):
            assert groups[0]["param_names"] == [n for n, _ in model.named_parameters()]

        return values(optimizer)

    assert_same_training(name, scenario)


@names
def test_generator_of_parameters(name):
    assert_same_training(name, lambda make: trained(make(network().parameters(), lr=1e-2)))


@names
def test_construction_on_the_meta_device(name):
    with torch.device("meta"):
        model = torch.nn.Linear(3, 4)
    optimizer = OURS[name](model.parameters(), lr=1e-3)
    optimizer.zero_grad()
    optimizer.step()
    assert len(optimizer.state) == 0
    assert optimizer.state_dict()["param_groups"][0]["params"] == [0, 1]


def trained(optimizer, steps=5):
    train(optimizer, steps)
    return values(optimizer)


# --- learning rates -----------------------------------------------------------------------------------------
@names
@each_backend
@pytest.mark.parametrize("shape", ((), (1,)), ids=str)
def test_lr_as_a_tensor(name, backend, shape):
    def scenario(make):
        lr = torch.full(shape, 1e-2)
        optimizer = make(parameters(), lr=lr, weight_decay=0.1)
        train(optimizer, 3)
        lr.mul_(0.1)
        train(optimizer, range(3, 6))
        assert optimizer.param_groups[0]["lr"] is lr
        return values(optimizer)

    with use_backend(backend):
        assert_same_training(name, scenario)


@names
def test_betas_as_tensors(name):
    def scenario(make):
        return trained(make(parameters(), lr=1e-2, betas=(torch.tensor(0.8), torch.tensor(0.99))))

    assert_same_training(name, scenario)


SCHEDULERS = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, step_size=6, gamma=0.5),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, gamma=0.9),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=20),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=20),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, base_lr=1e-3, max_lr=0.1, step_size_up=5),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda t: 1 / (1 + t)),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, total_iters=15),
}


@names
@pytest.mark.parametrize("tensor_lr", (False, True), ids=("float", "tensor"))
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_schedulers(name, scheduler, tensor_lr):
    def scenario(make):
        optimizer = make(parameters(), lr=torch.tensor(0.05) if tensor_lr else 0.05, weight_decay=0.1)
        schedule, lrs = SCHEDULERS[scheduler](optimizer), []
        for t in range(20):
            feed(optimizer, t)
            optimizer.step()
            schedule.step()
            lrs.append(torch.as_tensor(float(optimizer.param_groups[0]["lr"])))
        assert len(set(map(float, lrs))) > 2
        return values(optimizer) + lrs

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "lr_scheduler.step() before optimizer.step()" among them
        assert_same_training(name, scenario)


@names
def test_scheduler_reduce_on_plateau(name):
    def scenario(make):
        optimizer = make(parameters(), lr=0.05)
        schedule = lr_scheduler.ReduceLROnPlateau(optimizer, patience=2, factor=0.3)
        for t in range(20):
            feed(optimizer, t)
            optimizer.step()
            schedule.step(1.0)
        assert optimizer.param_groups[0]["lr"] < 0.01
        return values(optimizer)

    assert_same_training(name, scenario)


# --- groups and gradients -----------------------------------------------------------------------------------
@names
@each_backend
def test_groups_with_different_options(name, backend):
    def scenario(make):
        p = parameters(*[(4,)] * 8)
        groups = [
            {"params": p[:2]},
            {"params": p[2:3], "lr": 1e-3, "weight_decay": 0.0},
            {"params": p[3:4], "betas": (0.5, 0.9), "eps": 1e-3},
            {"params": p[4:5], "amsgrad": True},
            {"params": p[5:6], "maximize": True},
            {"params": p[6:7], "decoupled_weight_decay": name == "adam"},
            {"params": p[7:], "lr": torch.tensor(0.02)},
        ]
        return trained(make(groups, lr=1e-2, weight_decay=0.3), 10)

    with use_backend(backend):
        assert_same_training(name, scenario)


@names
@each_backend
def test_options_changed_in_mid_training(name, backend):
    def scenario(make):
        optimizer = make(parameters(), lr=1e-2)
        train(optimizer, 3)
        for t, change in enumerate(
            (
                {"lr": 0.1},
                {"betas": (0.5, 0.9)},
                {"weight_decay": 0.5},
                {"eps": 0.1},
                {"maximize": True},
                {"decoupled_weight_decay": name == "adam"},
            )
        ):
            optimizer.param_groups[0].update(change)
            train(optimizer, range(3 + t, 4 + t))
        return values(optimizer)

    with use_backend(backend):
        assert_same_training(name, scenario)


@names
@each_backend
def test_add_param_group_in_mid_training(name, backend):
    def scenario(make):
        optimizer = make(parameters((5,)), lr=1e-2)
        train(optimizer, 3)
        optimizer.add_param_group({"params": parameters((2, 3), seed=9), "lr": 0.1})
        train(optimizer, range(3, 6))
        optimizer.add_param_group({"params": parameters((4,), seed=11), "amsgrad": True})
        train(optimizer, range(6, 9))
        steps = [optimizer.state[p]["step"] for p in params_of(optimizer)]
        assert [s.item() for s in steps] == [9, 6, 3]
        return values(optimizer)

    with use_backend(backend):
        assert_same_training(name, scenario)


@names
@each_backend
def test_parameters_with_gradients_only_now_and_then(name, backend):
    def scenario(make):
        optimizer = make(parameters(*[(3,)] * 4), lr=1e-2, weight_decay=0.1)
        for t in range(12):
            feed(optimizer, t)
            for i, p in enumerate(params_of(optimizer)):
                if t % (i + 1) != 0 or i == 3:
                    p.grad = None
            optimizer.step()
        p = params_of(optimizer)
        assert [optimizer.state[x]["step"].item() for x in p[:3]] == [12, 6, 4]
        assert p[3] not in optimizer.state
        return values(optimizer)

    with use_backend(backend):
        assert_same_training(name, scenario)


@names
@each_backend
def test_no_gradients_at_all(name, backend):
    optimizer = OURS[name](parameters())
    before = values(optimizer)
    with use_backend(backend):
        optimizer.step()
        optimizer.step()
    assert len(optimizer.state) == 0
    assert_trained_alike(values(optimizer), before, rtol=0, atol=0)


@names
@each_backend
def test_gradient_that_is_part_of_a_graph(name, backend):
    """backward(create_graph=True) leaves gradients that require grad; step() records nothing."""

    def scenario(make):
        model = network()
        optimizer = make(model.parameters(), lr=1e-2)
        for t in range(3):
            loss_of(model, t).backward(create_graph=True)
            optimizer.step()
            optimizer.zero_grad()
        assert all(p.is_leaf for p in model.parameters())
        return values(optimizer)

    with use_backend(backend), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Using backward.. with create_graph")
        assert_same_training(name, scenario)


@names
@pytest.mark.parametrize("set_to_none", (True, False))
def test_zero_grad(name, set_to_none):
    def scenario(make):
        model = network()
        optimizer = make(model.parameters(), lr=1e-2)
        for t in range(4):
            optimizer.zero_grad(set_to_none=set_to_none)
            loss_of(model, t).backward()
            optimizer.step()
        optimizer.zero_grad(set_to_none=set_to_none)
        for p in model.parameters():
            assert p.grad is None if set_to_none else torch.count_nonzero(p.grad) == 0
        optimizer.step()
        return values(optimizer)

    assert_same_training(name, scenario)


# --- hooks, closures, profiler ------------------------------------------------------------------------------
@names
def test_hooks_run_around_a_step_in_torchs_order(name):
    def scenario(make):
        optimizer, log = make(parameters(), lr=1e-2), []

        def note(what):
            def hook(seen, args, kwargs):
                assert seen is optimizer
                log.append((what, args[1:], dict(kwargs), params_of(seen)[0].detach().clone().tolist()))

            return hook

        handles = [
            optimizer.register_step_post_hook(note("post")),
            optimizer.register_step_pre_hook(note("pre")),
            register_optimizer_step_pre_hook(note("global pre")),
            register_optimizer_step_post_hook(note("global post")),
        ]
        try:
            feed(optimizer, 0)
            optimizer.step()
            handles[0].remove()
            feed(optimizer, 1)
            optimizer.step(closure=None)
        finally:
            for handle in handles:
                handle.remove()
        before = len(log)
        optimizer.step()
        assert len(log) == before == 7
        return log

    ours, theirs = both(name, scenario)
    assert [entry[:3] for entry in ours] == [entry[:3] for entry in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert a[3] == pytest.approx(b[3], rel=1e-6)


@names
def test_pre_hook_may_replace_the_arguments(name):
    optimizer = OURS[name](parameters())
    optimizer.register_step_pre_hook(lambda o, args, kwargs: ((args[0], lambda: 42), kwargs))
    assert optimizer.step() == 42


@names
def test_hook_may_change_gradients(name):
    def clip(optimizer, args, kwargs):
        for p in params_of(optimizer):
            p.grad.clamp_(-0.1, 0.1)

    def scenario(make):
        optimizer = make(parameters(), lr=1e-2)
        optimizer.register_step_pre_hook(clip)
        return trained(optimizer)

    assert_same_training(name, scenario)


@names
@each_backend
def test_closure(name, backend):
    def scenario(make):
        model = network()
        optimizer, losses = make(model.parameters(), lr=1e-2), []

        def closure():
            assert torch.is_grad_enabled()
            optimizer.zero_grad()
            loss = loss_of(model)
            loss.backward()
            return loss

        with torch.no_grad():
            for _ in range(3):
                losses.append(optimizer.step(closure).detach())
        assert optimizer.step() is None
        return values(optimizer) + losses

    with use_backend(backend):
        assert_same_training(name, scenario)


@names
@pytest.mark.parametrize("mode", ("no_grad", "enable_grad", "inference_mode"))
def test_grad_modes(name, mode):
    def scenario(make):
        optimizer = make(parameters(), lr=1e-2)
        for t in range(3):
            feed(optimizer, t)
            with getattr(torch, mode)():
                before = torch.is_grad_enabled()
                optimizer.step()
                assert torch.is_grad_enabled() == before
        return values(optimizer)

    assert_same_training(name, scenario)


@names
def test_profiler_names(name):
    optimizer = OURS[name](parameters())
    feed(optimizer, 0)
    with torch.autograd.profiler.profile() as profile:
        optimizer.step()
        optimizer.zero_grad()
    seen = [event.name for event in profile.function_events]
    cls = TORCH[name].__name__
    assert seen.count(f"Optimizer.step#{cls}.step") == 1
    assert seen.count(f"Optimizer.zero_grad#{cls}.zero_grad") == 1


@names
def test_subclass_that_calls_super(name):
    class Mine(OURS[name]):
        def step(self, closure=None):
            for group in self.param_groups:
                group["lr"] *= 0.5
            return super().step(closure)

    optimizer, plain = Mine(parameters(), lr=1e-2), OURS[name](parameters(), lr=5e-3)
    for o in (optimizer, plain):
        feed(o, 0)
        o.step()
    assert_trained_alike(values(optimizer), values(plain), rtol=0, atol=0)


# --- copies -------------------------------------------------------------------------------------------------
def through_pickle(o):
    return pickle.loads(pickle.dumps(o))


def through_torch_save(o):
    buffer = io.BytesIO()
    torch.save(o, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@names
@pytest.mark.parametrize("copied", (copy.deepcopy, through_pickle, through_torch_save))
def test_a_copy_goes_on_bit_for_bit(name, copied):
    optimizer = OURS[name](parameters(), lr=1e-2, weight_decay=0.1, amsgrad=True)
    train(optimizer, 4)
    other = copied(optimizer)
    assert all(a is not b for a, b in zip(params_of(optimizer), params_of(other), strict=True))
    at_copy = values(other)
    train(optimizer, range(4, 8))
    assert_trained_alike(values(other), at_copy, rtol=0, atol=0)
    train(other, range(4, 8))
    assert_trained_alike(values(other), values(optimizer), rtol=0, atol=0)


@names
def test_a_model_and_its_optimizer_copied_together(name):
    def scenario(make):
        model = network()
        optimizer = make(model.parameters(), lr=1e-2)
        loss_of(model).backward()
        optimizer.step()
        model, optimizer = copy.deepcopy((model, optimizer))
        for t in range(3):
            optimizer.zero_grad()
            loss_of(model, t).backward()
            optimizer.step()
        return [p.detach() for p in model.parameters()]

    assert_same_training(name, scenario)


# --- what no kernel of ours serves --------------------------------------------------------------------------
@names
@pytest.mark.parametrize("amsgrad", (False, True), ids=("plain", "amsgrad"))
def test_differentiable(name, amsgrad):
    """The gradient of a loss after some steps with respect to the start and to the gradients of the steps."""

    def scenario(make):
        start = randn(5, dtype=torch.float64).requires_grad_()
        grads = [randn(5, seed=t, dtype=torch.float64).requires_grad_() for t in (1, 2)]
        p = start.clone()
        optimizer = make([p], lr=1e-2, weight_decay=0.1, amsgrad=amsgrad, differentiable=True)
        for g in grads[:1] if amsgrad else grads:  # torch's second step with amsgrad breaks the graph
            p.grad = g
            optimizer.step()
        (p**2).sum().backward()
        return [p.detach(), start.grad, grads[0].grad]

    ours, theirs = both(name, scenario)
    assert all(g.abs().max() > 0 for g in theirs)
    assert_trained_alike(ours, theirs, rtol=1e-12, atol=0)


@names
@pytest.mark.parametrize("amsgrad", (False, True), ids=("plain", "amsgrad"))
def test_complex_parameters(name, amsgrad):
    dtypes = (torch.complex64, torch.float32)

    def scenario(make):
        params = [torch.nn.Parameter(randn(4, seed=i, dtype=d)) for i, d in enumerate(dtypes)]
        return trained(make(params, lr=1e-2, weight_decay=0.1, amsgrad=amsgrad))

    assert_same_training(name, scenario)


@names
def test_mixed_dtypes_in_one_group(name):
    dtypes = (torch.float32, torch.float64, torch.complex64, torch.float32)

    def scenario(make):
        params = [torch.nn.Parameter(randn(4, seed=i, dtype=d)) for i, d in enumerate(dtypes)]
        return trained(make(params, lr=1e-2, weight_decay=0.1))

    assert_same_training(name, scenario)


@names
def test_a_parameter_listed_twice(name):
    """torch warns, and steps it twice."""

    def scenario(make):
        (p,) = parameters((5,))
        with pytest.warns(UserWarning, match="duplicate parameters"):
            optimizer = make([p, p], lr=1e-2)
        for t in range(3):
            p.grad = randn(5, seed=t)
            optimizer.step()
        return [p.detach(), optimizer.state[p]["step"]]

    assert_same_training(name, scenario)


@each_backend
@pytest.mark.parametrize("groups", (1, 2))
def test_two_parameters_over_the_same_memory(backend, groups, name="adam"):
    """torch steps one after the other; side by side they lose each other's work. An error will do too."""

    def scenario(make):
        memory = torch.zeros(2**20)
        p = [torch.nn.Parameter(memory) for _ in range(2)]
        optimizer = make([{"params": p[:1]}, {"params": p[1:]}] if groups == 2 else p, lr=1e-2)
        for _ in range(4):
            for x in p:
                x.grad = torch.ones_like(x)
            optimizer.step()
        return [memory]

    with use_backend(backend), threads(2):
        ours = outcome(lambda: scenario(OURS[name]))
    if ours[0] is RuntimeError:
        assert "params[1] is the same memory as params[0]" in ours[1]
    else:
        assert_trained_alike(ours, scenario(make_torch(name)))


@names
@each_backend
def test_sparse_gradients_raise_and_change_nothing(name, backend):
    def scenario(make):
        embedding = torch.nn.Embedding(5, 3, sparse=True)
        embedding.weight.data = randn(5, 3)
        (dense,) = parameters((4,))
        optimizer = make([dense, *embedding.parameters()], lr=1e-2)
        feed(optimizer, 0)
        optimizer.step()
        before = values(optimizer)
        dense.grad, embedding.weight.grad = randn(4), None
        embedding(torch.tensor([1, 2])).sum().backward()
        with pytest.raises(RuntimeError, match="does not support sparse gradients"):
            optimizer.step()
        assert_trained_alike(values(optimizer), before, rtol=0, atol=0)
        assert [optimizer.state[p]["step"].item() for p in params_of(optimizer)] == [1, 1]
        embedding.weight.grad = None
        train(optimizer, range(1, 3))
        return values(optimizer)

    with use_backend(backend):
        assert_same_training(name, scenario)


# --- memory replaced in mid-training ------------------------------------------------------------------------
@names
@each_backend
@pytest.mark.parametrize("kind", ("same layout", "channels_last", "sliced"))
def test_data_replaced_in_mid_training(name, backend, kind):
    def scenario(make):
        optimizer = make(parameters((2, 3, 4, 4), (5,)), lr=1e-2)
        train(optimizer, 3)
        p, old = params_of(optimizer)[0], params_of(optimizer)[0].data
        new = randn(2, 3, 4, 4, seed=77)
        if kind == "channels_last":
            new = new.to(memory_format=torch.channels_last)
        elif kind == "sliced":
            new = randn(2, 3, 4, 8, seed=77)[..., ::2]
        kept = old.clone()
        p.data = new
        train(optimizer, range(3, 6))
        assert torch.equal(old, kept)
        assert p.data_ptr() == new.data_ptr()
        return values(optimizer)

    with use_backend(backend):
        assert_same_training(name, scenario)


@names
@each_backend
@pytest.mark.parametrize("key", ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "step"))
def test_state_entry_replaced_in_mid_training(name, backend, key):
    def scenario(make):
        optimizer = make(parameters(), lr=1e-2, amsgrad=True)
        train(optimizer, 3)
        state = optimizer.state[params_of(optimizer)[0]]
        old = state[key]
        state[key] = old + 1
        kept = old.clone()
        train(optimizer, range(3, 6))
        assert torch.equal(old, kept)
        return [*values(optimizer), state[key]]

    with use_backend(backend):
        assert_same_training(name, scenario)


@names
@each_backend
@pytest.mark.parametrize("how", ("clear", "one cleared", "one removed", "one emptied"))
def test_state_cleared_in_mid_training(name, backend, how):
    def scenario(make):
        optimizer = make(parameters(), lr=1e-2)
        train(optimizer, 3)
        first = params_of(optimizer)[0]
        if how == "clear":
            optimizer.state.clear()
        elif how == "one cleared":
            optimizer.state[first].clear()
        elif how == "one removed":
            del optimizer.state[first]
        else:
            optimizer.state[first] = {}
        train(optimizer, range(3, 6))
        assert optimizer.state[first]["step"].item() == 3
        return values(optimizer)

    with use_backend(backend):
        assert_same_training(name, scenario)


@names
@needs_cpp
def test_backend_switched_in_mid_training_and_back(name):
    plain, switched = (OURS[name](parameters(), lr=1e-2, weight_decay=0.1, amsgrad=True) for _ in range(2))
    train(plain, 12)
    train(switched, 4)
    with use_backend("reference"):
        train(switched, range(4, 8))
    train(switched, range(8, 12))
    assert_trained_alike(values(switched), values(plain), rtol=1e-6, atol=1e-7)
    assert backends.backend_of("cpu") == "cpp"


# --- tensor subclasses --------------------------------------------------------------------------------------
class Tagged(torch.Tensor):
    """A subclass without a dispatch of its own."""


class TaggedParameter(torch.nn.Parameter):
    """A subclass of Parameter."""


@names
@each_backend
@pytest.mark.parametrize("kind", ("tensor", "parameter", "gradient"))
def test_plain_tensor_subclasses(name, backend, kind):
    def scenario(make):
        x = randn(5)
        p = {
            "tensor": lambda: torch.nn.Parameter(x.as_subclass(Tagged)),
            "parameter": lambda: TaggedParameter(x),
            "gradient": lambda: torch.nn.Parameter(x),
        }[kind]()
        optimizer = make([p], lr=1e-2)
        for t in range(3):
            g = randn(5, seed=t)
            p.grad = g.as_subclass(Tagged) if kind == "gradient" else g
            optimizer.step()
        return [p.detach().as_subclass(torch.Tensor), optimizer.state[p]["exp_avg"].as_subclass(torch.Tensor)]

    with use_backend(backend):
        assert_same_training(name, scenario)


@names
@each_backend
def test_plan_op_and_torch_in_one_optimizer(name, backend):
    """Groups of plain parameters, of a subclass, and of complex ones, each of which takes another way."""

    def scenario(make):
        plain, other = parameters((5,), (3, 4))
        tagged = torch.nn.Parameter(randn(6, seed=5).as_subclass(Tagged))
        wide = torch.nn.Parameter(randn(4, seed=6, dtype=torch.complex64))
        groups = [{"params": [p]} for p in (plain, tagged, wide, other)]
        optimizer = make(groups, lr=1e-2, weight_decay=0.1)
        train(optimizer, 4)
        assert all(optimizer.state[p]["step"].item() == 4 for p in params_of(optimizer))
        return [p.as_subclass(torch.Tensor) for p in values(optimizer)]

    with use_backend(backend):
        assert_same_training(name, scenario)


@names
@each_backend
def test_wrapper_subclass_of_two_tensors(name, backend):
    """An op on it runs once for each inner tensor; a step counter beside it may still only count once."""
    from torch.testing._internal import two_tensor

    def scenario(make):
        p = torch.nn.Parameter(two_tensor.TwoTensor(randn(5, seed=1), randn(5, seed=2)))
        optimizer = make([p], lr=1e-2)
        for t in range(3):
            p.grad = two_tensor.TwoTensor(randn(5, seed=t), randn(5, seed=t))
            optimizer.step()
        inner = p.detach()
        return [inner.a, inner.b, optimizer.state[p]["step"]]

    with use_backend(backend):
        assert_same_training(name, scenario)


def negative(seed):
    """A tensor whose sign stands in its negative bit, not in memory: the imaginary part of a conjugate."""
    x = torch.complex(randn(5, seed=seed), randn(5, seed=seed + 1)).conj().imag
    assert x.is_neg()
    return x


@names
@each_backend
def test_gradients_with_the_negative_bit(name, backend):
    def scenario(make):
        p = torch.nn.Parameter(randn(5))
        optimizer = make([p], lr=1e-2)
        for t in range(3):
            p.grad = negative(10 + t)
            optimizer.step()
        return [p.detach()]

    with use_backend(backend):
        assert_same_training(name, scenario)


@names
@each_backend
def test_parameters_with_the_negative_bit(name, backend):
    """As torch steps them, or an error (torch's own fallback has one for lists): not a wrong sign."""

    def scenario(make):
        p = torch.nn.Parameter(negative(1))
        optimizer = make([p], lr=1e-2)
        train(optimizer, 3)
        return [p.detach().resolve_neg()]

    with use_backend(backend):
        ours = outcome(lambda: scenario(OURS[name]))
    if ours[0] is not RuntimeError:
        assert_trained_alike(ours, scenario(make_torch(name)))


# --- loss scaling -------------------------------------------------------------------------------------------
def scaled_training(optimizer, unscale_first=False):
    """Six steps under a GradScaler, of which the first and the fourth overflow."""
    params = params_of(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    for t in range(6):
        factors = [randn(*p.shape, seed=10 * t + i, dtype=p.dtype) for i, p in enumerate(params)]
        loss = sum((p * f).abs().sum() for p, f in zip(params, factors, strict=True))
        scaler.scale(loss * (float("inf") if t in (0, 3) else 1.0)).backward()
        if unscale_first:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(params, 0.5)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    steps = [optimizer.state[p]["step"].float() for p in params]
    return [*values(optimizer), *steps, torch.tensor(scaler.get_scale())]


@names
@each_backend
@pytest.mark.parametrize("unscale_first", (False, True), ids=("plain", "unscaled and clipped first"))
@pytest.mark.parametrize("fused", (None, True))
def test_grad_scaler(name, backend, fused, unscale_first):
    """fused=True makes GradScaler leave unscaling and skipping to the optimizer."""
    with use_backend(backend):
        ours = scaled_training(OURS[name](parameters(), lr=1e-2, fused=fused), unscale_first)
    assert_trained_alike(ours, scaled_training(make_torch(name)(parameters(), lr=1e-2), unscale_first))


@names
@pytest.mark.parametrize("kind", ("shared memory", "subclass"))
def test_grad_scaler_where_no_plan_runs(name, kind):
    def make(cls, **options):
        first, second = parameters((5,), (3, 4))
        third = {
            "shared memory": lambda: torch.nn.Parameter(second.data),
            "subclass": lambda: torch.nn.Parameter(randn(4).as_subclass(Tagged)),
        }[kind]()
        return cls([{"params": [first]}, {"params": [second, third]}], lr=1e-2, **options)

    ours, theirs = scaled_training(make(OURS[name], fused=True)), scaled_training(make(make_torch(name)))
    assert_trained_alike(*([t.as_subclass(torch.Tensor) for t in side] for side in (ours, theirs)))


# --- process-wide settings ----------------------------------------------------------------------------------
@names
@each_backend
def test_default_dtype_float64(name, backend):
    def scenario(make):
        optimizer = make(parameters(), lr=1e-2)
        train(optimizer, 3)
        assert optimizer.state[params_of(optimizer)[0]]["step"].dtype == torch.float64
        return values(optimizer)

    torch.set_default_dtype(torch.float64)
    try:
        with use_backend(backend):
            assert_same_training(name, scenario)
    finally:
        torch.set_default_dtype(torch.float32)


@names
def test_hooks_run_once_for_a_subclass_with_a_step_of_its_own(name):
    class Counting(OURS[name]):
        def step(self, closure=None):
            return super().step(closure)

    (p,) = parameters((5,))
    optimizer, calls = Counting([p]), []
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    p.grad = torch.ones(5)
    before = p.detach().clone()
    optimizer.step()
    assert calls == ["pre", "post"]
    assert not torch.equal(p, before)
