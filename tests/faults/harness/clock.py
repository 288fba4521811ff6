"""Waiting where the wall clock may be wrong."""

from __future__ import annotations

import select


def pause(seconds: float) -> None:
    """Wait. Unlike time.sleep, not until an absolute time, which libfaketime (0.9.10) refuses."""
    select.select([], [], [], max(0.0, seconds))
