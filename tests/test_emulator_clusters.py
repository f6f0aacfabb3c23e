"""The emulator's launches: clusters, whole grids, and which of them a device refuses."""

import itertools

import numpy as np
import pytest
from conftest import need_emulator
from emulator import ORDERS, Emulator, bug_suite, build, load, run_python

KB = 1024


def _built(mode):
    need_emulator()
    return build("emulated_clusters", [bug_suite.FOLDER.parent / "checks" / "clusters.cu"], mode)


@pytest.fixture(scope="module")
def path():
    return _built("plain")


@pytest.fixture(scope="module")
def module(path):
    return load(path)


@pytest.fixture
def switches(path):
    switches = Emulator(path)
    yield switches
    switches.set_order("forward")
    switches.set_multiprocessors(3)
    switches.set_compute_capability(9, 0)
    switches.set_l2_cache(50 * KB * KB)


@pytest.fixture(params=ORDERS)
def order(request, switches):
    switches.set_order(request.param)


def _indices(shape):
    """Of all places in the shape, x first."""
    return [np.array(i[::-1]) for i in itertools.product(*map(range, shape[::-1]))]


def _number(index, shape):
    return index[0] + shape[0] * (index[1] + shape[1] * index[2])


@pytest.mark.parametrize(
    ("cluster", "grid", "block"),
    [
        ((1, 1, 1), (3, 1, 1), (32, 1, 1)),
        ((8, 1, 1), (16, 1, 1), (64, 1, 1)),
        ((2, 1, 3), (4, 2, 3), (8, 4, 2)),
    ],
)
def test_places(module, order, cluster, grid, block):
    expected = []
    for b, t in itertools.product(_indices(grid), _indices(block)):
        rank, threads = _number(b % cluster, cluster), np.prod(block)
        expected += [rank, np.prod(cluster), rank * threads + _number(t, block), np.prod(cluster) * threads]
        expected += [*(b % cluster), *(b % cluster * block + t), cluster[0] * block[0]]
    assert module.places(cluster, grid, block) == expected


