"""What a step does on the host: it waits for no device, allocates nothing, and reads its options anew."""

import collections
import math

import pytest
import torch
from onepass import backends, use_backend
from onepass.ops import BY_NAME
from onepass.testing.threads import threads
from optim_helpers import each_backend, frozen, needs_cpp, params_of
from phase_helpers import (
    KINDS,
    CallByCall,
    assert_trained,
    each_kind,
    few_kinds,
    give,
    gradients,
    hand_in,
    parameters,
    three_groups,
)
from torch.utils._python_dispatch import TorchDispatchMode

WAITS = (
    "_local_scalar_dense",
    "item",
    "is_nonzero",
    "nonzero",
    "equal",
    "masked_select",
    "unique",
    "_unique2",
)
PHASES = {
    "plain": {},
    "clip": {"max_grad_norm": 1.0},
    "measure": {"max_grad_norm": math.inf},
    "l1": {"l1": 0.1},
    "ema": {"ema_decay": 0.9},
    "zero": {"zero_grads_in_step": True},
    "write": {"write_grads": True},
    "bf16": {"state": "bf16"},
    "all": {"max_grad_norm": 1.0, "l1": 0.1, "ema_decay": 0.9, "write_grads": True, "state": "bf16"},
}
each_phase = pytest.mark.parametrize("phase", PHASES)


