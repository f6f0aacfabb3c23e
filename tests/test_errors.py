"""Wrong arguments: every backend names the same argument in the same words, and nothing has been written."""

import os
import re
import subprocess
import sys

import pytest
import torch
from onepass import backends, use_backend
from optim_helpers import (
    OURS,
    assert_trained_alike,
    each_backend,
    everything,
    feed,
    frozen,
    has_memory,
    memory_given_back,
    names,
    needs_cpp,
    params_of,
    randn,
    train,
    values,
)
from torch._subclasses.fake_tensor import FakeTensorMode

OPTIM_OPS = ("adam_", "adamw_")
STREAMS = ("params", "grads", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs", "emas")
NAN, INF = float("nan"), float("inf")

each_op = pytest.mark.parametrize("op", OPTIM_OPS)


# --- the ops ------------------------------------------------------------------------------------------------
def arguments(dtype=torch.float32):
    """Two parameters of shape [3, 4] and all that goes with them."""
    state = torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype

    def pair(seed, dtype):
        return [randn(3, 4, seed=seed + i, dtype=dtype).abs() for i in range(2)]

    return {
        "params": pair(0, dtype),
        "grads": pair(2, dtype),
        "exp_avgs": pair(4, state),
        "exp_avg_sqs": pair(6, state),
        "max_exp_avg_sqs": pair(8, state),
        "emas": pair(10, state),
        "steps": [torch.tensor(3.0), torch.tensor(5.0)],
        "hyper": torch.tensor([[1e-3, 0.1, 0.0, 0.0, 0.9, INF, 0.9, 0.999, 1e-8]], dtype=torch.float64),
        "groups": [0, 0],
        "grad_scale": None,
        "found_inf": None,
        "stats": None,
    }


def call(op, a):
    keywords = ("grad_scale", "found_inf", "stats")
    positional = [value for name, value in a.items() if name not in keywords]
    getattr(torch.ops.onepass, op)(*positional, **{name: a[name] for name in keywords})


def tensors_in(a):
    for value in a.values():
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list):
            yield from (t for t in value if isinstance(t, torch.Tensor))


def faked(a, mode):
    def fake(value):
        if isinstance(value, torch.Tensor):
            return mode.from_tensor(value)
        return [fake(v) for v in value] if isinstance(value, list) else value

    return {name: fake(value) for name, value in a.items()}


def message_of(run):
    """The words of the RuntimeError, without torch's own lines below them; None if there is none."""
    try:
        run()
    except RuntimeError as error:
        return str(error).split("\n")[0]
    return None


def put(name, value):
    """At index 1 of a list, what value makes of the tensor there."""

    def change(a):
        a[name][1] = value(a[name][1])

    return change


def all_at_1(value):
    def change(a):
        for name in STREAMS:
            a[name][1] = value(a[name][1])

    return change


def give(name, value):
    return lambda a: a.update({name: value})


def to_meta(t):
    return t.to("meta")


def wanted_of(name, dtype="torch.float32"):
    """What a stream of float32 parameters should have been, in the words of the checks."""
    if name == "exp_avgs":
        return f"torch.float32 or torch.bfloat16 for {dtype} parameters"
    if name in ("exp_avg_sqs", "max_exp_avg_sqs"):
        return "torch.float32 as the first state"
    return f"{dtype if name == 'grads' else 'torch.float32'} for {dtype} parameters"


UNSERVED = "a dtype that is not served"
HYPER = "hyper has to be a contiguous torch.float64 tensor [groups, 9] on the CPU, came with shape "
SCALAR = "{} has to be one torch.float32 element on the CPU"

