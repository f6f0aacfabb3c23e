"""The machine code that nvcc made of csrc/cuda/, as it stands in onepass._cuda. No GPU is needed to read it.

Asserted is what makes a kernel fast and no result shows: no register is spilled, and where all streams are
aligned a thread moves each of them once, in 128-bit accesses and no others.
"""

import functools
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import sass
from onepass.ops import BY_NAME
from sass import each_arch

REGISTERS = 128  # a thread: four blocks of 128 threads on a multiprocessor, csrc/cuda/multi_tensor.cuh
SLOTS = (496, 4064)  # gradient pointers in a kernel's arguments, csrc/cuda/table.h
SIZES = {"float": 4, "double": 8, "__nv_bfloat16": 2, "__half": 2}

RULES = {  # a rule with its template arguments behind the arithmetic type: how many states it keeps
    "Adam00": 2, "Adam01": 3, "Adam10": 2, "Adam11": 3,
    "Sgd0": 0, "Sgd1": 1,
    "Rmsprop00": 1, "Rmsprop10": 2, "Rmsprop01": 2, "Rmsprop11": 3,
    "Adagrad": 1, "Lion": 1,
}  # fmt: skip
FLOAT_KERNELS = {  # of each op: without its optional states, and how many there are
    "adam_": "Adam00", "adamw_": "Adam10", "sgd_": "Sgd0", "rmsprop_": "Rmsprop00", "adagrad_": "Adagrad",
    "lion_": "Lion",
}  # fmt: skip


class Kernel(NamedTuple):
    """A step's kernel. Those with bfloat16 states are built for many gradients alone."""

    rule: str
    storage: str  # of parameter and gradient
    states: str
    slots: int


def _kernels() -> Iterator[Kernel]:
    for rule, storage, slots in itertools.product(RULES, SIZES, SLOTS):
        yield Kernel(rule, storage, "double" if storage == "double" else "float", slots)
        if RULES[rule] and storage != "double" and slots == SLOTS[1]:
            yield Kernel(rule, storage, "__nv_bfloat16", slots)


KERNELS = set(_kernels())
GRADS = {  # loads and stores of one turn over each of the four storage types
    f"{name}{slots}": accesses
    for name, accesses in {
        "sum_grads": (4, 0),
        "unscale_grads": (4, 4),
        "clip_grads": (4, 4),
        "accumulate": (2 + 2 + 3 + 3, 1 + 1 + 2 + 2),  # a half vector goes to two of its sum
    }.items()
    for slots in SLOTS
}


class Norm(NamedTuple):
    """A kernel of normalizations: what it goes through, and what it makes of the elements."""

    walk: str
    storage: str
    what: tuple[str, ...]


PASSES = {"Moment": "Forward", "Grad": "Backward"}  # the first pass and the second one
NORMS = {
    Norm(walk, storage, what)
    for storage in SIZES
    for walk, whats in {
        "planar": [("Moment",), ("Grad",)],
        "interleaved": [("Moment",), ("Grad",)],
        "apply": [("Forward",), ("Backward",)],
        "clusters": list(PASSES.items()),
        "slices": list(PASSES.items()) if storage != "double" else [],
        "given": [()],
        "grad_given": [()],
    }.items()
    for what in whats
}  # fmt: skip


def _registers(kernel: "Kernel | Norm | str") -> int:
    """What its launch bounds leave a thread: two blocks of 256 threads on a multiprocessor, or one."""
    if isinstance(kernel, Norm) and (kernel.storage == "double" or kernel.walk == "slices"):
        return 255
    return REGISTERS


@functools.cache
def _functions(folder: Path, arch: str) -> dict[Kernel | Norm | str, sass.Function]:
    """All but those of 8-bit numbers, which test_cuda_int8_aot.py reads."""
    code = sass.functions_of_arch(folder, arch)
    return {_kernel(name): f for name, f in code.items() if not re.search("(Int8|Quant)WorkE$", name)}


def _norms(folder: Path, arch: str) -> dict[Norm, sass.Function]:
    return {k: function for k, function in _functions(folder, arch).items() if isinstance(k, Norm)}


def _steps(folder: Path, arch: str) -> dict[Kernel, sass.Function]:
    return {k: function for k, function in _functions(folder, arch).items() if isinstance(k, Kernel)}


def _kernel(mangled: str) -> Kernel | Norm | str:
    """Which kernel a name names: _ZN7onepass4cuda12multi_tensorINS_4AdamIfLb1ELb0EEE6__halffLi496EE..."""
    if match := re.search(r"cuda\d+(sum_grads|unscale_grads|clip_grads|accumulate)ILi(\d+)E", mangled):
        return match[1] + match[2]
    if "update_scale" in mangled:
        return "update_scale"
    if match := re.search(
        r"cuda\d+norm_([a-z_]+)I(f|d|\d+__half|\d+__nv_bfloat16)(\w*)EvNS0_8NormWorkE", mangled
    ):
        return Norm(match[1], _type(match[2]), tuple(re.findall("Moment|Grad|Forward|Backward", match[3])))
    match = re.search(
        r"multi_tensorINS_\d+([A-Z][a-z]+)I[fd]((?:Lb[01]E)*)EE(f|d|\d+__\w+?)(f|d|S\d?_|\d+__\w+?)Li(\d+)E",
        mangled,
    )
    assert match, mangled
    name, switches, storage, states, slots = match.groups()
    states = storage if states.startswith("S") else states
    return Kernel(name + "".join(re.findall("[01]", switches)), _type(storage), _type(states), int(slots))


