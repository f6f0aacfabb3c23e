"""Which backend serves which device, and the switch between them.

Order of preference: CPU: cpp, reference. CUDA: cpp, triton, reference. Anything else: reference. Under
TRITON_INTERPRET=1 Triton runs on the CPU, for tests: there it serves where it is asked for by name.
`use_backend(name)` puts one backend first on every device it serves, for the whole process; ONEPASS_BACKEND
does so from the start.
"""

import ctypes
import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import call_checks
from .ops import BY_NAME, OPS, Op

# Built with the package or not at all. A build that is there but does not load is an error, not a fallback.
_C: Any = importlib.import_module("onepass._C") if importlib.util.find_spec("onepass._C") else None

BACKENDS = ("cpp", "triton", "reference")


def target(path: str) -> Callable:
    """The function that a "module:function" of the table names."""
    module, function = path.split(":")
    return getattr(importlib.import_module(module), function)


def _load_cuda() -> str | None:
    """Loads the CUDA part, which registers its kernels. Returns why there is none, None if it is loaded."""
    spec = importlib.util.find_spec("onepass._cuda")
    if spec is None or spec.origin is None:
        return "not built: no nvcc was found, or ONEPASS_CUDA=0 was set"
    if torch.version.cuda is None:
        return f"built, but torch {torch.__version__} is not a torch for CUDA"
    torch.ops.load_library(spec.origin)
    if _C is not None:
        driver = ctypes.c_char.in_dll(ctypes.CDLL(spec.origin), "onepass_cuda_driver")
        _C.use_cuda_driver(ctypes.addressof(driver))
    return None


def _checked(op: Op, path: str) -> Callable:
    """The function of the table behind the op's checks. Its module is imported by the first call."""
    check = getattr(call_checks, op.check)

    def run(*args, **kwargs):
        check(op, *args, **kwargs, values=True)
        return target(path)(*args, **kwargs)

    return run


def _fake(op: Op) -> Callable:
    check, fake = getattr(call_checks, op.check), getattr(call_checks, op.fake)

    def run(*args, **kwargs):
        check(op, *args, **kwargs, values=False)
        return fake(*args, **kwargs)

    return run


def _recorded(path: str) -> Callable:
    """The function of onepass.autograd; its module needs the ops, and is imported by the first call."""

    def run(*args, **kwargs):
        return target(path)(*args, **kwargs)

    return run


def check(name: str, *args: Any, **kwargs: Any) -> None:
    """Raises what a call of this op with these arguments would raise, without making it."""
    op = BY_NAME[name]
    getattr(call_checks, op.check)(op, *args, **kwargs, values=True)


def _register() -> torch.library.Library:
    """Defines every op of the table. Triton's kernels serve CUDA where there are no others, and the reference
    each device that nothing else does; C++ kernels register themselves when their library is loaded."""
    library = torch.library.Library("onepass", "DEF")
    for op in OPS:
        for name, schema in op.overloads.items():
            library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
            library.impl(name, _checked(op, op.reference), "CompositeExplicitAutograd")
            if op.triton and _has_triton() and (without_cuda is not None or "CUDA" not in op.cpp):
                library.impl(name, _checked(op, op.triton), "CUDA")
            torch.library.register_fake(f"onepass::{name}", _fake(op), lib=library)
        if op.autograd:
            library.impl(op.name, _recorded(op.autograd), "Autograd")
    return library


def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def interpreting() -> bool:
    """Are Triton's kernels run by its interpreter, on the CPU?"""
    return os.environ.get("TRITON_INTERPRET") == "1"


# None where the CUDA kernels in C++ are loaded, else why not: "not built ..."
without_cuda: str | None = _load_cuda()
_library = _register()


def compiled() -> bool:
    """Is the C++ part there?"""
    return _C is not None


def serves(backend: str, device: str) -> bool:
    """Can this backend serve some op on this type of device, here and now?"""
    if backend == "cpp":
        loaded = {"cpu": _C is not None, "cuda": without_cuda is None}
        return loaded.get(device, False) and any(device.upper() in op.cpp for op in OPS)
    if backend == "triton":
        runs = device == "cuda" or (device == "cpu" and interpreting())
        return runs and any(op.triton for op in OPS) and _has_triton()
    return True


def available() -> list[str]:
    return [b for b in BACKENDS if any(serves(b, device) for device in ("cpu", "cuda"))]


def _put_first(backend: str) -> torch.library.Library:
    """Triton's kernels, or the reference, in front of all others, until the library is destroyed."""
    library = torch.library.Library("onepass", "IMPL")
    with warnings.catch_warnings():  # that a kernel is overridden is what was asked for
        warnings.filterwarnings("ignore", message="Warning only once for all operators")
        for op in OPS:
            path = op.triton if backend == "triton" else op.reference
            for device in ("cpu", "cuda"):
                if not path or not serves(backend, device):
                    continue
                for name in op.overloads:
                    library.impl(name, _checked(op, path), device.upper(), allow_override=True)
    return library


