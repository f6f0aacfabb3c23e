"""The processes that tests of SyncBatchNorm let run: four with a part of the batch each."""

import datetime
import fcntl
import os
import time

import onepass
import pytest
import torch
import torch.distributed as dist
from onepass.nn import BatchNorm2d, SyncBatchNorm
from optim_helpers import randn
from sync_helpers import CASES, CHANNELS, PLAIN, SIZES, given, module_of, share, trained
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

needs_distributed = pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")

SOLO = 3  # a process that is also a group of its own
PAIRS = ((0, 1), (2, 3))
SECONDS = 120.0  # until a process that waits is given up


# --- a model ------------------------------------------------------------------------------------------------
class Net(nn.Module):
    def __init__(self, norm=BatchNorm2d, **options):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, CHANNELS, 3), norm(CHANNELS, act="relu", **options)
        self.last = nn.Linear(CHANNELS, 2)

    def forward(self, x):
        return self.last(self.norm(self.conv(x)).mean((2, 3)))


def images():
    return randn(sum(SIZES), 3, 6, 6), randn(sum(SIZES), 2, seed=1)


def steps_of_training(model, part, scale, steps=3):
    """Sums of squares over a part of the batch, by hand: no state. Returns parameters and buffers."""
    x, y = (t[part] for t in images())
    for _ in range(steps):
        model.zero_grad()
        (scale * (model(x) - y).square().sum() / sum(SIZES)).backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.1 * p.grad
    return [t.detach().clone() for t in (*model.parameters(), *model.buffers())]


# --- the processes ------------------------------------------------------------------------------------------
class Seen(TorchDispatchMode):
    """Collectives, each with the number and dtype of its elements, and waits for the device."""

    def __init__(self):
        super().__init__()
        self.collectives, self.waits = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d":
            flat = [t for a in args for t in (a if isinstance(a, list) else [a])]
            tensors = [t for t in flat if isinstance(t, torch.Tensor)]
            self.collectives.append((func._opname, [t.numel() for t in tensors], tensors[0].dtype))
        self.waits += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def watched(module, x, **options):
    seen = Seen()
    with seen:
        module(x, **options).sum().backward()
    return seen.collectives, seen.waits


def counted(rank, solo):
    """Collectives and waits, by situation."""
    full = PLAIN | {"act": "relu"}
    x = given(full, 0)[0][share(rank)]
    module = module_of(SyncBatchNorm, full)
    found = {"training": watched(module, x.clone().requires_grad_())}
    found["data"] = watched(module, x)  # a first layer's: no gradient of its input
    module.momentum = None
    found["average"] = watched(module, x.to(torch.bfloat16).requires_grad_(), residual=x.to(torch.bfloat16))
    found["float64"] = watched(module_of(SyncBatchNorm, full | {"dtype": torch.float64}), x.double())
    found["eval"] = watched(module.eval(), x)
    if rank == SOLO:
        found["solo"] = watched(module_of(SyncBatchNorm, full, process_group=solo), x)
    with Seen() as seen, torch.no_grad():
        module.train()(x)
    found["no_grad"] = seen.collectives, seen.waits
    return found


def errors(rank, solo):
    """Messages. None of these may leave another process waiting."""
    found = {}

    def fails(name, error, call):
        with pytest.raises(error) as caught:
            call()
        found[name] = str(caught.value)

    x = randn(2, CHANNELS, 3)
    module = module_of(SyncBatchNorm, PLAIN)
    fails("dims", ValueError, lambda: module(randn(CHANNELS)))
    fails("eps", ValueError, lambda: SyncBatchNorm(CHANNELS, eps=0.0)(x))
    fails("residual", RuntimeError, lambda: module(x, x[:1]))
    found["untouched"] = int(module.num_batches_tracked)
    loss = module(x.clone().requires_grad_()).square().sum()
    (grad,) = torch.autograd.grad(loss, [module.weight], create_graph=True)
    fails("twice", RuntimeError, lambda: grad.sum().backward())
    if rank == SOLO:
        alone = module_of(SyncBatchNorm, PLAIN, process_group=solo)
        fails("one value", ValueError, lambda: alone(randn(1, CHANNELS)))
    return found


def under_autocast(rank):
    x, _ = images()
    model = SyncBatchNorm.convert_sync_batchnorm(Net())
    dtypes = []
    model.norm.register_forward_hook(lambda _, args, output: dtypes.extend((args[0].dtype, output.dtype)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(x[share(rank)]).float().square().sum()
    loss.backward()
    return dtypes, [p.grad for p in model.parameters()], model.norm.running_var


def distributed(rank):
    """Under DDP, whose mean over processes is the sum over them, once multiplied by their number."""
    model = nn.parallel.DistributedDataParallel(Net(SyncBatchNorm))
    return steps_of_training(model, share(rank), len(SIZES))


def in_pairs(rank):
    """Two groups, each with statistics of its own."""
    groups = [dist.new_group(list(pair)) for pair in PAIRS]
    module = module_of(SyncBatchNorm, PLAIN, process_group=groups[rank // 2])
    return trained(module, PLAIN, share(rank))


def of_strides(rank):
    """Gradients without memory of their own, and an input that is dense in no order."""
    case = PLAIN | {"pixels": (4, 4)}
    whole = [t.transpose(2, 3)[..., ::2] for t in given(case, 0)]
    x = whole[0][share(rank)].detach().requires_grad_()
    module = module_of(SyncBatchNorm, case)
    (module(x, x) * whole[2][share(rank)]).mean((2, 3)).sum().backward()
    return x.grad, module.weight.grad


def _rank(rank, folder):
    torch.set_num_threads(1)
    limit = datetime.timedelta(seconds=SECONDS / 2)
    where = {"init_method": f"file://{folder}/store", "rank": rank, "world_size": len(SIZES)}
    dist.init_process_group("gloo", timeout=limit, **where)
    try:
        solo = dist.new_group([SOLO])
        found = {}
        for name, changes in CASES.items():
            case = PLAIN | changes
            for again in ("", " again"):
                with onepass.use_backend(case.get("backend")):
                    found[name + again] = trained(module_of(SyncBatchNorm, case), case, share(rank))
        found |= {"counted": counted(rank, solo), "errors": errors(rank, solo), "pairs": in_pairs(rank)}
        found |= {"autocast": under_autocast(rank), "ddp": distributed(rank), "strides": of_strides(rank)}
        torch.save(found, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def spawned(folder):
    """Lets the processes write what they find into a folder."""
    processes = torch.multiprocessing.spawn(_rank, (str(folder),), nprocs=len(SIZES), join=False)
    end = time.monotonic() + SECONDS
    try:
        while not processes.join(timeout=1.0):
            assert time.monotonic() < end, "the processes wait for each other"
    finally:
        for process in processes.processes:
            process.kill()
    return str(folder)


def found(temporary):
    """What each process found. Where pytest has several workers, the first that comes here spawns for all.
    temporary: pytest's tmp_path_factory."""
    base = temporary.getbasetemp()
    with open(
        (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "sync_batch_norm", "a+"
    ) as where:
        fcntl.flock(where, fcntl.LOCK_EX)
        where.seek(0)
        folder = where.read()
        if not folder:
            folder = spawned(temporary.mktemp("ranks"))
            where.write(folder)
    return [torch.load(f"{folder}/{rank}.pt") for rank in range(len(SIZES))]
