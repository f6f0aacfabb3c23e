"""What every test file can import: `from conftest import need`. The markers stand in pyproject.toml."""

import importlib.util
import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest


def need(tool: str) -> None:
    """Skips the test where a program or Python package is missing; on CI (CI=true) fails it instead, so that
    no test goes unrun there without being noticed."""
    if shutil.which(tool) or importlib.util.find_spec(tool):
        return
    if os.environ.get("CI") == "true":
        pytest.fail(f"{tool} is missing on CI")
    pytest.skip(f"{tool} is not installed")


def need_emulator() -> None:
    """What tests/emulator/ needs: x86-64, whose stacks it switches, g++, and CUDA's headers."""
    from emulator import headers

    if platform.machine() != "x86_64":
        pytest.skip("the emulator runs on x86-64 only")
    need("g++")
    if not headers.cuda_include():
        need("nvcc")


@pytest.fixture(scope="session")
def cubins(tmp_path_factory) -> Path:
    """A folder with the machine code of onepass._cuda for each architecture, as built."""
    import sass

    need("nvcc")
    assert {"cuobjdump", "nvdisasm"} <= sass.tools().keys(), "they come with Triton's wheel, and with CUDA"
    built = importlib.util.find_spec("onepass._cuda")
    assert built is not None and built.origin is not None, "nvcc is here, but onepass._cuda was not built"
    folder = tmp_path_factory.mktemp("cubins")
    subprocess.run([sass.tools()["cuobjdump"], "-xelf", "all", built.origin], cwd=folder, check=True)
    return folder


@pytest.fixture(scope="session")
def ranks(tmp_path_factory) -> list[dict]:
    """What each of the processes of tests/sync_processes.py found."""
    import sync_processes

    return sync_processes.found(tmp_path_factory)
