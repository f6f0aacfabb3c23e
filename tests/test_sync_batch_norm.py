"""SyncBatchNorm: four processes with a part of the batch each do what one process does with all of it."""

import copy
import datetime
import fcntl
import functools
import os
import time

import onepass
import pytest
import torch
import torch.distributed as dist
from onepass.nn import BatchNorm1d, BatchNorm2d, BatchNorm3d, SyncBatchNorm
from optim_helpers import randn
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

needs_distributed = pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")

CHANNELS = 5
SIZES = (6, 0, 1, 3)  # images a process: uneven, none, one
SOLO = 3  # a process that is also a group of its own
PAIRS = ((0, 1), (2, 3))
SECONDS = 120.0  # until a process that waits is given up

# name: what differs from PLAIN. `steps` of training, of `pixels` an image.
PLAIN = {"act": None, "residual": False, "dtype": torch.float32, "last": False, "pixels": (4, 3), "steps": 1}
CASES = {
    "plain": {},
    "channels_last": {"last": True},
    "relu": {"act": "relu", "steps": 2},
    "relu_residual": {"act": "relu", "residual": True},
    "relu_residual_channels_last": {"act": "relu", "residual": True, "last": True},
    "leaky_relu_residual": {"act": "leaky_relu", "residual": True, "slope": 0.1},
    "residual": {"residual": True},
    "silu": {"act": "silu"},
    "silu_residual": {"act": "silu", "residual": True},
    "silu_residual_channels_last": {"act": "silu", "residual": True, "last": True},
    "float64": {"act": "silu", "residual": True, "dtype": torch.float64, "steps": 2},
    "float64_relu": {"act": "relu", "residual": True, "dtype": torch.float64, "last": True},
    "bfloat16": {"act": "relu", "residual": True, "dtype": torch.bfloat16},
    "flat": {"pixels": ()},  # one process has one value a channel
    "volume": {"pixels": (2, 3, 2), "act": "relu"},
    "average": {"momentum": None, "steps": 3},
    "untracked": {"track_running_stats": False},
    "no_longer_tracked": {"paused": True},
    "no_affine": {"affine": False, "act": "silu"},
    "no_bias": {"bias": False, "act": "relu"},
    "reference": {"act": "relu", "residual": True, "backend": "reference"},
}
OWN = ("momentum", "track_running_stats", "affine", "bias")
STEPS = ("output", "input", "residual")  # of which there is one a step
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


# --- a case -------------------------------------------------------------------------------------------------
def module_of(cls, case, **more):
    """Parameters and buffers of no special value; parameters of a half input are float32."""
    kind = torch.float64 if case["dtype"] == torch.float64 else torch.float32
    own = {key: case[key] for key in OWN if key in case}
    module = cls(CHANNELS, dtype=kind, act=case["act"], negative_slope=case.get("slope", 0.01), **own, **more)
    module.track_running_stats &= not case.get("paused", False)
    with torch.no_grad():
        for seed, t in enumerate((*module.parameters(), module.running_mean)):
            if t is not None:
                t.add_(randn(CHANNELS, seed=100 + seed, dtype=kind), alpha=0.5)
    return module


def given(case, step, dtype=None):
    """Input, residual and the output's gradient, of the whole batch. Channels differ."""
    shape = (sum(SIZES), CHANNELS, *case["pixels"])
    offsets = torch.arange(CHANNELS).view(1, -1, *[1] * len(case["pixels"]))
    tensors = [randn(*shape, seed=10 * step + i, dtype=torch.float64) for i in range(3)]
    tensors[0] = tensors[0] * (1 + offsets) + 3 * offsets
    return [t.to(case["dtype"]).to(dtype or case["dtype"]) for t in tensors]


def leaf(t, last):
    t = t.clone(memory_format=torch.channels_last if last else torch.contiguous_format)
    return t.requires_grad_()


