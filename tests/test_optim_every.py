"""SGD, RMSprop, Adagrad and Lion among torch's surroundings, as test_optim_torch.py has Adam and AdamW."""

import copy
import inspect
import io
import pickle
import warnings

import pytest
import torch
from onepass import use_backend
from onepass.optim.phase import Phase
from optim_helpers import assert_trained_alike, each_backend, feed, params_of, randn, train, values
from phase_helpers import KINDS, PlainLion
from torch.optim import lr_scheduler, swa_utils

OTHERS = [kind for kind in KINDS if not kind.startswith("adam")]
OF_TORCH = {KINDS[kind].theirs.__name__: kind for kind in OTHERS if kind != "lion"}

others = pytest.mark.parametrize("kind", OTHERS)
of_torch = pytest.mark.parametrize("kind", OF_TORCH.values(), ids=OF_TORCH)


def parameters(*shapes, dtype=torch.float32):
    shapes = shapes or ((5,), (3, 4), ())
    return [torch.nn.Parameter(randn(*shape, seed=i, dtype=dtype)) for i, shape in enumerate(shapes)]


def assert_same_training(kind, scenario, **tolerance):
    """The scenario returns as much with our optimizer as with torch's."""
    ours, theirs = (scenario(make) for make in (KINDS[kind].make, KINDS[kind].make_torch))
    assert_trained_alike(ours, theirs, **tolerance)


def outcome(call):
    try:
        return call()
    except Exception as error:
        return type(error), str(error)


# --- constructor --------------------------------------------------------------------------------------------
@of_torch
@pytest.mark.parametrize("method", ("__init__", "step", "zero_grad", "add_param_group", "load_state_dict"))
def test_signatures_are_torchs(kind, method):
    ours, theirs = (
        [(p.name, p.kind, p.default) for p in inspect.signature(getattr(cls, method)).parameters.values()]
        for cls in (KINDS[kind].ours, KINDS[kind].theirs)
    )
    # torch's RMSprop and Adagrad take by position what comes before ours, which are by keyword only.
    assert ours[: len(theirs)] == theirs
    more = {name: default for name, _, default in ours[len(theirs) :]}
    assert more == (Phase.arguments() if method == "__init__" else {})


@of_torch
def test_defaults_and_groups_are_torchs(kind):
    ours, theirs = KINDS[kind].ours(parameters()), KINDS[kind].theirs(parameters())
    assert isinstance(ours, KINDS[kind].theirs)
    assert ours.defaults == theirs.defaults and list(ours.defaults) == list(theirs.defaults)
    assert repr(ours) == repr(theirs)


BAD = {
    "sgd": ({"momentum": -0.1}, {"nesterov": True}, {"nesterov": True, "momentum": 0.9, "dampening": 0.1}),
    "rmsprop": ({"alpha": -0.1}, {"eps": -1.0}, {"momentum": -0.1}),
    "adagrad": ({"lr_decay": -0.1}, {"eps": -1.0}, {"initial_accumulator_value": -1.0}),
}
BAD_FOR_ALL = (
    {"lr": -1.0},
    {"lr": torch.tensor([1e-3, 1e-3])},
    {"weight_decay": -0.1},
    {"learning_rate": 1e-3},
    {"foreach": True, "differentiable": True},
)
WRONG = [(kind, options) for kind in BAD for options in (*BAD[kind], *BAD_FOR_ALL)]


@pytest.mark.parametrize("kind, options", WRONG, ids=lambda x: x if isinstance(x, str) else "-".join(x))
def test_wrong_arguments_do_what_they_do_in_torch(kind, options):
    classes = (KINDS[kind].ours, KINDS[kind].theirs)
    ours, theirs = (outcome(lambda cls=cls: cls(parameters(), **options)) for cls in classes)
    if isinstance(theirs, tuple):
        assert ours == theirs
    else:
        assert repr(ours) == repr(theirs)


# --- learning rates, averages of a model --------------------------------------------------------------------
SCHEDULERS = {
    "constant": lambda o: lr_scheduler.ConstantLR(o, factor=0.3, total_iters=7),
    "exponential": lambda o: lr_scheduler.ExponentialLR(o, gamma=0.9),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=20),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.02, total_steps=20, cycle_momentum=_cycles(o)),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 1e-3, 0.02, step_size_up=5, cycle_momentum=_cycles(o)),
}


