"""How many jobs can be held in advance and yet start soon, by how long calls took lately."""

from __future__ import annotations

SOON = 0.25  # seconds within which a job that is held in advance is to start
STALE = 1.0  # seconds after which one that did not is given back
MAX_AHEAD = 2000  # jobs: one fetch of them to run, and one on its way

WEIGHT = 0.2  # of the last call in the averages


class Pace:
    """Averages over the last calls. At first, and while calls are long, nothing is held ahead."""

    def __init__(self) -> None:
        self._seconds = SOON  # that a call takes
        self._room = 1.0  # jobs that a call takes at most

    def ended(self, seconds: float, room: int) -> None:
        """Take into account a call that took so long and could have had so many jobs."""
        self._seconds += (seconds - self._seconds) * WEIGHT
        if room != self._room:
            self._room += (room - self._room) * WEIGHT

    def was_too_slow(self) -> None:
        """Begin again: a job that was held did not start for so long."""
        self._seconds, self._room = STALE, 1.0

    def room(self, calls: int) -> int:
        """How many jobs can so many calls take that begin now?"""
        return int(calls * self._room)

    def ahead(self, calls: int) -> int:
        """How many more jobs start soon, if so many calls go on all the time?"""
        each = SOON / max(self._seconds, 1e-6) - 1
        return max(0, min(MAX_AHEAD, int(calls * self._room * each)))
