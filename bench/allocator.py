"""How the C library's allocator treats large blocks.

By default it gives them back to the system, which clears every page before it hands it out again: page
faults then cost more than the kernels. A training loop that reuses its buffers, or an allocator that keeps
them, has none of that. Both are worth a look, for all contestants alike.
"""

import ctypes
import platform

KEPT, DEFAULT = "kept", "default"
# mallopt's parameters, of malloc.h, and what they are before anybody sets them.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_SETTINGS = {
    KEPT: {_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1},
    DEFAULT: {_MMAP_MAX: 65_536, _TRIM_THRESHOLD: 131_072},
}


def use(name: str) -> None:
    """From now on, in the whole process. Raises OSError where this C library cannot be asked."""
    if platform.libc_ver()[0] != "glibc":
        raise OSError(f"allocator {name!r}: only glibc's can be told what to keep")
    library = ctypes.CDLL(None)
    for parameter, value in _SETTINGS[name].items():
        if library.mallopt(parameter, value) != 1:
            raise OSError(f"mallopt({parameter}, {value}) was refused")