def _cycles(optimizer):
    """Is there momentum, or are there betas, to be written by a scheduler?"""
    return "betas" in optimizer.defaults or bool(optimizer.defaults.get("momentum"))


@others
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_schedulers(kind, scheduler):
    def scenario(make):
        optimizer = make(parameters(), weight_decay=0.1)
        schedule, written = SCHEDULERS[scheduler](optimizer), []
        for t in range(20):
            feed(optimizer, t)
            optimizer.step()
            schedule.step()
            group = optimizer.param_groups[0]
            momentum = group.get("betas", (group.get("momentum", 0.0),))
            written.append([float(group["lr"]), *map(float, momentum)])
        assert len({tuple(row) for row in written}) >= 2
        return [*values(optimizer), torch.tensor(written)]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same_training(kind, scenario)


@others
@each_backend
def test_lr_as_a_tensor_under_a_scheduler(kind, backend):
    def scenario(make):
        lr = torch.tensor(0.02)
        optimizer = make(parameters(), lr=lr)
        schedule = lr_scheduler.ExponentialLR(optimizer, gamma=0.8)
        for t in range(6):
            feed(optimizer, t)
            optimizer.step()
            schedule.step()
        assert optimizer.param_groups[0]["lr"] is lr
        return values(optimizer)

    with use_backend(backend):
        assert_same_training(kind, scenario)


@others
def test_averages_of_a_model_by_swa_utils(kind):
    def scenario(make):
        torch.manual_seed(0)
        model = torch.nn.Linear(6, 2)
        optimizer = make(model.parameters())
        average, schedule = swa_utils.AveragedModel(model), swa_utils.SWALR(optimizer, swa_lr=0.02)
        for t in range(8):
            optimizer.zero_grad()
            ((model(randn(10, 6, seed=t)) - 1) ** 2).mean().backward()
            optimizer.step()
            if t >= 4:
                average.update_parameters(model)
                schedule.step()
        return [p.detach() for p in average.parameters()]

    assert_same_training(kind, scenario)


# --- state_dict, copies -------------------------------------------------------------------------------------
def saved(state_dict):
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def through_pickle(optimizer):
    return pickle.loads(pickle.dumps(optimizer))


def hand_over(source, make):
    """A new optimizer with copies of the parameters of source, which has loaded its state_dict."""
    other = make([torch.nn.Parameter(p.detach().clone()) for p in params_of(source)], lr=7.0)
    other.load_state_dict(saved(source.state_dict()))
    return other


@others
@pytest.mark.parametrize("steps", (0, 1, 3))
def test_state_dict_has_torchs_form(kind, steps):
    """Groups, keys and their order, dtypes, shapes; values within the rounding of a few steps."""
    dicts = []
    for make in (KINDS[kind].make, KINDS[kind].make_torch):
        optimizer = make(parameters())
        train(optimizer, steps)
        dicts.append(optimizer.state_dict())
    ours, theirs = dicts
    if kind != "lion":
        foreach = [{**group, "foreach": False} for group in ours["param_groups"]]
        assert foreach == theirs["param_groups"]
        assert list(ours["param_groups"][0]) == list(theirs["param_groups"][0])
    assert list(ours["state"]) == list(theirs["state"])
    for i, state in theirs["state"].items():
        assert list(ours["state"][i]) == list(state)
        for key, value in state.items():
            mine = ours["state"][i][key]
            if value is None:
                assert mine is None
                continue
            assert (mine.dtype, mine.shape, mine.device) == (value.dtype, value.shape, value.device)
            torch.testing.assert_close(mine, value, rtol=1e-5, atol=1e-7)


