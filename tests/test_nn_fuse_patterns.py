"""onepass.nn.fuse: the ways to write normalization, sum and activation, and what is left alone."""

import copy
import operator

import onepass.nn as ours
import pytest
import torch
import torch.nn.functional as F
from fuse_helpers import ALONE, BOTH, RELU, SUM, Net, assert_trains_alike, left, norms
from onepass.nn import fuse
from optim_helpers import randn
from torch import nn


# --- one normalization --------------------------------------------------------------------------------------
def check(net, expected, ops, shape=(3, 4, 5, 5)):
    """That bn becomes `expected`, that the ops are left, and that it trains as if it were not fused."""
    plain = copy.deepcopy(net).double()
    fused = fuse(copy.deepcopy(plain))
    fused.graph.lint()
    assert norms(fused).get("bn") == expected and left(fused) == ops
    assert_trains_alike(fused, plain, randn(*shape, dtype=torch.float64), steps=2)


FUSED = {
    "alone": (lambda m, x: m.bn(x), ALONE),
    "F.relu": (lambda m, x: F.relu(m.bn(x)), RELU),
    "F.relu in place": (lambda m, x: F.relu(m.bn(x), inplace=True), RELU),
    "torch.relu": (lambda m, x: torch.relu(m.bn(x)), RELU),
    "torch.relu_": (lambda m, x: torch.relu_(m.bn(x)), RELU),
    "relu": (lambda m, x: m.bn(x).relu(), RELU),
    "relu_": (lambda m, x: m.bn(x).relu_(), RELU),
    "keyword": (lambda m, x: F.relu(input=m.bn(input=x)), RELU),
    "add": (lambda m, x: m.bn(x) + x, SUM),
    "add from the left": (lambda m, x: (x + m.bn(x)).relu(), BOTH),
    "torch.add": (lambda m, x: torch.add(m.bn(x), x, alpha=1).relu(), BOTH),
    "torch.add by keywords": (lambda m, x: torch.add(input=x, other=m.bn(x)), SUM),
    "Tensor.add": (lambda m, x: x.add(m.bn(x)), SUM),
    "Tensor.add_": (lambda m, x: m.bn(x).add_(x).relu_(), BOTH),
    "iadd": (lambda m, x: operator.iadd(m.bn(x), x), SUM),
    "F.leaky_relu": (lambda m, x: F.leaky_relu(m.bn(x)), ("leaky_relu", False)),
    "F.leaky_relu_": (lambda m, x: F.leaky_relu_(m.bn(x) + x, 0.3), ("leaky_relu", True)),
    "F.silu": (lambda m, x: F.silu(m.bn(x) + x), ("silu", True)),
    "F.silu in place": (lambda m, x: F.silu(m.bn(x), inplace=True), ("silu", False)),
}  # fmt: skip


@pytest.mark.parametrize("name", FUSED)
def test_ways_to_write_it(name):
    body, expected = FUSED[name]
    check(Net(body), expected, [])


@pytest.mark.parametrize(
    "module, act",
    ((nn.ReLU(), "relu"), (nn.ReLU(True), "relu"), (nn.SiLU(), "silu"), (nn.LeakyReLU(0.3), "leaky_relu")),
    ids=str,
)
@pytest.mark.parametrize("dims", (1, 2, 3))
def test_modules_of_every_dimension(dims, module, act):
    shape = (3, 4, 5, 2, 3)[: dims + 2]
    check(Net(lambda m, x: m.act(m.bn(x)), dims, act=module), (act, False), [], shape)
    check(Net(lambda m, x: m.act(m.bn(x) + x), dims, act=module), (act, True), [], shape)


def test_slopes_are_taken_over():
    for body in (
        lambda m, x: m.act(m.bn(x)),
        lambda m, x: F.leaky_relu(m.bn(x), 0.3),
        lambda m, x: F.leaky_relu(m.bn(x), negative_slope=0.3),
    ):
        assert fuse(Net(body, act=nn.LeakyReLU(0.3))).bn.negative_slope == 0.3
    assert fuse(Net(lambda m, x: F.leaky_relu(m.bn(x)))).bn.negative_slope == 0.01


def test_settings_are_taken_over():
    net = Net(lambda m, x: m.bn(x).relu())
    net.bn = nn.BatchNorm2d(4, eps=0.1, momentum=None, affine=False)
    check(net, RELU, [])
    net.bn = nn.BatchNorm2d(4, track_running_stats=False)
    check(net, RELU, [])
    made = fuse(net).bn
    assert (made.eps, made.momentum, made.affine, made.track_running_stats) == (1e-5, 0.1, True, False)


def test_ours_take_what_they_have_not():
    def of(body, **options):
        net = Net(body)
        net.bn = ours.BatchNorm2d(4, **options)
        return net

    check(of(lambda m, x: m.bn(x, x).relu()), BOTH, [])
    check(of(lambda m, x: m.bn(x).relu()), RELU, [])
    check(of(lambda m, x: m.bn(x, x) + x), SUM, ["add"])
    check(of(lambda m, x: F.silu(m.bn(x) + x), act="relu"), RELU, ["add", "silu"])


# --- what is left alone -------------------------------------------------------------------------------------
def used_twice(m, x):
    y = m.bn(x)
    return y.relu() + y


def sum_used_twice(m, x):
    y = m.bn(x) + x
    return y.relu() + y


def later_residual(m, x):
    y = m.bn(x)
    return y + x.sin()


def written_between(m, x):
    r = x * 1
    y = m.bn(x)
    r.mul_(2)
    return (y + r).relu()


