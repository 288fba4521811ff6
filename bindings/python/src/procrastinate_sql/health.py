"""How a container finds out whether its worker lives: the age of a file that the worker touches."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path


def default_file() -> str:
    """Return $PROCRASTINATE_HEALTH_FILE, else a file of this user among the temporary ones."""
    name = f"procrastinate-sql-{os.getuid()}.alive"
    return os.environ.get("PROCRASTINATE_HEALTH_FILE") or str(Path(tempfile.gettempdir()) / name)


def touch(path: str) -> None:
    """Note that the worker lives now."""
    # Never through somebody else's symbolic link: the default file is where everybody may write.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        os.utime(descriptor)
    finally:
        os.close(descriptor)


def age(path: str) -> float | None:
    """Return how many seconds ago the worker lived; None if the file is not there."""
    try:
        return max(0.0, time.time() - os.stat(path, follow_symlinks=False).st_mtime)
    except FileNotFoundError:
        return None