@others
@pytest.mark.parametrize("ways", ("otot", "toot"))
@pytest.mark.parametrize("at_once", (True, False), ids=("all", "now and then"))
def test_training_handed_to_and_fro(kind, ways, at_once):
    """o: some steps of ours, t: some of torch's, a state_dict between them; against torch all the way.
    Now and then: the last parameter has its first gradient, and its first momentum, only later."""
    makers = {"o": KINDS[kind].make, "t": KINDS[kind].make_torch}

    def steps(optimizer, some):
        for t in some:
            feed(optimizer, t)
            if not at_once and t < 5:
                params_of(optimizer)[-1].grad = None
            optimizer.step()

    whole = makers["t"](parameters())
    steps(whole, range(3 * len(ways)))
    optimizer = makers[ways[0]](parameters())
    for i, way in enumerate(ways):
        if i:
            optimizer = hand_over(optimizer, makers[way])
        steps(optimizer, range(3 * i, 3 * i + 3))
    assert_trained_alike(values(optimizer), values(whole))


@pytest.mark.parametrize("kind", ("sgd_nesterov", "sgd_dampening"))
@pytest.mark.parametrize("how", ("None", "missing"))
def test_a_momentum_buffer_that_has_had_no_step(kind, how):
    """torch writes None, and older files nothing; the next step is then the buffer's first."""

    def scenario(make):
        source = KINDS[kind].make_torch(parameters())
        train(source, 2)
        whole = saved(source.state_dict())
        if how == "None":
            whole["state"][1]["momentum_buffer"] = None
        else:
            whole["state"][1] = {}
        optimizer = make([torch.nn.Parameter(p.detach().clone()) for p in params_of(source)])
        optimizer.load_state_dict(whole)
        train(optimizer, range(2, 6))
        return values(optimizer)

    assert_same_training(kind, scenario)


@others
@pytest.mark.parametrize("copied", (copy.deepcopy, through_pickle))
def test_a_copy_goes_on_bit_for_bit(kind, copied):
    optimizer = KINDS[kind].make(parameters(), max_grad_norm=2.0, l1=0.01, ema_decay=0.9)
    train(optimizer, 3)
    other = copied(optimizer)
    for o in (optimizer, other):
        train(o, range(3, 6))
    assert_trained_alike(values(other), values(optimizer), rtol=0, atol=0)
    averages = (list(o.ema_parameters()) for o in (other, optimizer))
    assert all(torch.equal(a, b) for a, b in zip(*averages, strict=True))


# --- in mid-training ----------------------------------------------------------------------------------------
def add_a_group(optimizer):
    optimizer.add_param_group({"params": parameters((2, 3)), "lr": 0.02})


def load_a_state(optimizer):
    optimizer.load_state_dict(saved(optimizer.state_dict()))


def replace_data(optimizer):
    p = params_of(optimizer)[1]
    p.data = p.data.t().contiguous().t() * 0.5


def clear_a_state(optimizer):
    optimizer.state.pop(params_of(optimizer)[0], None)


def change_options(optimizer):
    optimizer.param_groups[0].update(lr=0.02, weight_decay=0.2)


@others
@each_backend
@pytest.mark.parametrize("change", (add_a_group, load_a_state, replace_data, change_options))
def test_changes_in_mid_training(kind, backend, change):
    def scenario(make):
        optimizer = make(parameters())
        train(optimizer, 3)
        change(optimizer)
        train(optimizer, range(3, 7))
        return values(optimizer)

    with use_backend(backend):
        assert_same_training(kind, scenario)


@pytest.mark.parametrize("kind", [kind for kind in OTHERS if kind != "adagrad"])
def test_a_state_cleared_in_mid_training(kind):
    """torch's Adagrad makes its states in the constructor, and cannot go on."""

    def scenario(make):
        optimizer = make(parameters())
        train(optimizer, 3)
        clear_a_state(optimizer)
        train(optimizer, range(3, 7))
        return values(optimizer)

    assert_same_training(kind, scenario)


@others
@each_backend
def test_gradients_only_now_and_then(kind, backend):
    def scenario(make):
        optimizer = make(parameters(*[(3,)] * 4), weight_decay=0.1)
        for t in range(12):
            feed(optimizer, t)
            for i, p in enumerate(params_of(optimizer)):
                if t % (i + 1) != 0 or i == 3:
                    p.grad = None
            optimizer.step()
        return values(optimizer)

    with use_backend(backend):
        assert_same_training(kind, scenario)


