"""Builds onepass._C (CPU ops + the Python module) with ninja.

Metadata stands in pyproject.toml. Environment:
  ONEPASS_BUILD=0   build nothing: the plain-PyTorch reference serves every op
  CXX               the C++ compiler (g++)
  MAX_JOBS          how many files are compiled at once
"""

import os
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


class Isa(NamedTuple):
    """One build of the kernel files. A line more is an instruction set more; see csrc/cpu/isa.h."""

    name: str
    flags: str
    opt_in: bool = False  # for a set that has run nowhere yet: only ONEPASS_ISA picks it


ISAS = [Isa("baseline", "")]
if sysconfig.get_platform().endswith("x86_64"):
    ISAS += [
        Isa("avx2", "-mavx2 -mfma -mf16c"),
        Isa("avx512", "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mf16c"),
    ]

KERNELS = ["csrc/cpu/optim.cpp"]  # compiled once for each of ISAS
HOST = ["csrc/module.cpp", "csrc/walk.cpp", "csrc/bind.cpp", "csrc/cpu/launch.cpp", "csrc/cpu/isa.cpp"]

# The math flags let sqrt and selects vectorise without -ffast-math, which would lose NaN.
CXXFLAGS = ["-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-fopenmp-simd", "-Wall", "-Wextra"]
CXXFLAGS += ["-fno-math-errno", "-fno-trapping-math"]


def torch_flags() -> tuple[list[str], list[str]]:
    import torch

    root = Path(torch.__file__).parent
    compile_flags = [
        f"-isystem{root / 'include'}",
        "-DTORCH_TARGET_VERSION=0x020a000000000000",  # one build serves every torch from 2.10 on
        f'-DONEPASS_BUILD_TORCH="{torch.__version__}"',
    ]
    libraries = ["-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-lc10", "-ldl"]
    return compile_flags, [f"-L{root / 'lib'}", *libraries]


def python_flags() -> list[str]:
    import pybind11

    return [f"-isystem{pybind11.get_include()}", f"-isystem{sysconfig.get_paths()['include']}"]


def escaped(path: Path | str) -> str:
    """A path as ninja wants it in a build line."""
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


class NinjaFile:
    """Rules and edges of the build, and the objects made so far."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lines = [f"builddir = {folder}"]
        self.objects: list[str] = []

    def rule(self, name: str, command: list[str], depfile: bool = False) -> None:
        self.lines += [f"rule {name}", "  command = " + " ".join(command), f"  description = {name} $out"]
        if depfile:
            self.lines += ["  depfile = $out.d", "  deps = gcc"]

    def compile(self, source: str, suffix: str = "", flags: list[str] | None = None) -> None:
        target = self.folder / (Path(source).name + suffix + ".o")
        self.objects.append(escaped(target))
        self.lines += [f"build {escaped(target)}: cxx {escaped(ROOT / source)}"]
        self.lines += [f"  flags = {shlex.join(flags or [])}"]

    def run(self, output: Path) -> None:
        self.lines += [f"build {escaped(output)}: link {' '.join(self.objects)}", ""]
        path = self.folder / "build.ninja"
        path.write_text("\n".join(self.lines))
        jobs = ["-j", os.environ["MAX_JOBS"]] if "MAX_JOBS" in os.environ else []
        subprocess.check_call([sys.executable, "-m", "ninja", "-f", str(path), *jobs])


class Build(build_ext):
    def build_extension(self, ext: Extension) -> None:
        cxx = os.environ.get("CXX", "g++")
        # Not build_temp: this one stays, so that a rebuild compiles only what changed.
        folder = ROOT / "build" / f"ninja-{sysconfig.get_config_var('SOABI')}"
        folder.mkdir(parents=True, exist_ok=True)
        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        output.parent.mkdir(parents=True, exist_ok=True)

        compile_flags, link_flags = torch_flags()
        compile_flags = [*CXXFLAGS, *python_flags(), *compile_flags]
        table = " ".join(f"ISA({isa.name}, {str(isa.opt_in).lower()})" for isa in ISAS)

        ninja = NinjaFile(folder)
        compile_one = [cxx, shlex.join(compile_flags), "$flags -MMD -MF $out.d -c $in -o $out"]
        ninja.rule("cxx", compile_one, depfile=True)
        ninja.rule("link", [cxx, "-shared $in -o $out", shlex.join(link_flags)])
        for source in HOST:
            ninja.compile(source, flags=[f"-DONEPASS_ISAS={table}"] if source.endswith("isa.cpp") else [])
        for source in KERNELS:
            for isa in ISAS:
                ninja.compile(source, f".{isa.name}", [*isa.flags.split(), f"-DONEPASS_ISA={isa.name}"])
        ninja.run(output)


built = os.environ.get("ONEPASS_BUILD", "1") != "0"
setup(
    ext_modules=[Extension("onepass._C", [])] if built else [],
    cmdclass={"build_ext": Build},
)
