"""onepass.nn.fold_bn: one layer where two were, with their results."""

import copy

import onepass.nn as ours
import pytest
import torch
from fuse_helpers import Net, close, each_dtype, each_net, left, norms, resnet
from onepass.nn import fold_bn, fuse
from optim_helpers import frozen, randn
from torch import fx, nn

KINDS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class Choice(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Leaves(fx.Tracer):
    def is_leaf_module(self, m, name):
        return isinstance(m, Choice | Inside) or super().is_leaf_module(m, name)


def filled(norm):
    """The same, with nothing at its neutral value, in evaluation."""
    for i, t in enumerate([*norm.parameters(), *norm.buffers()]):
        if t.is_floating_point():
            t.data.copy_(randn(*t.shape, seed=i, dtype=t.dtype).mul(0.3).add(1))
    return norm.eval()


def pair(layer, norm):
    torch.manual_seed(0)
    return nn.Sequential(layer, filled(norm)).eval()


def check(model, x, calls, ops=()):
    """That these modules are called and these other ops, and that results stay."""
    folded = fold_bn(model)
    folded.graph.lint()
    modules = [node.target for node in folded.graph.nodes if node.op == "call_module"]
    assert [type(folded.get_submodule(name)).__name__ for name in modules] == calls
    functions = [n.target for n in folded.graph.nodes if n.op in ("call_function", "call_method")]
    assert [getattr(f, "__name__", f) for f in functions if getattr(f, "__name__", f) != "_batch"] == list(
        ops
    )
    assert not any(m.training for m in folded.modules())
    expected, result = model(x), folded(x)
    assert result.dtype == expected.dtype
    close(result, expected)
    return folded


# --- a ResNet -----------------------------------------------------------------------------------------------
@each_dtype
@each_net
@pytest.mark.parametrize("fused", (False, True), ids=("torch", "fused"))
def test_resnet(bottleneck, dtype, fused):
    model, x = resnet(bottleneck, dtype).eval(), randn(4, 3, 12, 12, dtype=dtype)
    expected = model(x)
    folded = fold_bn(fuse(model) if fused else model)
    close(folded(x), expected)
    assert not norms(folded) and not any("BatchNorm" in type(m).__name__ for m in folded.modules())
    blocks = 3
    relus = 1 + blocks * (3 if bottleneck else 2)
    assert (left(folded).count("ReLU"), left(folded).count("add")) == (relus, blocks)
    assert not any(m.training for m in folded.modules())


def test_folded_weights_against_torch():
    conv, norm = nn.Conv2d(3, 4, 3).double(), filled(nn.BatchNorm2d(4).double())
    folded = fold_bn(pair(conv, norm))
    weight, bias = torch.nn.utils.fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    close(folded.get_submodule("0").weight, weight)
    close(folded.get_submodule("0").bias, bias)


def test_weights_are_rounded_once():
    conv, norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
    model = pair(conv, norm)
    exact = fold_bn(copy.deepcopy(model).double()).get_submodule("0")
    folded = fold_bn(model).get_submodule("0")
    assert torch.equal(folded.weight, exact.weight.float()) and torch.equal(folded.bias, exact.bias.float())


# --- layers -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("bias", (True, False))
@pytest.mark.parametrize("groups", (1, 2))
@pytest.mark.parametrize("transposed", (False, True))
@pytest.mark.parametrize("dims", KINDS)
def test_convolutions(dims, transposed, groups, bias):
    kind = getattr(nn, f"Conv{'Transpose' if transposed else ''}{dims}d")
    layer = kind(6, 8, 3, stride=2, padding=1, groups=groups, bias=bias)
    model = pair(layer, KINDS[dims](8))
    folded = check(model, randn(2, 6, 7, 6, 5)[(..., *[0] * (3 - dims))], [kind.__name__])
    assert folded.get_submodule("0").bias is not None and (layer.bias is not None) == bias


@pytest.mark.parametrize("bias", (True, False))
def test_linear(bias):
    check(pair(nn.Linear(5, 4, bias=bias), nn.BatchNorm1d(4)), randn(3, 5), ["Linear"])


def test_other_dimensions_are_refused():
    """BatchNorm1d normalizes along the second one, which by chance has the right size."""
    for layer, x in ((nn.Linear(5, 4), randn(2, 4, 5)), (nn.Conv1d(2, 4, 1), randn(2, 4))):
        model = pair(layer, nn.BatchNorm1d(4))
        model(x)
        with pytest.raises(RuntimeError, match=r"fold_bn: a folded layer's input has shape \[2, 4"):
            fold_bn(model)(x)


@pytest.mark.parametrize("options", ({"affine": False}, {"eps": 0.5}, {"momentum": None}), ids=str)
def test_settings(options):
    check(pair(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, **options)), randn(2, 3, 5, 5), ["Conv2d"])
    mine = ours.BatchNorm2d(4, bias=False)
    check(pair(nn.Conv2d(3, 4, 3), mine), randn(2, 3, 5, 5), ["Conv2d"])


