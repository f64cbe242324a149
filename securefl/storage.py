"""Files that survive a crash: the old content or the new one, never half of either; and locks."""

from __future__ import annotations

import os
import sys
from pathlib import Path

if sys.platform != "win32":  # Windows has no flock: there the lock is the user's discipline
    import fcntl

__all__ = ["lock_folder", "sync_folder", "write_durably"]


def write_durably(path: Path, content: bytes, *, mode: int = 0o666) -> None:
    """Replaces ``path`` by ``content`` so that a crash leaves the old file or the new one.

    Args:
        path: the file; its folder must exist.
        content: all of it.
        mode: permissions of the file before the process's umask.
    """
    temporary = path.with_name(path.name + ".tmp")
    # A left-over of a crash would keep its own permissions.
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Waits until names made or removed in this folder are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock_folder(path: Path) -> int | None:
    """Keeps other processes away from a folder.

    Args:
        path: an existing folder.

    Returns:
        A descriptor; the lock lasts until it is closed or the process ends, however it ends. None
        where the system has no such locks.

    Raises:
        BlockingIOError: if another process, or another call in this one, holds the lock.
    """
    if sys.platform == "win32":
        return None
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