# what is wrong: (how it is made wrong, the words)
METADATA_FAULTS = {
    **{
        f"{name} is short": (lambda a, n=name: a[n].pop(), f"{name} has 1 entries, expected 2 as params")
        for name in (*STREAMS[1:], "steps", "groups")
    },
    "params is short": (lambda a: a["params"].pop(), "grads has 2 entries, expected 1 as params"),
    **{
        f"shape of {name}": (
            put(name, lambda t: t.t()),
            f"{name}[1] has shape [4, 3], expected [3, 4] as params[1]",
        )
        for name in STREAMS[1:]
    },
    **{
        f"dimensions of {name}": (
            put(name, lambda t: t.reshape(12)),
            f"{name}[1] has shape [12], expected [3, 4] as params[1]",
        )
        for name in STREAMS[1:]
    },
    **{
        f"float64 {name}": (
            put(name, lambda t: t.double()),
            f"{name}[1] has dtype torch.float64, expected {wanted_of(name)}",
        )
        for name in STREAMS[1:]
    },
    **{
        f"int64 {name}": (
            put(name, lambda t: t.long()),
            f"{name}[1] has dtype {UNSERVED}, expected {wanted_of(name)}",
        )
        for name in STREAMS[1:]
    },
    **{
        f"{dtype} parameters": (
            all_at_1(lambda t, d=dtype: t.to(d)),
            f"params[1] has {UNSERVED}, expected torch.float32, float64, bfloat16 or float16",
        )
        for dtype in (torch.int64, torch.complex64, torch.bool, torch.float8_e4m3fn)
    },
    **{
        f"{name} on another device": (put(name, to_meta), f"{name}[1] is on another device than params[1]")
        for name in STREAMS[1:]
    },
    "steps on another device": (put("steps", to_meta), "steps[1] is on another device than params[1]"),
    "two steps": (put("steps", lambda t: torch.ones(2)), "steps[1] has shape [2], expected one element"),
    "no step": (put("steps", lambda t: torch.ones(0)), "steps[1] has shape [0], expected one element"),
    "int64 steps": (
        put("steps", lambda t: t.long()),
        f"steps[1] has dtype {UNSERVED}, expected torch.float32 or torch.float64",
    ),
    "bfloat16 steps": (
        put("steps", lambda t: t.bfloat16()),
        "steps[1] has dtype torch.bfloat16, expected torch.float32 or torch.float64",
    ),
    "float32 hyper": (lambda a: a.update(hyper=a["hyper"].float()), HYPER + "[1, 9]"),
    "one row of hyper": (lambda a: a.update(hyper=a["hyper"][0]), HYPER + "[9]"),
    "too few columns of hyper": (lambda a: a.update(hyper=a["hyper"][:, :5].contiguous()), HYPER + "[1, 5]"),
    "hyper with strides": (give("hyper", torch.zeros(9, 2, dtype=torch.float64).t()), HYPER + "[2, 9]"),
    "hyper on another device": (lambda a: a.update(hyper=to_meta(a["hyper"])), HYPER + "[1, 9]"),
    "no rows of hyper": (
        give("hyper", torch.zeros(0, 9, dtype=torch.float64)),
        "groups[0] is 0, but hyper has 0 rows",
    ),
    "group too high": (give("groups", [0, 1]), "groups[1] is 1, but hyper has 1 rows"),
    "group below 0": (give("groups", [0, -1]), "groups[1] is -1, but hyper has 1 rows"),
    "group beyond int32": (give("groups", [0, 2**32]), "groups[1] is 4294967296, but hyper has 1 rows"),
    **{
        f"expanded {name}": (
            put(name, lambda t: t[:1].expand(3, 4)),
            f"{name}[1] has several elements at one address: it cannot be written",
        )
        for name in STREAMS
        if name != "grads"
    },
    **{
        f"stats, {what}": (
            give("stats", value),
            "stats has to be a contiguous torch.float64 tensor [2] on the CPU",
        )
        for what, value in (
            ("1 element", torch.ones(1, dtype=torch.float64)),
            ("2 dimensions", torch.ones(1, 2, dtype=torch.float64)),
            ("strides", torch.ones(4, dtype=torch.float64)[::2]),
            ("float32", torch.ones(2)),
            ("on another device", torch.ones(2, dtype=torch.float64, device="meta")),
        )
    },
    **{
        f"{name}, {what}": (give(name, value), SCALAR.format(name))
        for name in ("grad_scale", "found_inf")
        for what, value in (
            ("2 elements", torch.ones(2)),
            ("no element", torch.ones(0)),
            ("float64", torch.ones((), dtype=torch.float64)),
            ("on another device", torch.ones((), device="meta")),
        )
    },
    "a parameter on another device with all that goes with it": (
        all_at_1(to_meta),
        "params[1] is on another device than params[0]",
    ),
}

