"""What a row says about where it was measured, and how much memory there is to measure in."""

import os
import platform
import subprocess
from pathlib import Path

import torch


def cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _git(*args: str) -> str | None:
    here = Path(__file__).resolve().parent
    try:
        done = subprocess.run(("git", "-C", str(here), *args), capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def commit() -> str | None:
    """The checkout's short hash, with "-dirty" if tracked files were changed; None outside a checkout.
    ONEPASS_COMMIT says it for a copy that is none."""
    if os.environ.get("ONEPASS_COMMIT"):
        return os.environ["ONEPASS_COMMIT"]
    # An installed package may lie inside somebody else's checkout: then this file is not tracked there.
    if _git("ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    return _git("describe", "--always", "--dirty", "--exclude=*")


def _number(path: str) -> int | None:
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return None


def _inactive_file(folder: str) -> int:
    """Bytes of page cache that a control group would give back."""
    try:
        lines = Path(folder, "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    # Version 1 has both; "total_" is the one that counts the groups below as well, as its usage does.
    stats = {name: int(value) for name, _, value in (line.partition(" ") for line in lines)}
    return stats.get("total_inactive_file", stats.get("inactive_file", 0))


def free_gpu_memory() -> int:
    """Bytes that can still be allocated on the current CUDA device."""
    torch.cuda.empty_cache()  # what torch keeps for itself counts as taken otherwise
    free, _ = torch.cuda.mem_get_info()
    return free


def free_memory() -> int | None:
    """Bytes that can still be allocated without swapping; None where the system does not tell.

    The smaller of what the kernel calls available and what is left of the limit of our own control group,
    as a container sees it (versions 1 and 2).
    """
    found = []
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        found.append(int(fields["MemAvailable"].split()[0]) * 1024)
    except (OSError, KeyError):
        pass
    for folder, limit, usage in (
        ("/sys/fs/cgroup", "memory.max", "memory.current"),
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        most, now = _number(f"{folder}/{limit}"), _number(f"{folder}/{usage}")
        if most is not None and now is not None:
            found.append(max(0, most - now + _inactive_file(folder)))
    return min(found, default=None)