def test_two_normalizations_behind_one_layer():
    model = nn.Sequential(
        *pair(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), filled(nn.BatchNorm2d(4, eps=0.2))
    ).eval()
    check(model, randn(2, 3, 5, 5), ["Conv2d"])


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("wide", (False, True), ids=("half norm", "float norm"))
def test_half(dtype, wide):
    """Against float64; a result is rounded once where it was twice, so it may only come closer."""
    norm = ours.BatchNorm2d(8, act="relu")
    model = pair(nn.Conv2d(4, 8, 3), norm).to(dtype)
    if wide:
        norm.float()
    x = randn(4, 4, 8, 8, dtype=dtype)
    folded = fold_bn(model)
    assert folded.get_submodule("0").weight.dtype == folded.get_submodule("0").bias.dtype == dtype
    result = folded(x)
    exact = copy.deepcopy(model).double()(x.double())
    assert result.dtype == dtype
    # Rounded are 36 weights a channel, the bias and the result.
    torch.testing.assert_close(
        result.double(), exact, rtol=0, atol=2 * torch.finfo(dtype).eps * exact.max().item()
    )


def test_memory_format_stays():
    for layer in (nn.Conv2d(4, 8, 3), nn.ConvTranspose2d(4, 8, 3, groups=2)):
        model = pair(layer, nn.BatchNorm2d(8)).to(memory_format=torch.channels_last)
        x = randn(2, 4, 6, 6).to(memory_format=torch.channels_last)
        folded = check(model, x, [type(layer).__name__])
        assert folded.get_submodule("0").weight.stride() == layer.weight.stride()
        assert folded(x).is_contiguous(memory_format=torch.channels_last)


# --- ours ---------------------------------------------------------------------------------------------------
ACTS = {"relu": "ReLU", "leaky_relu": "LeakyReLU", "silu": "SiLU", None: None}


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("residual", (False, True))
def test_activation_and_residual_stay(act, residual):
    body = (lambda m, x: m.bn(m.conv(x), x) * 2) if residual else (lambda m, x: m.bn(m.conv(x)) * 2)
    norm = filled(ours.BatchNorm2d(4, act=act, negative_slope=0.3))
    model = Net(body, conv=nn.Conv2d(4, 4, 3, padding=1), bn=norm).eval()
    modules = ["Conv2d"] if act is None else ["Conv2d", ACTS[act]]
    folded = check(model, randn(2, 4, 5, 5), modules, ["add", "mul"] if residual else ["mul"])
    assert hasattr(folded, "bn") == (act is not None)


# --- what is left alone -------------------------------------------------------------------------------------
def conv_used_twice(m, x):
    y = m.conv(x)
    return m.bn(y) + y


PAIR = ["Conv2d", "BatchNorm2d"]
KEPT = {
    "the layer's result has two users": (conv_used_twice, PAIR, ["add"]),
    "a layer called twice": (lambda m, x: m.conv(m.bn(m.conv(x))), [*PAIR, "Conv2d"], []),
    "a normalization called twice": (lambda m, x: m.bn(m.conv(m.bn(x))), ["BatchNorm2d", *PAIR], []),
    "an op between": (lambda m, x: m.bn(m.conv(x).relu()), PAIR, ["relu"]),
    "a layer behind": (lambda m, x: m.conv(m.bn(x)), PAIR[::-1], []),
    "a weight used by itself": (lambda m, x: m.bn(m.conv(x)) * m.conv.weight.sum(), PAIR, ["sum", "mul"]),
    "a scale used by itself": (lambda m, x: m.bn(m.conv(x)) * m.bn.weight.sum(), PAIR, ["sum", "mul"]),
}  # fmt: skip


@pytest.mark.parametrize("name", KEPT)
def test_left_alone(name):
    body, modules, ops = KEPT[name]
    check(
        Net(body, conv=nn.Conv2d(4, 4, 1), bn=filled(nn.BatchNorm2d(4))).eval(),
        randn(2, 4, 3, 3),
        modules,
        ops,
    )


class Scaled(nn.Conv2d):
    def forward(self, input):
        return super().forward(input) * 2


