"""Who computes a linear layer in 8 bits on a GPU: the jobs and the numbers of int8_jobs.py, there.

Rows are of one dtype, and so is the output: it stands behind the names of all who read them. All share what
they read, as caches are flushed before each step.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from onepass.ops import BY_NAME

from . import gpu_peers, int8_jobs, int8_packages, peers
from .int8_jobs import BITSANDBYTES, CHANCE, INT_MM, LIMIT, NULL, OURS, TORCHAO, WEIGHT_ONLY, Race, Step

PRODUCT = "_int_mm"  # of numbers that are whole already, to sums that nobody scales
PEERS = {
    "int8_linear": (PRODUCT, INT_MM, TORCHAO, BITSANDBYTES),
    "int8_weight_only_mm": (WEIGHT_ONLY,),
    "int8_mm_bwd": (),
}
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
ROWS = (1, 16, 256, 4096)


@dataclass(frozen=True)
class Job(int8_jobs.Job):
    """A layer of rows in a dtype. torch's linear in that dtype takes part always, and its null run."""

    dtype: str = "bfloat16"
    device: str = "cuda"

    @property
    def known(self) -> Sequence[str]:
        return [self.dtype, *(peer for peers in PEERS.values() for peer in peers)]

    @property
    def title(self) -> str:
        return f"{super().title} · {self.dtype}"

    def _backends(self) -> list[str]:
        return peers.serving(BY_NAME[self.op], self.device)

    @property
    def backend(self) -> str:
        return self._backends()[0]

    def served(self, name: str) -> str | None:
        ours, _, other = kind(name).partition("-")
        return (other or self.backend) if ours == OURS else None

    def has_limit(self) -> bool:
        """A copy is one where all weights are read, of one row; of products there is none."""
        return self.m == 1 and self.op != "int8_mm_bwd"

    def named(self, peer: str) -> str:
        """A peer in this job."""
        return peer if peer in (PRODUCT, self.dtype) else f"{peer}, {self.dtype}"

    def _always(self) -> list[str]:
        return [self.dtype, *(self.named(f"{OURS}-{backend}") for backend in self._backends()[1:])]

    @property
    def race(self) -> Race:
        ours = self.named(OURS)
        names = [*self._always(), *map(self.named, PEERS[self.op])]
        by_chance = [self.named(CHANCE)] if self.op == "int8_mm_bwd" else []
        return Race((ours, *by_chance), dict.fromkeys(names, ours), self.dtype)

    def names(self, asked: Sequence[str]) -> list[str]:
        return super().names([*self._always(), *map(self.named, asked)])

    def layer(self) -> "Layer":
        return Layer(self)


def kind(name: str) -> str:
    """A contestant's name without the dtype."""
    return name.partition(", ")[0]


class Layer(int8_jobs.Layer):
    job: Job

    def __init__(self, job: Job) -> None:
        super().__init__(job, job.device)

    def build(self, name: str) -> Step:
        """The step of a contestant. RuntimeError: it cannot be had here."""
        what, dtype = kind(name), DTYPES[self.job.dtype]
        if self.job.op == "int8_mm_bwd":
            chance = {"seed": 0} if name.startswith(CHANCE) else {}
            return self._gradients(dtype, **chance) if what.startswith(OURS) else self._float_gradients(dtype)
        if what.startswith(OURS):
            return self._onepass(dtype)
        builders: dict[str, Callable[[], Step]] = {
            LIMIT: self._limit,
            PRODUCT: self._product,
            INT_MM: functools.partial(self._chain, dtype),
            WEIGHT_ONLY: functools.partial(self._weight_only, dtype),
            TORCHAO: functools.partial(self._of_package, int8_packages.torchao, dtype),
            BITSANDBYTES: functools.partial(self._of_package, int8_packages.bitsandbytes, dtype),
        }
        builders |= dict.fromkeys((self.job.dtype, NULL), functools.partial(self._float, dtype))
        return builders[what]()

    def _readable(self) -> torch.Tensor:
        return self.q  # as it is: packed weights are for the CPU

    def _limit(self) -> Step:
        """What memory gives: a copy that moves, read and write together, what the weights have."""
        each_way = self.q.numel() // 2
        return gpu_peers.copying(each_way, *gpu_peers.buffers(each_way, self.device))

    def _check_int_mm(self) -> None:
        m, n, k = self.job.sizes
        if m <= 16 or n % 8 or k % 8:
            raise RuntimeError(
                f"torch._int_mm wants more than 16 rows and multiples of 8, not {m} by {n}x{k}"
            )

    def _product(self) -> Step:
        self._check_int_mm()
        q, _, _ = torch.ops.onepass.quantize(self.x)
        return functools.partial(torch._int_mm, q, self.q.t())

    def _chain(self, dtype: torch.dtype) -> Step:
        self._check_int_mm()
        return self._int_mm(dtype)
