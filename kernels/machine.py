"""How kernels are cut for a machine: elements in a tile, programs at a time, threads in a warp."""

import os
from functools import cache
from typing import Any, NamedTuple

import torch
from triton.runtime import driver

THREADS = 128  # of a program
PROGRAMS = 4  # of a multiprocessor: as many as 128 registers a thread leave room for
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # read by Triton when it is imported, so also here


def block_of(dtype: torch.dtype) -> int:
    """Elements in a tile: 8 a thread, of float64 4. The interpreter is as quick with 4096 as with one."""
    if INTERPRETED:
        return 4096
    return THREADS * (4 if dtype == torch.float64 else 8)


@cache
def programs_of(device: torch.device) -> tuple[int, int]:
    """(programs at a time, threads in a warp). The interpreter's are few, but several."""
    if device.type == "cpu":
        return PROGRAMS, 32
    properties = torch.cuda.get_device_properties(device)
    return PROGRAMS * properties.multi_processor_count, properties.warp_size


class Machine(NamedTuple):
    """What decides how tiles of a matrix product are cut."""

    processors: int  # multiprocessors
    shared: int  # bytes of shared memory that a program may have
    nvidia: bool
    descriptors: bool  # does the hardware load tiles by descriptors (TMA)?


@cache
def machine_of(device: torch.device) -> Machine:
    """The interpreter has few, which load both ways."""
    if device.type == "cpu":
        return Machine(3, 227 * 1024, True, True)
    properties, nvidia = torch.cuda.get_device_properties(device), torch.version.hip is None
    index = torch.cuda.current_device() if device.index is None else device.index
    shared = driver.active.utils.get_device_properties(index)["max_shared_mem"]
    return Machine(properties.multi_processor_count, shared, nvidia, nvidia and properties.major >= 9)


def options(warp: int) -> dict[str, Any]:
    """For the compiler. warp: threads in one."""
    return {"num_warps": THREADS // warp, "enable_fp_fusion": True}
