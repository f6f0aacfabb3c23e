"""onepass.nn.fuse: what is fused, what is not, and that nobody can tell but by the speed."""

import copy

import onepass.nn as ours
import pytest
import torch
from fuse_helpers import (
    ALONE,
    BOTH,
    RELU,
    Net,
    ResNet,
    assert_trains_alike,
    close,
    each_dtype,
    each_net,
    left,
    norms,
    resnet,
)
from onepass.nn import fuse
from optim_helpers import randn
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp


@each_dtype
@each_net
def test_resnet_trains_as_if_not_fused(bottleneck, dtype):
    plain = resnet(bottleneck, dtype)
    model = copy.deepcopy(plain)
    assert_trains_alike(fuse(model), plain, randn(4, 3, 12, 12, dtype=dtype))
    for (name, a), b in zip(model.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-3), name  # the original has been trained


@each_net
def test_what_is_fused_in_a_resnet(bottleneck):
    fused = fuse(resnet(bottleneck))
    inner = {"bn1": RELU, "bn2": RELU, "bn3": BOTH} if bottleneck else {"bn1": RELU, "bn2": BOTH}
    last = list(inner)[-1]
    expected = {"bn1": RELU}
    for name in ("layer1.0", "layer2.0", "layer2.1"):
        expected |= {f"{name}.{part}": kind for part, kind in inner.items()}
    # The sum of two normalizations is made by the later one.
    expected |= {f"layer2.0.{last}": ALONE, "layer2.0.downsample.1": BOTH}
    assert norms(fused) == expected
    assert left(fused) == ["AdaptiveAvgPool2d", "flatten"]


@each_net
def test_state_is_the_very_same(bottleneck):
    model = resnet(bottleneck)
    before = {name: (id(m), m.training, set(vars(m))) for name, m in model.named_modules()}
    fused = fuse(model)
    for theirs, own in (
        (model.named_parameters(), fused.named_parameters()),
        (model.named_buffers(), fused.named_buffers()),
    ):
        assert [(name, id(t)) for name, t in theirs] == [(name, id(t)) for name, t in own]
    assert list(model.state_dict()) == list(fused.state_dict())
    assert before == {name: (id(m), m.training, set(vars(m))) for name, m in model.named_modules()}
    assert not any(type(m).__module__.startswith("onepass.") for m in model.modules())
    assert fused.get_submodule("layer1.0.conv1") is model.layer1[0].conv1 and fused.unused is model.unused


def test_checkpoints_are_exchanged():
    x = randn(2, 3, 12, 12)
    for source, target in ((resnet(), fuse(ResNet())), (fuse(resnet()), ResNet())):
        assert not torch.allclose(source.eval()(x), target.eval()(x), atol=1e-2)
        target.load_state_dict(source.state_dict())
        close(target(x), source(x))


def test_modes_stay():
    model = resnet()
    model.layer1.eval()
    fused = fuse(model)
    modes = {name: m.training for name, m in fused.named_modules()}
    assert modes == {name: m.training for name, m in model.named_modules()} and len(set(modes.values())) == 2
    x, before = randn(2, 3, 12, 12), {k: v.clone() for k, v in model.named_buffers()}
    fused(x)
    moved = {name for name, t in model.named_buffers() if not torch.equal(t, before[name])}
    assert moved == {name for name in before if "layer1" not in name}
    assert not fuse(model.eval()).training


def test_channels_last_stays():
    plain = resnet().to(memory_format=torch.channels_last)
    x = randn(4, 3, 12, 12).to(memory_format=torch.channels_last)
    fused = fuse(copy.deepcopy(plain))
    seen = []
    for module in fused.modules():
        if isinstance(module, ours.BatchNorm2d):
            module.register_forward_hook(lambda m, args, out: seen.append(out))
    assert_trains_alike(fused, plain, x, steps=1)
    assert seen and all(t.is_contiguous(memory_format=torch.channels_last) for t in seen)


