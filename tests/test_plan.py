"""How the work of a step is cut, and how the plan of an eager optimizer notices that things were replaced."""

import collections
import copy
import gc
import itertools
import subprocess
import sys
import threading
import tracemalloc
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onepass import backends, use_backend
from onepass.testing.threads import threads
from optim_helpers import (
    OURS,
    assert_trained_alike,
    everything,
    feed,
    make_torch,
    names,
    needs_cpp,
    params_of,
    randn,
    train,
    values,
)

pytestmark = needs_cpp


# --- cuts ---------------------------------------------------------------------------------------------------
CUT_MULTIPLE = 64
numels = st.lists(
    st.one_of(
        st.just(0),
        st.integers(0, 200),
        st.integers(0, 100_000),
        st.sampled_from((2**31 - 1, 2**31, 2**33, 2**33 + 1, 3 * 2**40)),
    ),
    max_size=40,
)


def linear(numels, cuts):
    """Where each cut lies in the whole."""
    begin = [0, *itertools.accumulate(numels)]
    return [begin[row] + offset for row, offset in cuts]


@settings(max_examples=400, deadline=None)
@given(numels=numels, pieces=st.integers(1, 300))
def test_cuts_cover_every_element_once_and_in_order(numels, pieces):
    cuts = backends._C.cuts(numels, pieces)
    total = sum(numels)
    assert len(cuts) == pieces + 1
    assert (cuts[0], cuts[-1]) == ((0, 0), (len(numels), 0))
    for row, offset in cuts:
        assert 0 <= row <= len(numels)
        assert offset % CUT_MULTIPLE == 0
        assert offset == 0 or offset < numels[row]
    places = linear(numels, cuts)
    assert places[0] == 0
    assert places[-1] == total
    assert places == sorted(places)
    longest = max(b - a for a, b in itertools.pairwise(places))
    assert longest <= -(-total // pieces) + CUT_MULTIPLE


@pytest.mark.parametrize(
    "numels, pieces, cuts",
    (
        ([], 1, [(0, 0), (0, 0)]),
        ([0, 0], 2, [(0, 0), (2, 0), (2, 0)]),
        ([128], 2, [(0, 0), (0, 64), (1, 0)]),
        ([3], 4, [(0, 0)] * 4 + [(1, 0)]),
        ([0, 64, 0, 64], 2, [(0, 0), (3, 0), (4, 0)]),
        ([2**33], 2, [(0, 0), (0, 2**32), (1, 0)]),
        ([3 * 2**40] * 2, 3, [(0, 0), (0, 2**41), (1, 2**40), (2, 0)]),
    ),
    ids=str,
)
def test_cuts_by_hand(numels, pieces, cuts):
    assert backends._C.cuts(numels, pieces) == cuts


def test_cuts_do_not_overflow_where_the_number_of_pieces_is_large():
    numels = [3 * 2**40, 2**33, 1]
    places = linear(numels, backends._C.cuts(numels, 100_000))
    assert places == sorted(places)
    assert places[-1] == sum(numels)


# --- replacements -------------------------------------------------------------------------------------------
def first(o):
    return params_of(o)[0]


def new_data(o):
    first(o).data = randn(4, 4, seed=77)


def new_data_other_layout(o):
    first(o).data = randn(4, 4, seed=77).t()


def same_data_transposed(o):
    first(o).data = first(o).data.t()


def data_with_gaps(o):
    first(o).data = randn(4, 8, seed=77)[:, ::2]


def set_to_other_storage(o):
    with torch.no_grad():
        first(o).set_(randn(4, 4, seed=77))


def storage_freed_and_allocated_again(o):
    p = first(o)
    value, size = p.detach().clone(), p.untyped_storage().nbytes()
    p.untyped_storage().resize_(0)
    p.untyped_storage().resize_(size)
    with torch.no_grad():
        p.copy_(value)


def written_in_place(o):
    with torch.no_grad():
        first(o).mul_(2.0)


def other_dtype(o):
    p = first(o)
    p.grad = None
    p.data = p.data.double()
    o.state[p] = {k: v if k == "step" else v.double() for k, v in o.state[p].items()}


def swapped_for_another_tensor(o):
    """What module.to() does under torch.__future__.set_swap_module_params_on_conversion."""
    torch.utils.swap_tensors(first(o), torch.nn.Parameter(randn(4, 4, seed=77)))


def parameter_replaced(o):
    o.param_groups[0]["params"][0] = torch.nn.Parameter(randn(4, 4, seed=77))


def parameter_appended(o):
    o.param_groups[0]["params"].append(torch.nn.Parameter(randn(5, seed=77)))


def parameter_removed(o):
    o.param_groups[0]["params"].pop(0)


def parameters_reversed(o):
    o.param_groups[0]["params"].reverse()


def parameters_in_a_new_list(o):
    o.param_groups[0]["params"] = [torch.nn.Parameter(randn(5, seed=77)), first(o)]


def parameters_in_a_tuple(o):
    o.param_groups[0]["params"] = (torch.nn.Parameter(randn(5, seed=77)), first(o))


def parameter_moved_to_the_other_group(o):
    o.param_groups[0]["params"].append(o.param_groups[1]["params"].pop())


def all_parameters_removed(o):
    o.param_groups[0]["params"].clear()


def requires_grad_off(o):
    first(o).requires_grad_(False)


def group_replaced(o):
    o.param_groups[0] = {**o.param_groups[0], "params": [torch.nn.Parameter(randn(5, seed=77))]}


def group_popped(o):
    o.param_groups.pop(0)


def group_appended(o):
    o.param_groups.append({**o.param_groups[0], "params": [torch.nn.Parameter(randn(5, seed=77))]})


def groups_reversed(o):
    o.param_groups.reverse()


def groups_in_a_new_list(o):
    fresh = [torch.nn.Parameter(randn(5, seed=seed)) for seed in (77, 78)]
    o.param_groups = [{**g, "params": [p]} for g, p in zip(o.param_groups, fresh, strict=True)]


def amsgrad_on(o):
    o.param_groups[0]["amsgrad"] = True
    for p in o.param_groups[0]["params"]:
        o.state[p]["max_exp_avg_sq"] = torch.full_like(p, 1e-2)


def amsgrad_off(o):
    o.param_groups[1]["amsgrad"] = False


def options_changed(o):
    o.param_groups[0].update(lr=0.1, betas=(0.5, 0.9), weight_decay=0.3, maximize=True, eps=0.1)


def moment_replaced(o):
    o.state[first(o)]["exp_avg"] = randn(4, 4, seed=77)


def moment_of_other_layout(o):
    o.state[first(o)]["exp_avg_sq"] = randn(4, 4, seed=77).abs().t()


def moment_with_new_data(o):
    o.state[first(o)]["exp_avg"].data = randn(4, 4, seed=77)


def moment_set_to_other_storage(o):
    o.state[first(o)]["exp_avg"].set_(randn(4, 4, seed=77))


def moment_transposed_in_place(o):
    o.state[first(o)]["exp_avg"].t_()


def moment_written_in_place(o):
    o.state[first(o)]["exp_avg"].zero_()


def step_replaced(o):
    o.state[first(o)]["step"] = torch.tensor(100.0)


def step_filled(o):
    o.state[first(o)]["step"].fill_(100.0)


def step_in_float64(o):
    o.state[first(o)]["step"] = torch.tensor(100.0, dtype=torch.float64)


def state_in_a_new_dict(o):
    o.state[first(o)] = {k: v.clone() for k, v in o.state[first(o)].items()}


def state_in_another_order(o):
    o.state[first(o)] = dict(reversed(list(o.state[first(o)].items())))


def states_exchanged(o):
    p, q = o.param_groups[0]["params"]
    o.state[p], o.state[q] = o.state[q], o.state[p]


def moments_exchanged(o):
    state = o.state[first(o)]
    state["exp_avg"], state["exp_avg_sq"] = state["exp_avg_sq"].abs(), state["exp_avg"].abs()


def state_with_an_entry_more(o):
    o.state[first(o)]["mine"] = 3


def state_of_something_else(o):
    o.state["mine"] = {"exp_avg": 3}


def one_state_removed(o):
    del o.state[first(o)]


def one_state_cleared(o):
    o.state[first(o)].clear()


def state_cleared(o):
    o.state.clear()


def state_reset(o):
    """A common way to start anew: ReLoRA and others."""
    o.state = collections.defaultdict(dict)


def state_copied(o):
    o.state = collections.defaultdict(dict, {p: copy.deepcopy(s) for p, s in o.state.items()})
    o.state[first(o)]["exp_avg"].zero_()


def state_dict_loaded(o):
    state_dict = copy.deepcopy(o.state_dict())
    state_dict["state"][0]["exp_avg"].zero_()
    o.load_state_dict(state_dict)


def state_and_groups_of_another(o):
    """As wrappers around an optimizer (Lookahead, ZeRO) hand them on."""
    fresh = [{"params": [torch.nn.Parameter(randn(5, seed=77 + i))], "amsgrad": i == 1} for i in range(2)]
    other = type(o)(fresh, lr=0.1, foreach=False)
    o.state, o.param_groups = other.state, other.param_groups


REPLACEMENTS = (
    *(new_data, new_data_other_layout, same_data_transposed, data_with_gaps, set_to_other_storage),
    *(storage_freed_and_allocated_again, written_in_place, other_dtype, swapped_for_another_tensor),
    *(
        parameter_replaced,
        parameter_appended,
        parameter_removed,
        parameters_reversed,
        parameters_in_a_new_list,
    ),
    *(parameters_in_a_tuple, parameter_moved_to_the_other_group, all_parameters_removed, requires_grad_off),
    *(group_replaced, group_popped, group_appended, groups_reversed, groups_in_a_new_list),
    *(amsgrad_on, amsgrad_off, options_changed),
    *(moment_replaced, moment_of_other_layout, moment_with_new_data, moment_set_to_other_storage),
    *(moment_transposed_in_place, moment_written_in_place, step_replaced, step_filled, step_in_float64),
    *(state_in_a_new_dict, state_in_another_order, states_exchanged, moments_exchanged),
    *(state_with_an_entry_more, state_of_something_else, one_state_removed, one_state_cleared, state_cleared),
    *(state_reset, state_copied, state_dict_loaded, state_and_groups_of_another),
)


def two_groups(make):
    p = [torch.nn.Parameter(randn(4, 4, seed=i)) for i in range(3)]
    return make([{"params": p[:2]}, {"params": p[2:], "amsgrad": True}], lr=1e-2, weight_decay=0.1)


@pytest.mark.parametrize("replace", REPLACEMENTS)
def test_a_replacement_between_two_steps_is_noticed(replace, name="adamw"):
    results = []
    for make in (OURS[name], make_torch(name)):
        optimizer = two_groups(make)
        before = params_of(optimizer)
        train(optimizer, 3)
        replace(optimizer)
        train(optimizer, range(3, 6))
        after = params_of(optimizer)
        results.append([p.detach().clone() for p in (*before, *after)])
        for p in after:
            results[-1] += [
                v for _, v in sorted(optimizer.state.get(p, {}).items()) if isinstance(v, torch.Tensor)
            ]
    assert_trained_alike(*results)


def grads_of_other_memory(o, t):
    """The same values in memory taken anew, while the old is still held."""
    o.held = [p.grad for p in params_of(o)]
    for p in params_of(o):
        p.grad = p.grad.clone()


def grads_of_other_layout(o, t):
    for p in params_of(o):
        p.grad = p.grad.t().contiguous().t() if t % 2 else p.grad


def grads_expanded(o, t):
    for p in params_of(o):
        p.grad = p.grad[:1].expand(4, 4) if t % 2 else p.grad


def grads_with_new_data(o, t):
    for p in params_of(o):
        p.grad.data = p.grad.data.t().clone()


def grads_now_and_then(o, t):
    for i, p in enumerate(params_of(o)):
        if (t + i) % 3 == 0:
            p.grad = None


def grads_all_or_none(o, t):
    for p in params_of(o):
        if t % 2:
            p.grad = None


def grads_scaled_in_place(o, t):
    for p in params_of(o):
        p.grad.mul_(t)


def grads_in_one_buffer(o, t):
    """As DistributedDataParallel keeps them."""
    buffer = torch.cat([p.grad.reshape(-1) for p in params_of(o)])
    for p, piece in zip(params_of(o), buffer.split(16), strict=True):
        p.grad = piece.view(4, 4)


def grads_freed_and_allocated_again(o, t):
    p = params_of(o)[0]
    value, size = p.grad.clone(), p.grad.untyped_storage().nbytes()
    p.grad.untyped_storage().resize_(0)
    p.grad.untyped_storage().resize_(size)
    p.grad.copy_(value)


@pytest.mark.parametrize(
    "change",
    (
        *(grads_of_other_memory, grads_of_other_layout, grads_expanded, grads_with_new_data),
        *(grads_now_and_then, grads_all_or_none, grads_scaled_in_place),
        *(grads_in_one_buffer, grads_freed_and_allocated_again),
    ),
)
def test_gradients_are_read_anew_at_every_step(change, name="adamw"):
    results = []
    for make in (OURS[name], make_torch(name)):
        optimizer = two_groups(make)
        for t in range(8):
            feed(optimizer, t)
            change(optimizer, t)
            optimizer.step()
        results.append(values(optimizer))
    assert_trained_alike(*results)


def test_a_plan_stays_while_nothing_is_replaced():
    optimizer = two_groups(OURS["adamw"])
    train(optimizer, 2)
    plans = optimizer._plans
    assert plans is not None
    for t in range(2, 10):
        optimizer.zero_grad(set_to_none=t % 2 == 0)
        feed(optimizer, t)
        optimizer.param_groups[0]["lr"] *= 0.9
        if t % 3 == 0:
            params_of(optimizer)[1].grad = None
        optimizer.step()
        assert optimizer._plans is plans


def test_gradients_set_to_none_over_50_steps():
    results = []
    for make in (OURS["adamw"], make_torch("adamw")):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
        optimizer, held = make(model.parameters(), lr=1e-2), []
        for t in range(50):
            optimizer.zero_grad(set_to_none=True)
            if t == 30:
                gc.collect()
            held = [torch.empty(n) for n in (512, 32, 128, 4)][: t % 5]  # so that addresses change
            (model(randn(8, 16, seed=t)) ** 2).mean().backward()
            optimizer.step()
        results.append([*values(optimizer), torch.tensor(float(len(held)))])
    assert_trained_alike(*results, rtol=1e-4, atol=1e-5)


# --- lifetimes ----------------------------------------------------------------------------------------------
def test_parameters_freed_and_made_again():
    """A cache keyed by id() finds the state of a tensor that is no more."""
    seen = set()
    for t in range(30):
        results = []
        for make in (OURS["adam"], make_torch("adam")):
            optimizer = make([torch.nn.Parameter(randn(4, seed=t))], lr=1e-2)
            train(optimizer, 2)
            results.append(values(optimizer))
            seen.add(id(params_of(optimizer)[0]))
        assert_trained_alike(*results)
    assert len(seen) < 60  # some ids came again


def test_parameters_of_one_optimizer_freed_and_made_again():
    results = []
    for make in (OURS["adam"], make_torch("adam")):
        optimizer = make([torch.nn.Parameter(randn(4))], lr=1e-2)
        trained = []
        for t in range(30):
            train(optimizer, range(t, t + 2))
            trained += values(optimizer)
            params = optimizer.param_groups[0]["params"]
            del optimizer.state[params[0]]
            params.clear()
            params.append(torch.nn.Parameter(randn(4, seed=t)))
        results.append(trained)
    assert_trained_alike(*results)


def test_nothing_replaced_is_kept_alive():
    optimizer = two_groups(OURS["adamw"])
    train(optimizer, 2)
    p = params_of(optimizer)[0]
    old_moment, old_grad = weakref.ref(optimizer.state[p]["exp_avg"]), weakref.ref(p.grad)
    optimizer.state[p]["exp_avg"] = torch.zeros(4, 4)
    train(optimizer, range(2, 4))
    gc.collect()
    assert old_moment() is None
    assert old_grad() is None


def test_an_optimizer_leaves_nothing_behind():
    optimizer = two_groups(OURS["adamw"])
    train(optimizer, 2)
    kept = [weakref.ref(t) for t in (optimizer, *everything(optimizer))]
    del optimizer
    gc.collect()
    assert [ref() for ref in kept] == [None] * len(kept)


def grown(step, warm, steps):
    """(bytes of Python memory, objects the collector knows) left behind by `steps` steps more; three times.

    warm: steps before, by which what is kept for reuse has been allocated anew, and is known to tracemalloc:
    30 KB, after 600 to 1000 steps."""
    tracemalloc.start()
    try:
        for t in range(warm):
            step(t)
        found = []
        for _ in range(3):
            gc.collect()
            objects, memory = len(gc.get_objects()), tracemalloc.get_traced_memory()[0]
            for t in range(steps):
                step(t)
            gc.collect()
            found.append((tracemalloc.get_traced_memory()[0] - memory, len(gc.get_objects()) - objects))
        return found
    finally:
        tracemalloc.stop()


STEADY = {
    "the same gradients": lambda o, t: None,
    "gradients of another layout": lambda o, t: [setattr(p, "grad", p.grad.t()) for p in params_of(o)],
    "gradients that come and go": lambda o, t: setattr(
        params_of(o)[t % 3], "grad", None if params_of(o)[t % 3].grad is not None else torch.ones(4, 4)
    ),
    "a plan built anew": lambda o, t: o.state[params_of(o)[0]].update(exp_avg=torch.zeros(4, 4)),
    "an lr that falls": lambda o, t: o.param_groups[0].update(lr=0.1 / (t + 1)),
}


@pytest.mark.parametrize(
    "backend, change",
    [
        pytest.param("cpp", change, marks=() if change == "gradients of another layout" else pytest.mark.slow)
        for change in STEADY
    ]
    + [pytest.param("reference", "an lr that falls", marks=pytest.mark.slow)],
)
def test_200_steps_leave_nothing_behind(backend, change):
    optimizer = two_groups(OURS["adamw"])
    train(optimizer, 1)

    def step(t):
        STEADY[change](optimizer, t)
        optimizer.step()

    with use_backend(backend):  # three times: what another thread of this process allocates does not repeat
        memory, objects = zip(*grown(step, warm=1000, steps=200), strict=True)
    assert min(memory) < 200 * 50, "bytes: an object left by each step is more"
    assert min(objects) < 20


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("rebuild", (False, True), ids=("one plan", "a plan a step"))
def test_native_memory_does_not_grow(rebuild):
    """What C++ leaves behind tracemalloc does not see."""
    params = [torch.nn.Parameter(torch.ones(4, 4)) for _ in range(200)]
    optimizer = OURS["adamw"](params, lr=1e-3)
    for p in params:
        p.grad = torch.ones(4, 4)

    def steps(count):
        for _ in range(count):
            if rebuild:
                optimizer._plans = None
            params[0].grad = params[0].grad.t()
            optimizer.step()

    steps(100)
    before = resident()
    steps(400)
    assert (
        resident() - before < 2**20
    )  # a pointer for each parameter and step would be 640 KB, a tensor far more


# --- threads ------------------------------------------------------------------------------------------------
def model_of(seed):
    return [torch.nn.Parameter(randn(n, seed=seed + i)) for i, n in enumerate((40_000, 3, 500, 17))]


@names
def test_two_optimizers_in_two_threads(name):
    """The same bits as one after the other."""

    def work(seed, into):
        optimizer = OURS[name](model_of(seed), lr=1e-2, weight_decay=0.1)
        train(optimizer, range(seed, seed + 20))
        into[seed] = values(optimizer)

    alone, together, failed = {}, {}, []

    def guarded(seed):
        try:
            work(seed, together)
        except Exception as error:
            failed.append(error)

    with threads(2):
        for seed in (10, 20):
            work(seed, alone)
        workers = [threading.Thread(target=guarded, args=(seed,)) for seed in (10, 20)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
    assert not failed
    for seed in (10, 20):
        assert_trained_alike(together[seed], alone[seed], rtol=0, atol=0)


FIRST_STEPS = """
import sys, threading, time
import torch
import onepass

def pause(frame, event, arg):  # lets go of the interpreter lock where the first plan looks up torch.ops
    if event == "call" and frame.f_locals.get("op_name", "").startswith("_"):
        time.sleep(0.3)

def work():
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = onepass.optim.Adam([p])
    p.grad = torch.ones(3)
    barrier.wait()
    sys.setprofile(pause)
    optimizer.step()

barrier = threading.Barrier(2)
workers = [threading.Thread(target=work, daemon=True) for _ in range(2)]
for worker in workers:
    worker.start()
for worker in workers:
    worker.join(5)
print("stuck" if any(worker.is_alive() for worker in workers) else "done", flush=True)
import os
os._exit(0)
"""


def test_the_first_steps_of_a_process_in_two_threads():
    """What a first plan looks up once must not be guarded by a lock that waits for the interpreter's."""
    command = [sys.executable, "-c", FIRST_STEPS]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except subprocess.TimeoutExpired:
        pytest.fail("both threads wait for each other")
    assert done.stdout.strip() == "done", done.stderr


@names
def test_looking_at_the_state_of_a_frozen_parameter_changes_nothing(name):
    """optimizer.state is a defaultdict: a look leaves an empty dict behind."""
    trained, frozen = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = OURS[name]([trained, frozen])
    assert not optimizer.state[frozen]
    trained.grad = torch.ones(3)
    optimizer.step()
    assert optimizer.state[trained]["step"] == 1 and not optimizer.state[frozen]
    frozen.grad = torch.ones(3)
    optimizer.step()
    assert optimizer.state[trained]["step"] == 2 and optimizer.state[frozen]["step"] == 1
    assert not torch.equal(frozen, torch.ones(3))
