"""Conversion of a model's norms to SyncBatchNorm, and its constructor: torch's."""

import copy

import torch
from onepass.nn import BatchNorm1d, BatchNorm2d, BatchNorm3d, SyncBatchNorm
from optim_helpers import randn
from torch import nn


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
