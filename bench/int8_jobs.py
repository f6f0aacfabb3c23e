"""What is timed of the 8-bit product: a linear layer, and who computes it."""

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from onepass import backends
from torch import Tensor
from torch.nn import functional

from . import int8_packages

Step = Callable[[], object]

OURS, SEVEN, LIMIT, NULL = "onepass", "onepass, 7 bits", "limit", "null"
HALF, CHANCE = "onepass, bfloat16", "onepass, by chance"
X86, ONEDNN = "x86", "onednn"
FLOAT32, BFLOAT16, INT_MM = "float32", "bfloat16", "int_mm"
WEIGHT_ONLY, WEIGHT_ONLY_HALF = "weight only", "weight only, bfloat16"
TORCHAO, BITSANDBYTES = "torchao", "bitsandbytes"
PEERS = (X86, ONEDNN, FLOAT32, BFLOAT16, INT_MM, WEIGHT_ONLY, WEIGHT_ONLY_HALF, TORCHAO, BITSANDBYTES)
USUAL = (X86, ONEDNN, FLOAT32, BFLOAT16, WEIGHT_ONLY_HALF)

ROWS = (1, 8, 64, 512, 4096)
# Outputs x inputs: BERT's and ViT's two, and Llama-2-7B's.
WEIGHTS = {f"{n}x{k}": (n, k) for n, k in ((768, 768), (3072, 768), (4096, 4096), (11008, 4096))}


@dataclass(frozen=True)
class Race:
    """Who runs against whom."""

    ours: tuple[str, ...]
    peers: dict[str, str]  # each with whom of ours it is compared
    null: str  # the peer that runs once more


RACES = {
    "int8_linear": Race(
        (OURS, SEVEN),
        dict.fromkeys((X86, ONEDNN, FLOAT32, BFLOAT16, INT_MM, TORCHAO, BITSANDBYTES), OURS),
        X86,
    ),
    "int8_weight_only_mm": Race(
        (OURS, HALF),
        {FLOAT32: OURS, BFLOAT16: HALF, WEIGHT_ONLY: OURS, WEIGHT_ONLY_HALF: HALF},
        FLOAT32,
    ),
    "int8_mm_bwd": Race((OURS, CHANCE), dict.fromkeys((FLOAT32, BFLOAT16), OURS), FLOAT32),
}


@dataclass(frozen=True)
class Job:
    """y = x w' + bias, of m rows, or the gradients of x and w, by one of RACES."""

    m: int
    weight: str
    op: str = "int8_linear"

    @property
    def sizes(self) -> tuple[int, int, int]:
        return self.m, *WEIGHTS[self.weight]

    @property
    def title(self) -> str:
        return f"{self.op}, {self.m} x {self.weight}"

    @property
    def race(self) -> Race:
        return RACES[self.op]

    @property
    def known(self) -> Sequence[str]:
        """Who can be asked for."""
        return PEERS

    @property
    def backend(self) -> str:
        """What serves onepass."""
        return backends.backend_of("cpu")

    def served(self, name: str) -> str | None:
        """The backend that is put first in a contestant's turns; None changes nothing."""
        return None

    def has_limit(self) -> bool:
        """Sums of floats have a limit where all weights are read, of one row."""
        one_row = self.op == "int8_weight_only_mm" and self.m == 1
        return self.backend == "cpp" and (self.op == "int8_linear" or one_row)

    def names(self, asked: Sequence[str]) -> list[str]:
        """All who take part, the most important first."""
        race = self.race
        limit = [LIMIT] if self.has_limit() else []
        null = [NULL] if race.null in asked else []
        return [*race.ours, *limit, *(p for p in race.peers if p in asked), *null]

    def baseline(self, name: str) -> str | None:
        """Whom a contestant is compared with. The null run repeats a peer."""
        return self.race.null if name == NULL else self.race.peers.get(name)

    def operations(self) -> int:
        """Multiplications and additions."""
        m, n, k = self.sizes
        return 2 * m * n * k * (2 if self.op == "int8_mm_bwd" else 1)

    def needs(self, name: str) -> int:
        """Bytes of memory, an upper bound."""
        m, n, k = self.sizes
        return 4 * (3 * n * k + 2 * m * (n + k))

    def layer(self) -> "Layer":
        return Layer(self)


