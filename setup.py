"""Builds onepass._C (CPU ops + the Python module) and, where nvcc is, onepass._cuda (CUDA ops) with ninja.

Metadata stands in pyproject.toml. Environment:
  ONEPASS_BUILD=0     build nothing: the plain-PyTorch reference serves every op
  ONEPASS_CUDA        0: no CUDA part; 1: fail where nvcc is missing; else it is built where nvcc is found
  ONEPASS_CUDA_ARCHS  compute capabilities, "80;90;100" if not set, or "native": of the GPUs that are here
  CUDA_HOME           where CUDA lies, if its nvcc is not on PATH
  CXX                 the C++ compiler (g++)
  MAX_JOBS            how many files are compiled at once
"""

import os
import shlex
import shutil
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
        Isa("avx512", "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mf16c -mprefer-vector-width=256"),
    ]

# Compiled once for each of ISAS, with flags of their own.
KERNELS: dict[str, list[str]] = {
    "csrc/cpu/optim.cpp": [],
    "csrc/cpu/as_torch.cpp": ["-ffp-contract=off"],
    "csrc/cpu/norm.cpp": ["-Wno-maybe-uninitialized"],  # of which gcc 12 suspects its own intrinsics
    "csrc/cpu/int8.cpp": ["-Wno-maybe-uninitialized"],
    "csrc/cpu/int8_weight.cpp": ["-Wno-maybe-uninitialized", "-Wno-uninitialized"],
    "csrc/cpu/int8_backward.cpp": ["-ffp-contract=off"],
    "csrc/cpu/quant.cpp": ["-ffp-contract=off", "-Wno-maybe-uninitialized"],
    "csrc/cpu/fake_quant.cpp": ["-ffp-contract=off", "-Wno-maybe-uninitialized"],
}
HOST = [f"csrc/{name}.cpp" for name in ("module", "walk", "bind")]
HOST += ["csrc/bind_pack.cpp"]
HOST += [f"csrc/cpu/{name}.cpp" for name in ("launch", "norm_launch", "int8_launch", "int8_weight_launch")]
HOST += [f"csrc/cpu/{name}_launch.cpp" for name in ("int8_backward", "quant", "fake_quant")]
HOST += ["csrc/cpu/isa.cpp"]
# Ways in that are the same on every device, compiled for each: -DONEPASS_KEY names it to the dispatcher.
EVERYWHERE = [f"csrc/bind_{name}.cpp" for name in ("norm", "quant", "fake_quant")]
EVERYWHERE += [f"csrc/bind_int8{name}.cpp" for name in ("", "_weight", "_backward")]

# A shared object of its own: it needs symbols that only a torch built for CUDA has.
CUDA = [f"csrc/cuda/{name}.cu" for name in ("adam", "adamw", "rmsprop", "sgd", "adagrad", "lion")]
CUDA += ["csrc/cuda/grads.cu", "csrc/cuda/amp.cu", "csrc/cuda/launch.cpp", "csrc/bind_cuda.cpp"]
CUDA += [f"csrc/cuda/norm_{name}.cu" for name in ("f32", "f64", "bf16", "f16")]
CUDA += ["csrc/cuda/norm_launch.cpp", "csrc/norm_cuda.cpp"]
CUDA += [f"csrc/cuda/{name}" for name in ("quant.cu", "quant_launch.cpp", "int8.cu", "int8_launch.cpp")]
CUDA += ["csrc/cuda/int8_weight.cu", "csrc/quant_cuda.cpp", "csrc/int8_cuda.cpp"]
CUDA += [f"csrc/cuda/int8_backward{name}" for name in (".cu", "_ready.cu", "_launch.cpp")]
CUDA += [f"csrc/cuda/fake_quant{name}" for name in (".cu", "_backward.cu", "_launch.cpp")]
CUDA += ["csrc/fake_quant_cuda.cpp"]
_UNFUSED = ("quant", "fake_quant", "fake_quant_backward", "int8_backward_ready")
CUDA_FLAGS = {f"csrc/cuda/{name}.cu": ["-fmad=false"] for name in _UNFUSED}  # a * b + c: csrc/rules/quant.h

# The math flags let sqrt and selects vectorise without -ffast-math, which would lose NaN.
CXXFLAGS = ["-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-fopenmp-simd", "-Wall", "-Wextra"]
CXXFLAGS += ["-fno-math-errno", "-fno-trapping-math"]


def nvcc() -> str | None:
    """The CUDA compiler, None where there is none or none is wanted."""
    wanted = os.environ.get("ONEPASS_CUDA", "auto")
    home = os.environ.get("CUDA_HOME")
    found = shutil.which("nvcc", path=f"{home}/bin") if home else shutil.which("nvcc")
    if wanted == "1" and not found:
        raise RuntimeError("ONEPASS_CUDA=1, but there is no nvcc on PATH or in CUDA_HOME")
    return None if wanted == "0" else found