HALF_FAULTS = {
    "float16 gradient": (
        put("grads", lambda t: t.half()),
        "grads[1] has dtype torch.float16, expected torch.bfloat16 or torch.float32 for torch.bfloat16 "
        "parameters",
    ),
    "float64 gradient": (
        put("grads", lambda t: t.double()),
        "grads[1] has dtype torch.float64, expected torch.bfloat16 or torch.float32 for torch.bfloat16 "
        "parameters",
    ),
    **{
        f"float16 {name}": (
            put(name, lambda t: t.half()),
            f"{name}[1] has dtype torch.float16, expected {wanted_of(name, 'torch.bfloat16')}",
        )
        for name in STREAMS[2:]
    },
    **{
        f"bfloat16 {name}": (
            put(name, lambda t: t.bfloat16()),
            f"{name}[1] has dtype torch.bfloat16, expected {wanted_of(name, 'torch.bfloat16')}",
        )
        for name in STREAMS[3:]
    },
}


def hyper_at(column, value):
    return lambda a: a["hyper"].__setitem__((0, column), value)


def free(name):
    return lambda a: a[name][1].untyped_storage().resize_(0)


def free_with_offset(a):
    """The address is then not 0 but the offset."""
    a["grads"][1] = torch.ones(30)[5:17].view(3, 4)
    a["grads"][1].untyped_storage().resize_(0)


def shrink(a):
    """Of its 12 elements 11 have memory: the last would be read from behind it."""
    a["grads"][1].untyped_storage().resize_(44)


HYPER_WORDS = {
    0: "learning rate",
    1: "weight_decay value",
    3: "l1 value",
    4: "ema_decay value",
    5: "max_grad_norm value",
    6: "beta parameter at index 0",
    7: "beta parameter at index 1",
    8: "epsilon value",
}

# Of memory and values, which a fake tensor does not have.
VALUE_FAULTS = {
    **{
        f"{word} of {value}": (hyper_at(column, value), f"hyper[0]: Invalid {word}: {value:g}")
        for column, word in HYPER_WORDS.items()
        for value in (-1.0, NAN, -1e-20, -INF)
    },
    **{
        f"{HYPER_WORDS[column]} of {value}": (
            hyper_at(column, value),
            f"hyper[0]: Invalid {HYPER_WORDS[column]}: {value:g}",
        )
        for column in (4, 6, 7)
        for value in (1.0, 1.5, INF)
    },
    **{
        f"freed {name}": (free(name), f"{name}[1] has no storage: it was freed")
        for name in (*STREAMS, "steps")
    },
    "freed gradient with an offset": (free_with_offset, "grads[1] has no storage: it was freed"),
    "gradient of less storage": (shrink, "grads[1] has no storage: it was freed"),
    "a parameter twice": (
        lambda a: a["params"].__setitem__(1, a["params"][0]),
        "params[1] is the same memory as params[0]",
    ),
    "a parameter and a view of it": (
        lambda a: a["params"].__setitem__(1, a["params"][0].view(3, 4)),
        "params[1] is the same memory as params[0]",
    ),
}


def assert_refused(op, backend, fault, dtype=torch.float32):
    change, words = fault
    a = arguments(dtype)
    with memory_given_back(lambda: tensors_in(a)), use_backend(backend):
        change(a)
        before = frozen(tensors_in(a))
        said = message_of(lambda: call(op, a))
        after = frozen(tensors_in(a))
    assert said == f"{op}: {words}"
    assert after == before


@each_op
@each_backend
@pytest.mark.parametrize("fault", METADATA_FAULTS)
def test_metadata_faults(op, backend, fault):
    assert_refused(op, backend, METADATA_FAULTS[fault])


@each_op
@each_backend
@pytest.mark.parametrize("fault", HALF_FAULTS)
def test_half_dtype_faults(op, backend, fault):
    assert_refused(op, backend, HALF_FAULTS[fault], torch.bfloat16)


@each_op
@each_backend
@pytest.mark.parametrize("fault", VALUE_FAULTS)
def test_value_and_memory_faults(op, backend, fault):
    assert_refused(op, backend, VALUE_FAULTS[fault])


