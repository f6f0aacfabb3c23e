"""The 8-bit products: which tiles a product is cut in, and its launch.

Tiles are chosen by a rule: the largest that give every multiprocessor one; where the smallest are too few,
their depth is cut in shares. The environment variable ONEPASS_INT8_TILES takes this over, for every product
of the process: the name of tiles pins them, "flat/4" those in four shares, and "autotune" times all that fit,
with shares and without, at the first product of its kind (dtypes, n, k, m up to the next power of two) and
keeps the fastest; that waits for the device, and is not for a graph under capture.

The numbers below are reasoned: none has been timed on a GPU.
"""

import math
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton

from .machine import Machine

PINNED = os.environ.get("ONEPASS_INT8_TILES")


class Tiles(NamedTuple):
    """A program's: rows x outputs of the result, and as much depth at a time, in so many stages."""

    rows: int
    outputs: int
    depth: int
    warps: int
    stages: int
    shares: int = 1  # of the depth, each of which is a program's

    def cover(self, m: int, n: int) -> int:
        """How many they are."""
        return triton.cdiv(m, self.rows) * triton.cdiv(n, self.outputs)

    def on(self, machine: Machine, x_bytes: int) -> "Tiles | None":
        """None where they do not fit. Elsewhere than on NVIDIA's there are two stages, one of them in
        registers: a CDNA3 has 64 KB of shared memory."""
        tiles = self if machine.nvidia else self._replace(stages=2)
        return tiles if tiles.at_a_time(machine, x_bytes) else None

    def at_a_time(self, machine: Machine, x_bytes: int) -> int:
        """Programs that a multiprocessor's shared memory holds."""
        buffers = self.stages if machine.nvidia else self.stages - 1
        return machine.shared // (buffers * self.depth * (self.rows * x_bytes + self.outputs))


# From the largest to the smallest. 128 bytes of depth are a row of the swizzle that tensor cores read by.
# wide: 128 sums a thread, half of its registers. flat: 16 rows are the least of mma.sync.
WHOLE = {
    "wide": Tiles(128, 256, 128, 8, 3),
    "square": Tiles(128, 128, 128, 8, 3),
    "low": Tiles(64, 64, 128, 4, 4),
    "flat": Tiles(16, 32, 256, 4, 4),
}
# Whole numbers whose sums are added up in 64 bits: a thread has 32 sums, and twice as many registers beside
# them, so that half of a square is what it holds.
LONG = {"square": Tiles(128, 64, 128, 8, 4), "low": WHOLE["low"], "flat": WHOLE["flat"]}
# Real x by bytes: 64 of depth are a row of the swizzle in 16 bits, and a warpgroup's tile has 64 outputs.
REAL = {
    "wide": Tiles(128, 256, 64, 8, 4),
    "square": Tiles(128, 128, 64, 8, 4),
    "low": Tiles(64, 64, 64, 4, 4),
    "flat": Tiles(16, 64, 128, 4, 4),
}
# float32 has no tensor cores that are exact: what counts is registers.
SINGLE = {"square": Tiles(64, 64, 32, 8, 3), "low": Tiles(32, 64, 32, 8, 3), "flat": Tiles(16, 32, 64, 4, 3)}
# A product of at most so many rows that nothing is pinned for goes without tensor cores: more would be bound
# by what threads multiply.
FEW = 4