def trained(module, case, part=slice(None), dtype=None):
    """What a module makes of (part of) the batch, step after step; gradients of parameters add up."""
    result = {name: [] for name in STEPS}
    for step in range(case["steps"]):
        x, residual, grad = (t[part] for t in given(case, step, dtype))
        x, residual = leaf(x, case["last"]), leaf(residual, case["last"]) if case["residual"] else None
        output = module(x, residual)
        output.backward(leaf(grad, case["last"]).detach())
        assert output.stride() == x.stride() == x.grad.stride()
        result["output"].append(output.detach())
        result["input"].append(x.grad)
        if residual is not None:
            result["residual"].append(residual.grad)
    grads = {name: p.grad for name, p in module.named_parameters()}
    return result | grads | {name: b.clone() for name, b in module.named_buffers()}


class Torch(nn.Module):
    """torch's own, in float64."""

    def __init__(self, module, case):
        super().__init__()
        options = (module.eps, module.momentum, module.affine, module.running_mean is not None)
        self.norm = nn.modules.batchnorm._BatchNorm(CHANNELS, *options, dtype=torch.float64)
        self.norm.track_running_stats = module.track_running_stats
        self.norm._check_input_dim = lambda input: None
        if module.affine and module.bias is None:
            self.norm.register_parameter("bias", None)
        self.norm.load_state_dict(module.state_dict())
        self.case = case

    def forward(self, x, residual=None):
        v = self.norm(x) if residual is None else self.norm(x) + residual
        act = self.case["act"]
        if act == "leaky_relu":
            return nn.functional.leaky_relu(v, self.case["slope"])
        return v if act is None else getattr(nn.functional, act)(v)

    def named_parameters(self):
        return self.norm.named_parameters()

    def named_buffers(self):
        return self.norm.named_buffers()


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


def share(rank):
    return slice(sum(SIZES[:rank]), sum(SIZES[: rank + 1]))


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


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each process found. Where pytest has several workers, the first that comes here spawns for all."""
    base = tmp_path_factory.getbasetemp()
    with open(
        (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "sync_batch_norm", "a+"
    ) as where:
        fcntl.flock(where, fcntl.LOCK_EX)
        where.seek(0)
        folder = where.read()
        if not folder:
            folder = spawned(tmp_path_factory.mktemp("ranks"))
            where.write(folder)
    return [torch.load(f"{folder}/{rank}.pt") for rank in range(len(SIZES))]


# --- against one process ------------------------------------------------------------------------------------
def total(parts):
    return functools.reduce(torch.add, [p.double() for p in parts])


def flat(found, keys=None):
    """All its tensors."""
    values = [value for key, value in found.items() if keys is None or key in keys]
    return [t for value in values for t in (value if isinstance(value, list) else [value])]


def gathered(parts):
    """What one process would have: parts of the batch in a row, sums of gradients, anyone's buffers."""
    steps = {name: zip(*(p[name] for p in parts), strict=True) for name in STEPS}
    lists = {name: [torch.cat(step) for step in its] for name, its in steps.items()}
    grads = {name: total([p[name] for p in parts]) for name in ("weight", "bias") if name in parts[0]}
    return lists | grads | {name: parts[0][name] for name in BUFFERS if name in parts[0]}


def assert_alike(ours, theirs, bound, keys=None):
    assert ours.keys() == theirs.keys()
    for name in keys or theirs:
        pair = (ours[name], theirs[name])
        for a, b in zip(*pair, strict=True) if name in STEPS else [pair]:
            assert a.shape == b.shape
            error = (a.double() - b.double()).abs().max() / b.double().abs().max().clamp(min=1)
            assert error <= bound, f"{name}: {error:.2e}"


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


def assert_same_bits(ours, theirs):
    assert len(ours) == len(theirs)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


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