class Layer:
    """The numbers that all have in common."""

    def __init__(self, job: Job, device: str = "cpu") -> None:
        m, n, k = job.sizes
        rng = torch.Generator(device).manual_seed(0)
        normal = functools.partial(torch.randn, generator=rng, device=device)
        self.job, self.device = job, device
        self.x, self.weight, self.bias = normal(m, k), normal(n, k) / k**0.5, normal(n)
        self.q, scale, _ = torch.ops.onepass.quantize(self.weight)
        self.scale = scale.view(-1).contiguous()

    def build(self, name: str) -> Step:
        """The step of a contestant. RuntimeError: it cannot be had here."""
        builders: dict[str, Callable[[], Step]] = {
            OURS: self._onepass,
            SEVEN: functools.partial(self._onepass, bits=7),
            HALF: functools.partial(self._onepass, dtype=torch.bfloat16),
            LIMIT: self._limit,
            X86: functools.partial(self._dynamic, X86),
            ONEDNN: functools.partial(self._dynamic, ONEDNN),
            FLOAT32: functools.partial(self._float, torch.float32),
            BFLOAT16: functools.partial(self._float, torch.bfloat16),
            INT_MM: self._int_mm,
            WEIGHT_ONLY: functools.partial(self._weight_only, torch.float32),
            WEIGHT_ONLY_HALF: functools.partial(self._weight_only, torch.bfloat16),
            TORCHAO: functools.partial(self._of_package, int8_packages.torchao),
            BITSANDBYTES: functools.partial(self._of_package, int8_packages.bitsandbytes),
        }
        if self.job.op == "int8_mm_bwd":
            builders = {
                OURS: self._gradients,
                CHANCE: functools.partial(self._gradients, seed=0),
                FLOAT32: functools.partial(self._float_gradients, torch.float32),
                BFLOAT16: functools.partial(self._float_gradients, torch.bfloat16),
            }
        return builders[self.job.race.null if name == NULL else name]()

    def _readable(self) -> Tensor:
        """The weights as our kernels read them."""
        return torch.ops.onepass.int8_pack(self.q)

    def _onepass(self, dtype: torch.dtype = torch.float32, **options: int) -> Step:
        weight, x = self._readable(), self.x.to(dtype)
        op = getattr(torch.ops.onepass, self.job.op).default
        return lambda: op(x, weight, self.scale, self.bias, **options)

    def _gradients(self, dtype: torch.dtype = torch.float32, **options: int) -> Step:
        x, x_scale, _ = torch.ops.onepass.quantize(self.x)
        op, g = torch.ops.onepass.int8_mm_bwd.default, self._grad_output().to(dtype)
        return lambda: op(g, x, self.q, x_scale, self.scale, **options)

    def _float_gradients(self, dtype: torch.dtype) -> Step:
        x, weight = (t.to(dtype, copy=True).requires_grad_() for t in (self.x, self.weight))
        y, g = functional.linear(x, weight), self._grad_output().to(dtype)
        return lambda: torch.autograd.grad(y, (x, weight), g, retain_graph=True)

    def _grad_output(self) -> torch.Tensor:
        m, n, _ = self.job.sizes
        rng = torch.Generator(self.device).manual_seed(1)
        return torch.randn(m, n, generator=rng, device=self.device)

    def _limit(self) -> Step:
        """One row reads all weights and does little with them. Many rows multiply, as fast as a core can."""
        m, n, k = self.job.sizes
        if m == 1:
            return functools.partial(backends.read_probe, self.q.clone())
        times = max(1, round(m * n * k / backends.int8_probe(1)))
        scale = m * n * k / (times * backends.int8_probe(1))
        if not 0.8 < scale < 1.25:
            raise RuntimeError("the product is too small for it")
        return functools.partial(backends.int8_probe, times)

    def _dynamic(self, engine: str) -> Step:
        """torch's dynamically quantized linear: 7 bits a tensor."""
        if engine not in torch.backends.quantized.supported_engines:
            raise RuntimeError(f"this torch has no quantized engine {engine}")
        before, torch.backends.quantized.engine = torch.backends.quantized.engine, engine
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                zeros = torch.zeros(len(self.scale), dtype=torch.long)
                weight = torch.quantize_per_channel(self.weight, self.scale, zeros, 0, torch.qint8)
                packed = torch.ops.quantized.linear_prepack(weight, self.bias)
        finally:
            torch.backends.quantized.engine = before
        return lambda: torch.ops.quantized.linear_dynamic(self.x, packed)

    def _float(self, dtype: torch.dtype) -> Step:
        x, weight, bias = (t.to(dtype) for t in (self.x, self.weight, self.bias))
        return lambda: functional.linear(x, weight, bias)

    def _int_mm(self, dtype: torch.dtype = torch.float32) -> Step:
        """The unfused chain around torch's product of 8-bit numbers."""
        x, turned = self.x.to(dtype), self.q.t()

        def step() -> Tensor:
            scale = x.abs().amax(1, keepdim=True).float() / 127
            q = (x / scale).round().clamp(-127, 127).to(torch.int8)
            return (torch._int_mm(q, turned).float() * scale * self.scale + self.bias).to(dtype)

        return step

    def _weight_only(self, dtype: torch.dtype) -> Step:
        x, scale, bias = (t.to(dtype) for t in (self.x, self.scale, self.bias))
        return lambda: torch._weight_int8pack_mm(x, self.q, scale) + bias

    def _of_package(
        self, make: Callable[[Tensor, Tensor, Tensor], Step], dtype: torch.dtype = torch.float32
    ) -> Step:
        return make(*(t.to(dtype) for t in (self.x, self.weight, self.bias)))
