"""`python -m onepass ...`: info, selftest, bench. The demo: test_demo.py."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onepass.bench
import onepass.selftest
import pytest
import torch
from conftest import need
from onepass import backends, info
from onepass.__main__ import COMMANDS, main
from onepass.ops import OPS


# --- info -------------------------------------------------------------------------------------------------
def test_info_shows_every_op_and_backend(capsys: pytest.CaptureFixture[str]):
    need("rich")
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert onepass.__version__ in out and torch.__version__ in out
    assert all(op.name in out for op in OPS)
    assert all(isa in out for isa in backends.isas())


def test_info_json(capsys: pytest.CaptureFixture[str]):
    assert main(["info", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["versions"]["torch"] == torch.__version__
    assert [row["op"] for row in shown["ops"]] == [op.name for op in OPS]
    assert shown["devices"]["cpu"]["backend"] == backends.backend_of("cpu")
    sets = shown["instruction_sets"]
    assert [isa["name"] for isa in sets if isa["runs_here"]] == backends.isas()
    assert all(isa["in_use"] == (isa["name"] == backends.isa()) for isa in sets)
    for row in shown["ops"]:
        assert row["backends"]["cpu"][-1] == "reference" and row["bytes_per_element"] >= 0


def test_info_follows_use_backend():
    with backends.use_backend("reference"):
        assert info.collect()["devices"]["cpu"]["backend"] == "reference"


def test_works_with_nothing_compiled():
    """In a process that finds no compiled part: info says so, and the reference serves."""
    need("rich")
    script = """
import sys
sys.modules["onepass._C"] = None
from onepass.__main__ import main
sys.exit(main(["info"]) or main(["selftest", "--case", "plain"]))
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "not built" in run.stdout and "cpp/" not in run.stdout and "1 of 1" in run.stdout


# --- selftest ---------------------------------------------------------------------------------------------
SUBSET = ["selftest", "--op", "adamw_", "--case", "plain", "--case", "sliced", "--dtype", "float32"]


def test_selftest_of_a_subset(capsys: pytest.CaptureFixture[str]):
    need("rich")
    assert main(SUBSET) == 0
    out = capsys.readouterr().out
    assert out.count("2 of 2") == len(onepass.selftest.variants("cpu"))
    assert "adam_ " not in out and "float64" not in out


def test_selftest_lists_what_differs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    real = onepass.selftest.expected

    def off_by_a_little(*args: Any) -> dict[str, Any]:
        want = real(*args)
        want["params"][1][5] += 1e-4
        return want

    monkeypatch.setattr(onepass.selftest, "expected", off_by_a_little)
    assert main([*SUBSET, "--case", "amsgrad"]) == 1
    out = capsys.readouterr().out
    assert "0 of 3" in out
    assert (
        "failed adamw_ plain float32 on reference: params[1] differs in 1 of 33 elements, most at [5]" in out
    )


def test_selftest_lists_what_raises(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    def raises(*args: Any) -> dict[str, Any]:
        raise RuntimeError("out of order")

    monkeypatch.setattr(onepass.selftest, "expected", raises)
    assert main(SUBSET) == 1
    out = capsys.readouterr().out
    assert out.count("the reference raised RuntimeError: out of order") == 2
    monkeypatch.undo()
    monkeypatch.setattr(onepass.selftest, "verify", raises)
    assert main(SUBSET) == 1
    assert "plain float32 on reference: raised RuntimeError: out of order" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", (["--device", "nowhere"], ["--case", "no such case"]))
def test_selftest_says_what_it_cannot_run(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(["selftest", *arguments]) == 2
    assert arguments[1] in capsys.readouterr().out


# --- the rest ---------------------------------------------------------------------------------------------
def test_bench_gets_the_rest_of_the_command_line(monkeypatch: pytest.MonkeyPatch):
    seen = []

    def stand_in(argv: list[str]) -> int:
        seen.append(argv)
        return 5

    monkeypatch.setattr(onepass.bench, "main", stand_in)
    assert main(["bench", "optim", "--threads", "1", "--help"]) == 5
    assert seen == [["optim", "--threads", "1", "--help"]]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert f"onepass {command}" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", ([], ["no such command"]))
def test_wrong_command(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "info|selftest|demo|bench" in capsys.readouterr().err


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes a package look as if it were not installed, to modules of ours that are imported afresh."""

    def hide(package: str) -> None:
        for name in list(sys.modules):
            if name.partition(".")[0] == package:
                monkeypatch.setitem(sys.modules, name, None)
            elif name == "onepass.selftest" or name.startswith("onepass.demo"):
                monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, package, None)

    return hide


@pytest.mark.parametrize(
    "command, package",
    (("info", "rich"), ("selftest", "rich"), ("demo", "rich"), ("demo", "matplotlib"), ("demo", "sklearn")),
)
def test_missing_extra_is_named(
    command: str,
    package: str,
    without: Callable[[str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    without(package)
    assert main([command]) == 2
    err = capsys.readouterr().err
    assert f"needs the package '{package}'" in err and 'pip install "onepass[cli]"' in err
    assert not list(tmp_path.iterdir())


def test_other_missing_modules_are_not_blamed_on_an_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(COMMANDS, "info", ("onepass.no_such_module", ""))
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        main(["info"])


def test_info_json_needs_no_extra(without: Callable[[str], None], capsys: pytest.CaptureFixture[str]):
    without("rich")
    assert main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ops"]