# --- hooks, closures, profiler, compile ---------------------------------------------------------------------
@others
def test_hooks_and_closures(kind):
    def scenario(make):
        optimizer, log = make(parameters()), []
        optimizer.register_step_pre_hook(lambda o, args, kwargs: log.append(0.0))
        optimizer.register_step_post_hook(lambda o, args, kwargs: log.append(1.0))

        def closure():
            assert torch.is_grad_enabled()
            optimizer.zero_grad()
            loss = sum((p**2).sum() for p in params_of(optimizer))
            loss.backward()
            return loss

        with torch.no_grad():
            losses = [optimizer.step(closure).detach() for _ in range(3)]
        return [*values(optimizer), *losses, torch.tensor(log)]

    assert_same_training(kind, scenario)


@of_torch
def test_profiler_names(kind):
    optimizer = KINDS[kind].make(parameters())
    feed(optimizer, 0)
    with torch.autograd.profiler.profile() as profile:
        optimizer.step()
    seen = [event.name for event in profile.function_events]
    assert seen.count(f"Optimizer.step#{KINDS[kind].theirs.__name__}.step") == 1


@others
def test_a_compiled_step_is_torchs(kind):
    torch._dynamo.reset()

    def scenario(make):
        optimizer = make(parameters(), weight_decay=0.1)
        ours = make == KINDS[kind].make
        step = torch.compile(optimizer.step, backend="aot_eager") if ours else optimizer.step
        for t in range(4):
            feed(optimizer, t)
            step()
        return values(optimizer)

    assert_same_training(kind, scenario)


# --- what no kernel of ours serves --------------------------------------------------------------------------
@of_torch
def test_complex_parameters_beside_real_ones(kind):
    def scenario(make):
        params = [torch.nn.Parameter(randn(4, dtype=dtype)) for dtype in (torch.complex64, torch.float32)]
        optimizer = make([{"params": [p]} for p in params], weight_decay=0.1)
        train(optimizer, 4)
        return values(optimizer)

    assert_same_training(kind, scenario)


@of_torch
def test_differentiable(kind):
    def scenario(make):
        start = randn(5, dtype=torch.float64).requires_grad_()
        g = randn(5, seed=1, dtype=torch.float64).requires_grad_()
        p = start.clone()
        optimizer = make([p], weight_decay=0.1, differentiable=True)
        p.grad = g
        optimizer.step()
        (p**2).sum().backward()
        return [p.detach(), start.grad, g.grad]

    assert_same_training(kind, scenario, rtol=1e-12, atol=0)


def sparse_training(make, **options):
    embedding = torch.nn.Embedding(5, 3, sparse=True)
    embedding.weight.data = randn(5, 3)
    (dense,) = parameters((4,))
    optimizer = make([dense, *embedding.parameters()], **options)
    for t in range(4):
        optimizer.zero_grad()
        (embedding(torch.tensor([t, 4])) * randn(2, 3, seed=t)).sum().backward()
        dense.grad = randn(4, seed=t)
        optimizer.step()
    return values(optimizer)


@pytest.mark.parametrize("kind", ("sgd", "sgd_momentum", "adagrad"))
@each_backend
def test_sparse_gradients(kind, backend):
    options = {"momentum": 0.9} if kind == "sgd_momentum" else {}
    kind = "sgd" if kind == "sgd_momentum" else kind
    with use_backend(backend):
        assert_same_training(kind, lambda make: sparse_training(make, **options))


@pytest.mark.parametrize("kind", ("rmsprop", "lion"))
@each_backend
def test_sparse_gradients_are_refused(kind, backend):
    with use_backend(backend), pytest.raises(RuntimeError, match="does not support sparse gradients"):
        sparse_training(KINDS[kind].make)


def test_plain_lion_is_an_optimizer_too():
    """The oracle of Lion's tests moves its parameters."""
    optimizer = PlainLion(parameters(), lr=0.1)
    before = values(optimizer)
    train(optimizer, 1)
    assert all((a - b).abs().min() > 0.09 for a, b in zip(values(optimizer), before, strict=True))
