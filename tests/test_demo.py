"""`python -m onepass demo`: training, the trained network in 8 bits, and what is shown of both."""

import copy
import json
from pathlib import Path
from typing import Any

import onepass
import pytest
import torch
from conftest import need
from onepass.__main__ import main
from onepass.quant import Int8DynamicConfig, Int8Linear, Int8WeightOnlyConfig

# Outputs, inputs, and the kernel's elements where there is one.
CONVOLUTIONS = (
    (24, 1, 9), (24, 24, 9), (24, 24, 9), (48, 24, 9), (48, 48, 9), (48, 24, 1),
    (48, 48, 9), (48, 48, 9), (96, 48, 9), (96, 96, 9), (96, 48, 1),
)  # fmt: skip
LINEAR_LAYERS = ((256, 384), (10, 256))
# Bytes: folded convolutions have a bias; 8-bit layers a float32 scale and a float32 bias an output.
CONVOLUTION_BYTES = sum(4 * (o * i * k + o) for o, i, k in CONVOLUTIONS)
FLOAT_BYTES = sum(4 * (o * i + o) for o, i in LINEAR_LAYERS)
INT8_BYTES = sum(o * i + 8 * o for o, i in LINEAR_LAYERS)


def _check_quantized(saved: dict[str, Any]) -> None:
    """What demo.json says of the network in 8 bits."""
    first, *others = saved["quantized"]
    assert [way["name"] for way in saved["quantized"]] == ["float32", "int8", "int8 weights"]
    assert first["accuracy_percent"] == pytest.approx(saved["runs"][-1]["accuracy_percent"], abs=0.5)
    assert first["differing_predictions"] == 0
    for way, linear_bytes in zip(saved["quantized"], (FLOAT_BYTES, INT8_BYTES, INT8_BYTES), strict=True):
        network, linear = way["network"], way["linear_layers"]
        assert linear["bytes"] == linear_bytes and network["bytes"] == CONVOLUTION_BYTES + linear_bytes
        for median in ("batch_1_ms_median", "batch_256_ms_median"):
            assert 0 < linear[median] < network[median]
    for way in others:
        assert abs(way["accuracy_percent"] - first["accuracy_percent"]) <= 1
        assert way["differing_predictions"] <= 0.02 * saved["data"]["test_images"]


def _check_table(shown: str, saved: dict[str, Any]) -> None:
    """The second table has every figure, and says what is not in 8 bits."""
    _, _, table = shown.partition("What onepass trained, in 8 bits")
    assert "stay float32" in " ".join(table.split())
    for way in saved["quantized"]:
        assert way["name"] in table and f"{way['accuracy_percent']:.2f}" in table
        for part in (way["network"], way["linear_layers"]):
            assert f"{part['bytes']:,}" in table
            assert f"{part['batch_1_ms_median']:.3f}" in table
            assert f"{part['batch_256_ms_median']:.3f}" in table


