"""Reports how runs ended: everything that has gathered while the last report was under way."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from procrastinate_sql.job_store import AsyncJobStore
from procrastinate_sql.worker.backoff import RETRIABLE, delays, is_refusal, reason
from procrastinate_sql.worker.run import Outcome, Run, storable

logger = logging.getLogger("procrastinate_sql.worker")

MAX_BATCH = 2000  # outcomes in a report
MAX_BACKLOG = 10_000  # outcomes that may wait before fetching pauses


class Finisher:
    """Sends outcomes until they are applied or refused, for as long as that takes.

    Args:
        store: The functions of the queue.
        on_room: Called when a batch has gone.
        on_lock_freed: Called when the next job of some lock can be fetched.
        on_trouble: Called when the server could not be reached.
    """

    def __init__(
        self,
        store: AsyncJobStore,
        on_room: Callable[[], None],
        on_lock_freed: Callable[[], None],
        on_trouble: Callable[[], None],
    ) -> None:
        self._store = store
        self._on_room = on_room
        self._on_lock_freed = on_lock_freed
        self._on_trouble = on_trouble
        self._frees_lock = False
        self._queue: list[Outcome] = []
        self._batch: list[Outcome] = []
        self._apart: dict[asyncio.Task[None], Outcome] = {}
        self._news = asyncio.Event()
        self._done = asyncio.Event()
        self._done.set()

    def report(self, outcome: Outcome, *, frees_lock: bool = False) -> None:
        """Send an outcome with the next batch."""
        self._queue.append(outcome)
        self._frees_lock |= frees_lock
        self._news.set()
        self._done.clear()

    def report_apart(self, outcome: Outcome) -> None:
        """Send an outcome beside the batches: a transaction of the task may still hold its job."""
        task = asyncio.create_task(self._send([outcome]))
        self._apart[task] = outcome
        task.add_done_callback(self._apart_sent)
        self._done.clear()

    def release(self, runs: Sequence[Run]) -> None:
        """Give back jobs that were not started."""
        for run in runs:
            self.report({"job_id": run.job.id, "worker_id": run.worker_id, "release": True})

    def job_ids(self) -> set[int]:
        """Return the jobs whose outcome has not arrived, as far as is known."""
        return {o["job_id"] for o in (*self._queue, *self._batch, *self._apart.values())}

    def is_behind(self) -> bool:
        """Do so many outcomes wait that no more jobs should be run?"""
        return len(self._queue) > MAX_BACKLOG

    def is_idle(self) -> bool:
        """Is there nothing to send?"""
        return self._done.is_set()

    async def all_sent(self) -> None:
        """Wait until there is nothing left to send."""
        await self._done.wait()

    async def run(self) -> None:
        """Send what comes, for ever."""
        try:
            while True:
                await self._news.wait()
                self._news.clear()
                while self._queue:
                    self._batch, self._queue = self._queue[:MAX_BATCH], self._queue[MAX_BATCH:]
                    await self._send(self._batch)
                    if self._frees_lock:
                        self._frees_lock = False
                        self._on_lock_freed()
                    self._note_sent()
        finally:
            for task in self._apart:
                task.cancel()

    def _apart_sent(self, task: asyncio.Task[None]) -> None:
        del self._apart[task]
        self._note_sent()

    def _note_sent(self) -> None:
        if not self._queue and not self._batch and not self._apart:
            self._done.set()
        self._on_room()

    async def _send(self, batch: list[Outcome]) -> None:
        """Send a batch and empty it, however often the server is lost."""
        size = len(batch)
        backoff = delays()
        while batch:
            try:
                await self._apply(batch[:size])
            except RETRIABLE as error:
                logger.warning("cannot report outcomes, trying again: %s", reason(error))
                self._on_trouble()
                # One that is too long for a message would break each connection.
                size = max(1, size // 2)
                await asyncio.sleep(next(backoff))
            else:
                del batch[:size]
                size *= 2
                backoff = delays()

    async def _apply(self, outcomes: Sequence[Outcome]) -> None:
        if ended := [outcome for outcome in outcomes if "release" not in outcome]:
            await self._finish(ended)
        released = [outcome for outcome in outcomes if "release" in outcome]
        for worker_id in {outcome["worker_id"] for outcome in released}:
            ids = [o["job_id"] for o in released if o["worker_id"] == worker_id]
            await self._store.release_jobs(worker_id, ids)

    async def _finish(self, outcomes: Sequence[Outcome]) -> None:
        """Report outcomes. If they are refused, halve them until the culprit stands alone."""
        try:
            refused = await self._store.finish_jobs(outcomes)
        except RETRIABLE as error:
            if not is_refusal(error):
                raise
            if len(outcomes) > 1:
                middle = len(outcomes) // 2
                await self._finish(outcomes[:middle])
                await self._finish(outcomes[middle:])
            else:
                await self._fail(outcomes[0], error)
            return
        for _, job_id, why in refused:
            logger.info("the outcome of job %s came too late: %s", job_id, why)

    async def _fail(self, outcome: Outcome, refusal: Exception) -> None:
        """Fail a job whose outcome cannot be stored."""
        logger.warning("the outcome of job %s cannot be stored", outcome["job_id"])
        error = storable(f"the outcome of this run cannot be stored: {refusal}")
        run = {name: outcome[name] for name in ("job_id", "attempt", "worker_id")}
        try:
            await self._store.finish_jobs([{**run, "fail": True, "error": error}])
        except RETRIABLE as again:
            if not is_refusal(again):
                raise
            logger.error("job %s cannot be failed either: %s", outcome["job_id"], reason(again))
