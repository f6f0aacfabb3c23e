"""state_dict: torch reads what ours writes and the other way round, and no precision is lost between."""

import copy
import io

import pytest
import torch
from optim_helpers import (
    MOMENTS,
    OURS,
    TORCH,
    assert_trained_alike,
    make_torch,
    names,
    params_of,
    randn,
    train,
    values,
)

HALVES = (torch.bfloat16, torch.float16)


def parameters(dtype=torch.float32):
    shapes = ((5,), (3, 4), ())
    return [torch.nn.Parameter(randn(*shape, seed=i, dtype=dtype)) for i, shape in enumerate(shapes)]


def groups(dtype=torch.float32):
    first, *rest = parameters(dtype)
    return [{"params": [first], "lr": 0.02}, {"params": rest, "weight_decay": 0.1}]


def saved(state_dict):
    """As it comes back from a file."""
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def hand_over(source, make, dtype=torch.float32, **options):
    """A new optimizer with copies of the parameters of source, which has loaded its state_dict."""
    other = make(groups(dtype), **options)
    for p, q in zip(params_of(other), params_of(source), strict=True):
        p.data.copy_(q.data)
    other.load_state_dict(saved(source.state_dict()))
    return other


def assert_state_dicts_equal(a, b):
    assert list(a) == list(b) == ["state", "param_groups"]
    assert a["param_groups"] == b["param_groups"]
    assert list(a["state"]) == list(b["state"])
    for i, state in a["state"].items():
        assert list(state) == list(b["state"][i])
        for key, value in state.items():
            other = b["state"][i][key]
            assert (value.dtype, value.shape, value.device) == (other.dtype, other.shape, other.device)
            assert torch.equal(value, other), (i, key)


# --- the form -----------------------------------------------------------------------------------------------
@names
@pytest.mark.parametrize("amsgrad", (False, True), ids=("plain", "amsgrad"))
@pytest.mark.parametrize("steps", (0, 1, 3))
def test_state_dict_has_torchs_form(name, steps, amsgrad):
    """Groups, keys, their order, dtypes and shapes; values within the rounding of a few steps."""
    dicts = []
    for cls in (OURS[name], TORCH[name]):
        optimizer = cls(groups(), lr=1e-2, amsgrad=amsgrad)
        train(optimizer, steps)
        dicts.append(optimizer.state_dict())
    ours, theirs = dicts
    assert ours["param_groups"] == theirs["param_groups"]
    assert [list(group) for group in ours["param_groups"]] == [
        list(group) for group in theirs["param_groups"]
    ]
    assert list(ours["state"]) == list(theirs["state"]) == (list(range(3)) if steps else [])
    for i, state in theirs["state"].items():
        assert list(ours["state"][i]) == list(state)
        for key, value in state.items():
            mine = ours["state"][i][key]
            assert (mine.dtype, mine.shape, mine.device) == (value.dtype, value.shape, value.device)
            torch.testing.assert_close(mine, value, rtol=1e-5, atol=1e-8)
        assert ours["state"][i]["step"].dim() == 0
        assert ours["state"][i]["step"].item() == steps


@names
def test_a_parameter_without_gradients_has_no_state(name):
    optimizer = OURS[name](groups(), lr=1e-2)
    p = params_of(optimizer)
    p[1].grad = torch.ones_like(p[1])
    optimizer.step()
    assert list(optimizer.state_dict()["state"]) == [1]
    other = hand_over(optimizer, make_torch(name), lr=1e-2)
    train(other, 2)
    assert [other.state[q]["step"].item() for q in params_of(other)] == [2, 3, 2]


