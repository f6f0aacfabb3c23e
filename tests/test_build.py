"""What was built is there, and instruction sets are kept apart."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import need
from onepass import backends

BUILD = Path(__file__).parent.parent / "build"


def test_ci_has_the_compiled_part():
    """Elsewhere tests of C++ skip without a compiler; in CI that would hide them."""
    if not os.environ.get("CI"):
        pytest.skip("not in CI")
    assert backends.compiled() and backends._C.has_plan()
    assert backends.without_cuda is None or backends.without_cuda.startswith("built, but torch")


@pytest.mark.parametrize("isa", ("baseline", "avx2", "avx512"))
def test_kernel_objects_share_no_function(isa):
    """A function that the linker may take from any object could bring AVX-512 code to another machine."""
    objects = list(BUILD.glob(f"ninja-*/_C/*.{isa}.o"))
    if not objects:
        pytest.skip(f"nothing was built for {isa}")
    need("nm")
    nm = [str(shutil.which("nm")), "-C", "--defined-only"]
    shared = []
    for path in objects:
        symbols = subprocess.run([*nm, path], capture_output=True, text=True, check=True).stdout
        assert f"onepass::{isa}::" in symbols
        shared += [line for line in symbols.splitlines() if re.search(r" [WVu] ", line)]
    assert shared and all(f"onepass::{isa}::" in line for line in shared)
