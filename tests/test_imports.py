"""The rooms of the tree and who may reach into which; what `import onepass` costs."""

import ast
import json
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {
    "onepass": ROOT / "python/onepass",
    "onepass.kernels": ROOT / "kernels",
    "onepass.bench": ROOT / "bench",
}
# Reached by name only from here.
DOORS = ("onepass.ops", "onepass.backends")
BEHIND_DOORS = ("onepass._C", "onepass._cuda", "onepass.reference", "onepass.kernels", "triton")


def _modules(package: str) -> Iterator[tuple[str, Path]]:
    """(dotted name, file) of every module of a package."""
    folder = PACKAGES[package]
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        yield ".".join((package, *(part for part in parts if part != "__init__"))), path


def _imported(module: str, path: Path) -> set[str]:
    """Absolute names of all that a file imports, wherever in the file it does so."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join((parents if node.level else []) + ([node.module] if node.module else []))
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return names


def _within(name: str, *rooms: str) -> bool:
    return any(name == room or name.startswith(room + ".") for room in rooms)


def _texts(path: Path) -> set[str]:
    """String constants: what import_module could be given."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def _attributes_of_backends(path: Path) -> set[str]:
    """x of each `backends.x` in a file."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)]
    return {node.attr for node in nodes if isinstance(node.value, ast.Name) and node.value.id == "backends"}


LIBRARY = [pytest.param(*entry, id=entry[0]) for entry in _modules("onepass")]
ISOLATED = [
    pytest.param(name, path, room, id=name)
    for package, room in (("onepass.kernels", "onepass.kernels"), ("onepass", "onepass.reference"))
    for name, path in _modules(package)
    if _within(name, room)
]


# --- Python -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("module, path, room", ISOLATED)
def test_kernels_and_reference_import_nothing_else_of_onepass(module: str, path: Path, room: str):
    ours = {name for name in _imported(module, path) if _within(name, "onepass")}
    assert all(_within(name, room) for name in ours), ours


@pytest.mark.parametrize("module, path", LIBRARY)
def test_only_ops_and_backends_reach_compiled_code_triton_and_reference(module: str, path: Path):
    if module in DOORS or _within(module, "onepass.reference"):
        assert path.exists()
        return
    named = _imported(module, path) | {t for t in _texts(path) if t.startswith("onepass.")}
    assert not {name for name in named if _within(name.partition(":")[0], *BEHIND_DOORS)}


@pytest.mark.parametrize("module, path", LIBRARY)
def test_compiled_module_is_not_reached_through_backends(module: str, path: Path):
    used = _attributes_of_backends(path)
    if module != "onepass.info":  # which only looks at how it was built
        assert "_C" not in used
    if _within(module, "onepass.optim", "onepass.nn"):  # ops, or a plan that backends hands over
        assert "target" not in used


def test_these_tests_see_the_imports():
    house = PACKAGES["onepass"]
    assert {"torch", "onepass.optim.base"} <= _imported("onepass.optim.adam", house / "optim/adam.py")
    assert "onepass.ops.OPS" in _imported("onepass.backends", house / "backends.py")
    assert "onepass.backends" in _imported("onepass", house / "__init__.py")
    assert "onepass.optim" in _imported("onepass.demo.train", house / "demo/train.py")
    assert "onepass._C" in _texts(house / "backends.py")
    assert {"target", "serves"} <= _attributes_of_backends(house / "testing/verify.py")
    assert _within("onepass.reference.optim", "onepass.reference") and not _within(
        "onepass.refer", "onepass.ref"
    )


# --- C++ --------------------------------------------------------------------------------------------------
CSRC = ROOT / "csrc"
# A folder, and the folders of csrc/ that its files may include from.
INCLUDES = {
    "rules": {"rules"},
    "common": {"common", "rules"},
    "cpu": {"cpu", "common", "rules"},
    "cuda": {"cuda", "common", "rules"},
}
SOURCES = [
    pytest.param(folder, path, id=str(path.relative_to(CSRC)))
    for folder in INCLUDES
    for path in sorted((CSRC / folder).rglob("*"))
    if path.suffix in (".h", ".cuh", ".cpp", ".cu")
]


def _includes(path: Path) -> list[tuple[str, str]]:
    """("<" or '"', name) of each #include, under whatever condition it stands."""
    return re.findall(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', path.read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("folder, path", SOURCES)
def test_rooms_of_the_sources_stay_apart(folder: str, path: Path):
    for bracket, name in _includes(path):
        if bracket == '"':
            target = (path.parent / name).resolve().relative_to(CSRC)
            assert target.parts[0] in INCLUDES[folder], name


@pytest.mark.parametrize(
    "path", [row.values[1] for row in SOURCES if row.values[0] == "rules"], ids=lambda p: p.name
)
def test_rules_include_only_the_standard_library(path: Path):
    foreign = [
        name for bracket, name in _includes(path) if bracket == "<" and not re.fullmatch("[a-z_]+", name)
    ]
    assert not foreign


# --- import onepass ---------------------------------------------------------------------------------------
MEASURE = """
import json, sys, time
begun = time.perf_counter()
import torch
between = time.perf_counter()
before = set(sys.modules)
import onepass
ended = time.perf_counter()
loaded = {name.partition(".")[0] for name in set(sys.modules) - before}
loaded |= {name for name in set(sys.modules) - before if name.startswith("onepass.")}
print(json.dumps({
    "torch": between - begun,
    "onepass": ended - between,
    "loaded": sorted(loaded),
    "cuda": torch.cuda.is_initialized(),
}))
"""


@pytest.fixture(scope="module")
def imports() -> list[dict]:
    """Three fresh processes: seconds that the imports took, and what they loaded."""
    command = [sys.executable, "-c", MEASURE]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(3)]
    return [json.loads(run.stdout) for run in runs]


def test_import_is_quick(imports: list[dict]):
    assert statistics.median(run["onepass"] for run in imports) < 0.3, imports


def test_import_loads_nothing_heavy(imports: list[dict]):
    heavy = {"triton", "rich", "tqdm", "matplotlib", "sklearn", "scipy", "pytest", "hypothesis"}
    heavy |= {"onepass.testing", "onepass.demo", "onepass.bench", "onepass.kernels"}
    loaded = set(imports[0]["loaded"])
    assert "onepass.optim" in loaded
    assert not heavy & loaded


def test_import_leaves_cuda_alone(imports: list[dict]):
    assert not any(run["cuda"] for run in imports)
