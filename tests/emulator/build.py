"""Builds Python modules from CUDA sources with the host's C++ compiler, three ways:

  plain   to compute, in any order of threads
  asan    with AddressSanitizer and UndefinedBehaviorSanitizer: bounds, alignment, uninitialised bools
  tsan    with ThreadSanitizer: races between threads, and between blocks if they are made concurrent

What is built is kept under build/emulator/ and found again by its content."""

import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import headers
from .translate import closure

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "emulator"
RUNTIME = Path(__file__).resolve().parent / "runtime"

MODES = {
    "plain": ["-O2"],
    "asan": ["-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "tsan": ["-O1", "-g1", "-fsanitize=thread"],
}
# Kernels are written for nvcc: what this compiler would warn of is not its business.
COMMON = ["-std=c++20", "-fPIC", "-fvisibility=hidden", "-fno-omit-frame-pointer", "-w"]


def compiler() -> str:
    return os.environ.get("CXX", "g++")


@functools.cache
def compiler_version() -> str:
    return subprocess.run([compiler(), "--version"], capture_output=True, text=True, check=True).stdout


def digest(*parts: str) -> str:
    return hashlib.sha256("\0".join((compiler_version(), *parts)).encode()).hexdigest()[:20]


def compile_or_raise(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def include_flags() -> list[str]:
    import pybind11

    # CUDA's headers as system headers of the least rank: the stand-ins come first.
    own = [f"-I{RUNTIME}", f"-I{RUNTIME / 'stand_in'}"]
    python = [pybind11.get_include(), sysconfig.get_paths()["include"]]
    return own + [flag for path in (*python, str(headers.needed())) for flag in ("-isystem", path)]


def mirrored(path: Path) -> Path:
    """Where a translated file lies in the build folder, so that relative includes find each other."""
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else Path("outside", *path.parts[1:])


def write_mirror(files: dict[Path, str], folder: Path) -> None:
    for path, text in files.items():
        shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
        to = folder / mirrored(path)
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text(f'#line 1 "{shown}"\n{text}')


def publish(made: Path, wanted: Path) -> None:
    wanted.parent.mkdir(parents=True, exist_ok=True)
    os.replace(made, wanted)  # at once: nobody finds half a file


def runtime_library(mode: str) -> Path:
    """Threads, barriers and streams: always without sanitizers, which are only told what happens there."""
    sources = sorted(RUNTIME.glob("*.cpp"))
    texts = [p.read_text() for p in sorted(RUNTIME.rglob("*")) if p.is_file()]
    flags = [
        *COMMON,
        "-O2",
        "-g1",
        "-fno-builtin-memcpy",
        "-fno-builtin-memset",
        f"-DEMULATOR_{mode.upper()}",
    ]
    wanted = BUILD / f"runtime-{mode}-{digest(*flags, *texts)}" / "libemulator.so"
    if not wanted.exists():
        made = Path(tempfile.mkdtemp(dir=BUILD)) / "libemulator.so"
        force = ["-include", str(RUNTIME / "rename.h")]
        # The sanitizers' functions are found in the module or the process that loads this.
        link = ["-shared", "-Wl,-Bsymbolic", "-o", str(made)]
        compile_or_raise([compiler(), *flags, *force, *include_flags(), *map(str, sources), *link])
        publish(made, wanted)
        made.parent.rmdir()
    return wanted


def compile_object(
    source: Path, folders: Sequence[Path], flags: Sequence[str], runtime_key: str, scratch: Path
) -> Path:
    files = closure(source, folders)
    texts = [f"{mirrored(path)}\n{text}" for path, text in sorted(files.items())]
    where = [str(mirrored(f)) for f in folders]
    wanted = BUILD / "objects" / f"{digest(*flags, *where, runtime_key, *texts)}.o"
    if not wanted.exists():
        scratch.mkdir()
        write_mirror(files, scratch)
        # Kernels see CUDA's device side; host sources only its runtime API.
        seen = ["rename.h", "device.h"] if source.suffix == ".cu" else ["rename.h"]
        force = [flag for name in seen for flag in ("-include", str(RUNTIME / name))]
        includes = [f"-I{scratch / mirrored(folder)}" for folder in folders]
        made = scratch / "made.o"
        command = [compiler(), *flags, *force, *includes, *include_flags(), "-x", "c++", "-c"]
        compile_or_raise([*command, str(scratch / mirrored(source)), "-o", str(made)])
        publish(made, wanted)
    return wanted


def build(
    name: str,
    sources: Iterable[Path | str],
    mode: str = "plain",
    defines: Iterable[str] = (),
    include: Iterable[Path | str] = (ROOT / "csrc",),
) -> Path:
    """Builds the module `name` and returns its path. One source has `PYBIND11_MODULE(MODULE_NAME, m)`.

    defines: "NAME" or "NAME=VALUE"."""
    paths = [Path(s).resolve() for s in sources]
    folders = [Path(f).resolve() for f in include]
    flags = [
        *COMMON,
        *MODES[mode],
        "-DONEPASS_EMULATOR",
        f"-DMODULE_NAME={name}",
        *(f"-D{d}" for d in defines),
    ]
    BUILD.mkdir(parents=True, exist_ok=True)
    with open(BUILD / "lock", "w") as lock, tempfile.TemporaryDirectory(dir=BUILD) as scratch:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one build at a time; others then find what it made
        runtime = runtime_library(mode)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            jobs = [
                pool.submit(compile_object, p, folders, flags, runtime.parent.name, Path(scratch, str(i)))
                for i, p in enumerate(paths)
            ]
            objects = [job.result() for job in jobs]
        wanted = BUILD / f"{name}-{mode}-{digest(*map(str, objects), str(runtime))}" / f"{name}.so"
        if not wanted.exists():
            made = Path(scratch) / "module.so"
            link = ["-shared", *MODES[mode], str(runtime), f"-Wl,-rpath,{runtime.parent}", "-o", str(made)]
            compile_or_raise([compiler(), *map(str, objects), *link])
            publish(made, wanted)
    return wanted


def clear() -> None:
    shutil.rmtree(BUILD, ignore_errors=True)
