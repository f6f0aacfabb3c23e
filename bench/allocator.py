"""How the C library's allocator treats large blocks.

By default it gives the largest back to the system, which clears every page before it hands it out again:
page faults then cost more than the kernels. A training loop that reuses its buffers, or an allocator that
keeps them, has none of that. Both are worth a look, for all contestants alike.
"""

import ctypes
import platform

KEPT, DEFAULT = "kept", "default"
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # mallopt's, of malloc.h
_now = DEFAULT


def use(name: str) -> None:
    """From now on, in the whole process. Raises OSError where this C library cannot be asked, and for the way
    back: whatever mallopt was given once, its thresholds no longer adapt."""
    global _now
    if name == _now:
        return
    if platform.libc_ver()[0] != "glibc":
        raise OSError(f"allocator {name!r}: only glibc's can be told what to keep")
    if name == DEFAULT:
        raise OSError("allocator 'default': this process has been told to keep its memory")
    library = ctypes.CDLL(None)
    for parameter, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1)):
        if library.mallopt(parameter, value) != 1:
            raise OSError(f"mallopt({parameter}, {value}) was refused")
    _now = name