class use_backend:
    """Puts a backend first, from now on or for a with-block.

    Args:
        name: "cpp", "triton" or "reference"; None for the order of preference.

    Process-wide, threads included. Devices that the backend does not serve keep the order of preference.
    Used as a context manager it goes back, at the block's end, to what was set before.

    Raises:
        ValueError: the name is none of these, or that backend is not built or installed here.
    """

    _current: str | None = None
    _override: torch.library.Library | None = None
    _on_cpu = "reference" if _C is None else "cpp"
    _changes = 0

    def __init__(self, name: str | None) -> None:
        if name is not None and name not in BACKENDS:
            raise ValueError(f"use_backend: {name!r} is none of {', '.join(BACKENDS)}")
        if name is not None and name not in available():
            raise ValueError(
                f"use_backend: {name!r} is not built or installed here; there are {', '.join(available())}"
            )
        self._before = use_backend._current
        self._switch(name)

    def __enter__(self) -> "use_backend":
        return self

    def __exit__(self, *exc: object) -> None:
        self._switch(self._before)

    @staticmethod
    def _switch(name: str | None) -> None:
        if use_backend._override is not None:
            use_backend._override._destroy()
            use_backend._override = None
        if name in ("triton", "reference"):
            use_backend._override = _put_first(name)
        use_backend._current = name
        use_backend._on_cpu = backend_of("cpu")
        use_backend._changes += 1


def backend_of(device: str) -> str:
    """The backend that serves this type of device now: "cpu", "cuda" ..."""
    first = use_backend._current
    if first is not None and serves(first, device):
        return first
    return next(b for b in BACKENDS if serves(b, device) and (b, device) != ("triton", "cpu"))


def reads_packed() -> bool:
    """Is the CPU served by the kernels that packed 8-bit weights are made for? A layer asks in each call."""
    return use_backend._on_cpu == "cpp"


def changes() -> int:
    """Grows with every switch: what was cached under another number is stale."""
    return use_backend._changes


def optim_plan(device: str) -> Callable | None:
    """The class that steps an eager optimizer on this type of device in one call; None where the ops do."""
    planned = device in ("cpu", "cuda") and backend_of(device) == "cpp" and _C is not None
    return _C.OptimPlan if planned and _C.has_plan() else None


def rmw_probe(p: Tensor, g: Tensor, m: Tensor, v: Tensor) -> None:
    """The benchmarks' yardstick: one pass over four float32 arrays of one size, which reads all and writes
    p, m and v, with next to no arithmetic, on torch's threads. Needs the compiled part."""
    _C.rmw_probe(*(t.data_ptr() for t in (p, g, m, v)), p.numel())


def two_read_probe(first: list[Tensor], second: list[Tensor], outputs: list[Tensor]) -> None:
    """Reads the first tensors, then the second ones while it writes their sum to each output: the least that
    a normalization whose input fits no cache can do.

    Args:
        first: one or two.
        second: one or two, in front the one that `first` has in front. Two outputs want two.
        outputs: one or two.

    All of them dense and of a size; read as float32, whatever they are.
    """
    pairs = [
        [t.data_ptr() for t in tensors] + [0] * (2 - len(tensors)) for tensors in (first, second, outputs)
    ]
    (a, b), (_, c), (to, also) = pairs
    _C.two_read_probe(a, b, c, to, also, outputs[0].numel() * outputs[0].itemsize // 4)


def read_probe(t: Tensor) -> None:
    """Reads a dense tensor once, as float32, whatever it is: the least that one row by all weights can do."""
    _C.read_probe(t.data_ptr(), t.numel() * t.itemsize // 4)


def int8_probe(times: int) -> int:
    """8-bit products that stay in the first cache: the most that a core can do. Returns how many."""
    return _C.int8_probe(times)


def isas() -> list[str]:
    """Instruction sets of the C++ kernels that this processor runs, weakest first."""
    return [name for name, runs, _ in _C.isas() if runs] if _C is not None else []


def isa() -> str | None:
    return _C.isa() if _C is not None else None


class use_isa:
    """Picks the instruction set of the C++ kernels, from now on or for a with-block; process-wide."""

    def __init__(self, name: str) -> None:
        if _C is None:
            raise ValueError("use_isa: the C++ kernels are not built here")
        self._before = _C.isa()
        _C.use_isa(name)

    def __enter__(self) -> "use_isa":
        return self

    def __exit__(self, *exc: object) -> None:
        _C.use_isa(self._before)


if os.environ.get("ONEPASS_BACKEND"):
    use_backend(os.environ["ONEPASS_BACKEND"])
