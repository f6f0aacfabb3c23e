"""Python in a child process that has the sanitizer a module was built with."""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .build import compiler

TESTS = Path(__file__).resolve().parents[1]
FOUND = re.compile(r"ERROR: AddressSanitizer|runtime error:|WARNING: ThreadSanitizer")

OPTIONS = {
    "plain": {},
    "asan": {
        "ASAN_OPTIONS": "detect_leaks=0:exitcode=66:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    },
    # A race that was reported once shall be reported again in another kernel.
    "tsan": {
        "TSAN_OPTIONS": "exitcode=66:report_thread_leaks=0:history_size=3:"
        "suppress_equal_stacks=0:suppress_equal_addresses=0"
    },
}
# libstdc++ along with them: they look for its functions when they start.
PRELOADED = {"plain": [], "asan": ["libasan.so", "libstdc++.so"], "tsan": ["libtsan.so", "libstdc++.so"]}


@dataclass
class Report:
    flagged: bool  # a sanitizer spoke, or Python failed: an exception, a crash
    returncode: int
    output: str
    errors: str

    def __bool__(self) -> bool:
        return self.flagged


def _library(name: str) -> str:
    asked = subprocess.run(
        [compiler(), f"-print-file-name={name}"], capture_output=True, text=True, check=True
    )
    path = Path(asked.stdout.strip())
    if not path.is_absolute():
        raise RuntimeError(f"{compiler()} has no {name}")
    return str(path.resolve())


def environment(mode: str) -> dict[str, str]:
    preload = " ".join(_library(name) for name in PRELOADED[mode])
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    # Python's own allocator would hide from ASan where an array ends; one thread, so that only kernels race.
    own = {"PYTHONPATH": path, "PYTHONMALLOC": "malloc", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return {**os.environ, **OPTIONS[mode], **own, **({"LD_PRELOAD": preload} if preload else {})}


def run_python(code: str, mode: str, arguments: Sequence[str] = (), timeout: float = 600) -> Report:
    """Runs Python code, which finds `emulator` to import and its arguments in sys.argv[1:]."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, env=environment(mode), capture_output=True, text=True, timeout=timeout)
    flagged = done.returncode != 0 or bool(FOUND.search(done.stderr))
    return Report(flagged, done.returncode, done.stdout, done.stderr)
