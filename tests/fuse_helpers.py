"""A ResNet, what became of it, and how two models are compared."""

import pytest
import torch
from optim_helpers import randn
from torch import nn

# Of the largest value: float32 rounds other intermediate results than the separate ops do.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-12}
# What norms() says of one of ours.
ALONE, RELU, SUM, BOTH = (None, False), ("relu", False), (None, True), ("relu", True)


class Net(nn.Module):
    """body(self, x), with two normalizations and what else is given."""

    def __init__(self, body, dims=2, **parts):
        super().__init__()
        kind = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dims]
        self.bn, self.other = kind(4), kind(4)
        for name, part in parts.items():
            setattr(self, name, part)
        self.body = body

    def forward(self, x):
        return self.body(self, x)


# --- a ResNet as in torchvision -----------------------------------------------------------------------------
def conv(inputs, outputs, kernel=3, stride=1):
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


class Block(nn.Module):
    """Basic: two 3x3. Bottleneck: 1x1, 3x3, 1x1."""

    def __init__(self, inputs, outputs, stride=1, bottleneck=False):
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, 8, 1 if bottleneck else 3), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = (
            conv(8, 8 if bottleneck else outputs, 3, stride),
            nn.BatchNorm2d(8 if bottleneck else outputs),
        )
        self.conv3, self.bn3 = (conv(8, outputs, 1), nn.BatchNorm2d(outputs)) if bottleneck else (None, None)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if inputs != outputs or stride != 1:
            self.downsample = nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x):
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.conv3 is not None:
            out = self.bn3(self.conv3(self.relu(out)))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    def __init__(self, bottleneck=False):
        super().__init__()
        self.conv1, self.bn1, self.relu = conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(Block(8, 8, bottleneck=bottleneck))
        self.layer2 = nn.Sequential(Block(8, 16, 2, bottleneck), Block(16, 16, 1, bottleneck))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(16, 5)
        self.unused = nn.Linear(3, 3)  # of which GraphModule by itself keeps nothing

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer2(self.layer1(x))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def resnet(bottleneck=False, dtype=torch.float32):
    torch.manual_seed(0)
    model = ResNet(bottleneck).to(dtype)
    for i, (name, t) in enumerate(model.state_dict().items()):  # nothing at its neutral value
        if t.dim() == 1 and t.is_floating_point():
            t.copy_(
                randn(*t.shape, seed=i, dtype=dtype)
                .mul(0.2)
                .add(0.0 if "bias" in name or "mean" in name else 1.0)
            )
    return model


each_net = pytest.mark.parametrize("bottleneck", (False, True), ids=("basic", "bottleneck"))
each_dtype = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


def norms(fused):
    """{name: (act, has a residual)} of what is ours, "torch" of what is not, where the graph calls it."""
    found = {}
    for node in fused.graph.nodes:
        module = fused.get_submodule(node.target) if node.op == "call_module" else None
        if isinstance(module, nn.modules.batchnorm._NormBase):
            own = type(module).__module__.startswith("onepass.")
            found[node.target] = (module.act, len(node.args) == 2) if own else "torch"
    return found


def left(fused):
    """All other calls by name, but for layers with parameters."""
    names = []
    for node in fused.graph.nodes:
        module = fused.get_submodule(node.target) if node.op == "call_module" else None
        if node.op in ("call_function", "call_method"):
            names.append(getattr(node.target, "__name__", node.target))
        elif module is not None and not isinstance(
            module, (nn.Conv2d, nn.Linear, nn.modules.batchnorm._NormBase)
        ):
            names.append(type(module).__name__)
    return names


def close(ours, theirs):
    scale = max(1.0, theirs.detach().abs().max().item())
    torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE[theirs.dtype] * scale)


def assert_trains_alike(fused, plain, x, steps=4, lr=0.05):
    """Outputs, gradients, parameters and running statistics, step by step, and then in evaluation."""
    models = (fused, plain)
    optimizers = [torch.optim.SGD(m.parameters(), lr=lr, momentum=0.9) for m in models]
    for t in range(steps):
        inputs = [x.detach().clone().requires_grad_() for _ in models]
        outputs = [m(i) for m, i in zip(models, inputs, strict=True)]
        close(*outputs)
        weight = randn(*outputs[0].shape, seed=t, dtype=x.dtype)
        for output, optimizer in zip(outputs, optimizers, strict=True):
            optimizer.zero_grad()
            (output.square() * weight).mean().backward()
        close(*(i.grad for i in inputs))
        for (name, p), q in zip(fused.named_parameters(), plain.parameters(), strict=True):
            assert (p.grad is None) == (q.grad is None), name
            if p.grad is not None:
                close(p.grad, q.grad)
        for optimizer in optimizers:
            optimizer.step()
    for (key, a), (other, b) in zip(fused.state_dict().items(), plain.state_dict().items(), strict=True):
        assert key == other
        close(a, b) if a.is_floating_point() else torch.testing.assert_close(a, b)
    close(fused.eval()(x), plain.eval()(x))
