"""Int8Linear and quantize_: beside the float layer, saved and loaded, copied, moved, compiled."""

import copy
import io

import pytest
import torch
from onepass import use_backend
from onepass.quant import Int8Config, Int8DynamicConfig, Int8Linear, Int8WeightOnlyConfig, quantize_
from torch import nn

CONFIGS = (
    Int8DynamicConfig(),
    Int8DynamicConfig(act_bits=7),
    Int8DynamicConfig(symmetric=False),
    Int8DynamicConfig(symmetric=False, act_bits=7),
    Int8WeightOnlyConfig(),
)
SEVEN_BITS = (Int8DynamicConfig(act_bits=7), Int8DynamicConfig(symmetric=False, act_bits=7))
each_config = pytest.mark.parametrize("config", CONFIGS, ids=str)


def _model(bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(70, 130, bias), nn.ReLU(), nn.Sequential(nn.Linear(130, 33, bias))).eval()


def _x(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, 70, generator=torch.Generator().manual_seed(1)).to(dtype)


@each_config
@pytest.mark.parametrize("bias", (True, False))
@pytest.mark.parametrize("shape", ((), (1,), (9,), (2, 3, 5), (0,)))
@torch.no_grad()
def test_close_to_the_float_model(config: Int8Config, bias: bool, shape: tuple[int, ...]):
    model, x = _model(bias), _x(*shape)
    want = model(x)
    quantize_(model, config)
    got = model(x)
    assert got.shape == want.shape and got.dtype == want.dtype
    assert (got - want).norm() <= 0.02 * want.norm() * (2 if config in SEVEN_BITS else 1)


@pytest.mark.parametrize("act", (None, "gelu"))
@torch.no_grad()
def test_weight_only_is_the_float_layer_of_the_rounded_weights(act: str | None):
    linear, x = nn.Linear(70, 33), _x(9)
    layer = Int8Linear.from_float(linear, Int8WeightOnlyConfig(), act)
    weight = layer.weight.double() * layer.weight_scale[:, None]
    want = nn.functional.linear(x.double(), weight, linear.bias.double())
    want = want if act is None else nn.functional.gelu(want)
    assert (layer(x) - want).abs().max() <= 4e-6 * want.abs().max()
    x[3, 5] = float("inf")
    assert layer(x)[[0, 4]].isfinite().all() and not layer(x)[3].isfinite().any()


@each_config
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
@torch.no_grad()
def test_half_models_keep_float_scales(config: Int8Config, dtype: torch.dtype):
    model = _model()
    want = model(_x(9))
    quantize_(model, config)
    before = copy.deepcopy(model.state_dict())
    model.to(dtype)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert model[0].weight_scale.dtype == model[0].bias.dtype == torch.float32
    assert model[0].weight.dtype == torch.int8
    got = model(_x(9, dtype=dtype))
    assert got.dtype == dtype
    assert (got.float() - want).norm() <= 0.03 * want.norm() * (2 if config in SEVEN_BITS else 1)


def _empty(config: Int8Config | None = None) -> nn.Sequential:
    first, last = Int8Linear(70, 130, config=config), Int8Linear(130, 33, config=config)
    return nn.Sequential(first, nn.ReLU(), nn.Sequential(last))


@each_config
@torch.no_grad()
def test_state_dict_goes_round_and_holds_no_packed_form(config: Int8Config):
    model, x = _model(), _x(5)
    quantize_(model, config)
    state = model.state_dict()
    assert set(state) == {f"{p}.{n}" for p in ("0", "2.0") for n in ("weight", "weight_scale", "bias")}
    assert state["0.weight"].dtype == torch.int8 and state["0.weight_scale"].shape == (130,)
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    empty = _empty(config)
    empty.load_state_dict(torch.load(file))
    assert torch.equal(empty(x), model(x))


@each_config
@torch.no_grad()
def test_another_backend_is_given_the_weight_itself(config: Int8Config):
    """And what is loaded meanwhile is packed for a compiled model that reads it later."""
    torch._dynamo.reset()
    layer, other = (Int8Linear.from_float(nn.Linear(70, 20), config) for _ in range(2))
    x, compiled = _x(5), torch.compile(layer, fullgraph=True, backend="aot_eager")
    before, read = compiled(x), layer._readable()
    with use_backend("reference"):
        assert layer._readable() is layer.weight
        for run in (layer, compiled):
            torch.testing.assert_close(run(x), before)
        layer.load_state_dict(other.state_dict())
        torch.testing.assert_close(compiled(x), layer(x))
    assert (layer._readable() is read) == (read is layer.weight)
    assert torch.equal(layer(x), other(x)) and torch.equal(compiled(x), other(x))


@torch.no_grad()
def test_assigned_states_are_packed_anew():
    model, x = _model(), _x(5)
    quantize_(model)
    empty = _empty()
    empty.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(empty(x), model(x))


@each_config
@torch.no_grad()
def test_copies_are_apart(config: Int8Config):
    model, x = _model(), _x(5)
    quantize_(model, config)
    other, want = copy.deepcopy(model), model(x)
    state = other.state_dict()
    other.load_state_dict(
        {n: t if n.endswith(("scale", "bias")) else torch.zeros_like(t) for n, t in state.items()}
    )
    assert torch.equal(model(x), want) and torch.equal(other(x), other[2][0].bias.expand(5, -1))


