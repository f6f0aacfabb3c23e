"""Where CUDA's headers are. Only types and host arithmetic are used of them, so any recent CUDA will do."""

import importlib.util
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

WANTED = ("cuda_fp16.h", "cuda_bf16.h", "vector_types.h", "driver_types.h", "cuda_runtime_api.h")


def _of_triton() -> list[Path]:
    spec = importlib.util.find_spec("triton")
    return [Path(p) / "backends/nvidia/include" for p in (spec and spec.submodule_search_locations) or ()]


def _of_nvcc() -> list[Path]:
    if not shutil.which("nvcc"):
        return []
    run = ["nvcc", "--dryrun", "-x", "cu", "-c", "/dev/null", "-o", "/dev/null"]
    said = subprocess.run(run, capture_output=True, text=True).stderr
    return [Path(p) for p in re.findall(r'"?-I"?([^"\s]+)', said)]


@cache
def cuda_include() -> Path | None:
    for folder in (*_of_triton(), *_of_nvcc()):
        if all((folder / name).is_file() for name in WANTED):
            return folder.resolve()
    return None


def needed() -> Path:
    folder = cuda_include()
    if not folder:
        raise RuntimeError(
            "the emulator needs CUDA's headers (cuda_fp16.h and others): "
            "install triton, whose wheel has them, or put nvcc on PATH"
        )
    return folder