@pytest.mark.parametrize("training", (True, False))
def test_compiles_in_one_graph(training):
    plain = resnet().train(training)
    x = randn(4, 3, 12, 12)
    model = copy.deepcopy(plain)
    compiled = torch.compile(fuse(model), fullgraph=True, backend="aot_eager")
    outputs = compiled(x), plain(x)
    close(*outputs)
    for output in outputs:
        output.sum().backward()
    close(model.conv1.weight.grad, plain.conv1.weight.grad)
    close(model.bn1.running_var, plain.bn1.running_var)
    assert model.bn1.num_batches_tracked.item() == plain.bn1.num_batches_tracked.item() == int(training)


def test_fused_again_it_is_the_same():
    once = fuse(resnet())
    twice = fuse(once)
    assert norms(twice) == norms(once) and twice.code == once.code
    assert all(a is b for a, b in zip(once.parameters(), twice.parameters(), strict=True))


# --- graphs -------------------------------------------------------------------------------------------------
def test_a_graph_module_is_not_changed():
    plain = fx.symbolic_trace(resnet())
    code, keys = plain.code, list(plain.state_dict())
    fused = fuse(plain)
    assert plain.code == code and list(fused.state_dict()) == keys
    assert sum(act == "relu" for act, _ in norms(fused).values()) == 7
    close(fused.eval()(randn(2, 3, 12, 12)), plain.eval()(randn(2, 3, 12, 12)))


def test_a_sum_that_broadcasts():
    """Nobody can know; who knows tells it by ShapeProp."""
    net = Net(lambda m, x: x.mean((2, 3), keepdim=True) + m.bn(x))
    x = randn(3, 4, 5, 5)
    with pytest.raises(RuntimeError, match=r"residual has shape \[3, 4, 1, 1\], expected \[3, 4, 5, 5\]"):
        fuse(net)(x)
    plain = fx.symbolic_trace(net)
    ShapeProp(plain).propagate(x)
    fused = fuse(plain)
    assert norms(fused) == {"bn": ALONE} and left(fused) == ["mean", "add"]
    close(fused(x), plain(x))


class Choice(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_what_cannot_be_traced():
    net = Net(lambda m, x: m.choice(m.bn(x).relu()), choice=Choice())
    with pytest.raises(RuntimeError, match=r"fuse: torch.fx cannot trace Net: .*tracer=") as caught:
        fuse(net)
    assert isinstance(caught.value.__cause__, fx.proxy.TraceError)

    class Leaves(fx.Tracer):
        def is_leaf_module(self, m, name):
            return isinstance(m, Choice) or super().is_leaf_module(m, name)

    fused = fuse(net, tracer=Leaves())
    assert norms(fused) == {"bn": RELU} and fused.choice is net.choice
    close(fused(randn(3, 4, 5, 5)), net(randn(3, 4, 5, 5)))


class Remembers(nn.Module):
    """Constants, a buffer that is not saved, and a forward that leaves something on the module."""

    def __init__(self):
        super().__init__()
        self.bn, self.shift, self.seen = nn.BatchNorm2d(4), torch.full((1,), 2.0), None
        self.register_buffer("factor", torch.full((1,), 3.0), persistent=False)

    def forward(self, x):
        self.seen = x
        return self.bn(x).relu() * self.factor + self.shift + torch.ones(5)


@pytest.mark.parametrize("wrap", (nn.Identity(), nn.Sequential), ids=("root", "inside"))
def test_constants_are_no_buffers(wrap):
    net = Remembers() if isinstance(wrap, nn.Identity) else nn.Sequential(Remembers())
    before = [dict(vars(m)) for m in net.modules()]
    fused = fuse(net)
    assert [dict(vars(m)) for m in net.modules()] == before
    assert list(fused.state_dict()) == list(net.state_dict())
    assert dict(fused.named_buffers()).keys() == dict(net.named_buffers()).keys()
    close(fused(randn(3, 4, 5, 5)), net(randn(3, 4, 5, 5)))


class Extra(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm2d(4)

    def get_extra_state(self):
        return 1

    def forward(self, x):
        return self.bn(x).relu()


def test_keys_that_cannot_be_kept():
    with pytest.raises(RuntimeError, match=r"keys \['0._extra_state'\]"):
        fuse(nn.Sequential(Extra()))
