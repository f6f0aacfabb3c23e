"""What is timed of the 8-bit product: a linear layer, and who computes it."""

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from onepass import backends
from torch.nn import functional

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

    def has_limit(self) -> bool:
        """Sums of floats have a limit where all weights are read, of one row."""
        return self.op == "int8_linear" or (self.op == "int8_weight_only_mm" and self.m == 1)

    def operations(self) -> int:
        """Multiplications and additions."""
        m, n, k = self.sizes
        return 2 * m * n * k * (2 if self.op == "int8_mm_bwd" else 1)

    def needs(self, name: str) -> int:
        """Bytes of memory, an upper bound."""
        m, n, k = self.sizes
        return 4 * (3 * n * k + 2 * m * (n + k))


class Layer:
    """The numbers that all have in common."""

    def __init__(self, job: Job) -> None:
        m, n, k = job.sizes
        rng = torch.Generator().manual_seed(0)
        self.job = job
        self.x = torch.randn(m, k, generator=rng)
        self.weight = torch.randn(n, k, generator=rng) / k**0.5
        self.bias = torch.randn(n, generator=rng)
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
            TORCHAO: self._torchao,
            BITSANDBYTES: self._bitsandbytes,
        }
        if self.job.op == "int8_mm_bwd":
            builders = {
                OURS: self._gradients,
                CHANCE: functools.partial(self._gradients, seed=0),
                FLOAT32: functools.partial(self._float_gradients, torch.float32),
                BFLOAT16: functools.partial(self._float_gradients, torch.bfloat16),
            }
        return builders[self.job.race.null if name == NULL else name]()

    def _onepass(self, dtype: torch.dtype = torch.float32, **options: int) -> Step:
        packed, x = torch.ops.onepass.int8_pack(self.q), self.x.to(dtype)
        op = getattr(torch.ops.onepass, self.job.op).default
        return lambda: op(x, packed, self.scale, self.bias, **options)

    def _gradients(self, **options: int) -> Step:
        x, x_scale, _ = torch.ops.onepass.quantize(self.x)
        op, g = torch.ops.onepass.int8_mm_bwd.default, self._grad_output()
        return lambda: op(g, x, self.q, x_scale, self.scale, **options)

    def _float_gradients(self, dtype: torch.dtype) -> Step:
        x, weight = (t.to(dtype, copy=True).requires_grad_() for t in (self.x, self.weight))
        y, g = functional.linear(x, weight), self._grad_output().to(dtype)
        return lambda: torch.autograd.grad(y, (x, weight), g, retain_graph=True)

    def _grad_output(self) -> torch.Tensor:
        m, n, _ = self.job.sizes
        return torch.randn(m, n, generator=torch.Generator().manual_seed(1))

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

    def _int_mm(self) -> Step:
        """The unfused chain around torch's product of 8-bit numbers."""
        turned = self.q.t()

        def step() -> torch.Tensor:
            scale = self.x.abs().amax(1, keepdim=True) / 127
            q = (self.x / scale).round().clamp(-127, 127).to(torch.int8)
            return torch._int_mm(q, turned).float() * scale * self.scale + self.bias

        return step

    def _weight_only(self, dtype: torch.dtype) -> Step:
        x, scale, bias = (t.to(dtype) for t in (self.x, self.scale, self.bias))
        return lambda: torch._weight_int8pack_mm(x, self.q, scale) + bias

    def _float_layer(self) -> torch.nn.Sequential:
        layer = torch.nn.Linear(*self.weight.shape[::-1])
        layer.weight.data, layer.bias.data = self.weight.clone(), self.bias.clone()
        return torch.nn.Sequential(layer)

    def _torchao(self) -> Step:
        try:
            from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_
        except ImportError as missing:
            raise RuntimeError(f"torchao is not installed ({missing})") from missing
        model = self._float_layer()
        quantize_(model, Int8DynamicActivationInt8WeightConfig())
        return lambda: model(self.x)

    def _bitsandbytes(self) -> Step:
        try:
            from bitsandbytes.nn import Linear8bitLt
        except ImportError as missing:
            raise RuntimeError(f"bitsandbytes is not installed ({missing})") from missing
        n, k = self.weight.shape
        layer = Linear8bitLt(k, n, has_fp16_weights=False)
        layer.load_state_dict(self._float_layer()[0].state_dict())
        layer = layer.to("cpu")
        return lambda: layer(self.x)
