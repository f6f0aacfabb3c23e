"""Files that are either the old ones or the new ones, never half of each."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; renamed over it at the end of a block that succeeds.

    When the block raises, the temporary file is removed and `path` is what it was before. The file keeps its
    permissions; a symbolic link stays one.
    """
    path = path.resolve()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())  # else the rename may reach the disk before the contents do
        if path.exists():
            shutil.copymode(path, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def why_not_writable(path: Path) -> str | None:
    """What stands in the way of writing this file, or None: to be asked before minutes of measuring."""
    path = path.resolve()
    if path.is_dir():
        return f"{path} is a folder, a file is wanted"
    if not path.parent.is_dir():
        return f"the folder {path.parent} does not exist"
    if not os.access(path.parent, os.W_OK):
        return f"the folder {path.parent} is not writable"
    return None