@each_op
@pytest.mark.parametrize("fault", (*METADATA_FAULTS, *HALF_FAULTS))
def test_fakes_refuse_what_kernels_refuse(op, fault):
    change, words = {**METADATA_FAULTS, **HALF_FAULTS}[fault]
    a = arguments(torch.bfloat16 if fault in HALF_FAULTS else torch.float32)
    change(a)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert message_of(lambda: call(op, faked(a, mode))) == f"{op}: {words}"


@each_op
@each_backend
def test_right_arguments_are_not_refused(op, backend):
    """The faults above are made from these."""
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        a, unchanged = arguments(dtype), arguments(dtype)
        with use_backend(backend):
            call(op, a)
        for name in ("exp_avgs", "exp_avg_sqs", "steps"):
            assert not any(torch.equal(x, y) for x, y in zip(a[name], unchanged[name], strict=True))
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            call(op, faked(arguments(dtype), mode))


@each_op
@each_backend
def test_empty_lists_are_not_refused(op, backend):
    a = arguments()
    a.update({name: [] for name in (*STREAMS, "steps", "groups")})
    with use_backend(backend):
        assert message_of(lambda: call(op, a)) is None


def bad_value_and_bad_group(a):
    a["hyper"][0, 0] = -1.0
    a["groups"] = [0, 9]


def bad_scale_and_bad_row(a):
    a["grad_scale"] = torch.ones(2)
    a["grads"][1] = torch.ones(1)


def bad_value_and_bad_row(a):
    a["hyper"][0, 6] = 2.0
    a["grads"][1] = torch.ones(1)


def freed_row_before_bad_row(a):
    a["params"][0].untyped_storage().resize_(0)
    a["grads"][1] = torch.ones(1)


def bad_row_before_short_list(a):
    a["grads"][0] = torch.ones(1)
    a["steps"].pop()


def bad_steps_before_bad_row(a):
    a["steps"][0] = torch.ones(3)
    a["grads"][1] = torch.ones(1)


@needs_cpp
@pytest.mark.parametrize(
    "change",
    (
        bad_value_and_bad_group,
        bad_scale_and_bad_row,
        bad_value_and_bad_row,
        freed_row_before_bad_row,
        bad_row_before_short_list,
        bad_steps_before_bad_row,
    ),
)
def test_of_two_faults_every_backend_names_the_same(change):
    words = []
    for backend in ("cpp", "reference"):
        a = arguments()
        with memory_given_back(lambda a=a: tensors_in(a)), use_backend(backend):
            change(a)
            words.append(message_of(lambda a=a: call("adamw_", a)))
    assert words[0] is not None
    assert words[0] == words[1]


FREED_SCALARS = """
import os
import torch
from onepass import backends, use_backend

def call(name):
    lists = [[torch.ones(4)] for _ in range(4)]
    arguments = {
        "hyper": torch.tensor([[1e-3, 0, 0, 0, 0, float("inf"), 0.9, 0.999, 1e-8]], dtype=torch.float64),
        "grad_scale": torch.ones(()),
        "found_inf": torch.zeros(()),
        "stats": torch.zeros(2, dtype=torch.float64),
    }
    arguments[name].untyped_storage().resize_(0)
    hyper = arguments.pop("hyper")
    torch.ops.onepass.adam_(*lists, [], [], [torch.tensor(0.0)], hyper, [0], **arguments)

for backend in backends.available():
    for name in ("hyper", "grad_scale", "found_inf", "stats"):
        child = os.fork()
        if child == 0:
            with use_backend(backend):
                try:
                    call(name)
                except RuntimeError as error:
                    print(backend, str(error).split("\\n")[0], flush=True)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status:
            print(backend, name, "signal", status, flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_freed_scalars():
    """Each in a process of its own: a kernel that reads them dies."""
    done = subprocess.run([sys.executable, "-c", FREED_SCALARS], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == [
        f"{backend} adam_: {name} has no storage: it was freed"
        for backend in backends.available()
        for name in ("hyper", "grad_scale", "found_inf", "stats")
    ], done.stderr


# --- through the optimizer ----------------------------------------------------------------------------------
def optimizer_of(name, same_group=False):
    """Three parameters in two groups: one op's, or, where amsgrad differs, one call each."""
    p = [torch.nn.Parameter(randn(3, 4, seed=i)) for i in range(4)]
    options = {} if same_group else {"amsgrad": True}
    optimizer = OURS[name]([{"params": p[:2]}, {"params": p[2:], **options}], lr=1e-2, weight_decay=0.1)
    return optimizer


