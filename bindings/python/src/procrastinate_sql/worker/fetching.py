"""When to fetch, and how many: at once while there is work, else at the next reason to look."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from datetime import timedelta

from procrastinate_sql import calls
from procrastinate_sql.connections import AsyncPool
from procrastinate_sql.errors import ProcrastinateError, WorkerNotRegistered
from procrastinate_sql.job_store import AsyncJobStore
from procrastinate_sql.worker.backoff import RETRIABLE, delays
from procrastinate_sql.worker.finishing import Finisher
from procrastinate_sql.worker.running import Running

logger = logging.getLogger("procrastinate_sql.worker")

LOOK_AGAIN = 0.05  # seconds


class Fetcher:
    """Keeps the worker supplied.

    Args:
        store: The functions of the queue.
        pool: The connections behind it.
        schema: Where the functions are; None: in the search_path.
        running: Where the jobs go.
        finisher: Where their outcomes go.
        queue_names: From these queues (None: all).
        poll_interval: Seconds after which to look without any reason, more or less a quarter.
        on_trouble: Called when the server could not be reached, or does not know the worker.
    """

    def __init__(
        self,
        store: AsyncJobStore,
        pool: AsyncPool,
        schema: str | None,
        running: Running,
        finisher: Finisher,
        queue_names: Sequence[str] | None,
        poll_interval: float,
        on_trouble: Callable[[], None],
    ) -> None:
        self._store = store
        self._pool = pool
        self._schema = schema
        self._running = running
        self._finisher = finisher
        self._queue_names = queue_names
        self._poll_interval = poll_interval
        self._on_trouble = on_trouble
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._waits_for_room = False
        self._timer: asyncio.TimerHandle | None = None
        self._stopping = False
        self._doubt = False
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
            self._wake_in(delay.total_seconds())

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
            wanted = 0 if worker_id is None else self._running.wanted()
            # Without `wait`, whatever ends may have freed a lock or deferred another job.
            self._waits_for_room = not (wanted and wait)
            if worker_id is None or not wanted:
                await self._wake.wait()
                continue
            was_idle = self._running.is_idle() and self._finisher.is_idle()
            try:
                jobs = await self._fetch(worker_id, wanted)
                backoff = delays()
            except (ProcrastinateError, *RETRIABLE) as error:
                self._note_trouble(error)
                await asyncio.sleep(next(backoff))
                continue
            if was_idle and not jobs and not wait:
                # Twice: a heartbeat that was just bringing locks in order may have hidden a job.
                if looked_in_vain:
                    return
                looked_in_vain = True
                await asyncio.sleep(LOOK_AGAIN)
                continue
            looked_in_vain = False
            if jobs < wanted:
                await self._wake.wait()

    async def _fetch(self, worker_id: int, wanted: int) -> int:
        """Fetch once; if that is all for now, plan when to look again. Returns how many came."""
        if self._doubt:
            await self._release_unknown(worker_id)
            self._doubt = False
        jobs = await self._store.fetch_jobs(worker_id, self._queue_names, wanted)
        self._running.add(jobs, worker_id)
        if len(jobs) < wanted and not self._wake.is_set():
            self._wake_in(self._poll_interval * random.uniform(0.75, 1.25), replace=True)
            self.due_in(await self._store.next_due(self._queue_names))
        return len(jobs)

    def _note_trouble(self, error: Exception) -> None:
        if isinstance(error, WorkerNotRegistered):
            self.worker_id = None
        else:
            # The claim may have been committed, its answer lost.
            self._doubt = True
            logger.warning("cannot fetch, trying again: %s", type(error).__name__)
        self._on_trouble()

    async def _release_unknown(self, worker_id: int) -> None:
        """Give back what this worker holds by the table but never heard of."""
        while not self._finisher.is_idle():
            await self._finisher.all_sent()
        # Before the query: a run that ends meanwhile is still known.
        known = self._running.known()
        async with self._pool.lend() as connection:
            answer = await connection.execute(
                calls.held_jobs(self._schema), {"worker_id": worker_id}
            )
            held = {row[0] for row in await answer.fetchall()}
        if unknown := held - known:
            await self._store.release_jobs(worker_id, sorted(unknown))

    def _wake_in(self, seconds: float, replace: bool = False) -> None:
        """Wake after so long, unless that is later than planned already."""
        when = self._loop.time() + seconds
        if self._timer is not None:
            if not replace and not self._timer.cancelled() and self._timer.when() <= when:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(when, self._ring)

    def _ring(self) -> None:
        self._timer = None
        self._wake.set()
