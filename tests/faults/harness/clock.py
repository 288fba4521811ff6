"""Waiting where the wall clock may be wrong, and telling one clock's time by the other."""

from __future__ import annotations

import select
import time


def pause(seconds: float) -> None:
    """Wait. Unlike time.sleep, not until an absolute time, which libfaketime (0.9.10) refuses."""
    select.select([], [], [], max(0.0, seconds))


def offset() -> float:
    """Return what is to be added to the monotonic clock to get the wall clock.

    The largest of many: whoever is interrupted between two readings measures less.
    """
    return max(time.time() - time.monotonic() for _ in range(100))
