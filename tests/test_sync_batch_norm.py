"""SyncBatchNorm: four processes with a part of the batch each do what one process does with all of it."""

import pytest
import torch
from onepass.nn import BatchNorm1d, BatchNorm2d, BatchNorm3d, SyncBatchNorm
from optim_helpers import randn
from sync_helpers import (
    BUFFERS,
    CASES,
    CHANNELS,
    PLAIN,
    SIZES,
    Torch,
    assert_alike,
    assert_same_bits,
    flat,
    gathered,
    given,
    module_of,
    share,
    total,
    trained,
)
from sync_processes import PAIRS, needs_distributed


# --- against one process ------------------------------------------------------------------------------------
@needs_distributed
@pytest.mark.parametrize("name", [name for name in CASES if name != "bfloat16"])
def test_parts_are_the_whole_batch(ranks, name):
    """Of torch in float64, and of onepass's BatchNorm."""
    case = PLAIN | CASES[name]
    found = gathered([r[name] for r in ranks])
    bound = 1e-12 if case["dtype"] == torch.float64 else 2e-6
    single = {1: BatchNorm1d, 2: BatchNorm1d, 4: BatchNorm2d, 5: BatchNorm3d}[2 + len(case["pixels"])]
    module = module_of(single, case)
    theirs = Torch(module, case)
    assert_alike(found, trained(theirs, case, dtype=torch.float64), bound)
    assert_alike(found, trained(module, case), bound)
    assert len(found["output"]) == case["steps"]
    assert len(found["residual"]) == case["steps"] * case["residual"]


@needs_distributed
def test_bfloat16_input_beside_float32_parameters(ranks):
    case = PLAIN | CASES["bfloat16"]
    found = gathered([r["bfloat16"] for r in ranks])
    assert found["output"][0].dtype == found["input"][0].dtype == torch.bfloat16
    assert all(r["bfloat16"][name].dtype == torch.float32 for r in ranks for name in ("weight", "bias"))
    theirs = trained(module_of(BatchNorm2d, case), case)
    assert_alike(found, theirs, 2e-6, ("weight", "bias", *BUFFERS))
    assert_alike(found, theirs, 2.0**-8, ("output", "input", "residual"))


@needs_distributed
@pytest.mark.parametrize("name", CASES)
def test_nothing_of_an_empty_part(ranks, name):
    case = PLAIN | CASES[name]
    empty = ranks[SIZES.index(0)][name]
    shape = (0, CHANNELS, *case["pixels"])
    for kind in ("output", "input", *["residual"] * case["residual"]):
        assert [(t.shape, t.dtype) for t in empty[kind]] == [(shape, case["dtype"])] * case["steps"]
    grads = [empty[kind] for kind in ("weight", "bias") if kind in empty]
    assert len(grads) == case.get("affine", True) * (1 + case.get("bias", True))
    assert all(g.count_nonzero() == 0 for g in grads)


@needs_distributed
@pytest.mark.parametrize("name", CASES)
def test_the_same_bits_on_all_and_again(ranks, name):
    for r in ranks:
        assert_same_bits(flat(r[name], BUFFERS), flat(ranks[0][name], BUFFERS))
        assert_same_bits(flat(r[name]), flat(r[name + " again"]))


@needs_distributed
def test_groups_do_not_know_of_each_other(ranks):
    for pair in PAIRS:
        found = gathered([ranks[rank]["pairs"] for rank in pair])
        part = slice(share(pair[0]).start, share(pair[-1]).stop)
        assert_alike(found, trained(module_of(BatchNorm2d, PLAIN), PLAIN, part), 2e-6)
    assert not torch.equal(ranks[0]["pairs"]["running_mean"], ranks[2]["pairs"]["running_mean"])


@needs_distributed
def test_strides_of_any_kind(ranks):
    case = PLAIN | {"pixels": (4, 4)}
    x, _, factor = (t.transpose(2, 3)[..., ::2] for t in given(case, 0))
    x = x.double().requires_grad_()
    theirs = Torch(module_of(BatchNorm2d, case), case)
    ((theirs(x) + x) * factor).mean((2, 3)).sum().backward()
    grads, weight_grads = zip(*(r["strides"] for r in ranks), strict=True)
    found = {"input": torch.cat(grads), "weight": total(weight_grads)}
    assert_alike(found, {"input": x.grad, "weight": theirs.norm.weight.grad}, 2e-6)


# --- one process --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ("relu_residual", "average", "bfloat16", "untracked"))
def test_alone_it_is_batch_norm(name):
    case = PLAIN | CASES[name]
    ours, theirs = (trained(module_of(cls, case), case) for cls in (SyncBatchNorm, BatchNorm2d))
    assert ours.keys() == theirs.keys()
    assert_same_bits(flat(ours), flat(theirs))


def test_alone_in_evaluation_of_any_dimensions():
    ours, theirs = module_of(SyncBatchNorm, PLAIN).eval(), module_of(BatchNorm1d, PLAIN).eval()
    x = randn(4, CHANNELS, 7)
    assert_same_bits([ours(x), ours(x[..., None, None]).view_as(x)], [theirs(x)] * 2)
    assert not torch.equal(ours(x), ours.train()(x))


def test_refused_input():
    module = SyncBatchNorm(CHANNELS)
    with pytest.raises(ValueError, match=r"expected at least 2D input \(got 1D input\)"):
        module(randn(CHANNELS))
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        module(randn(1, CHANNELS))
    with pytest.raises(ValueError, match="act is 'tanh'"):
        SyncBatchNorm(CHANNELS, act="tanh")