# --- to torch and back --------------------------------------------------------------------------------------
@names
@pytest.mark.parametrize("amsgrad", (False, True), ids=("plain", "amsgrad"))
@pytest.mark.parametrize("ways", ("otot", "toto", "ootto", "ttoot"))
def test_training_handed_to_and_fro(name, ways, amsgrad):
    """o: some steps of ours, t: some of torch's, a state_dict between them; against torch all the way."""
    options = {"lr": 1e-2, "amsgrad": amsgrad}
    makers = {"o": OURS[name], "t": make_torch(name)}
    whole = makers["t"](groups(), **options)
    train(whole, 3 * len(ways))
    optimizer = makers[ways[0]](groups(), **options)
    for i, way in enumerate(ways):
        if i:
            optimizer = hand_over(optimizer, makers[way], **options)
        train(optimizer, range(3 * i, 3 * i + 3))
    assert_trained_alike(values(optimizer), values(whole))
    assert all(optimizer.state[p]["step"].item() == 3 * len(ways) for p in params_of(optimizer))


@names
@pytest.mark.parametrize("to_torch", (False, True), ids=("torch to ours", "ours to torch"))
def test_a_float32_state_dict_passes_unchanged(name, to_torch):
    makers = (OURS[name], make_torch(name)) if to_torch else (make_torch(name), OURS[name])
    source = makers[0](groups(), lr=1e-2, amsgrad=True, foreach=False)
    train(source, 3)
    other = hand_over(source, makers[1])
    assert_state_dicts_equal(other.state_dict(), source.state_dict())


@names
def test_hyperparameters_come_with_the_state_dict(name):
    source = make_torch(name)(groups(), lr=0.5, betas=(0.5, 0.9), eps=0.1, maximize=True, amsgrad=True)
    train(source, 2)
    other = hand_over(source, OURS[name], lr=1e-5)
    for o in (source, other):
        train(o, range(2, 5))
    assert_trained_alike(values(other), values(source))


@names
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, *HALVES), ids=str)
@pytest.mark.parametrize("at", (1, 5))
def test_resumed_training_is_bit_equal(name, dtype, at):
    """20 steps in one go, and 20 steps with a save and a load after some of them."""
    whole = OURS[name](groups(dtype), lr=1e-2, amsgrad=True)
    train(whole, 20)
    optimizer = OURS[name](groups(dtype), lr=1e-2, amsgrad=True)
    train(optimizer, at)
    optimizer = hand_over(optimizer, OURS[name], dtype)
    train(optimizer, range(at, 20))
    assert_trained_alike(values(optimizer), values(whole), rtol=0, atol=0)
    assert_state_dicts_equal(optimizer.state_dict(), whole.state_dict())


@names
def test_loading_into_an_optimizer_that_has_stepped(name):
    source, other = (OURS[name](groups(), lr=1e-2) for _ in range(2))
    train(source, 4)
    at_four = [p.detach().clone() for p in params_of(source)], saved(source.state_dict())
    train(other, range(50, 53))
    for p, value in zip(params_of(other), at_four[0], strict=True):
        p.data.copy_(value)
    other.load_state_dict(at_four[1])
    for o in (source, other):
        train(o, range(4, 8))
    assert_trained_alike(values(other), values(source), rtol=0, atol=0)


# --- half parameters ----------------------------------------------------------------------------------------
@names
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_half_moments_of_torch_become_float32_of_equal_value(name, dtype):
    source = make_torch(name)(groups(dtype), lr=1e-2, amsgrad=True)
    train(source, 3)
    assert source.state[params_of(source)[0]]["exp_avg"].dtype == dtype
    other = hand_over(source, OURS[name], dtype)
    for p, q in zip(params_of(other), params_of(source), strict=True):
        for key in MOMENTS:
            assert other.state[p][key].dtype == torch.float32
            assert torch.equal(other.state[p][key], source.state[q][key].float())
    train(other, range(3, 6))


@names
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_float32_moments_are_never_cast_down(name, dtype):
    """torch casts a loaded moment to the dtype of its parameter: 16 of 24 bits are lost at each resume."""
    source = OURS[name](groups(dtype), lr=1e-2, amsgrad=True)
    train(source, 3)
    other = hand_over(source, OURS[name], dtype)
    assert_state_dicts_equal(other.state_dict(), source.state_dict())
    rounded = [source.state[p]["exp_avg"].to(dtype).float() for p in params_of(source)]
    moments = [other.state[p]["exp_avg"] for p in params_of(other)]
    assert not all(torch.equal(a, b) for a, b in zip(moments, rounded, strict=True))


