"""Wrong arguments of every op: C++, reference and fakes name the same argument in the same words, and nothing
has been written. The rows are made from the op table; test_errors.py has the words of Adam's one by one."""

import pytest
import torch
from onepass import use_backend
from onepass.ops import OPS
from onepass.testing.cases import CASES
from onepass.testing.optim_cases import optimizer
from optim_helpers import frozen, needs_cpp
from test_errors import faked, message_of, tensors_in
from torch._subclasses.fake_tensor import FakeTensorMode

OPTIM = [op for op in OPS if op.hyper]
LISTS = ("params", "grads", "emas", "steps")


def arguments(op):
    """Two parameters, every optional state, an average of weights, gradients that are zeroed."""
    variant = 2 ** (len(op.states) - op.required) - 1
    settings = {"variant": variant, "ema": True, "grads_after": 1, "step_counters": True, "stats": (1.0, 0.0)}
    rng = torch.Generator().manual_seed(0)
    return optimizer(rng, torch.float32, "cpu", op=op.name, shapes=[(3, 4), (3, 4)], **settings)


def lists_of(op):
    return [name for name in (*LISTS, *op.states) if name != "steps" or op.counts != "never"]


def at_1(name, change):
    return lambda a: a[name].__setitem__(1, change(a[name][1]))


def list_faults(op):
    """(what the words begin with, how it is made wrong), for every list."""
    for name in lists_of(op):
        place = f"{name}[1]"
        if name != "params":
            yield name, lambda a, n=name: a[n].pop()
            yield place, at_1(name, lambda t: t.to("meta"))
            yield place, at_1(name, lambda t: torch.zeros(7, dtype=t.dtype))
        yield place, at_1(name, lambda t: t.long())
        if name != "steps":
            yield place, at_1(name, lambda t: t[:1].expand(3, 4))


def hyper_faults(op):
    """Every column at and behind its bounds, and NaN."""
    for k, column in enumerate(op.hyper):
        bad = [] if column.what is None else [-1.0, float("nan"), float("-inf")]
        bad += [] if column.below is None else [column.below, float("inf")]
        for value in bad:
            yield (
                f"hyper[0]: Invalid {column.what}",
                lambda a, k=k, v=value: a["hyper"].__setitem__((0, k), v),
            )


def other_faults(op):
    for value in (-1, 3):
        yield "grads_after is", lambda a, v=value: a.update(grads_after=v)
    yield "stats has to be", lambda a: a.update(stats=torch.zeros(3, dtype=torch.float64))
    yield "found_inf has to be", lambda a: a.update(found_inf=torch.zeros(2))
    if op.counts == "never":
        yield "steps has 2 entries, expected 0", lambda a: a.update(steps=[torch.zeros(()), torch.zeros(())])
    if op.counts == "always":
        yield "steps has 0 entries, expected 2", lambda a: a.update(steps=[])


def rows(*makers):
    return [
        pytest.param(op, words, change, id=f"{op.name}-{i}-{words.split(' ')[0]}")
        for op in OPTIM
        for i, (words, change) in enumerate(row for maker in makers for row in maker(op))
    ]


def call(op, a):
    getattr(torch.ops.onepass, op.name).writing(**a)


def words_of(op, backend, change):
    """What is said, after proving that nothing was written."""
    a = arguments(op)
    change(a)
    before = frozen(tensors_in(a))
    with use_backend(backend):
        said = message_of(lambda: call(op, a))
    assert frozen(tensors_in(a)) == before
    return said


@needs_cpp
@pytest.mark.parametrize("op, words, change", rows(list_faults, hyper_faults, other_faults))
def test_every_backend_says_the_same(op, words, change):
    said = words_of(op, "cpp", change)
    assert said is not None and said.startswith(f"{op.name}: {words}")
    assert words_of(op, "reference", change) == said


@pytest.mark.parametrize("op, words, change", rows(list_faults, other_faults))
def test_fakes_say_the_same(op, words, change):
    a = arguments(op)
    change(a)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        said = message_of(lambda: call(op, faked(a, mode)))
    assert said == words_of(op, "reference", change)


@pytest.mark.parametrize("op", OPTIM, ids=lambda op: op.name)
@pytest.mark.parametrize("backend", ("cpp", "reference"))
def test_right_arguments_are_not_refused(op, backend):
    """The faults above are made from these."""
    a, unchanged = arguments(op), arguments(op)
    with use_backend(backend):
        call(op, a)
    for name in ("params", "emas", *op.states):
        assert not any(torch.equal(x, y) for x, y in zip(a[name], unchanged[name], strict=True)), name
    assert not any(g.any() for g in a["grads"])


# --- the ops on gradients alone ---------------------------------------------------------------------------
GRAD_FAULTS = {
    "int64": (at_1("grads", lambda t: t.long()), "grads[1] has a dtype that is not served"),
    "device": (at_1("grads", lambda t: t.to("meta")), "grads[1] is on another device than grads[0]"),
}
MORE = {
    "grad_stats": {"scale": (lambda a: a.update(grad_scale=torch.ones(2)), "grad_scale has to be one")},
    "clip_grads_": {
        "stats": (lambda a: a.update(stats=torch.ones(2)), "stats has to be a contiguous torch.float64"),
        "expanded": (at_1("grads", lambda t: t[:1].expand(3, *t.shape[1:])), "grads[1] has several elements"),
    },
}