class Watch(TorchDispatchMode):
    """Counts the calls that reach the dispatcher, those within an op of ours included."""

    def __init__(self):
        super().__init__()
        self.calls = collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        space, name = func._schema.name.split("::")
        self.calls[name] += 1
        if space == "onepass" and name in BY_NAME:
            with self:  # a mode does not see what a kernel calls: call the reference in its place
                return backends.target(BY_NAME[name].reference)(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def warmed_up(kind, **options):
    optimizer = KINDS[kind].make(three_groups(parameters()), **options)
    for t in range(2):
        give(optimizer, gradients(params_of(optimizer), t))
        optimizer.step()
    give(optimizer, gradients(params_of(optimizer), 2))
    return optimizer


# --- no wait, no allocation ---------------------------------------------------------------------------------
def test_what_a_watch_sees():
    """A value that is asked for, in torch and within an op of ours."""
    with Watch() as watch:
        torch.ones(1).item()
    assert watch.calls["_local_scalar_dense"] == 1
    with Watch() as watch:
        torch.ops.onepass.grad_stats([torch.ones(3)])
    assert watch.calls["grad_stats"] == 1 and sum(watch.calls.values()) > 3


@few_kinds
@each_phase
@each_backend
def test_no_way_asks_a_tensor_for_its_value(kind, phase, backend):
    """Neither a plan nor the ops, first steps and skipped ones included: on a GPU each would be a wait."""
    optimizer = KINDS[kind].make(three_groups(parameters()), **PHASES[phase])
    with use_backend(backend):
        for t in range(4):
            give(optimizer, gradients(params_of(optimizer), t))
            hand_in(optimizer, 8.0 if t else None, found_inf=float(t == 2))
            with Watch() as watch:
                optimizer.step()
            assert not [name for name in watch.calls if name in WAITS]


@each_kind
def test_plans_beside_ops_ask_for_no_value(kind):
    """Nor do the tensors that say what a step found."""
    optimizer = KINDS[kind].make(three_groups(parameters()), max_grad_norm=1.0)
    for t in range(4):
        give(optimizer, gradients(params_of(optimizer), t))
        p = params_of(optimizer)[1]
        p.grad = torch._neg_view(-p.grad)
        with Watch() as watch:
            optimizer.step()
            found = optimizer.last_grad_norm, optimizer.last_skipped
        assert not [name for name in watch.calls if name in WAITS]
        assert all(isinstance(x, torch.Tensor) for x in found)


@each_kind
@pytest.mark.parametrize("count", (1, 2))
def test_a_meta_tensor_has_no_value_to_ask_for(kind, count):
    """The way of the ops on a device without memory."""
    params = [torch.nn.Parameter(torch.empty(3, 4, device="meta")) for _ in range(count)]
    optimizer = KINDS[kind].make(params, max_grad_norm=1.0, ema_decay=0.9, zero_grads_in_step=True)
    for _ in range(3):
        for p in params:
            p.grad = torch.empty_like(p)
        optimizer.step()
        assert optimizer.last_grad_norm.device.type == optimizer.last_skipped.device.type == "meta"


@needs_cpp
@each_kind
@each_phase
def test_a_planned_step_makes_no_torch_call_at_all(kind, phase):
    """So it allocates nothing either: what it needs it has from the step before. Scaled or not."""
    optimizer = warmed_up(kind, **PHASES[phase])
    plans = optimizer._plans
    for scale in (None, 8.0):
        hand_in(optimizer, scale)
        with Watch() as watch:
            for _ in range(3):
                optimizer.step()
        assert optimizer._plans is plans
        assert not watch.calls, watch.calls


@needs_cpp
def test_a_plan_outlives_changes_of_hyperparameters_and_phase():
    """What a plan knows does not hang on them; only an average more or less makes a new one."""
    optimizer = warmed_up("adamw")
    plans = optimizer._plans
    for name, value in (("lr", 0.5), ("betas", (0.5, 0.5)), ("weight_decay", 0.3), ("maximize", True)):
        optimizer.param_groups[1][name] = value
        optimizer.step()
    for name, value in (("l1", 0.1), ("max_grad_norm", 1.0), ("write_grads", True), ("max_grad_norm", None)):
        setattr(optimizer, name, value)
        optimizer.step()
    assert optimizer._plans is plans
    optimizer.ema_decay = 0.9
    optimizer.step()
    assert optimizer._plans is not plans


# --- read anew at every step --------------------------------------------------------------------------------
CHANGES = {
    "adam": ({"lr": 1e-3, "betas": (0.5, 0.7)}, {"eps": 0.1, "weight_decay": 0.2}, {"maximize": True}),
    "adamw": ({"lr": 1e-3, "betas": (0.5, 0.7)}, {"eps": 0.1, "weight_decay": 0.2}, {"maximize": True}),
    "sgd_nesterov": (
        {"lr": 1e-3, "momentum": 0.5},
        {"weight_decay": 0.2},
        {"nesterov": False, "maximize": True},
    ),
    "sgd_dampening": ({"dampening": 0.1}, {"momentum": 0.3}, {"maximize": False}),
    "rmsprop_centered": ({"lr": 1e-3, "alpha": 0.9}, {"momentum": 0.5, "eps": 0.1}, {"weight_decay": 0.2}),
    "adagrad": ({"lr": 1e-3, "lr_decay": 0.1}, {"eps": 0.1}, {"weight_decay": 0.2, "maximize": True}),
    "lion": ({"lr": 1e-3, "betas": (0.5, 0.7)}, {"weight_decay": 0.2}, {"maximize": True}),
}


@pytest.mark.parametrize("kind", CHANGES)
@each_backend
def test_options_of_a_group_changed_between_steps_take_effect(kind, backend):
    """In each group on its own, as in torch's optimizer."""
    optimizer = KINDS[kind].make(three_groups(parameters()))
    oracle = CallByCall(kind, optimizer)
    with use_backend(backend):
        for t in range(20):
            if t % 4 == 3 and t // 4 < 3:
                for o in (optimizer, oracle.optimizer):
                    o.param_groups[t // 4].update(CHANGES[kind][t // 4])
            grads = gradients(params_of(optimizer), t)
            give(optimizer, grads)
            oracle.step(grads)
            optimizer.step()
    assert_trained(optimizer, oracle, 20)


@few_kinds
@each_backend
def test_phase_attributes_changed_between_steps_take_effect(kind, backend):
    changes = (
        {"l1": 0.1},
        {"max_grad_norm": 1.0},
        {"l1": 0.0, "max_grad_norm": 3.0},
        {"max_grad_norm": None},
    )
    optimizer = KINDS[kind].make(three_groups(parameters()))
    oracle = CallByCall(kind, optimizer)
    with use_backend(backend):
        for t in range(20):
            if t % 4 == 3 and t // 4 < 4:
                for name, value in changes[t // 4].items():
                    setattr(optimizer, name, value)
                    setattr(oracle, name, value)
            grads = gradients(params_of(optimizer), t)
            give(optimizer, grads)
            oracle.step(grads)
            optimizer.step()
    assert_trained(optimizer, oracle, 20)


@each_backend
@pytest.mark.parametrize("name", ("l1", "max_grad_norm", "ema_decay"))
@pytest.mark.parametrize("value", (-1.0, math.nan))
def test_phase_attributes_out_of_range_are_refused(backend, name, value):
    """By the constructor, and by a step before it writes anything."""
    with pytest.raises(ValueError, match=f"Invalid {name} value"):
        KINDS["adamw"].make(parameters(), **{name: value})
    optimizer = warmed_up("adamw", ema_decay=0.9)
    setattr(optimizer, name, value)
    before = frozen(params_of(optimizer))
    with use_backend(backend), pytest.raises((ValueError, RuntimeError), match=name):
        optimizer.step()
    assert frozen(params_of(optimizer)) == before


# --- the same bits for any number of threads ----------------------------------------------------------------
LARGE = [(141_003,), (17,), (300, 301), (5,), (0,)]


@needs_cpp
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16), ids=str)
def test_the_norm_has_the_same_bits_for_any_number_of_threads(dtype):
    grads = gradients(parameters(LARGE, dtype), 0)
    found = []
    for count in range(1, 9):
        with threads(count):
            found += [torch.ops.onepass.grad_stats(grads) for _ in range(3)]
    assert len({norm.item() for norm, _ in found}) == 1
    exact = math.sqrt(sum(g.double().square().sum().item() for g in grads))
    assert math.isclose(found[0][0].item(), exact, rel_tol=1e-12)


@needs_cpp
@few_kinds
def test_a_phase_has_the_same_bits_for_any_number_of_threads(kind):
    """Clipping by the norm of all gradients included."""

    def trained(count):
        options = {"max_grad_norm": 1.0, "ema_decay": 0.9, "write_grads": True}
        optimizer = KINDS[kind].make(parameters(LARGE), **options)
        with threads(count):
            for t in range(2):
                give(optimizer, grads[t])
                optimizer.step()
        tensors = [
            *params_of(optimizer),
            *optimizer.ema_parameters(),
            *(p.grad for p in params_of(optimizer)),
        ]
        return frozen([*tensors, optimizer.last_grad_norm])

    grads = [gradients(parameters(LARGE), t) for t in range(2)]
    wanted = trained(1)
    assert all(trained(count) == wanted for count in range(2, 9))


# --- on a GPU, as far as the host goes ----------------------------------------------------------------------
class Stream:
    def __init__(self, capturing):
        self.capturing = capturing

    def is_capturing(self):
        return self.capturing


@each_kind
@pytest.mark.parametrize("capturing", (False, True), ids=("eager", "captured"))
def test_what_is_asked_before_a_step_on_a_gpu(kind, capturing, monkeypatch):
    """torch's check asks groups for `capturable`, which SGD, Adagrad and Lion do not take. Where there is
    one it has to be set to be captured."""
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "current_stream", lambda *_: Stream(capturing))
    optimizer = KINDS[kind].make(parameters())
    if capturing and "capturable" in optimizer.defaults:
        with pytest.raises(RuntimeError, match="capturable is False"):
            optimizer._check_capture()
    else:
        optimizer._check_capture()