@names
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_half_training_goes_on_in_torch(name, dtype):
    source = OURS[name](groups(dtype), lr=1e-2)
    train(source, 3)
    other = hand_over(source, make_torch(name), dtype)
    train(other, range(3, 5))
    assert all(other.state[p]["step"].item() == 5 for p in params_of(other))


@names
def test_float64_moments_for_float32_parameters_are_cast_as_torch_does(name):
    state_dict = None
    for make in (make_torch(name), OURS[name]):
        if state_dict is None:
            source = make(groups(torch.float64), lr=1e-2)
            train(source, 2)
            state_dict = source.state_dict()
        other = make(groups(), lr=1e-2)
        other.load_state_dict(copy.deepcopy(state_dict))
        assert all(other.state[p]["exp_avg"].dtype == torch.float32 for p in params_of(other))
        train(other, range(2, 4))


# --- step counters ------------------------------------------------------------------------------------------
@names
@pytest.mark.parametrize(
    "step", (3, 3.0, torch.tensor(3.0), torch.tensor([3.0])), ids=("int", "float", "0-dim", "[1]")
)
def test_steps_of_older_files(name, step):
    """Before 1.12 torch wrote the step as an integer."""
    source = make_torch(name)(groups(), lr=1e-2)
    train(source, 3)
    trained = []
    for make in (make_torch(name), OURS[name]):
        state_dict = saved(source.state_dict())
        for state in state_dict["state"].values():
            state["step"] = step.clone() if isinstance(step, torch.Tensor) else step
        other = make(groups(), lr=1e-2)
        other.load_state_dict(state_dict)
        train(other, range(3, 6))
        assert all(other.state[p]["step"].item() == 6 for p in params_of(other))
        assert all(isinstance(other.state[p]["step"], torch.Tensor) for p in params_of(other))
        trained.append(values(other))
    assert_trained_alike(*trained)


@names
def test_groups_of_older_files_get_torchs_defaults(name):
    source = make_torch(name)(groups(), lr=1e-2)
    train(source, 3)
    loaded = []
    for make in (make_torch(name), OURS[name]):
        state_dict = saved(source.state_dict())
        for group in state_dict["param_groups"]:
            for key in ("maximize", "foreach", "capturable", "differentiable", "fused"):
                del group[key]
        other = make(groups(), lr=1e-2)
        other.load_state_dict(state_dict)
        train(other, range(3, 6))
        loaded.append(other)
    assert loaded[0].state_dict()["param_groups"] == loaded[1].state_dict()["param_groups"]
    assert_trained_alike(values(loaded[1]), values(loaded[0]))


@names
@pytest.mark.parametrize("fused", (None, True))
def test_steps_written_by_a_fused_optimizer(name, fused):
    source = OURS[name](groups(), lr=1e-2, fused=fused)
    train(source, 3)
    assert all(source.state[p]["step"].dtype == torch.float32 for p in params_of(source))
    other = hand_over(source, OURS[name])
    assert_state_dicts_equal(other.state_dict(), source.state_dict())


# --- hooks --------------------------------------------------------------------------------------------------
@names
def test_hooks_see_what_they_see_in_torch(name):
    def scenario(make):
        source, log = make(groups(), lr=1e-2), []
        source.register_state_dict_pre_hook(lambda o: log.append(("save", o is source)))
        source.register_state_dict_post_hook(lambda o, d: log.append(("saved", list(d), list(d["state"]))))
        train(source, 2)
        state_dict = saved(source.state_dict())

        other = make(groups(), lr=1e-5)

        def before(o, loaded):
            assert loaded is not state_dict
            log.append(("load", o is other, list(loaded), o.param_groups[0]["lr"], len(o.state)))

        def after(o):
            steps = [float(o.state[p]["step"]) for p in params_of(o)]
            log.append(("loaded", o is other, o.param_groups[0]["lr"], steps))

        other.register_load_state_dict_pre_hook(before)
        other.register_load_state_dict_post_hook(after)
        for _ in range(2):
            other.load_state_dict(state_dict)
        return log

    assert scenario(OURS[name]) == scenario(make_torch(name))


