"""When to fetch, and how many: at once while there is work, else at the next reason to look."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from datetime import timedelta

from procrastinate_sql.errors import WorkerNotRegistered
from procrastinate_sql.job_store import AsyncJobStore
from procrastinate_sql.worker.backoff import RETRIABLE, delays, reason
from procrastinate_sql.worker.finishing import Finisher
from procrastinate_sql.worker.running import Running

logger = logging.getLogger("procrastinate_sql.worker")

LOOK_AGAIN = 0.05  # seconds
DOUBT = 10.0  # seconds during which a fetch whose answer was lost may still be committed
DOUBT_STEP = 1.0  # seconds


class Fetcher:
    """Keeps the worker supplied.

    Args:
        store: The functions of the queue.
        running: Where the jobs go.
        finisher: Where their outcomes go.
        queue_names: From these queues (None: all).
        poll_interval: Seconds after which to look without any reason, more or less a quarter.
        on_trouble: Called when the server could not be reached, or does not know the worker.
    """

    def __init__(
        self,
        store: AsyncJobStore,
        running: Running,
        finisher: Finisher,
        queue_names: Sequence[str] | None,
        poll_interval: float,
        on_trouble: Callable[[], None],
    ) -> None:
        self._store = store
        self._running = running
        self._finisher = finisher
        self._queue_names = queue_names
        self._poll_interval = poll_interval
        self._on_trouble = on_trouble
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._waits_for_room = False
        self._timer: asyncio.TimerHandle | None = None
        self._is_poll = False
        self._stopping = False
        self._doubt_ends = self._next_check = self._loop.time()
        self.worker_id: int | None = None

    def register(self, worker_id: int) -> None:
        """Fetch as this worker from now on."""
        self.worker_id = worker_id
        self._wake.set()

    def news(self) -> None:
        """There may be something to fetch."""
        self._wake.set()

    def room(self) -> None:
        """A slot became free."""
        if self._waits_for_room:
            self._wake.set()

    def due_in(self, delay: timedelta | None) -> None:
        """A scheduled job can be fetched then."""
        if delay is not None:
            # If one is due that the last fetch did not get, somebody holds its row: do not spin.
            self._wake_in(max(delay.total_seconds(), LOOK_AGAIN))

    def stop(self) -> None:
        """Fetch no more; `run` returns when the fetch under way has ended."""
        self._stopping = True
        self._wake.set()

    async def run(self, *, wait: bool) -> None:
        """Fetch until stopped or, without `wait`, until there is nothing to fetch and to run."""
        backoff = delays()
        looked_in_vain = False
        while not self._stopping:
            self._wake.clear()
            worker_id = self.worker_id
            wanted = self._running.wanted() if worker_id is not None else 0
            # Without `wait`, whatever ends may have freed a lock or deferred another job.
            self._waits_for_room = not (wanted and wait)
            was_idle = self._running.is_idle() and self._finisher.is_idle()
            try:
                jobs = await self._look(worker_id, wanted)
                backoff = delays()
            except RETRIABLE as error:
                self._note_trouble(error, worker_id)
                await asyncio.sleep(next(backoff))
                continue
            if wanted and not jobs and was_idle and not wait:
                # Twice: a fetch does not wait for ever for whoever is bringing locks in order.
                if looked_in_vain:
                    return
                looked_in_vain = True
                await asyncio.sleep(LOOK_AGAIN)
                continue
            looked_in_vain = False
            if not wanted or jobs < wanted:
                await self._wake.wait()

    async def _look(self, worker_id: int | None, wanted: int) -> int:
        """Fetch so many jobs; if fewer come, plan when to look again. Returns how many came."""
        if worker_id is None:
            return 0
        await self._release_unknown(worker_id)
        jobs = await self._store.fetch_jobs(worker_id, self._queue_names, wanted) if wanted else []
        # Else it was given up meanwhile, and so are they.
        if worker_id == self.worker_id:
            self._running.add(jobs, worker_id)
            await asyncio.sleep(0)  # they start before anything else is sent
        if wanted and len(jobs) < wanted and not self._wake.is_set():
            was_poll, self._is_poll = self._is_poll, False
            interval = self._poll_interval * random.uniform(0.75, 1.25)
            self._wake_in(interval, self._poll, replace=True)
            # Of what is due the heartbeat tells too, often enough for who looked without a reason.
            if jobs or not was_poll:
                self.due_in(await self._store.next_due(self._queue_names))
        if self._loop.time() < self._doubt_ends:
            self._wake_in(DOUBT_STEP)
        return len(jobs)

    async def _release_unknown(self, worker_id: int) -> None:
        """Give back what a fetch claimed whose answer was lost; it may be committed only later."""
        if self._next_check <= self._loop.time() < self._doubt_ends:
            known = self._running.job_ids() | self._finisher.job_ids()
            await self._store.release_unknown_jobs(worker_id, sorted(known))
            self._next_check = self._loop.time() + DOUBT_STEP

    def _note_trouble(self, error: Exception, worker_id: int | None) -> None:
        if isinstance(error, WorkerNotRegistered):
            # Unless it is registered again: the heartbeat may have heard of it before.
            if self.worker_id == worker_id:
                self.worker_id = None
        else:
            logger.warning("cannot fetch, trying again: %s", reason(error))
            self._next_check = self._loop.time()
            self._doubt_ends = self._next_check + DOUBT
        self._on_trouble()

    def _wake_in(
        self, seconds: float, wake: Callable[[], None] | None = None, *, replace: bool = False
    ) -> None:
        """Wake after so long, unless that is later than planned already."""
        when = self._loop.time() + seconds
        if self._timer is not None:
            if not replace and not self._timer.cancelled() and self._timer.when() <= when:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(when, wake or self._ring)

    def _poll(self) -> None:
        self._is_poll = True
        self._ring()

    def _ring(self) -> None:
        self._timer = None
        self._wake.set()
