"""What tests of SyncBatchNorm share: cases, what a module makes of one, and how results are compared."""

import functools

import torch
from optim_helpers import randn
from torch import nn

CHANNELS = 5
SIZES = (6, 0, 1, 3)  # images a process: uneven, none, one

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


def share(rank):
    return slice(sum(SIZES[:rank]), sum(SIZES[: rank + 1]))


# --- comparison ---------------------------------------------------------------------------------------------
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


def assert_same_bits(ours, theirs):
    assert len(ours) == len(theirs)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