@names
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_a_pre_hook_may_hand_over_another_state_dict(name, dtype):
    source, other = OURS[name](groups(dtype), lr=1e-2), OURS[name](groups(dtype), lr=1e-2)
    train(source, 3)

    def double(optimizer, loaded):
        state = {i: {**s, "exp_avg": s["exp_avg"] * 2} for i, s in loaded["state"].items()}
        return {**loaded, "state": state}

    other.register_load_state_dict_pre_hook(double)
    other.load_state_dict(saved(source.state_dict()))
    for p, q in zip(params_of(other), params_of(source), strict=True):
        assert torch.equal(other.state[p]["exp_avg"], source.state[q]["exp_avg"] * 2)


@names
def test_a_post_hook_sees_float32_moments(name):
    source, other = (OURS[name](groups(torch.bfloat16), lr=1e-2) for _ in range(2))
    train(source, 3)
    seen = []
    other.register_load_state_dict_post_hook(
        lambda o: seen.extend(o.state[p]["exp_avg"].dtype for p in params_of(o)), prepend=True
    )
    other.load_state_dict(saved(source.state_dict()))
    assert seen == [torch.float32] * 3


@names
def test_hooks_of_a_load_do_not_pile_up(name):
    source, other = (OURS[name](groups(), lr=1e-2) for _ in range(2))
    train(source, 2)
    counts = []
    for _ in range(3):
        other.load_state_dict(saved(source.state_dict()))
        counts.append(
            len(other._optimizer_load_state_dict_pre_hooks) + len(other._optimizer_load_state_dict_post_hooks)
        )
    assert counts == [0, 0, 0]


# --- errors -------------------------------------------------------------------------------------------------
def other_group_count(state_dict):
    state_dict["param_groups"].pop()


def other_group_size(state_dict):
    state_dict["param_groups"][1]["params"].append(7)


def no_groups(state_dict):
    del state_dict["param_groups"]


@names
@pytest.mark.parametrize("break_it", (other_group_count, other_group_size, no_groups))
def test_a_state_dict_that_does_not_fit_raises_torchs_error_and_changes_nothing(name, break_it):
    raised = []
    for make in (make_torch(name), OURS[name]):
        optimizer = make(groups(), lr=1e-2)
        train(optimizer, 3)
        before = copy.deepcopy(optimizer.state_dict())
        broken = saved(optimizer.state_dict())
        break_it(broken)
        with pytest.raises(Exception) as error:  # which one is compared below
            optimizer.load_state_dict(broken)
        raised.append((error.type, str(error.value)))
        assert_state_dicts_equal(optimizer.state_dict(), before)
        assert not optimizer._optimizer_load_state_dict_pre_hooks
        assert not optimizer._optimizer_load_state_dict_post_hooks
        train(optimizer, range(3, 5))
        whole = make(groups(), lr=1e-2)
        train(whole, 5)
        assert_trained_alike(values(optimizer), values(whole), rtol=0, atol=0)
    assert raised[0] == raised[1]


@names
def test_state_dict_shares_memory_as_torchs_does(name):
    """It is a view on the optimizer, until it is saved or copied."""
    optimizer = OURS[name](groups(), lr=1e-2)
    train(optimizer, 2)
    state_dict = optimizer.state_dict()
    train(optimizer, range(2, 4))
    assert state_dict["state"][0]["step"].item() == 4
    assert state_dict["state"][0]["exp_avg"] is optimizer.state[params_of(optimizer)[0]]["exp_avg"]