def few(m: int, k: int) -> Tiles:
    """A warp reads 512 bytes of weights at a time, and up to four of them share an output's depth. A thread
    has 64 sums, whatever the rows: four outputs of one, one of four."""
    rows = triton.next_power_of_2(m)
    warps = min(4, triton.next_power_of_2(triton.cdiv(max(1, k), 512)))
    return Tiles(rows, FEW // rows, 512 * warps, warps, 1)


def table_of(dtype: torch.dtype, wide: bool) -> dict[str, Tiles]:
    """Of a product with an x of this dtype. wide: are wide tiles among them? Beside their sums there is no
    room in registers for pointers of sm_80, nor for sums of weights, nor for the exp and division of silu."""
    if dtype == torch.float32:
        return SINGLE
    table = REAL if dtype.is_floating_point else WHOLE
    return table if wide else {name: tiles for name, tiles in table.items() if name != "wide"}


def largest(table: dict[str, Tiles], m: int, n: int, machine: Machine) -> str:
    """Its rows are not more than twice what there is, and every multiprocessor has one; else the lowest that
    holds m rows."""
    names = list(table)
    for name in names[:-1]:
        tiles = table[name]
        if tiles.rows < 2 * m and tiles.cover(m, n) >= machine.processors:
            return name
    return names[-1] if m <= table[names[-1]].rows else names[-2]


# Tiles of more sums are not cut in shares: those of a square, with the ticket's, spill on sm_80.
_MOST_OF_SHARES = 64 * 64


def in_shares(tiles: Tiles) -> bool:
    """May they be?"""
    return tiles.rows * tiles.outputs <= _MOST_OF_SHARES


def shares_of(tiles: Tiles, m: int, n: int, k: int, x_bytes: int, machine: Machine) -> int:
    """In how many shares the depth of tiles is cut that are too few: the least of three.

    So many that every multiprocessor has one program: a second one would not wait less for memory.
    So many that each fills the stages of its loop once: at 64 bytes a clock, a multiprocessor's part of the
    L2 cache, that takes about as long as what a share costs, the ticket and the way through the cache.
    So many that the last program reads no more bytes of sums than it has read of x and w for its own share:
    what it does alone grows with shares, and what all do at a time shrinks by them."""
    if not in_shares(tiles):
        return 1
    idle = machine.processors // tiles.cover(m, n)
    deep = k // (tiles.depth * tiles.stages)
    balanced = math.isqrt(k * (tiles.rows * x_bytes + tiles.outputs) // (4 * tiles.rows * tiles.outputs))
    return max(1, min(idle, deep, balanced))


_fastest: dict[Any, str] = {}


def fastest(kind: tuple, names: list[str], run: Callable[[str], None]) -> str:
    """By trial, at the first product of a kind."""
    if kind not in _fastest:
        _fastest[kind] = min(names, key=lambda name: triton.testing.do_bench(lambda: run(name)))
    return _fastest[kind]


def named(name: str, fitting: dict[str, Tiles]) -> Tiles:
    """Those of a name, which may end in a number of shares."""
    plain, cut, shares = name.partition("/")
    tiles = fitting.get(plain)
    many = shares.isdecimal() and int(shares) > 0
    if tiles is None or (cut and not (many and in_shares(tiles))):
        names = ", ".join([*fitting, *(f"{name}/2" for name, tiles in fitting.items() if in_shares(tiles))])
        wanted = f"expected autotune or what fits here: {names} or in more shares"
        raise RuntimeError(f"ONEPASS_INT8_TILES is '{name}', {wanted}")
    return tiles._replace(shares=int(shares or 1))


def choose(
    table: dict[str, Tiles],
    m: int,
    n: int,
    k: int,
    x_bytes: int,
    machine: Machine,
    kind: tuple,
    run: Callable,
) -> Tiles:
    """Those of the table that a product is cut in, with their shares; k of 0: what is not for shares. run:
    launches it in the tiles it is given."""

    def shares(name: str) -> int:
        return shares_of(fitting[name], m, n, k, x_bytes, machine)

    fitting = {name: t for name, tiles in table.items() if (t := tiles.on(machine, x_bytes))}
    if not PINNED:
        name = largest(fitting, m, n, machine)
        return fitting[name]._replace(shares=shares(name))
    if PINNED == "autotune":
        kind = (*kind, triton.next_power_of_2(m))
        names = [*fitting, *(f"{name}/{shares(name)}" for name in fitting if shares(name) > 1)]
        return named(fastest(kind, names, lambda name: run(named(name, fitting))), fitting)
    return named(PINNED, fitting)


# --- launches ---------------------------------------------------------------------------------------------
def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """All launches come through here."""
    kernel[grid](*arguments, **constants)


def constants_of(tiles: Tiles, whole: bool) -> dict[str, Any]:
    """The kernel's, and options of the compiler. Behind whole sums multiply and add stay two operations."""
    sizes = {"ROWS": tiles.rows, "OUTPUTS": tiles.outputs, "DEPTH": tiles.depth}
    return sizes | {"num_warps": tiles.warps, "num_stages": tiles.stages, "enable_fp_fusion": not whole}