def arch_flags() -> list[str]:
    """Machine code for each architecture, and PTX of the newest for those to come."""
    archs = os.environ.get("ONEPASS_CUDA_ARCHS", "80;90;100")
    if archs == "native":
        return ["-arch=native"]
    listed = archs.split(";")
    codes = [(a, f"sm_{a}") for a in listed] + [(listed[-1], f"compute_{listed[-1]}")]
    return [flag for a, code in codes for flag in ("-gencode", f"arch=compute_{a},code={code}")]


def torch_flags() -> tuple[list[str], list[str]]:
    import torch

    root = Path(torch.__file__).parent
    compile_flags = [
        "-isystem",
        f"{root / 'include'}",
        "-DTORCH_TARGET_VERSION=0x020a000000000000",  # one build serves every torch from 2.10 on
    ]
    return compile_flags, [f"-L{root / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10", "-ldl"]


def python_flags() -> list[str]:
    import pybind11
    import torch

    version = f'-DONEPASS_BUILD_TORCH="{torch.__version__}"'
    return [f"-isystem{pybind11.get_include()}", f"-isystem{sysconfig.get_paths()['include']}", version]


def escaped(path: Path | str) -> str:
    """A path as ninja wants it in a build line."""
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


class NinjaFile:
    """Rules and edges of the build of one shared object, and the objects made so far."""

    def __init__(self, folder: Path) -> None:
        # Not setuptools' build_temp: this one stays, so that a rebuild compiles only what changed.
        folder.mkdir(parents=True, exist_ok=True)
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
        self.lines += [f"build {escaped(target)}: compile {escaped(ROOT / source)}"]
        self.lines += [f"  flags = {shlex.join(flags or [])}"]

    def run(self, output: Path) -> None:
        self.lines += [f"build {escaped(output)}: link {' '.join(self.objects)}", ""]
        path = self.folder / "build.ninja"
        path.write_text("\n".join(self.lines))
        jobs = ["-j", os.environ["MAX_JOBS"]] if "MAX_JOBS" in os.environ else []
        subprocess.check_call([sys.executable, "-m", "ninja", "-f", str(path), *jobs])


def build_cpu(ninja: NinjaFile) -> None:
    cxx = os.environ.get("CXX", "g++")
    compile_flags, link_flags = torch_flags()
    compile_flags = [*CXXFLAGS, *python_flags(), *compile_flags]
    compile_one = [cxx, shlex.join(compile_flags), "$flags -MMD -MF $out.d -c $in -o $out"]
    ninja.rule("compile", compile_one, depfile=True)
    ninja.rule("link", [cxx, "-shared $in -o $out -Wl,--no-as-needed", shlex.join(link_flags)])

    table = " ".join(f"ISA({isa.name}, {str(isa.opt_in).lower()})" for isa in ISAS)
    for source in HOST:
        ninja.compile(source, flags=[f"-DONEPASS_ISAS={table}"] if source.endswith("isa.cpp") else [])
    for source in EVERYWHERE:
        ninja.compile(source, flags=["-DONEPASS_KEY=CPU"])
    for source, flags in KERNELS.items():
        for isa in ISAS:
            ninja.compile(source, f".{isa.name}", [*isa.flags.split(), *flags, f"-DONEPASS_ISA={isa.name}"])


def build_cuda(ninja: NinjaFile) -> None:
    """nvcc compiles the host files too: it knows where its headers and its runtime lie."""
    compiler, host = nvcc(), os.environ.get("CXX", "g++")
    assert compiler is not None
    compile_flags, link_flags = torch_flags()
    common = [compiler, "-ccbin", host, "-Xcompiler", "-fPIC,-fvisibility=hidden"]
    flags = ["-std=c++20", "-O3", "-DUSE_CUDA", "--threads", "2", *arch_flags(), *compile_flags]
    compile_one = [shlex.join([*common, *flags]), "$flags -MMD -MF $out.d -c $in -o $out"]
    ninja.rule("compile", compile_one, depfile=True)
    link = [*common, "-cudart", "static", "-shared", "-Xlinker", "--no-as-needed,--exclude-libs,ALL"]
    ninja.rule("link", [shlex.join(link), "$in -o $out", shlex.join(link_flags)])
    for source in CUDA:
        ninja.compile(source, flags=CUDA_FLAGS.get(source))
    for source in EVERYWHERE:
        ninja.compile(source, flags=["-DONEPASS_KEY=CUDA"])


class Build(build_ext):
    def build_extension(self, ext: Extension) -> None:
        name = ext.name.rpartition(".")[2]
        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        output.parent.mkdir(parents=True, exist_ok=True)
        ninja = NinjaFile(ROOT / "build" / f"ninja-{sysconfig.get_config_var('SOABI')}" / name)
        {"_C": build_cpu, "_cuda": build_cuda}[name](ninja)
        ninja.run(output)


def extensions() -> list[Extension]:
    if os.environ.get("ONEPASS_BUILD", "1") == "0":
        return []
    return [Extension("onepass._C", []), *([Extension("onepass._cuda", [])] if nvcc() else [])]


setup(ext_modules=extensions(), cmdclass={"build_ext": Build})
