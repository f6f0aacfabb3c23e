"""Int8Linear and quantize_: beside the float layer, saved and loaded, copied, moved, compiled."""

import copy
import io

import pytest
import torch
from onepass.quant import Int8DynamicConfig, Int8Linear, quantize_
from torch import nn

CONFIGS = (
    Int8DynamicConfig(),
    Int8DynamicConfig(act_bits=7),
    Int8DynamicConfig(symmetric=False),
    Int8DynamicConfig(symmetric=False, act_bits=7),
)
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
def test_close_to_the_float_model(config: Int8DynamicConfig, bias: bool, shape: tuple[int, ...]):
    model, x = _model(bias), _x(*shape)
    want = model(x)
    quantize_(model, config)
    got = model(x)
    assert got.shape == want.shape and got.dtype == want.dtype
    assert (got - want).norm() <= 0.02 * want.norm() * (2 if config.act_bits == 7 else 1)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
@torch.no_grad()
def test_half_models_keep_float_scales(dtype: torch.dtype):
    model = _model()
    want = model(_x(9))
    quantize_(model)
    model.to(dtype)
    assert model[0].weight_scale.dtype == model[0].bias.dtype == torch.float32
    assert model[0].weight.dtype == torch.int8
    got = model(_x(9, dtype=dtype))
    assert got.dtype == dtype
    assert (got.float() - want).norm() <= 0.03 * want.norm()


@torch.no_grad()
def test_state_dict_goes_round_and_holds_no_packed_form():
    model, x = _model(), _x(5)
    quantize_(model)
    state = model.state_dict()
    assert set(state) == {f"{p}.{n}" for p in ("0", "2.0") for n in ("weight", "weight_scale", "bias")}
    assert state["0.weight"].dtype == torch.int8 and state["0.weight_scale"].shape == (130,)
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    empty = nn.Sequential(Int8Linear(70, 130), nn.ReLU(), nn.Sequential(Int8Linear(130, 33)))
    empty.load_state_dict(torch.load(file))
    assert torch.equal(empty(x), model(x))


@torch.no_grad()
def test_assigned_states_are_packed_anew():
    model, x = _model(), _x(5)
    quantize_(model)
    empty = nn.Sequential(Int8Linear(70, 130), nn.ReLU(), nn.Sequential(Int8Linear(130, 33)))
    empty.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(empty(x), model(x))


@torch.no_grad()
def test_copies_are_apart():
    model, x = _model(), _x(5)
    quantize_(model)
    other, want = copy.deepcopy(model), model(x)
    other.load_state_dict({name: torch.zeros_like(t) for name, t in other.state_dict().items()})
    assert torch.equal(model(x), want) and (other(x) == 0).all()


@each_config
@torch.no_grad()
def test_compiles_to_the_same_bits(config: Int8DynamicConfig):
    torch._dynamo.reset()
    model, x = _model(), _x(5)
    quantize_(model, config)
    assert torch.equal(torch.compile(model, fullgraph=True, backend="aot_eager")(x), model(x))


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
    with pytest.raises(RuntimeError, match="Int8Linear is for inference"):
        Int8Linear(70, 3)(_x(2).requires_grad_())
    with pytest.raises(RuntimeError, match="weight has 70 columns, expected 60 as input"):
        Int8Linear(70, 3)(torch.ones(2, 60))
