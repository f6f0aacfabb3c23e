"""Training under onepass.amp in torch's surroundings: autocast, checkpointing, DDP, Lightning, Accelerate."""

import math
import os
import warnings

import onepass
import pytest
import torch
from amp_helpers import OURS, TORCH
from conftest import need
from onepass.amp import GradAccumulator
from optim_helpers import each_backend, frozen, params_of, randn
from torch import nn
from torch.utils.checkpoint import checkpoint

each_autocast = pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)


class Net(nn.Module):
    """Two classes of points in the plane; `recompute` runs the middle under gradient checkpointing."""

    def __init__(self, recompute=False):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.middle = nn.Linear(4, 32), nn.Sequential(nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.last, self.recompute = nn.Linear(32, 2), recompute

    def forward(self, x):
        x = self.first(x)
        x = checkpoint(self.middle, x, use_reentrant=False) if self.recompute else self.middle(x)
        return self.last(x)


def batch(t, n=32):
    x = randn(n, 4, seed=t)
    return x, (x[:, 0] * x[:, 1] > 0).long()


def adamw(model, ours=True, **options):
    cls = onepass.optim.AdamW if ours else torch.optim.AdamW
    return cls(model.parameters(), lr=1e-2, **options)


def loss_of(model, t, dtype):
    x, y = batch(t)
    with torch.autocast("cpu", dtype=dtype):
        return nn.functional.cross_entropy(model(x), y)


def train(model, optimizer, scaler, dtype, steps=80, overflows=()):
    """Losses."""
    losses = []
    for t in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model, t, dtype)
        scaler.scale(loss * (math.inf if t in overflows else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    return losses


@each_autocast
@each_backend
def test_autocast_on_the_cpu(dtype, backend):
    """Learns, skips what overflows, and does what torch does with its own scaler and optimizer."""
    runs = []
    for kind, ours in ((OURS, True), (TORCH, False)):
        model = Net()
        scaler = kind("cpu", init_scale=2.0**10, growth_interval=20)
        with onepass.use_backend(backend if ours else None):
            losses = train(model, adamw(model, ours), scaler, dtype, overflows=(3, 40))
        runs.append((losses, scaler.state_dict()))
    (ours, our_state), (theirs, their_state) = runs
    assert our_state == their_state
    assert sum(ours[-10:]) < 0.7 * sum(ours[:10])
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=0.02, atol=0.02)


@each_autocast
def test_gradient_checkpointing_beside_it(dtype):
    """Recomputed activations are the same, and so is every bit behind them."""
    outcomes = []
    for recompute in (False, True):
        model = Net(recompute)
        optimizer = adamw(model, max_grad_norm=1.0)
        losses = train(model, optimizer, OURS("cpu", init_scale=1024.0), dtype, steps=10, overflows=(2,))
        outcomes.append((losses, frozen(params_of(optimizer))))
    assert outcomes[0] == outcomes[1]


@each_autocast
def test_half_parameters_with_sums_of_gradients_in_float32(dtype):
    """No autocast: parameters and gradients are half, windows of four micro-batches."""
    model = Net().to(dtype)
    optimizer, scaler = adamw(model), OURS("cpu", init_scale=256.0)
    acc, losses = GradAccumulator(model.parameters()), []
    for t in range(40):
        for micro in range(4):
            x, y = batch(4 * t + micro)
            loss = nn.functional.cross_entropy(model(x.to(dtype)).float(), y)
            scaler.scale(loss / 4).backward()
            acc.accumulate()
        acc.install()
        scaler.step(optimizer)
        scaler.update()
        acc.zero()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


# --- two processes ------------------------------------------------------------------------------------------
def _rank(rank: int, port: int, out: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    try:
        model = nn.parallel.DistributedDataParallel(Net())
        optimizer = adamw(model, max_grad_norm=1.0, ema_decay=0.9)
        scaler, seen = OURS("cpu", init_scale=1024.0, growth_interval=3), []
        for t in range(10):
            optimizer.zero_grad()
            x, y = batch(2 * t + rank)
            loss = nn.functional.cross_entropy(model(x), y)
            if t in (0, 4) and rank == 1:
                loss = loss * math.inf
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            seen.append((scaler.get_scale(), scaler._get_growth_tracker(), bool(optimizer.last_skipped)))
        torch.save((seen, [p.detach() for p in params_of(optimizer)]), f"{out}/{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
def test_ranks_agree_although_only_one_overflowed(tmp_path):
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_rank, (port, str(tmp_path)), nprocs=2)
    (first, params), (second, others) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert first == second
    assert [skipped for _, _, skipped in first] == [t in (0, 4) for t in range(10)]
    assert frozen(params) == frozen(others)
    assert {scale for scale, _, _ in first} == {512.0, 1024.0}


# --- Lightning ----------------------------------------------------------------------------------------------
def fit(optimizer_of, **trainer):
    """Trains Net by Lightning under our scaler. Returns model, optimizer and scaler."""
    need("lightning")
    import lightning
    from lightning.pytorch.plugins import MixedPrecision

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net, self.losses = Net(), []

        def training_step(self, given, index):
            loss = nn.functional.cross_entropy(self.net(given[0]), given[1])
            self.losses.append(loss.item())
            return loss * math.inf if index == 3 else loss

        def configure_optimizers(self):
            return optimizer_of(self)

    scaler = OURS("cpu", init_scale=1024.0)
    module = Module()
    data = torch.utils.data.DataLoader([batch(t) for t in range(60)], batch_size=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of workers, logging and the like
        fitted = lightning.Trainer(
            accelerator="cpu", devices=1, max_epochs=1, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, barebones=False,
            plugins=[MixedPrecision("16-mixed", "cpu", scaler=scaler)], **trainer,
        )  # fmt: skip
        fitted.fit(module, data)
    return module, fitted.optimizers[0], scaler


def assert_fitted(module, optimizer, scaler):
    assert scaler.skipped_steps == 1 and scaler.get_scale() == 512.0
    assert optimizer.state[params_of(optimizer)[0]]["step"] == 59
    assert sum(module.losses[-10:]) < 0.75 * sum(module.losses[:10])


def test_lightning_leaves_unscaling_to_the_step():
    assert_fitted(*fit(lambda module: adamw(module, max_grad_norm=1.0)))


def test_lightning_may_unscale_and_clip_by_itself():
    """Where the optimizer says that it does not: our scaler then hands over what unscale_ has found."""

    def optimizer_of(module):
        optimizer = adamw(module)
        optimizer._step_supports_amp_scaling = False
        return optimizer

    assert_fitted(*fit(optimizer_of, gradient_clip_val=1.0))


# --- Accelerate ---------------------------------------------------------------------------------------------
def test_accelerate_with_our_scaler():
    need("accelerate")
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    accelerator.scaler = OURS("cpu", init_scale=1024.0)
    model = Net()
    model, optimizer = accelerator.prepare(model, adamw(model, max_grad_norm=1.0))
    losses = []
    for t in range(60):
        optimizer.zero_grad()
        loss = loss_of(model, t, torch.float16)
        accelerator.backward(loss * math.inf if t == 3 else loss)
        optimizer.step()
        losses.append(loss.item())
    assert accelerator.scaler.skipped_steps == 1 and accelerator.scaler.get_scale() == 512.0
    assert optimizer.state[next(iter(model.parameters()))]["step"] == 59
    assert sum(losses[-10:]) < 0.75 * sum(losses[:10])
