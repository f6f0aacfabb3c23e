"""rounding="torch": Adam and AdamW in the order of rounding of torch's fused CPU kernel, bit by bit."""

import copy
import itertools
import pickle

import onepass
import pytest
import torch
from onepass import backends, use_backend
from onepass.testing.threads import threads
from optim_helpers import OURS, TORCH, needs_cpp, params_of, randn

pytestmark = needs_cpp

# Multiples of torch's vectors and others, and tensors that are all tail.
SHAPES = [(1003,), (17,), (64, 33), (1,), (257,), (0,), (3, 5, 7)]
SETTINGS = {
    "defaults": {},
    "decay": {"weight_decay": 0.1, "lr": 1e-2},
    "no_decay": {"weight_decay": 0.0},
    "betas": {"betas": (0.5, 0.9)},  # where torch's lerp changes its formula
    "small_beta1": {"betas": (0.3, 0.999)},
    "amsgrad": {"betas": (0.0, 0.99), "amsgrad": True},
    "maximize": {"maximize": True, "eps": 1e-3, "weight_decay": 0.3},
}
names = pytest.mark.parametrize("name", ("adam", "adamw"))


def pair(name, settings, seed, shapes=SHAPES):
    tensors = [randn(*shape, seed=seed + i) for i, shape in enumerate(shapes)]
    ours, theirs = ([torch.nn.Parameter(t.clone()) for t in tensors] for _ in range(2))
    return OURS[name](ours, rounding="torch", **settings), TORCH[name](theirs, fused=True, **settings)


def step(optimizers, seed):
    """Gradients over seven decades, the same for both."""
    for i, (p, q) in enumerate(zip(*map(params_of, optimizers), strict=True)):
        rng = torch.Generator().manual_seed(1000 * seed + i)
        size = 10 ** torch.empty(p.shape).uniform_(-6, 1, generator=rng)
        p.grad = torch.randn(p.shape, generator=rng) * size
        q.grad = p.grad.clone()
    for optimizer in optimizers:
        optimizer.step()


def differing(ours, theirs):
    """How many elements of parameters and states have other bits."""
    count = 0
    for p, q in zip(params_of(ours), params_of(theirs), strict=True):
        count += int((p != q).sum())
        count += sum(int((ours.state[p][key] != value).sum()) for key, value in theirs.state[q].items())
    return count


@names
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize(
    "isa",
    [
        pytest.param(isa, marks=() if isa == backends.isas()[-1] else pytest.mark.slow)
        for isa in backends.isas()
    ],
)
def test_twenty_steps_have_torchs_bits(name, settings, isa):
    with backends.use_isa(isa):
        for seed in range(5):
            optimizers = pair(name, SETTINGS[settings], seed)
            for t in range(20):
                step(optimizers, t + 100 * seed)
            assert differing(*optimizers) == 0


@names
def test_threads_change_no_bits(name):
    """Elements enough for four threads, whose pieces end where torch's do not."""
    optimizers = pair(name, {"weight_decay": 0.1}, 3, [(70_003,), (41,), (30_001,)])
    with threads(4):
        for t in range(5):
            step(optimizers, t)
    assert differing(*optimizers) == 0


@names
def test_a_run_of_torchs_goes_on_with_torchs_bits(name):
    """Ten steps by torch, its state_dict, ten steps more on both sides."""
    ours, theirs = pair(name, {"lr": 1e-2}, 7)
    for t in range(10):
        step((theirs, theirs), t)
    with torch.no_grad():
        for p, q in zip(params_of(ours), params_of(theirs), strict=True):
            p.copy_(q)
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    for t in range(10, 20):
        step((ours, theirs), t)
    assert differing(ours, theirs) == 0


def test_it_is_another_rounding():
    """Else the tests above would prove nothing about the rule."""
    ours, theirs = (
        OURS["adamw"]([torch.nn.Parameter(randn(1000))], rounding=r) for r in ("onepass", "torch")
    )
    for t in range(5):
        step((ours, theirs), t)
    assert differing(ours, theirs) > 0


@names
def test_the_choice_survives_copies_and_pickles(name):
    optimizer, _ = pair(name, {}, 0)
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert other._variant(other.param_groups[0])[0] == f"{name}_as_torch_"


@pytest.mark.parametrize("dtype", (torch.float64, torch.bfloat16, torch.float16))
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(ValueError, match="float32 parameters on the CPU"):
        OURS["adamw"]([torch.nn.Parameter(randn(3, dtype=dtype))], rounding="torch")
    optimizer = OURS["adamw"]([torch.nn.Parameter(randn(3))], rounding="torch")
    with pytest.raises(ValueError, match="float32 parameters on the CPU"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(randn(3, dtype=dtype))]})
    assert len(optimizer.param_groups) == 1


def test_other_words_are_refused():
    with pytest.raises(ValueError, match="Invalid rounding: 'half', expected 'onepass' or 'torch'"):
        onepass.optim.Adam([torch.nn.Parameter(randn(3))], rounding="half")


@pytest.mark.parametrize("op, backend", list(itertools.product(("adam", "adamw"), ("cpp", "reference"))))
def test_the_op_refuses_other_dtypes_in_the_same_words(op, backend):
    p = torch.zeros(3, dtype=torch.float64)
    state = [[torch.zeros(3, dtype=torch.float64)] for _ in range(2)]
    hyper = torch.tensor([[1e-3, 0, 0, 0, 0, float("inf"), 0.9, 0.999, 1e-8]], dtype=torch.float64)
    call = getattr(torch.ops.onepass, f"{op}_as_torch_")
    message = rf"{op}_as_torch_: params\[0\] has dtype torch.float64, expected torch.float32"
    with use_backend(backend), pytest.raises(RuntimeError, match=message):
        call([p], [p.clone()], *state, [], [], [torch.zeros(())], hyper, [0])
