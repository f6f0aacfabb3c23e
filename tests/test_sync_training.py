"""SyncBatchNorm in training: what processes say to each other, errors on all of them, DDP and autocast."""

import pytest
import torch
from sync_helpers import CHANNELS, SIZES, assert_same_bits, total
from sync_processes import SOLO, Net, images, needs_distributed, steps_of_training

# --- collectives --------------------------------------------------------------------------------------------
MOMENTS, SUMS = 3 * CHANNELS + 1, 2 * CHANNELS + 1
ELEMENTS = {"_allgather_base_": [len(SIZES) * MOMENTS, MOMENTS], "allreduce_": [SUMS]}


@needs_distributed
@pytest.mark.parametrize("name", ("training", "data", "average", "float64"))
def test_one_collective_each_way_and_nobody_waits(ranks, name):
    dtype = torch.float64 if name == "float64" else torch.float32
    for r in ranks:
        assert r["counted"][name] == ([(op, sizes, dtype) for op, sizes in ELEMENTS.items()], 0)


@needs_distributed
def test_no_collective_without_need(ranks):
    for r in ranks:
        assert r["counted"]["eval"] == ([], 0)
        assert [op for op, *_ in r["counted"]["no_grad"][0]] == ["_allgather_base_"]
    assert ranks[SOLO]["counted"]["solo"] == ([], 0)


@needs_distributed
def test_errors_on_every_process(ranks):
    for r in ranks:
        assert r["errors"]["dims"] == "expected at least 2D input (got 1D input)"
        assert r["errors"]["eps"] == "batch_norm eps must be positive during training, but got 0.0"
        assert r["errors"]["residual"].startswith("batch_norm_apply: residual has shape")
        assert "once_differentiable" in r["errors"]["twice"]
        assert r["errors"]["untouched"] == 0
    assert ranks[SOLO]["errors"]["one value"].startswith("Expected more than 1 value per channel")


# --- training -----------------------------------------------------------------------------------------------
@needs_distributed
def test_training_under_ddp(ranks):
    """All processes stay alike, and train as one does with the whole batch."""
    for r in ranks[1:]:
        assert_same_bits(r["ddp"], ranks[0]["ddp"])
    before = Net()
    alone = steps_of_training(Net(), slice(None), 1)
    for ours, theirs in zip(ranks[0]["ddp"], alone, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    moved = zip(before.parameters(), ranks[0]["ddp"], strict=False)
    # But for the bias in front of the norm, which that takes away again.
    assert all((p - q).abs().max() > 1e-4 for i, (p, q) in enumerate(moved) if i != 1)


@needs_distributed
def test_autocast(ranks):
    model, (x, _) = Net(), images()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(x).float().square().sum()
    loss.backward()
    for r in ranks:
        dtypes, grads, running_var = r["autocast"]
        assert dtypes == [torch.bfloat16] * 2
        assert {g.dtype for g in grads} == {torch.float32}
        torch.testing.assert_close(running_var, model.norm.running_var, rtol=1e-5, atol=1e-5)
    grad = total([r["autocast"][1][2] for r in ranks])  # of norm.weight
    torch.testing.assert_close(grad, model.norm.weight.grad.double(), rtol=0.03, atol=0.03)
