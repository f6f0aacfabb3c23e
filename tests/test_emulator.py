"""The emulator finds planted bugs, says nothing about correct kernels, and computes what a GPU computes."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import need_emulator
from emulator import ORDERS, Emulator, bug_suite, build, load, run_python
from emulator.bug_suite import PASSES
from emulator.translate import closure, translate

NAMES = [name for name, _ in bug_suite.table()]


@pytest.fixture(scope="module", autouse=True)
def tools():
    need_emulator()


@pytest.fixture(scope="module")
def outcomes():
    for mode in ("plain", "asan", "tsan"):
        bug_suite.module(mode)
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(PASSES, pool.map(lambda how: bug_suite.run_all(how, NAMES), PASSES), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_bug_is_found(outcomes, name):
    assert list(bug_suite.found_by(name, outcomes)), "no pass tells this bug from its correct twin"


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_correct_twin_is_not_flagged(outcomes, name):
    expected = outcomes[PASSES[0]][name, True].values
    for how, results in outcomes.items():
        assert not results[name, True].complaint, how
        assert results[name, True].values == expected, how


@pytest.mark.slow
def test_each_sanitizer_is_needed(outcomes):
    """That every mode works at all: each kind of bug is told by the mode that is there for it."""

    def complains(name, **how):
        assert outcomes[bug_suite.Pass(**how)][name, False].complaint, (name, how)

    for name in ("read_past_end", "vector_tail_off_by_one", "misaligned_vector", "use_after_free"):
        complains(name, mode="asan")
    for name in ("missing_barrier", "shared_read_write", "missing_syncwarp", "async_without_barrier"):
        complains(name, mode="tsan")
    for name in ("overlapping_blocks", "missing_fence_before_ticket", "missing_fence_after_ticket"):
        complains(name, mode="tsan", concurrent_blocks=True)


@pytest.mark.slow
def test_divergence_names_who_waits_where(outcomes):
    said = outcomes[PASSES[0]]["early_exit_before_barrier", False].complaint
    assert "early_exit_before_barrier" in said and "block (0,0,0)" in said
    assert "14 exited" in said and "50 wait in __syncthreads at tests/emulator/bugs/barriers.cu:" in said


@pytest.fixture(scope="module")
def path():
    return build("emulated_intrinsics", [bug_suite.FOLDER.parent / "checks" / "intrinsics.cu"])


@pytest.fixture(scope="module")
def module(path):
    return load(path)


@pytest.fixture(params=ORDERS)
def order(request, path):
    switches = Emulator(path)
    switches.set_order(request.param)
    yield request.param
    switches.set_order("forward")


@pytest.mark.parametrize(("by", "width"), [(1, 32), (3, 8), (16, 32), (5, 16)])
def test_shuffles(module, order, by, width):
    lane = np.arange(32)
    start = lane // width * width
    up, down, xor = lane - by, lane + by, lane ^ by
    assert module.shuffle(0, by, width) == list(start + by % width)
    assert module.shuffle(1, by, width) == list(np.where(up >= start, up, lane))
    assert module.shuffle(2, by, width) == list(np.where(down < start + width, down, lane))
    assert module.shuffle(3, by, width) == list(np.where(xor < start + width, xor, lane))


@pytest.mark.parametrize("mask", [0xFFFFFFFF, 0x0000FFFF, 0xA0000021])
def test_votes(module, order, mask):
    lanes = [i for i in range(32) if mask >> i & 1]
    ballot = sum(1 << i for i in lanes if i % 3 == 0)
    expected = [ballot, int(5 in lanes), 1, sum(lanes), max(lanes)]
    results = np.array(module.votes(mask)).reshape(32, 5)
    assert all(list(results[i]) == expected for i in lanes)


@pytest.mark.parametrize("limit", [0, 30, 70])
def test_block_votes(module, order, limit):
    assert set(module.block_votes(limit)) == {limit * 4 + (limit > 0) * 2 + (limit == 70)}


def test_mma_of_int8(module, order):
    random = np.random.default_rng(0)
    a = random.integers(-128, 128, (16, 32))
    b = random.integers(-128, 128, (32, 8))
    c = random.integers(-1000, 1000, (16, 8))
    d = module.mma(a.ravel().tolist(), b.T.ravel().tolist(), c.ravel().tolist())
    assert np.array_equal(np.reshape(d, (16, 8)), a @ b + c)


def test_fragments_are_those_of_the_ptx_tables(module, order):
    """Element i of a lane's fragment, for each i: group and place are PTX's groupID and threadID_in_group."""
    random = np.random.default_rng(0)
    a, b = (random.integers(-128, 128, shape).astype(np.int8) for shape in ((16, 32), (32, 8)))
    of_a, of_b, want = np.zeros((32, 16), np.int8), np.zeros((32, 8), np.int8), np.zeros((32, 4), int)
    product = a.astype(int) @ b.astype(int)
    for lane in range(32):
        group, place = lane >> 2, lane & 3
        for i in range(16):
            row = group if i < 4 or 8 <= i < 12 else group + 8
            of_a[lane, i] = a[row, place * 4 + (i & 3) + (0 if i < 8 else 16)]
        for i in range(8):
            of_b[lane, i] = b[place * 4 + (i & 3) + (0 if i < 4 else 16), group]
        for i in range(4):
            want[lane, i] = product[group if i < 2 else group + 8, place * 2 + (i & 1)]
    d = module.mma_registers(of_a.view(np.uint32).ravel().tolist(), of_b.view(np.uint32).ravel().tolist())
    assert np.array_equal(np.reshape(d, (32, 4)), want)


# float16 and bfloat16 of whole numbers up to 8, by their bits.
_HALVES = {
    False: lambda x: x.astype(np.float16).view(np.uint16),
    True: lambda x: (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16),
}


@pytest.mark.parametrize("bfloat", (False, True), ids=("float16", "bfloat16"))
def test_fragments_of_halves_are_those_of_the_ptx_tables(module, order, bfloat):
    """Element i of a lane's fragment, for each i, as PTX has it for m16n8k16: exact sums of whole numbers."""
    random = np.random.default_rng(0)
    a, b, c = (random.integers(-8, 9, shape) for shape in ((16, 16), (16, 8), (16, 8)))
    of_a, of_b, of_c, want = (np.zeros((32, n)) for n in (8, 4, 4, 4))
    for lane in range(32):
        group, place = lane >> 2, lane & 3
        for i in range(8):
            row = group if i < 2 or 4 <= i < 6 else group + 8
            of_a[lane, i] = a[row, place * 2 + (i & 1) + (0 if i < 4 else 8)]
        for i in range(4):
            of_b[lane, i] = b[place * 2 + (i & 1) + (0 if i < 2 else 8), group]
            at = group if i < 2 else group + 8, place * 2 + (i & 1)
            of_c[lane, i], want[lane, i] = c[at], (a @ b + c)[at]
    left, right = (_HALVES[bfloat](t).view(np.uint32).ravel().tolist() for t in (of_a, of_b))
    d = module.mma_halves(left, right, of_c.ravel().tolist(), bfloat)
    assert np.array_equal(np.reshape(d, (32, 4)), want)


