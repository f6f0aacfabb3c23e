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
    said = []
    for backend in ("cpp", "reference"):
        a = CASES[name][0](0, torch.float32)
        change(a)
        before = frozen(tensors_in(a))
        with use_backend(backend):
            said.append(message_of(lambda a=a: getattr(torch.ops.onepass, name)(**a)))
        assert frozen(tensors_in(a)) == before
    assert said[0] is not None and said[0].startswith(f"{name}: {words}")
    assert said[0] == said[1]