@needs_cpp
@pytest.mark.parametrize(
    "name, fault", [(op, fault) for op, more in MORE.items() for fault in (*GRAD_FAULTS, *more)]
)
def test_ops_on_gradients_say_the_same(name, fault):
    change, words = {**GRAD_FAULTS, **MORE[name]}[fault]
    said = said_by(name, change)
    assert said is not None and said.startswith(f"{name}: {words}")


def said_by(name, change):
    """What C++ and reference both say of such a call, after proving that nothing was written."""
    said = set()
    for backend in ("cpp", "reference"):
        a = CASES[name][0](0, torch.float32)
        change(a)
        before = frozen(tensors_in(a))
        with use_backend(backend):
            said.add(message_of(lambda a=a: getattr(torch.ops.onepass, name)(**a)))
        assert frozen(tensors_in(a)) == before
    (words,) = said
    return words


# --- loss scaling -----------------------------------------------------------------------------------------
def put(name, value):
    return lambda a: a.update({name: value})


def expanded(t):
    return t[:1].expand(3, *t.shape[1:])


AMP_FAULTS = {
    "unscale_": (
        *GRAD_FAULTS.values(),
        (at_1("grads", expanded), "grads[1] has several elements"),
        (put("grad_scale", torch.ones(2)), "grad_scale has to be one torch.float32 element on the CPU"),
        (put("grad_scale", torch.ones((), dtype=torch.float64)), "grad_scale has to be one torch.float32"),
    ),
    "accumulate_": (
        (lambda a: a["grads"].pop(), "grads has 3 entries, expected 4 as sums"),
        (at_1("grads", lambda t: t.long()), "grads[1] has a dtype that is not served"),
        (at_1("grads", lambda t: t.double()), "sums[1] has dtype torch.float32, expected torch.float64 for"),
        (at_1("sums", lambda t: t.double()), "sums[1] has dtype torch.float64, expected torch.float32 for"),
        (at_1("sums", lambda t: t.to("meta")), "sums[1] is on another device than sums[0]"),
        (at_1("grads", lambda t: t.to("meta")), "grads[1] is on another device than sums[1]"),
        (at_1("grads", lambda t: t[:7]), "grads[1] has shape [7], expected [33] as sums[1]"),
        (at_1("sums", lambda t: t[:1].expand(33)), "sums[1] has several elements at one address"),
        (put("inv_scale", torch.ones(2)), "inv_scale has to be one torch.float32 element on the CPU"),
    ),
    "update_scale_": (
        (put("scale", torch.ones(2)), "scale has to be one torch.float32 element on the CPU"),
        (put("growth_tracker", torch.zeros(())), "growth_tracker has to be one torch.int32 element"),
        (put("skipped", torch.zeros(1, dtype=torch.int64)), "skipped has to be two torch.int64 elements"),
        (put("found_infs", [torch.ones(()), torch.ones(3)]), "found_infs[1] has to be one torch.float32"),
        (put("found_infs", [torch.ones((), device="meta")]), "found_infs[0] has to be one torch.float32"),
        (put("growth_factor", float("nan")), "growth_factor is nan, expected a number"),
        (put("backoff_factor", float("nan")), "backoff_factor is nan, expected a number"),
        (put("hysteresis", -1), "hysteresis is -1, expected >= 0"),
        (put("min_scale", -1.0), "scales from -1 to inf, expected 0 <= min_scale <= max_scale"),
        (put("max_scale", float("nan")), "scales from 0 to nan, expected 0 <= min_scale <= max_scale"),
    ),
}


@needs_cpp
@pytest.mark.parametrize(
    "name, change, words",
    [
        pytest.param(name, *fault, id=f"{name}-{i}")
        for name, faults in AMP_FAULTS.items()
        for i, fault in enumerate(faults)
    ],
)
def test_ops_of_loss_scaling_say_the_same(name, change, words):
    """C++, reference and fakes; nothing is written."""
    said, a = said_by(name, change), CASES[name][0](0, torch.float32)
    assert said is not None and said.startswith(f"{name}: {words}")
    change(a)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert message_of(lambda: getattr(torch.ops.onepass, name)(**faked(a, mode))) == said


@needs_cpp
@pytest.mark.parametrize("name, lists", (("unscale_", ("grads",)), ("accumulate_", ("sums", "grads"))))
def test_freed_storage_is_named(name, lists):
    for which in lists:
        for backend in ("cpp", "reference"):
            a = CASES[name][0](0, torch.float32)
            storage = a[which][1].untyped_storage()
            size = storage.nbytes()
            storage.resize_(0)
            with use_backend(backend):
                said = message_of(lambda a=a: getattr(torch.ops.onepass, name)(**a))
            storage.resize_(size)
            assert said == f"{name}: {which}[1] has no storage: it was freed"