@pytest.mark.parametrize(("cluster", "blocks", "kilobytes"), [(1, 2, 1), (2, 6, 227 - 1), (8, 8, 100)])
def test_shared_memory_of_a_cluster(module, order, cluster, blocks, kilobytes):
    rank = np.arange(blocks)[:, None] % cluster
    expected = np.full((blocks, 32), cluster * (cluster + 1) // 2)
    expected[:, :1] = 100 + (rank + 1) % cluster + 1000 * ((rank + 1) % cluster)
    assert np.array_equal(module.counts(cluster, blocks, kilobytes * KB), expected.ravel())


@pytest.mark.parametrize(
    ("cluster", "blocks", "rounds", "kilobytes"),
    [(1, 6, 4, 100), (1, 3, 5, 227), (2, 6, 3, 113), (3, 3, 2, 200)],
)
def test_grid_barriers(module, order, cluster, blocks, rounds, kilobytes):
    last = kilobytes * KB // 4 - 1
    total = sum(blocks * r * last + sum(range(blocks)) for r in range(rounds))
    kept = sum(np.arange(64) * r for r in range(rounds)) + rounds * np.arange(blocks)[:, None]
    assert np.array_equal(module.rounds(cluster, blocks, rounds, kilobytes * KB), (total + kept).ravel())


# In a process that has the sanitizer.
CHECKED = """
import sys
import emulator
path, concurrent = sys.argv[1:]
module, switches = emulator.load(path), emulator.Emulator(path)
switches.set_concurrent_blocks(concurrent == "True")
print(sum(module.counts(2, 6, 100 << 10)) + sum(module.rounds(1, 3, 3, 227 << 10)))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "concurrent"), [("asan", False), ("tsan", False), ("tsan", True)])
def test_correct_under_sanitizers(module, mode, concurrent):
    report = run_python(CHECKED, mode, [str(_built(mode)), str(concurrent)])
    assert not report, report.errors
    assert int(report.output) == sum(module.counts(2, 6, 100 * KB)) + sum(module.rounds(1, 3, 3, 227 * KB))


def _launch(module, cluster=(1, 1, 1), grid=(16, 1, 1), shared=0, runs=True, **how):
    allow = [how.pop(name, False) for name in ("cooperative", "allow_shared", "allow_clusters")]
    assert not how
    return module.launch(cluster, grid, shared, *allow, runs)


@pytest.mark.parametrize(
    ("why", "how"),
    [
        ("16 blocks without", {"cluster": (16, 1, 1)}),
        ("9 blocks without", {"cluster": (3, 3, 1), "grid": (3, 3, 1)}),
        ("cluster of 32 blocks", {"cluster": (32, 1, 1), "grid": (32, 1, 1), "allow_clusters": True}),
        ("cluster of 0 blocks", {"cluster": (0, 1, 1)}),
        ("do not divide the grid", {"cluster": (3, 1, 1)}),
        ("do not divide the grid", {"cluster": (1, 2, 1)}),
        ("dynamic shared memory without", {"shared": 49 * KB}),
        ("dynamic shared memory$", {"shared": 227 * KB + 1, "allow_shared": True}),
        ("7 blocks where 6 run", {"grid": (7, 1, 1), "cooperative": True}),
        (
            "4 blocks where 3",
            {"grid": (4, 1, 1), "shared": 114 * KB, "allow_shared": True, "cooperative": True},
        ),
        ("8 blocks where 4", {"cluster": (4, 1, 1), "grid": (8, 1, 1), "cooperative": True}),
    ],
)
def test_refused(module, switches, why, how):
    with pytest.raises(RuntimeError, match=why):
        _launch(module, **how)


@pytest.mark.parametrize(
    "how",
    [
        {"cluster": (8, 1, 1)},
        {"cluster": (16, 1, 1), "allow_clusters": True},
        {"cluster": (2, 2, 2), "grid": (4, 2, 6)},
        {"shared": 48 * KB},
        {"shared": 227 * KB, "allow_shared": True},
        {"grid": (6, 1, 1), "cooperative": True},
        {"grid": (6, 1, 1), "shared": 113 * KB, "allow_shared": True, "cooperative": True},
        {"cluster": (2, 1, 1), "grid": (6, 1, 1), "cooperative": True},
    ],
)
def test_not_refused(module, switches, how):
    assert _launch(module, **how)[0]


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 9)])
def test_devices_without_clusters(module, switches, capability):
    switches.set_compute_capability(*capability)
    with pytest.raises(RuntimeError, match=f"compute capability {capability[0]}.{capability[1]}"):
        _launch(module, cluster=(2, 1, 1))
    assert not _launch(module, cluster=(2, 1, 1), allow_clusters=True, runs=False)[0]


# Allowed, blocks on a multiprocessor, whether the size of the cluster is an error, clusters.
@pytest.mark.parametrize(
    ("expected", "how"),
    [
        ((1, 2, 0, 132), {"cluster": (2, 1, 1)}),
        ((1, 2, 0, 33), {"cluster": (8, 1, 1), "shared": 113 * KB, "allow_shared": True}),
        ((1, 1, 0, 16), {"cluster": (8, 1, 1), "shared": 114 * KB, "allow_shared": True}),
        ((1, 0, 0, 0), {"cluster": (8, 1, 1), "shared": 100 * KB}),
        ((0, 0, 0, 0), {"cluster": (8, 1, 1), "shared": 228 * KB, "allow_shared": True}),
        ((1, 2, 1, 0), {"cluster": (16, 1, 1)}),
        ((1, 2, 0, 16), {"cluster": (16, 1, 1), "allow_clusters": True}),
        ((1, 2, 1, 0), {"cluster": (3, 1, 1)}),
    ],
)
def test_occupancy(module, switches, expected, how):
    switches.set_multiprocessors(132)
    allowed, blocks, error, clusters = _launch(module, **how, runs=False)
    assert (allowed, blocks, int(error != 0), clusters) == expected


@pytest.mark.parametrize(
    ("capability", "kilobytes"), [((9, 0), 227), ((10, 0), 227), ((8, 0), 163), ((8, 6), 99), ((12, 0), 99)]
)
def test_attributes(module, switches, capability, kilobytes):
    switches.set_compute_capability(*capability)
    switches.set_l2_cache(3 * KB)
    shared = [kilobytes * KB, (kilobytes + 1) * KB]
    assert module.attributes() == [*capability, int(capability >= (9, 0)), 1, *shared, 3 * KB]
    switches.set_max_shared_memory(64 * KB)
    assert module.attributes()[4] == 64 * KB