def test_ldmatrix(module, order):
    """Thread T is given, of each matrix of eight rows of eight 16-bit elements, 2 * (T % 4) and the next one
    of row T / 4."""
    random = np.random.default_rng(0)
    memory = random.integers(0, 256, 64 * 16).astype(np.uint8)
    rows = random.permutation(64)[:32]
    got = np.reshape(module.ldmatrix(memory.tolist(), (rows * 16).tolist()), (32, 4))
    halves = memory.view(np.uint16).reshape(64, 8)
    for thread, matrix in itertools.product(range(32), range(4)):
        row = halves[rows[8 * matrix + thread // 4]]
        first, second = (int(row[2 * (thread % 4) + i]) for i in range(2))
        assert got[thread, matrix] == first + (second << 16)


def test_dp4a(module):
    random = np.random.default_rng(0)
    for _ in range(100):
        a, b = random.integers(-128, 128, (2, 4)).astype(np.int8)
        words = [int(x.view(np.int32)[0]) for x in (a, b)]
        assert module.dp4a(*words, 7) == int(a.astype(int) @ b.astype(int)) + 7


def test_byte_perm(module):
    assert module.byte_perm(0x33221100, 0x77665544, 0x3210) == 0x33221100
    assert module.byte_perm(0x33221100, 0x77665544, 0x7065) == 0x77006655
    assert module.byte_perm(0x33221100, 0x77665544, 0xB4C1) == 0x33444411  # the highest bit is no part of it


def test_half_conversions(module):
    random = np.random.default_rng(0)
    bits = random.integers(0, 2**32, 20000, dtype=np.uint32)
    x = bits.view(np.float32)
    x = x[np.isfinite(x)]
    ties = (np.arange(2048, 4096, dtype=np.float32) + 0.5) / 1024  # half way between two float16
    x = np.concatenate([x, ties, np.float32([0, -0.0, np.inf, -np.inf, 65504, 65520, 6e-8, 2e-8, 3.39e38])])
    with np.errstate(over="ignore"):
        assert np.array_equal(np.float32(module.convert(x, False)), x.astype(np.float16).astype(np.float32))
    rounded = x.view(np.uint32).astype(np.uint64)
    rounded = ((rounded + 0x7FFF + (rounded >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)
    assert np.array_equal(np.float32(module.convert(x, True)), rounded)


def test_atomics(module, order):
    x, total = module.atomics()
    assert x[:5] == [128, 63, 7, 0xFFFFFFFF, 0xFFFFFF00]
    assert x[5] == 64 % 5 and x[6] == 99
    assert total == 32.0
    if order == "forward":
        assert x[7] == 64  # thread i finds i there


def test_large_arguments_and_grid_barrier(module, order):
    assert module.large() == [7998 + 7999, 7999 + 7998] * 3


def test_orders(module, order):
    ran = module.order()
    assert sorted(ran) == list(range(12))
    if order != "shuffled":
        assert ran == sorted(ran, reverse=order == "reverse")
    else:
        assert ran != sorted(ran) and ran != sorted(ran, reverse=True)


def test_counts(module, path):
    switches = Emulator(path)
    switches.reset_counts()
    module.order()
    assert (switches.launches, switches.copies) == (1, 3)
    assert switches.copied_bytes == 12 * 4 + 4 + 12 * 4


def test_shared_declarations_are_translated():
    assert "auto& s = ::emulator::shared<float[2][64], 0>" in translate("__shared__ float s[2][64];")
    assert "shared<float4[8], 16>" in translate("__shared__ __align__(16) float4 s[8];")
    assert "shared<Pair<int, float>, alignof(double)>" in translate(
        "alignas(8) int x; __shared__ alignas(alignof(double)) Pair<int, float> s;"
    )
    two = translate("__shared__ float a[kRows * (n < 3 ? 1 : 2)], b;")
    assert "float[kRows * (n < 3 ? 1 : 2)]" in two and "auto& b = ::emulator::shared<float, 0>" in two
    assert "auto* s = static_cast<char*>(::emulator::dynamic_shared_memory());" in translate(
        "extern __shared__ __align__(128) char s[];"
    )


def test_launches_are_translated():
    text = translate("a::run<T, B<2>> <<<dim3(1, 2), 64, f(x), s>>>(x, g(y));")
    assert "config(dim3(1, 2), 64, f(x), s)" in text and "a::run<T, B<2>>(emulator_args...)" in text
    assert text.endswith(",x, g(y));")
    assert translate("// k<<<1, 2>>>(x); __shared__ float s;\n").strip() == ""
    assert translate('auto text = "__noinline__ // x";').endswith('// x";')
    source = "k<<<\n1,\n2>>>(\nx);\nlast"
    assert translate(source).count("\n") == source.count("\n")


def test_arguments_by_reference():
    assert "f(const A<1, 2>& a, int b)" in translate("f(const __grid_constant__ A<1, 2> a, int b)")


def test_local_headers_come_along(tmp_path):
    (tmp_path / "rules").mkdir()
    (tmp_path / "cuda").mkdir()
    (tmp_path / "rules/r.h").write_text("__shared__ int s;")
    (tmp_path / "common.cuh").write_text('#include "rules/r.h"\n')
    (tmp_path / "cuda/k.cu").write_text('#include "../rules/r.h"\n#include "common.cuh"\n#include <vector>\n')
    found = closure(tmp_path / "cuda/k.cu", [tmp_path])
    assert {p.name for p in found} == {"k.cu", "r.h", "common.cuh"}
    assert "emulator::shared" in found[tmp_path.resolve() / "rules/r.h"]


def test_a_child_that_fails_is_flagged():
    assert run_python("raise SystemExit(3)", "plain").returncode == 3
    assert run_python("raise SystemExit(3)", "plain").flagged
    assert not run_python("import emulator", "plain").flagged
