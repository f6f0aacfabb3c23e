"""The machine code of fake quantization's Triton kernels, compiled ahead of time without a GPU.

Calls are made with recorders in place of kernels, so what is compiled is what the ops launch. Nothing is
spilled, elements move in accesses of 128 bits, their bits by the byte, and multiply and add stay two
operations.
"""

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import sass
import torch
from conftest import need

CUDA, HIP = (80, 90, 100), "gfx942"
KERNELS = ("grids_of_groups", "grads_of_groups", "put_all", "pass_all", "settle_grid")
CODES = {
    torch.float32: "*fp32", torch.float64: "*fp64", torch.bfloat16: "*bf16", torch.float16: "*fp16",
    torch.int32: "*i32", torch.uint8: "*u8",
}  # fmt: skip
REALS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Launch(NamedTuple):
    kernel: Any
    arguments: tuple
    constants: dict[str, Any]


@contextmanager
def _recording() -> Iterator[dict[str, Launch]]:
    """The launches made in here, by the names of kernels."""
    from onepass.kernels import fake_quant

    launches: dict[str, Launch] = {}

    class Recorder:
        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def __getitem__(self, _: Any) -> Any:
            def launch(*arguments: Any, num_warps: int, enable_fp_fusion: bool, **constants: Any) -> None:
                assert num_warps == 4 and not enable_fp_fusion
                launches[self.kernel.fn.__name__] = Launch(self.kernel, arguments, constants)

            return launch

    with pytest.MonkeyPatch.context() as patch:
        for name in KERNELS:
            patch.setattr(fake_quant, name, Recorder(getattr(fake_quant, name)))
        patch.setattr(fake_quant, "extents_of", lambda x, programs: x.new_empty(programs, 3).float())
        yield launches


def _launches(dtype: torch.dtype, columns: int, group_size: int, symmetric: bool) -> dict[str, Launch]:
    from onepass.kernels import fake_quant

    x, options = torch.ones(64, columns, dtype=dtype), {"group_size": group_size, "symmetric": symmetric}
    with _recording() as launches:
        _, mask, *grid = fake_quant.fake_quant_fwd(x, **options)
        fake_quant.fake_quant_fwd(x, torch.ones(()), torch.ones((), dtype=torch.int32), **options)
        fake_quant.fake_quant_bwd(x, mask, x, *(grid if not symmetric else grid[:1]), **options)
        fake_quant.fake_quant_bwd(x, mask, **options)
    return launches


def _kind(argument: Any) -> str:
    if isinstance(argument, torch.Tensor):
        return CODES[argument.dtype]
    return "constexpr" if argument is None else "i32"


def _compile(launch: Launch, target: int | str) -> dict[str, Any]:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, arguments, constants = launch
    names = kernel.arg_names[: len(arguments)]
    signature = {name: _kind(a) for name, a in zip(names, arguments, strict=True)}
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind[0] == "*"}
    values = {name: None for name, a in zip(names, arguments, strict=True) if a is None} | constants
    source = ASTSource(kernel, signature | dict.fromkeys(constants, "constexpr"), values, attrs=aligned)
    device = GPUTarget("hip", target, 64) if target == HIP else GPUTarget("cuda", target, 32)
    options = {"num_warps": 2 if target == HIP else 4, "enable_fp_fusion": False}
    return triton.compile(source, device, options).asm


# A thread has 8 elements of a tile of a group, and 16 of memory as it lies.
def _accesses(kernel: str, dtype: str) -> list[tuple[int, int]]:
    """(loads, stores) of 128 bits in each run of code that moves a tile."""
    tile = 2 if dtype == "float32" else 1
    return {
        "grids_of_groups": [(tile, 0), (tile, tile)],
        "grads_of_groups": [(2 * tile, tile)],
        "put_all": [(2 * tile, 2 * tile)],
        "pass_all": [(2 * tile, 2 * tile)],
    }[kernel]