def free_parameter(optimizer, p):
    p.untyped_storage().resize_(0)


def free_gradient(optimizer, p):
    p.grad.untyped_storage().resize_(0)


def free_state(optimizer, p):
    optimizer.state[p]["exp_avg"].untyped_storage().resize_(0)


def free_step(optimizer, p):
    optimizer.state[p]["step"].untyped_storage().resize_(0)


def reshape_parameter(optimizer, p):
    p.data = randn(5)


def transpose_parameter(optimizer, p):
    p.data = randn(4, 3)


def cast_parameter(optimizer, p):
    p.data = p.data.double()


def expand_parameter(optimizer, p):
    p.data = torch.ones(1, 4).expand(3, 4)


def cast_state(optimizer, p):
    optimizer.state[p]["exp_avg_sq"] = optimizer.state[p]["exp_avg_sq"].double()


def reshape_state(optimizer, p):
    optimizer.state[p]["exp_avg"] = torch.zeros(4, 3)


def two_steps(optimizer, p):
    optimizer.state[p]["step"] = torch.ones(2)


BREAKS = {
    free_parameter: "params",
    free_gradient: "grads",
    free_state: "exp_avgs?",
    free_step: "steps?",
    reshape_parameter: r"(grads|exp_avgs)",
    transpose_parameter: r"(grads|exp_avgs)",
    cast_parameter: "grads",
    expand_parameter: "params",
    cast_state: "exp_avg_sqs",
    reshape_state: "exp_avgs",
    two_steps: "steps",
}


def mended(optimizer, p):
    """A function that makes p and its state what they are now, in new memory where the old is gone."""
    data, value = p.data, p.data.clone()
    state = {key: (tensor, tensor.clone()) for key, tensor in optimizer.state[p].items()}

    def mend():
        p.data = data.copy_(value) if has_memory(data) else value
        for key, (tensor, content) in state.items():
            optimizer.state[p][key] = tensor.copy_(content) if has_memory(tensor) else content

    return mend


@each_backend
@pytest.mark.parametrize("same_group", (True, False), ids=("one call", "a call a group"))
@pytest.mark.parametrize("break_it", BREAKS)
def test_a_refused_step_writes_nothing_and_training_goes_on(backend, break_it, same_group, name="adamw"):
    """The last parameter of the last group is wrong: the groups before it are not written either."""
    optimizer, undisturbed = optimizer_of(name, same_group), optimizer_of(name, same_group)
    with use_backend(backend):
        train(optimizer, 2)
        train(undisturbed, 3)
        feed(optimizer, 2)
        p = params_of(optimizer)[-1]
        mend = mended(optimizer, p)
        with memory_given_back(lambda: everything(optimizer)):
            break_it(optimizer, p)
            watched, groups = everything(optimizer), [dict(group) for group in optimizer.param_groups]
            before = frozen(watched)
            said = message_of(optimizer.step)
            after = frozen(watched)
            mend()
        assert re.match(rf"{name}_: {BREAKS[break_it]}\[\d+\] ", said or "no error")
        assert after == before
        assert [dict(group) for group in optimizer.param_groups] == groups
        feed(optimizer, 2)
        optimizer.step()
    assert_trained_alike(values(optimizer), values(undisturbed), rtol=0, atol=0)


@needs_cpp
@pytest.mark.parametrize("break_it", (free_gradient, free_state, cast_state, reshape_parameter))
def test_a_refused_step_says_the_same_on_each_backend(break_it, name="adamw"):
    """Of a parameter among others that have no gradient: its index may depend on neither backend nor plan."""
    words = []
    for backend in ("cpp", "reference"):
        optimizer = optimizer_of(name)
        with memory_given_back(lambda o=optimizer: everything(o)), use_backend(backend):
            train(optimizer, 2)
            feed(optimizer, 2)
            params_of(optimizer)[2].grad = None
            break_it(optimizer, params_of(optimizer)[-1])
            words.append(message_of(optimizer.step))
    assert words[0] == words[1]


