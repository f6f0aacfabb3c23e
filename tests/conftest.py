"""What every test file can import: `from conftest import need`. The markers stand in pyproject.toml."""

import importlib.util
import os
import platform
import shutil

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