def test_layers_and_normalizations_left_alone():
    x = randn(2, 4, 5, 5)
    check(pair(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)), x, PAIR)
    check(pair(nn.Conv2d(4, 4, 1), ours.BatchNorm2d(4, track_running_stats=False, act="relu")), x, PAIR)
    check(pair(nn.Conv2d(4, 4, 1), nn.InstanceNorm2d(4)), x, ["Conv2d", "InstanceNorm2d"])
    check(pair(nn.ReLU(), nn.BatchNorm2d(4)), x, ["ReLU", "BatchNorm2d"])
    check(
        pair(nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1)), nn.BatchNorm2d(4)),
        x,
        ["ParametrizedConv2d", "BatchNorm2d"],
    )
    check(pair(nn.Linear(5, 4), nn.BatchNorm1d(3)), randn(2, 3, 5), ["Linear", "BatchNorm1d"])
    twice = Net(lambda m, x: m.bn(*[m.conv(x)] * 2), conv=nn.Conv2d(4, 4, 1), bn=filled(ours.BatchNorm2d(4)))
    check(twice.eval(), x, PAIR)
    # Scaled is traced into.
    folded = fold_bn(pair(Scaled(4, 4, 1), nn.BatchNorm2d(4)))
    assert set(norms(folded)) == {"1"} and "mul" in left(folded)


def test_hooks_keep_their_module():
    for i in (0, 1):
        model, called = pair(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)), []
        model[i].register_forward_hook(lambda *_, called=called: called.append(1))
        folded = fold_bn(model)
        folded(randn(2, 4, 3, 3))
        assert called == [1] and set(norms(folded)) == {"1"}


def test_a_shared_weight_stays_the_others():
    """Only the module that is folded gets another weight."""
    model = Net(
        lambda m, x: m.bn(m.conv(x)) + m.twin(x),
        conv=nn.Conv2d(4, 4, 1),
        twin=nn.Conv2d(4, 4, 1),
        bn=filled(nn.BatchNorm2d(4)),
    )
    model.twin.weight = model.conv.weight
    folded = check(model.eval(), randn(2, 4, 3, 3), ["Conv2d", "Conv2d"], ["add"])
    assert torch.equal(folded.twin.weight, model.twin.weight)
    assert not torch.allclose(folded.conv.weight, model.conv.weight)


class Inside(nn.Module):
    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, x):
        return self.part(x)


def test_a_layer_inside_a_leaf_stays():
    """Nobody sees there that it is called twice."""
    conv = nn.Conv2d(4, 4, 1)
    model = Net(
        lambda m, x: m.bn(m.conv(x)) + m.leaf(x), conv=conv, leaf=Inside(conv), bn=filled(nn.BatchNorm2d(4))
    )
    folded, x = fold_bn(model.eval(), tracer=Leaves()), randn(2, 4, 3, 3)
    assert not norms(folded) and folded.conv is not folded.leaf.part
    close(folded(x), model(x))


# --- the original and the errors ----------------------------------------------------------------------------
@pytest.mark.parametrize("fused", (False, True), ids=("torch", "fused"))
def test_the_original_is_not_touched(fused):
    model = fuse(resnet().eval()) if fused else resnet().eval()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    modules = [(name, id(m), set(vars(m))) for name, m in model.named_modules()]
    folded = fold_bn(model)
    with torch.no_grad():
        for t in folded.parameters():
            t.zero_()
    assert modules == [(name, id(m), set(vars(m))) for name, m in model.named_modules()]
    assert frozen(state.values()) == frozen(model.state_dict().values())


def test_training_mode_is_refused():
    model = resnet().eval()
    model.layer1[0].bn2.train()
    model.fc.train()
    with pytest.raises(
        ValueError, match=r"fold_bn: layer1\.0\.bn2 is in training mode, expected model\.eval"
    ):
        fold_bn(model)
    with pytest.raises(ValueError, match="fold_bn: the model is in training mode"):
        fold_bn(model.train())


def test_tracers_and_graphs():
    model = nn.Sequential(*pair(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)), Choice()).eval()
    with pytest.raises(RuntimeError, match=r"(?s)fold_bn: torch.fx cannot trace Sequential: .*tracer="):
        fold_bn(model)

    x = randn(2, 4, 3, 3)
    folded = fold_bn(model, tracer=Leaves())
    assert not norms(folded)
    close(folded(x), model(x))
    graph = fx.GraphModule(model, Leaves().trace(model))
    assert not norms(fold_bn(graph)) and set(norms(graph)) == {"1"}
    close(fold_bn(graph)(x), model(x))


def test_compiles():
    model, x = fuse(resnet().eval()), randn(2, 3, 12, 12)
    close(torch.compile(fold_bn(model), fullgraph=True, backend="aot_eager")(x), model(x))
