"""The runs that have not started, in the order in which they came."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol

from procrastinate_sql.worker.run import Batch, Run, Work


class Place(Protocol):
    """Where a call runs: `work` is what runs there now."""

    work: Work | None


class Waiting:
    """A queue that the event loop fills; it and the threads take from it, each what it can run.

    Attributes:
        lock: Held while runs are moved, so that who holds it finds each of them somewhere.
        jobs: How many jobs wait.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.jobs = 0
        self._queue: deque[Work] = deque()
        self._open: dict[str, Batch] = {}  # by task, those that more runs may join

    def __bool__(self) -> bool:
        return bool(self._queue)

    def add(self, runs: Iterable[Run]) -> None:
        """Put runs at the end, those of a batch task with others of it."""
        with self.lock:
            for run in runs:
                self.jobs += 1
                if run.task.batch is None:
                    self._queue.append(run)
                    continue
                batch = self._open.get(run.task.name)
                if batch is None or batch.is_full():
                    batch = self._open[run.task.name] = Batch(run)
                    self._queue.append(batch)
                else:
                    batch.runs.append(run)

    def is_for_loop(self) -> bool:
        """Is the first one to be called on the event loop?"""
        with self.lock:
            return bool(self._queue) and self._queue[0].on_loop

    def take(self, place: Place, *, on_loop: bool) -> Work | None:
        """Let a place run the first one, if it can: else None."""
        with self.lock:
            if not (self._queue and self._queue[0].on_loop is on_loop):
                place.work = None
                return None
            work = place.work = self._queue.popleft()
            self.jobs -= work.size
            if self._open and self._open.get(work.task.name) is work:
                del self._open[work.task.name]
            return work

    def remove(self, is_unwanted: Callable[[Run], bool]) -> list[Run]:
        """Remove these runs and return them."""
        with self.lock:
            removed: list[Run] = []
            kept: list[Run] = []
            for run in self.runs():
                (removed if is_unwanted(run) else kept).append(run)
            if removed:
                self._queue.clear()
                self._open.clear()
                self.jobs = 0
                self.add(kept)
            return removed

    def runs(self) -> list[Run]:
        """Return all of them."""
        with self.lock:
            return [run for work in self._queue for run in work.runs]
