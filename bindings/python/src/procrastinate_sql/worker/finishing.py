"""Reports how runs ended: everything that has gathered while the last report was under way."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from procrastinate_sql.errors import InvalidArgument
from procrastinate_sql.job_store import AsyncJobStore
from procrastinate_sql.worker.backoff import RETRIABLE, delays, is_refusal
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
        self._outcomes: list[Outcome] = []
        self._releases: list[Run] = []
        self._news = asyncio.Event()
        self._done = asyncio.Event()
        self._done.set()

    def report(self, outcome: Outcome, *, frees_lock: bool = False) -> None:
        """Send an outcome with the next batch."""
        self._outcomes.append(outcome)
        self._frees_lock |= frees_lock
        self._news.set()
        self._done.clear()

    def release(self, runs: Sequence[Run]) -> None:
        """Give back jobs that were not started."""
        if runs:
            self._releases.extend(runs)
            self._news.set()
            self._done.clear()

    def is_behind(self) -> bool:
        return len(self._outcomes) > MAX_BACKLOG

    def is_idle(self) -> bool:
        return self._done.is_set()

    async def all_sent(self) -> None:
        """Wait until there is nothing left to send."""
        await self._done.wait()

    async def run(self) -> None:
        """Send what comes, for ever."""
        while True:
            await self._news.wait()
            self._news.clear()
            while self._outcomes or self._releases:
                batch, self._outcomes = self._outcomes[:MAX_BATCH], self._outcomes[MAX_BATCH:]
                releases, self._releases = self._releases, []
                if batch:
                    await self._persist(partial(self._finish, batch))
                for worker_id in {run.worker_id for run in releases}:
                    ids = [run.job.id for run in releases if run.worker_id == worker_id]
                    await self._persist(partial(self._store.release_jobs, worker_id, ids))
                if self._frees_lock:
                    self._frees_lock = False
                    self._on_lock_freed()
                if not self._outcomes and not self._releases:
                    self._done.set()
                self._on_room()

    async def _finish(self, outcomes: Sequence[Outcome]) -> None:
        """Send a batch. One that is refused is halved, until what cannot be stored stands alone."""
        try:
            refused = await self._store.finish_jobs(outcomes)
        except (InvalidArgument, *RETRIABLE) as error:
            if not is_refusal(error):
                raise
            if len(outcomes) > 1:
                middle = len(outcomes) // 2
                await self._finish(outcomes[:middle])
                await self._finish(outcomes[middle:])
            else:
                await self._fail(outcomes[0], error)
            return
        for _, job_id, reason in refused:
            logger.info("the outcome of job %s came too late: %s", job_id, reason)

    async def _fail(self, outcome: Outcome, refusal: Exception) -> None:
        """Fail a job whose outcome cannot be stored."""
        error = storable(f"the outcome of this run cannot be stored: {refusal}")
        logger.warning("the outcome of job %s cannot be stored", outcome["job_id"])
        run = {name: outcome[name] for name in ("job_id", "attempt", "worker_id")}
        try:
            await self._store.finish_jobs([{**run, "fail": True, "error": error}])
        except (InvalidArgument, *RETRIABLE) as again:
            if not is_refusal(again):
                raise
            logger.exception("job %s cannot be failed either", outcome["job_id"])

    async def _persist(self, send: Callable[[], Any]) -> None:
        for delay in delays():
            try:
                await send()
                return
            except RETRIABLE as error:
                logger.warning("cannot report outcomes, trying again: %s", type(error).__name__)
                self._on_trouble()
                await asyncio.sleep(delay)
