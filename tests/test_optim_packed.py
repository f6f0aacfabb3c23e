"""States of many small parameters lie in one block and behave as if each had been made alone."""

import copy
import io
import itertools

import onepass
import pytest
import torch
from onepass.optim import packed


def network(count: int, dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
    random = torch.Generator().manual_seed(0)
    shapes = [(7,), (3, 5), (2, 3, 4), (1, 8), ()]
    params = []
    for i in range(count):
        x = torch.randn(shapes[i % len(shapes)], generator=random)
        if x.dim() == 3 and i % 2:
            x = x.transpose(0, 2)
        params.append(torch.nn.Parameter(x.to(dtype)))
    return params


def train(optimizer: torch.optim.Optimizer, steps: int, seed: int = 1) -> None:
    random = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for p in optimizer.param_groups[0]["params"]:
            p.grad = torch.randn(p.shape, generator=random).to(p.dtype)
        optimizer.step()


def is_packed(optimizer: torch.optim.Optimizer) -> bool:
    """Do neighbours' states follow each other in memory?"""
    states = [optimizer.state[p]["exp_avg"] for p in optimizer.param_groups[0]["params"][:4]]
    gaps = [b.data_ptr() - a.data_ptr() for a, b in itertools.pairwise(states)]
    return all(0 < gap <= 256 for gap in gaps)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16))
def test_many_small_parameters_train_as_torchs(dtype):
    ours, theirs = network(packed.MANY + 3, dtype), network(packed.MANY + 3, dtype)
    optimizer = onepass.optim.AdamW(ours, amsgrad=True)
    expected = torch.optim.AdamW(theirs, amsgrad=True, foreach=False)
    train(optimizer, 3)
    train(expected, 3)
    assert is_packed(optimizer)
    tolerance = {torch.float32: 1e-6, torch.float64: 1e-12, torch.bfloat16: 2e-2}[dtype]
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance)
        state = optimizer.state[p]
        for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
            assert state[name].stride() == p.stride() and state[name].shape == p.shape
            assert state[name]._base is None
        assert state["step"].shape == () and state["step"] == 3


def test_few_parameters_are_not_packed():
    optimizer = onepass.optim.AdamW(network(packed.MANY - 1))
    train(optimizer, 1)
    first = optimizer.state[optimizer.param_groups[0]["params"][0]]
    first["exp_avg"].untyped_storage().resize_(64)  # an ordinary storage can be resized


def test_each_state_has_a_storage_of_its_own_size():
    optimizer = onepass.optim.AdamW(network(packed.MANY))
    train(optimizer, 1)
    states = [t for p in optimizer.param_groups[0]["params"] for t in optimizer.state[p].values()]
    assert len({t.untyped_storage().data_ptr() for t in states}) == len(states)
    assert all(t.untyped_storage().nbytes() == t.numel() * t.element_size() for t in states)


def test_saved_copied_and_loaded_states_go_on_bit_for_bit():
    optimizer = onepass.optim.AdamW(network(packed.MANY))
    train(optimizer, 2)
    copied = copy.deepcopy(optimizer)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    params = [torch.nn.Parameter(p.detach().clone()) for p in optimizer.param_groups[0]["params"]]
    loaded = onepass.optim.AdamW(params)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    for each in (optimizer, copied, loaded):
        train(each, 3, seed=2)
    for p, q, r in zip(
        *(each.param_groups[0]["params"] for each in (optimizer, copied, loaded)), strict=True
    ):
        assert torch.equal(p, q) and torch.equal(p, r)


def test_a_storage_that_is_resized_is_refused_by_torch():
    optimizer = onepass.optim.AdamW(network(packed.MANY))
    train(optimizer, 1)
    state = optimizer.state[optimizer.param_groups[0]["params"][0]]
    with pytest.raises(RuntimeError, match="not resizable"):
        state["exp_avg"].untyped_storage().resize_(0)
    train(optimizer, 1)
