"""A built module in this process, and the switches of its emulator."""

import ctypes
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

ORDERS = ("forward", "reverse", "shuffled")


def load(path: Path | str) -> ModuleType:
    """Imports what build() returned. A module with a sanitizer needs a process that has it: see run.py."""
    path = Path(path)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Emulator:
    """The emulator behind a built module. Modules of one mode share it."""

    def __init__(self, path: Path | str):
        self._library: Any = ctypes.CDLL(str(path))
        self._library.emulator_synchronize.restype = ctypes.c_char_p
        for name in ("launches", "copies", "copied_bytes", "loaded_bytes", "stored_bytes"):
            getattr(self._library, f"emulator_{name}").restype = ctypes.c_int64

    def set_order(self, order: str, seed: int = 0) -> None:
        """In which order blocks and their threads run: "forward", "reverse" or "shuffled"."""
        self._library.emulator_set_order(ORDERS.index(order), seed)

    def set_concurrent_blocks(self, on: bool) -> None:
        """For tsan: whether races between blocks are seen. A grid then has at most 4096 threads."""
        self._library.emulator_set_concurrent_blocks(int(on))

    def set_multiprocessors(self, count: int) -> None:
        self._library.emulator_set_multiprocessors(count)

    def set_compute_capability(self, major: int, minor: int = 0) -> None:
        """9.0 unless told otherwise; clusters need it. Also sets the shared memory that such a device has."""
        self._library.emulator_set_compute_capability(10 * major + minor)

    def set_max_shared_memory(self, bytes_per_block: int) -> None:
        self._library.emulator_set_max_shared_memory(ctypes.c_size_t(bytes_per_block))

    def set_l2_cache(self, size: int) -> None:
        self._library.emulator_set_l2_cache(ctypes.c_size_t(size))

    def synchronize(self) -> None:
        """Runs what is queued on all streams."""
        if message := self._library.emulator_synchronize():
            raise RuntimeError(message.decode())

    @property
    def launches(self) -> int:
        return self._library.emulator_launches()

    @property
    def copies(self) -> int:
        """Calls of cudaMemcpy and cudaMemcpyAsync."""
        return self._library.emulator_copies()

    @property
    def copied_bytes(self) -> int:
        return self._library.emulator_copied_bytes()

    @property
    def loaded_bytes(self) -> int:
        """By loads with a cache hint, as a kernel's vector loads are."""
        return self._library.emulator_loaded_bytes()

    @property
    def stored_bytes(self) -> int:
        return self._library.emulator_stored_bytes()

    def reset_counts(self) -> None:
        self._library.emulator_reset_counts()