# --- conversion ---------------------------------------------------------------------------------------------
def zoo():
    """One of each, and what is not to be touched."""
    shared = BatchNorm2d(6, act="silu")
    model = nn.ModuleDict({
        "torch": nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm2d(3, momentum=None), nn.BatchNorm3d(4, 1e-3)),
        "sync": nn.SyncBatchNorm(5, track_running_stats=False),
        "ours": nn.Sequential(BatchNorm1d(3, act="relu"), BatchNorm3d(2, affine=False, dtype=torch.float64)),
        "shared": nn.ModuleList([shared, nn.Sequential(shared), shared]),
        "leaky": BatchNorm2d(4, bias=False, act="leaky_relu", negative_slope=0.2),
        "other": nn.Sequential(nn.Conv2d(3, 4, 1), nn.InstanceNorm2d(4, affine=True), nn.GroupNorm(2, 4)),
    })  # fmt: skip
    model["torch"][0].eval()
    model["leaky"].weight.requires_grad_(False)
    model["sync"].qconfig = "a configuration"
    return model


def test_conversion_keeps_what_there_is():
    model = zoo()
    # Of a module that stands in several places, too, each name.
    named = {name: m for name, m in model.named_modules(remove_duplicate=False)}
    tensors = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    state, device = copy.deepcopy(model.state_dict()), torch.device("cpu")
    group = object()
    converted = SyncBatchNorm.convert_sync_batchnorm(model, group)
    assert converted is model
    now = dict(model.named_modules(remove_duplicate=False))
    assert list(now) == list(named)
    norms = [name for name, m in named.items() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == 3 + 1 + 2 + 3 + 1
    for name, was in named.items():
        assert (now[name] is was) == (name not in norms)
    for name in norms:
        new, was = now[name], named[name]
        assert type(new) is SyncBatchNorm and new.process_group is group
        for key in ("num_features", "eps", "momentum", "affine", "track_running_stats", "training"):
            assert getattr(new, key) == getattr(was, key), (name, key)
        assert new.act == getattr(was, "act", None)
        assert new.negative_slope == getattr(was, "negative_slope", 0.01)
    assert now["sync"].qconfig == "a configuration" and not hasattr(now["leaky"], "qconfig")
    assert now["shared.0"] is now["shared.1.0"] is now["shared.2"]
    after = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    assert after.keys() == tensors.keys() and all(after[key] is t for key, t in tensors.items())
    assert all(t.device == device for t in after.values()) and not after["leaky.weight"].requires_grad
    model.load_state_dict(state)
    assert list(model.state_dict()) == list(state)


def test_conversion_of_a_norm_itself_and_of_one_converted_before():
    norm = BatchNorm2d(3, act="relu")
    once = SyncBatchNorm.convert_sync_batchnorm(norm)
    twice = SyncBatchNorm.convert_sync_batchnorm(once, "a group")
    assert type(twice) is SyncBatchNorm and twice is not once and twice.weight is norm.weight
    assert (once.process_group, twice.process_group, twice.act) == (None, "a group", "relu")


def test_a_converted_model_computes_the_same():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(2), BatchNorm1d(4, act="silu"))
    before = copy.deepcopy(model)
    after = SyncBatchNorm.convert_sync_batchnorm(model)
    x = randn(5, 3, 6, 6)
    torch.testing.assert_close(after(x), before(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(after.eval()(x), before.eval()(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(after.state_dict(), before.state_dict(), rtol=1e-5, atol=1e-6)


def test_constructor_and_state_are_torchs():
    theirs = nn.SyncBatchNorm(3, 1e-3, None, True, True, "a group", "cpu", torch.float64, bias=False)
    ours = SyncBatchNorm(3, 1e-3, None, True, True, "a group", "cpu", torch.float64, bias=False)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(ours.state_dict()[key].dtype == t.dtype for key, t in theirs.state_dict().items())
    assert repr(ours) == repr(theirs) and ours.process_group == theirs.process_group
    assert not isinstance(ours, nn.SyncBatchNorm)  # which DDP refuses on the CPU
