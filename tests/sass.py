"""Reads the machine code of a cubin: functions, their basic blocks, the resources they take.

By NVIDIA's cuobjdump and nvdisasm, which need no GPU and also lie in Triton's wheel.
"""

import functools
import importlib.util
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

# Reading the machine code of one takes ten seconds: one architecture in `make test`, all in `make test-slow`.
each_arch = pytest.mark.parametrize(
    "arch",
    [pytest.param(arch, marks=() if arch == "90" else pytest.mark.slow) for arch in ("80", "90", "100")],
)

# What ends a block; what follows a call is a block of its own.
_LEAVES = ("BRA", "BRX", "BRXU", "JMP", "JMX", "JMXU", "CALL", "RET", "EXIT", "BREAK", "BSYNC", "KILL")
_SECTION = re.compile(r"^\s*\.section\s+\.text\.([^\s,]+)")
_LABEL = re.compile(r"^([.$\w]+):\s*$")
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)")
_USAGE = re.compile(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)")


@dataclass(frozen=True)
class Function:
    blocks: list[list[str]]  # opcodes, as "LDG.E.128"
    registers: int
    stack: int  # bytes a thread, as the next
    local: int

    def opcodes(self) -> Iterator[str]:
        return (opcode for block in self.blocks for opcode in block)

    def spills(self) -> list[str]:
        """Accesses to memory that stands in for registers."""
        return [opcode for opcode in self.opcodes() if opcode.partition(".")[0] in ("LDL", "STL")]

    def assert_in_registers(self, most: int, kernel: object) -> None:
        """Nothing of a thread's is in memory, and it takes so many registers at most."""
        assert not self.spills(), kernel
        assert (self.stack, self.local) == (0, 0), kernel
        assert self.registers <= most, (kernel, self.registers)

    def generic(self) -> list[str]:
        """Accesses that have to find out at run time what memory they are to."""
        return [opcode for opcode in self.opcodes() if opcode.partition(".")[0] in ("LD", "ST", "ATOM")]


def tools() -> dict[str, str]:
    """Where cuobjdump and nvdisasm are; those that are not found are left out."""
    spec = importlib.util.find_spec("triton")
    wheel = (
        [str(Path(p) / "backends/nvidia/bin") for p in (spec.submodule_search_locations or [])]
        if spec
        else []
    )
    found = {tool: _which(tool, wheel) for tool in ("cuobjdump", "nvdisasm")}
    return {tool: path for tool, path in found.items() if path}


def _which(tool: str, folders: list[str]) -> str | None:
    places = (shutil.which(tool, path=folder) for folder in folders)
    return next(filter(None, places), None) or shutil.which(tool)


def functions(cubin: Path | str) -> dict[str, Function]:
    """The kernels of a cubin by their (mangled) names."""
    usage = {
        name: tuple(map(int, rest)) for name, *rest in _USAGE.findall(_run("cuobjdump", "-res-usage", cubin))
    }
    code = blocks_of(_run("nvdisasm", "-c", cubin))
    return {name: Function(code[name], *usage[name]) for name in code if name in usage}


@functools.cache
def functions_of_arch(folder: Path, arch: str) -> dict[str, Function]:
    """The kernels of all cubins of an architecture in a folder: conftest.cubins."""
    found: dict[str, Function] = {}
    for cubin in folder.glob(f"*.sm_{arch}.cubin"):
        found |= functions(cubin)
    return found


def _run(tool: str, option: str, cubin: Path | str) -> str:
    command = [tools()[tool], option, str(cubin)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def blocks_of(text: str) -> dict[str, list[list[str]]]:
    """The basic blocks of each function in nvdisasm's text: cut at labels and behind what leaves."""
    found: dict[str, list[list[str]]] = {}
    blocks: list[list[str]] = []
    for line in text.splitlines():
        if section := _SECTION.match(line):
            blocks = found.setdefault(section[1], [[]])
        elif _LABEL.match(line):
            blocks.append([])
        elif instruction := _INSTRUCTION.match(line):
            blocks[-1].append(instruction[1])
            if instruction[1].partition(".")[0] in _LEAVES:
                blocks.append([])
    return {name: [block for block in blocks if block] for name, blocks in found.items()}


def width(opcode: str) -> int:
    """Bits a thread of an access to memory."""
    bits = re.search(r"\.[US]?(8|16|64|128|256)\b", opcode)
    return int(bits[1]) if bits else 32


def global_accesses(block: list[str]) -> list[str]:
    return [opcode for opcode in block if opcode.partition(".")[0] in ("LDG", "STG")]