def written_by_a_module(m, x):
    r = x * 1
    y = m.bn(x)
    z = m.act(r)
    return (y + r).relu() + z


def sum_written_to_the_residual(m, x):
    r = x * 1
    y = r.add_(m.bn(x))
    return y + r


KEPT = {
    "used twice": (used_twice, ALONE, ["relu", "add"]),
    "sum used twice": (sum_used_twice, SUM, ["relu", "add"]),
    "alpha": (lambda m, x: torch.add(m.bn(x), x, alpha=2).relu(), ALONE, ["add", "relu"]),
    "alpha of a method": (lambda m, x: x.add(m.bn(x), alpha=0.5), ALONE, ["add"]),
    "a number": (lambda m, x: (m.bn(x) + 1).relu(), ALONE, ["add", "relu"]),
    "a number of x": (lambda m, x: x.size(0) * 2 + m.bn(x), ALONE, ["size", "mul", "add"]),
    "a shape of x": (lambda m, x: x.shape[0] + m.bn(x), ALONE, ["getattr", "getitem", "add"]),
    "a parameter": (lambda m, x: m.bias + m.bn(x), ALONE, ["add"]),
    "with itself": (lambda m, x: operator.add(*[m.bn(x)] * 2), ALONE, ["add"]),
    "computed later": (later_residual, ALONE, ["sin", "add"]),
    "written between": (written_between, ALONE, ["mul", "mul_", "add", "relu"]),
    "written by a module": (written_by_a_module, ALONE, ["mul", "ReLU", "add", "relu", "add"]),
    "written by the sum": (sum_written_to_the_residual, ALONE, ["mul", "add_", "add"]),
    "another activation": (lambda m, x: F.gelu(m.bn(x)), ALONE, ["gelu"]),
    "relu6": (lambda m, x: F.relu6(m.bn(x) + x), SUM, ["relu6"]),
    "product": (lambda m, x: m.bn(x) * x, ALONE, ["mul"]),
}  # fmt: skip


@pytest.mark.parametrize("name", KEPT)
def test_left_alone(name):
    body, expected, ops = KEPT[name]
    check(Net(body, bias=nn.Parameter(randn(4, 1, 1)), act=nn.ReLU(inplace=True)), expected, ops)


def test_something_harmless_between():
    def body(m, x):
        r = x * 2
        y = m.bn(x)
        z = m.other(x)
        return (y + r).relu() - z

    check(Net(body), BOTH, ["mul", "sub"])


def test_sum_of_two_and_sum_of_three():
    for body in (lambda m, x: (m.bn(x) + m.other(x)).relu(), lambda m, x: m.bn(x).add_(m.other(x)).relu()):
        fused = fuse(Net(body))
        assert norms(fused) == {"bn": ALONE, "other": BOTH} and not left(fused)
        check(Net(body), ALONE, [])
    body = lambda m, x: (m.bn(x) + x + m.other(x)).relu()  # noqa: E731
    assert norms(fuse(Net(body))) == {"bn": SUM, "other": BOTH}
    check(Net(body), SUM, [])


def test_called_twice():
    alike = Net(lambda m, x: m.bn(m.bn(x).relu()).relu())
    check(alike, RELU, [])
    for body in (
        lambda m, x: m.bn(m.bn(x).relu()),
        lambda m, x: F.silu(m.bn(m.bn(x).relu())),
        lambda m, x: (m.bn(m.bn(x).relu()) + x).relu(),
    ):
        net = Net(body)
        assert norms(fuse(net)) == {"bn": "torch"} and fuse(net).bn is net.bn


def test_one_module_under_two_names():
    net = Net(lambda m, x: m.alias(m.bn(x).relu()).relu())
    net.alias = net.bn
    fused = fuse(net)
    assert fused.alias is fused.bn and norms(fused) == {"bn": RELU} and not left(fused)
    assert list(fused.state_dict()) == list(net.state_dict())


def test_hooks_are_respected():
    def count(*_):
        called.append(1)

    body = lambda m, x: m.act(m.bn(x) + x)  # noqa: E731
    for register in ("register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"):
        called: list[int] = []
        net = Net(body, act=nn.ReLU())
        getattr(net.bn, register)(count)
        fused = fuse(net)
        assert norms(fused) == {"bn": "torch"} and left(fused) == ["add", "ReLU"]
        fused(randn(2, 4, 3, 3).requires_grad_()).sum().backward()
        assert called == [1]
    called = []
    net = Net(body, act=nn.ReLU())
    net.act.register_forward_hook(count)
    fused = fuse(net)
    assert norms(fused) == {"bn": SUM} and left(fused) == ["ReLU"]
    fused(randn(2, 4, 3, 3))
    assert called == [1]


def test_hooks_of_the_fused_model_are_its_own():
    net = Net(lambda m, x: m.bn(x).relu())
    fuse(net).bn.register_forward_hook(lambda *_: pytest.fail("a hook of another module"))
    net(randn(2, 4, 3, 3))
    assert not net.bn._forward_hooks


class Doubled(nn.BatchNorm2d):
    def forward(self, input):
        return 2 * super().forward(input)


@pytest.mark.parametrize("kind", (nn.SyncBatchNorm, Doubled, nn.InstanceNorm2d))
def test_other_classes(kind):
    net = Net(lambda m, x: m.bn(x).relu())
    net.bn = kind(4)
    assert norms(fuse(net)) == {"bn": "torch"} and fuse(net).bn is net.bn