def _tiles(function: sass.Function) -> list[Counter]:
    """Accesses of each run of code that moves a whole tile."""
    found = [
        Counter(o[:3] + str(sass.width(o)) for o in sass.global_accesses(block)) for block in function.blocks
    ]
    return [accesses for accesses in found if accesses["LDG128"]]


def _function(launch: Launch, target: int, folder: Path, registers: int = 128) -> sass.Function:
    """registers: of a thread; with 128 four programs run at a time on a multiprocessor, with 168 three."""
    made = _compile(launch, target)
    assert "fma.rn.f32" not in made["ptx"]
    (folder / "cubin").write_bytes(made["cubin"])
    (function,) = sass.functions(folder / "cubin").values()
    assert not function.spills() and function.registers <= registers
    return function


def _rows(quick: tuple[tuple[str, str, Any], ...], *columns: Any) -> list:
    """Of each architecture bfloat16, whose pieces are the smallest; of sm_90 every dtype."""
    rows = (row for row in product(*columns) if row[1] == "bfloat16" or row[2] == 90)
    return [pytest.param(*row, marks=() if row in quick else pytest.mark.slow) for row in rows]


QUICK = tuple((kernel, "bfloat16", 90) for kernel in KERNELS[:4])


@pytest.mark.parametrize("kernel, dtype, target", _rows(QUICK, KERNELS[:4], REALS, CUDA))
def test_elements_move_in_128_bits(kernel: str, dtype: str, target: int, tmp_path: Path):
    need("triton")
    function = _function(_launches(REALS[dtype], 4096, -1, False)[kernel], target, tmp_path)
    tiles = _tiles(function)
    assert [(t["LDG128"], t["STG128"]) for t in tiles] == _accesses(kernel, dtype), tiles
    # Beside them bytes of the mask, and a scale and a zero_point.
    assert all({k for k in t if t[k]} <= {"LDG128", "STG128", "LDG8", "STG8", "LDG32"} for t in tiles), tiles
    assert all(t["LDG8"] <= 2 and t["STG8"] <= 2 and t["LDG32"] <= 4 for t in tiles), tiles


@pytest.mark.parametrize(
    "kernel, dtype, target", _rows((("grads_of_groups", "bfloat16", 90),), KERNELS[:3], REALS, CUDA)
)
def test_groups_that_are_not_of_vectors_keep_their_registers(
    kernel: str, dtype: str, target: int, tmp_path: Path
):
    need("triton")
    for columns, group_size in ((83, -1), (83, 7)):
        launch = _launches(REALS[dtype], columns, group_size, False)[kernel]
        assert _function(launch, target, tmp_path, registers=168).local == 0


@pytest.mark.parametrize("target", CUDA)
def test_the_whole_tensor(target: int, tmp_path: Path):
    need("triton")
    launches = _launches(torch.bfloat16, 4096, 0, True)
    assert launches.keys() == {"settle_grid", "put_all", "pass_all", "grads_of_groups"}
    tiles = _tiles(_function(launches["put_all"], target, tmp_path))
    assert [(t["LDG128"], t["STG128"]) for t in tiles] == _accesses("put_all", "bfloat16")
    assert _function(launches["settle_grid"], target, tmp_path).registers <= 128


@pytest.mark.parametrize("kernel", KERNELS[:4])
@pytest.mark.parametrize("dtype", ("bfloat16", pytest.param("float32", marks=pytest.mark.slow)))
def test_machine_code_for_amd(kernel: str, dtype: str):
    need("triton")
    text = _compile(_launches(REALS[dtype], 4096, -1, False)[kernel], HIP)["amdgcn"]
    for spilled in ("vgpr_spill_count", "private_segment_fixed_size"):
        assert re.findall(rf"\.{spilled}:\s+(\d+)", text) == ["0"]
    loads, stores = map(sum, zip(*_accesses(kernel, dtype), strict=True))
    wide = [len(re.findall(rf"\b(?:global|buffer)_{way}_dwordx4\b", text)) for way in ("load", "store")]
    assert wide[0] >= loads and wide[1] >= stores