@torch.no_grad()
def test_a_weight_that_changes_is_packed_anew():
    model, x = Int8Linear.from_float(nn.Linear(70, 20)), _x(6)
    want = model.bias.expand(6, -1)
    assert not torch.equal(model(x), want)
    zeros = {**model.state_dict(), "weight": torch.zeros(20, 70, dtype=torch.int8)}
    assert torch.equal(torch.func.functional_call(model, zeros, x), want)
    assert not torch.equal(model(x), want)
    model.weight.zero_()
    assert torch.equal(model(x), want)
    model.weight = torch.ones(20, 70, dtype=torch.int8)
    assert not torch.equal(model(x), want)


def test_built_without_memory_first():
    made = Int8Linear(64, 64, device="meta").to_empty(device="cpu")
    made.load_state_dict(Int8Linear.from_float(nn.Linear(64, 64)).state_dict())
    assert made(torch.ones(2, 64)).isfinite().all()


@torch.inference_mode()
def test_what_is_loaded_is_read_in_inference_mode():
    layer, other = (Int8Linear.from_float(nn.Linear(64, 64)) for _ in range(2))
    x = _x(3)[:, :64].contiguous()
    assert not torch.equal(layer(x), other(x))
    layer.load_state_dict(other.state_dict())
    assert torch.equal(layer(x), other(x))


@torch.no_grad()
def test_another_memory_is_read():
    layer, other = (Int8Linear.from_float(nn.Linear(64, 64)) for _ in range(2))
    x = _x(3)[:, :64].contiguous()
    layer(x)
    layer.weight.data = other.weight.clone()
    layer.weight_scale.copy_(other.weight_scale)
    layer.bias.copy_(other.bias)
    assert torch.equal(layer(x), other(x))


def test_saved_without_the_packed_form():
    file = io.BytesIO()
    torch.save(Int8Linear.from_float(nn.Linear(512, 512)), file)
    assert file.tell() < 300_000
    file.seek(0)
    assert torch.load(file, weights_only=False)(torch.ones(1, 512)).shape == (1, 512)


@torch.no_grad()
def test_torchs_transformer_still_runs():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2).eval()
    quantize_(model)
    assert model(torch.randn(3, 5, 16)).shape == (3, 5, 16)


def test_a_failure_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch):
    model, calls = _model(), []

    def fails(layer: nn.Linear, config: object) -> None:
        calls.append(layer)
        if len(calls) == 2:
            raise RuntimeError("no more")

    monkeypatch.setattr(Int8Linear, "from_float", fails)
    with pytest.raises(RuntimeError, match="no more"):
        quantize_(model)
    assert type(model[0]) is nn.Linear and type(model[2][0]) is nn.Linear


@each_config
@torch.no_grad()
def test_compiles_to_the_same_bits(config: Int8Config):
    torch._dynamo.reset()
    model, x = _model(), _x(5)
    quantize_(model, config)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), model(x))
    other = nn.Sequential(nn.Linear(70, 130), nn.ReLU(), nn.Sequential(nn.Linear(130, 33)))
    quantize_(other, config)
    model.load_state_dict(other.state_dict())
    assert torch.equal(compiled(x), other(x))


def test_a_weight_that_cannot_be_is_refused_as_others_are():
    layer = Int8Linear.from_float(nn.Linear(4, 4))
    bad = layer.state_dict() | {"weight": torch.full((4, 4), -128, dtype=torch.int8)}
    with pytest.raises(RuntimeError, match="weight: int8_pack: weight holds -128"):
        layer.load_state_dict(bad)


def test_only_linears_that_are_asked_for():
    class Own(nn.Linear):
        pass

    shared = nn.Linear(4, 4)
    model = nn.ModuleDict({"a": shared, "b": shared, "own": Own(4, 4), "head": nn.Linear(4, 2)})
    quantize_(model, filter_fn=lambda layer, name: name != "head")
    assert type(model["a"]) is Int8Linear and model["a"] is model["b"]
    assert type(model["own"]) is Own and type(model["head"]) is nn.Linear
    assert "in_features=4, out_features=4, bias=True, Int8DynamicConfig(symmetric=True, act_bits=8)" in repr(
        model
    )


@torch.no_grad()
def test_activation_in_the_same_pass():
    linear, x = nn.Linear(70, 20), _x(6)
    plain = Int8Linear.from_float(linear)(x)
    assert torch.equal(Int8Linear.from_float(linear, act="relu")(x), plain.relu())


def test_what_is_refused():
    with pytest.raises(ValueError, match="act_bits is 4, expected 7 or 8"):
        Int8DynamicConfig(act_bits=4)
    with pytest.raises(ValueError, match="the model is a Linear itself"):
        quantize_(nn.Linear(3, 3))
    for config in CONFIGS:
        with pytest.raises(RuntimeError, match="Int8Linear is for inference"):
            Int8Linear(70, 3, config=config)(_x(2).requires_grad_())
    with pytest.raises(RuntimeError, match="weight has 70 columns, expected 60 as input"):
        Int8Linear(70, 3)(torch.ones(2, 60))