# --- the command ------------------------------------------------------------------------------------------
def test_demo_writes_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for tool in ("rich", "matplotlib", "sklearn"):
        need(tool)
    out, threads = tmp_path / "new/folder", torch.get_num_threads()
    assert main(["demo", "--epochs", "1", "--seed", "3", "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["demo.json", "demo.png"]
    assert (out / "demo.png").read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    assert str(out / "demo.png") in shown
    assert torch.get_num_threads() == threads

    saved = json.loads((out / "demo.json").read_text())
    _check_table(shown, saved)
    assert saved["settings"]["epochs"] == 1 and saved["settings"]["seed"] == 3
    assert saved["versions"]["onepass"] == onepass.__version__
    first, *others = saved["runs"]
    assert others[-1]["name"].startswith("onepass")
    for run in saved["runs"]:
        assert len(run["losses"]) == len(run["step_ms"]) == 1347 // 64
        assert run["losses"][0] == first["losses"][0]  # the same weights, the same batch
        assert run["losses"][-1] < run["losses"][0]
        assert run["largest_loss_difference"] < 0.05
        assert run["step_ms_median"] > 0
    assert saved["parameters"] == sum(o * i * k + 2 * o for o, i, k in CONVOLUTIONS) + sum(
        o * i + o for o, i in LINEAR_LAYERS
    )
    _check_quantized(saved)


@pytest.mark.parametrize("amp", [pytest.param(amp, marks=pytest.mark.slow) for amp in ("bf16", "fp16")])
def test_demo_under_autocast(amp: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """float16 has a loss scale, which moves; torch's convolutions in it are slow."""
    assert main(["demo", "--amp", amp, "--epochs", "1", "--out", str(tmp_path)]) == 0
    assert f"{amp} autocast" in capsys.readouterr().out
    saved = json.loads((tmp_path / "demo.json").read_text())
    assert saved["settings"]["amp"] == amp
    first = saved["runs"][0]
    for run in saved["runs"]:
        assert len(run["scales"]) == len(run["losses"])
        assert run["largest_loss_difference"] < 0.2
        assert (run["scales"], run["skipped_steps"]) == (first["scales"], first["skipped_steps"])
        if amp == "bf16":
            assert set(run["scales"]) == {1.0} and not run["skipped_steps"]
        else:
            assert len(set(run["scales"])) > 1
    assert (tmp_path / "demo.png").stat().st_size > 20_000
    _check_quantized(saved)


def test_demo_with_fused_batch_norm(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The same function, rounded otherwise: losses part slowly."""
    assert main(["demo", "--fused-bn", "--epochs", "1", "--out", str(tmp_path)]) == 0
    assert "batch norm fused" in capsys.readouterr().out
    saved = json.loads((tmp_path / "demo.json").read_text())
    first, *others = saved["runs"]
    assert saved["settings"]["fused_bn"] is True
    assert 0 < others[-1]["largest_loss_difference"] < 0.05
    assert others[-1]["losses"][0] != first["losses"][0] or others[-1]["losses"][-1] != first["losses"][-1]
    assert all(run["pass_ms_median"] > 0 for run in saved["runs"])
    _check_quantized(saved)


@pytest.mark.slow
def test_demo_learns(tmp_path: Path):
    assert main(["demo", "--out", str(tmp_path)]) == 0
    runs = json.loads((tmp_path / "demo.json").read_text())["runs"]
    assert all(run["accuracy_percent"] > 97 for run in runs)


@pytest.mark.parametrize("arguments", (["--epochs", "0"], ["--threads", "0"], ["--epochs", "many"]))
def test_demo_refuses_what_makes_no_sense(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        main(["demo", *arguments])
    assert stopped.value.code == 2
    assert arguments[0] in capsys.readouterr().err


# --- in 8 bits --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("fused", (False, True))
def test_the_trained_model_stays_as_it_is(fused: bool):
    need("sklearn")
    from onepass.demo import data, model, quantize

    torch.manual_seed(0)
    trained = model.ResNet(data.CLASSES)
    trained = onepass.nn.fuse(trained) if fused else trained
    before, parts = copy.deepcopy(trained.state_dict()), []
    made = quantize.compare(trained, data.load(), 1, parts.append)
    assert [way.name for way in made] == [way.name for way in quantize.WAYS]
    assert parts == sorted(parts) and parts[-1] == 1.0
    assert not any(isinstance(module, Int8Linear) for module in trained.modules())
    assert trained.state_dict().keys() == before.keys()
    assert all(torch.equal(t, before[name]) for name, t in trained.state_dict().items())


def test_linear_layers_are_measured_on_what_they_get():
    """In each way in the layers that it stands for, on the inputs of the float32 network."""
    need("sklearn")
    from onepass.demo import data, model, quantize

    network = model.ResNet(data.CLASSES).eval()
    images = torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        features, hidden = quantize._inputs(network, images)
        assert torch.equal(network.head[2](hidden), network(images))
        assert torch.equal(hidden, network.head[0](features).relu())
    for config in (Int8DynamicConfig(), Int8WeightOnlyConfig()):
        layers = quantize._linear_layers(quantize._in_8_bits(network, config))
        assert [type(layer) for layer in layers] == [Int8Linear, Int8Linear]
        assert [(layer.out_features, layer.in_features) for layer in layers] == list(LINEAR_LAYERS)
        assert all(layer.config == config for layer in layers)


# --- the picture ------------------------------------------------------------------------------------------
PARTS = ("network", "linear layers")
QUANTIZED = [
    {
        "name": name,
        "network": dict(zip(("bytes", "batch_1_ms_median", "batch_256_ms_median"), network, strict=True)),
        "linear_layers": dict(
            zip(("bytes", "batch_1_ms_median", "batch_256_ms_median"), linear, strict=True)
        ),
    }
    for name, network, linear in (
        ("float32", (8000, 0.5, 20.0), (4000, 0.05, 2.0)),
        ("int8", (5000, 0.25, 30.0), (1000, 0.1, 1.0)),
    )
]
SHARES = [0.625, 0.5, 1.5, 0.25, 2.0, 0.5]


def test_the_picture_shows_the_scale_and_skipped_steps():
    need("matplotlib")
    from onepass.demo import picture

    run = {
        "name": "one", "losses": [3.0, 2.0, 1.0], "scales": [4.0, 2.0, 2.0], "skipped_steps": [2],
        "accuracies_percent": [50.0], "accuracy_percent": 50.0, "step_ms_median": 1.0,
    }  # fmt: skip
    summary = {"settings": {"amp": "fp16"}, "parameters": 3, "runs": [run], "quantized": QUANTIZED}
    made = picture.draw(summary)
    titles = [axes.get_title() for axes in made.axes]
    assert titles == ["Training loss", "Loss scale", "Test accuracy", "One optimizer step", "In 8 bits"]
    marks = [line for line in made.axes[1].lines if line.get_marker() == "x"]
    assert [list(line.get_xdata()) for line in marks] == [[2]] and list(marks[0].get_ydata()) == [2.0]
    made = picture.draw(summary | {"settings": {"amp": None}})
    assert len(made.axes) == 4


def test_the_picture_shows_every_figure_in_8_bits():
    need("matplotlib")
    from onepass.demo import picture

    run = {
        "name": "one", "losses": [1.0], "accuracies_percent": [50.0], "accuracy_percent": 50.0,
        "step_ms_median": 1.0,
    }  # fmt: skip
    summary = {"settings": {"amp": None}, "parameters": 3, "runs": [run], "quantized": QUANTIZED}
    axes = picture.draw(summary).axes[-1]
    assert [bars.get_label() for bars in axes.containers] == ["float32", "int8"]
    assert [[bar.get_width() for bar in bars] for bars in axes.containers] == [[1.0] * 6, SHARES]
    rows = [label.get_text().replace("\n", " ") for label in axes.get_yticklabels()]
    assert rows == [f"{part} {of}" for part in PARTS for of in ("bytes", "batch 1", "batch 256")]
    beside = [text.get_text() for text in axes.texts]
    assert beside == [
        "8 kB", "0.5 ms", "20 ms", "4 kB", "0.05 ms", "2 ms",
        "5 kB", "0.25 ms", "30 ms", "1 kB", "0.1 ms", "1 ms",
    ]  # fmt: skip