def _type(mangled: str) -> str:
    return {"f": "float", "d": "double"}.get(mangled, mangled.lstrip("0123456789"))


@each_arch
def test_every_kernel_is_there(cubins: Path, arch: str):
    assert _functions(cubins, arch).keys() == KERNELS | NORMS | GRADS.keys() | {"update_scale"}


@each_arch
def test_nothing_is_spilled(cubins: Path, arch: str):
    for kernel, function in _functions(cubins, arch).items():
        function.assert_in_registers(_registers(kernel), kernel)


def _vector_accesses(function: sass.Function) -> tuple[int, int]:
    """How many 128-bit loads and stores there are, after proving that no narrower one is in their blocks."""
    found: list[str] = []
    for block in function.blocks:
        accesses = sass.global_accesses(block)
        if any(sass.width(access) == 128 for access in accesses):
            assert {sass.width(access) for access in accesses} == {128}, accesses
            found += accesses
    loads = sum(access.startswith("LDG") for access in found)
    return loads, len(found) - loads


def _vectors(kernel: Kernel) -> tuple[int, int, int]:
    """Vectors that one turn of the loop takes: of the parameter (and of the gradient), of all states, of the
    average of weights, which is kept in the arithmetic type."""
    own, state = SIZES[kernel.storage], SIZES[kernel.states]
    arithmetic = 8 if kernel.storage == "double" else 4
    each = 16 // min(own, state)
    return each * own // 16, RULES[kernel.rule] * each * state // 16, each * arithmetic // 16


@each_arch
def test_aligned_streams_move_once_in_128_bit_accesses(cubins: Path, arch: str):
    """Loads: parameter, gradient, states, average. Stores: the same, the gradient where the step leaves
    something in it; and zeros in the gradients of a step that is skipped. The gradient of a half parameter is
    there twice: a turn takes it from what it is stored in, half or float32."""
    for kernel, function in _steps(cubins, arch).items():
        loads, stores = _vector_accesses(function)
        own, states, average = _vectors(kernel)
        half = SIZES[kernel.storage] == 2
        each = 2 * own + states + average + 2 * own * half
        unrolled, rest = divmod(loads, each)
        assert unrolled >= 1 and rest == 0, (kernel, loads)
        assert stores == unrolled * each + 1 + half, (kernel, loads, stores)


@each_arch
@pytest.mark.parametrize("name", GRADS)
def test_gradients_move_in_128_bit_accesses(cubins: Path, arch: str, name: str):
    """The sum reads and never writes; unscaling and clipping write as much as they read."""
    loads, stores = _vector_accesses(_functions(cubins, arch)[name])
    each_loads, each_stores = GRADS[name]
    assert loads >= each_loads and loads * each_stores == stores * each_loads, (loads, stores)


@each_arch
def test_no_access_has_to_find_out_what_memory_it_is_to(cubins: Path, arch: str):
    for kernel, function in _functions(cubins, arch).items():
        generic = function.generic()
        assert generic == _waits(kernel, arch), (kernel, generic)


def _waits(kernel: Kernel | Norm | str, arch: str) -> list[str]:
    """Where blocks wait for each other: what another block of a cluster has summed up, from its shared
    memory; the barrier of a cooperative launch."""
    walk = kernel.walk if isinstance(kernel, Norm) else ""
    if walk == "clusters" and arch != "80":
        return ["LD.E.64", "LD.E.64"]
    return ["ATOM.E.ADD.STRONG.GPU", "LD.E.STRONG.GPU"] if walk == "slices" else []


# --- normalizations ---------------------------------------------------------------------------------------
def _tensors(kernel: Norm) -> int:
    """The least that a kernel loads and stores of each tensor, by each of four activations, in the 128-bit
    accesses of a group of eight elements: x; or x and dy; y; or dx and the residual's gradient."""
    streams = {"Moment": 1, "Grad": 4 * 2, "Forward": 4 * (1 + 1), "Backward": 4 * (2 + 2)}
    loads_kept = {"Forward": 4, "Backward": 8} if kernel.walk in ("clusters", "slices") else {}
    return sum(streams[what] - loads_kept.get(what, 0) for what in kernel.what) * SIZES[kernel.storage] // 2


@each_arch
def test_elements_of_normalizations_move_in_128_bit_accesses(cubins: Path, arch: str):
    for kernel, function in _norms(cubins, arch).items():
        if kernel.what and not (kernel.walk == "clusters" and arch == "80"):
            wide = [
                o for block in function.blocks for o in sass.global_accesses(block) if sass.width(o) == 128
            ]
            assert len(wide) >= _tensors(kernel), kernel


@each_arch
def test_no_cluster_is_launched_where_there_are_none(cubins: Path, arch: str):
    """Of these kernels there is a trap on sm_80, and nothing else."""
    for kernel, function in _norms(cubins, arch).items():
        if kernel.walk == "clusters":
            assert (sum(map(len, function.blocks)) < 20) == (arch == "80"), kernel


@pytest.mark.parametrize("op", [BY_NAME[name] for name in FLOAT_KERNELS], ids=lambda op: op.name)
def test_bytes_of_the_table_are_those_of_a_turn_of_the_loop(op):
    """16 bytes an access, by the elements in a vector: what the op table says that a float32 call moves."""
    own, states, _ = _vectors(Kernel(FLOAT_KERNELS[op.name], "float", "float", SLOTS[0]))
    reads, writes = 2 * own + states, own + states
    assert (reads + writes) * 16 // (16 // SIZES["float"]) == op.bytes_per_element
