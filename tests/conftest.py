"""What every test file can import: `from conftest import need`. The markers stand in pyproject.toml."""

import importlib.util
import os
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