@names
@each_backend
@pytest.mark.parametrize("break_it", (free_gradient, reshape_parameter, cast_parameter))
def test_a_refused_first_step_leaves_no_trace(name, backend, break_it):
    optimizer, undisturbed = optimizer_of(name, same_group=True), optimizer_of(name, same_group=True)
    with use_backend(backend):
        feed(optimizer, 0)
        p = params_of(optimizer)[-1]
        data, before = p.data, values(optimizer)
        with memory_given_back(lambda: everything(optimizer)):
            break_it(optimizer, p)
            said = message_of(optimizer.step)
        p.data = data
        assert said is not None
        assert_trained_alike(values(optimizer), before, rtol=0, atol=0)
        optimizer.state.pop(p, None)
        train(optimizer, 2)
        train(undisturbed, 2)
    assert_trained_alike(values(optimizer), values(undisturbed), rtol=0, atol=0)


@names
@each_backend
@pytest.mark.parametrize(
    "change, words",
    (
        ({"lr": -1.0}, "Invalid learning rate: -1"),
        ({"lr": NAN}, "Invalid learning rate: nan"),
        ({"betas": (0.9, 1.0)}, "Invalid beta parameter at index 1: 1"),
        ({"betas": (NAN, 0.9)}, "Invalid beta parameter at index 0: nan"),
        ({"eps": -1.0}, "Invalid epsilon value: -1"),
        ({"weight_decay": -0.5}, "Invalid weight_decay value: -0.5"),
        ({"lr": torch.tensor(-1.0)}, "Invalid learning rate: -1"),
    ),
    ids=str,
)
def test_a_wrong_option_in_a_group(name, backend, change, words):
    optimizer = optimizer_of(name, same_group=True)
    with use_backend(backend):
        train(optimizer, 2)
        feed(optimizer, 2)
        before = frozen(everything(optimizer))
        kept = dict(optimizer.param_groups[1])
        optimizer.param_groups[1].update(change)
        assert message_of(optimizer.step) == f"{name}_: hyper[1]: {words}"
        assert frozen(everything(optimizer)) == before
        optimizer.param_groups[1].update(kept)
        optimizer.step()
    assert frozen(everything(optimizer)) != before


@names
@each_backend
def test_a_stale_backward_raises_as_in_torch(name, backend):
    """torch's fused CPU kernels do not bump the version counter: a backward through the old weights, with the
    new ones in their place, goes unnoticed."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 1))
    optimizer = OURS[name](model.parameters(), lr=1e-2)
    with use_backend(backend):
        for _ in range(3):  # the first builds a plan, the others run it
            loss = model(torch.ones(2, 3)).sum()
            loss.backward(retain_graph=True)
            versions = [p._version for p in model.parameters()]
            optimizer.step()
            assert all(p._version > v for p, v in zip(model.parameters(), versions, strict=True))
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                loss.backward()
            optimizer.zero_grad()


@names
@each_backend
def test_no_version_is_bumped_where_nothing_is_written(name, backend):
    optimizer = optimizer_of(name)
    with use_backend(backend):
        train(optimizer, 2)
        feed(optimizer, 2)
        first, *rest = params_of(optimizer)
        first.grad = None
        versions = [p._version for p in params_of(optimizer)]
        optimizer.step()
        assert first._version == versions[0]
        assert all(p._version > v for p, v in zip(rest, versions[1:], strict=True))
        assert all(p.grad._version == 0 for p in rest)


class Tagged(torch.Tensor):
    """A subclass: its steps go through the dispatcher's op."""


@names
@each_backend
def test_the_op_path_bumps_versions_too(name, backend):
    p = torch.nn.Parameter(torch.ones(3).as_subclass(Tagged))
    optimizer = OURS[name]([p], lr=1e-2)
    with use_backend(backend):
        for _ in range(2):
            loss = (p * p).sum()
            loss.backward(retain_graph=True)
            optimizer.step()
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                loss.backward()


def test_use_backend_names_what_there_is():
    with pytest.raises(ValueError, match="'fast' is none of cpp, triton, reference"):
        use_backend("fast")
    assert backends.backend_of("cpu") in backends.available()
