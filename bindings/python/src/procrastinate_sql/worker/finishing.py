"""Reports how runs ended: everything that has gathered while the last report was under way."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence, Set
from typing import Any, TypeVar

from procrastinate_sql.job_store import AsyncJobStore
from procrastinate_sql.worker.backoff import RETRIABLE, delays, is_refusal, reason
from procrastinate_sql.worker.run import Outcome, Run, outcome, storable

T = TypeVar("T")

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
        # What is on its way stays in these until it has arrived.
        self._successes: list[Run] = []
        self._outcomes: list[Outcome] = []
        self._releases: list[Run] = []
        self._apart: dict[asyncio.Task[None], Outcome] = {}
        self._is_awake = False
        self._news = asyncio.Event()
        self._done = asyncio.Event()
        self._done.set()

    def succeed(self, run: Run) -> None:
        """Report, with the next batch, that a run succeeded without a result."""
        self._successes.append(run)
        if run.job.lock is not None:
            self._frees_lock = True
        if not self._is_awake:
            self._wake()

    def report(self, outcome: Outcome, *, frees_lock: bool = False) -> None:
        """Report an outcome with the next batch."""
        self._outcomes.append(outcome)
        self._frees_lock |= frees_lock
        self._wake()

    def report_apart(self, outcome: Outcome) -> None:
        """Send an outcome beside the batches: a transaction of the task may still hold its job."""
        task = asyncio.create_task(self._send([outcome], self._finish))
        self._apart[task] = outcome
        task.add_done_callback(self._apart_sent)
        self._done.clear()

    def release(self, runs: Sequence[Run]) -> None:
        """Give back jobs that were not started."""
        if runs:
            self._releases += runs
            self._wake()

    def forget(self, job_ids: Set[int]) -> None:
        """Drop what is still to be reported of earlier runs of these jobs, now claimed again.

        What is under way at this moment arrives all the same, but is not sent a second time.
        """
        for runs in (self._successes, self._releases):
            runs[:] = [run for run in runs if run.job.id not in job_ids]
        self._outcomes[:] = [one for one in self._outcomes if one["job_id"] not in job_ids]
        for task, one in self._apart.items():
            if one["job_id"] in job_ids:
                task.cancel()

    def _wake(self) -> None:
        self._is_awake = True
        self._news.set()
        self._done.clear()

    def job_ids(self) -> set[int]:
        """Return the jobs whose outcome has not arrived, as far as is known."""
        runs = {run.job.id for run in (*self._successes, *self._releases)}
        return runs.union(o["job_id"] for o in (*self._outcomes, *self._apart.values()))

    def is_behind(self) -> bool:
        """Do so many outcomes wait that no more jobs should be run?"""
        return len(self._successes) + len(self._outcomes) > MAX_BACKLOG

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
                while self._has_some():
                    await self._send(self._successes, self._succeed)
                    await self._send(self._outcomes, self._finish)
                    await self._send(self._releases, self._release)
                    if self._frees_lock:
                        self._frees_lock = False
                        self._on_lock_freed()
                    self._note_sent()
                self._is_awake = False
        finally:
            for task in self._apart:
                task.cancel()

    def _has_some(self) -> bool:
        return bool(self._successes or self._outcomes or self._releases)

    def _apart_sent(self, task: asyncio.Task[None]) -> None:
        del self._apart[task]
        self._note_sent()

    def _note_sent(self) -> None:
        if not self._has_some() and not self._apart:
            self._done.set()
        self._on_room()

    async def _send(
        self, queue: list[T], apply: Callable[[Sequence[T]], Coroutine[Any, Any, None]]
    ) -> None:
        """Send a batch from a queue and take it out, however often the server is lost."""
        left = size = min(len(queue), MAX_BATCH)
        backoff = delays()
        while batch := queue[: min(size, left)]:
            try:
                await apply(batch)
            except RETRIABLE as error:
                logger.warning("cannot report outcomes, trying again: %s", reason(error))
                self._on_trouble()
                # One that is too long for a message would break each connection.
                size = max(1, size // 2)
                await asyncio.sleep(next(backoff))
            else:
                # Some of them may have been dropped meanwhile.
                sent = set(map(id, batch))
                queue[:] = [one for one in queue if id(one) not in sent]
                left -= len(batch)
                size *= 2
                backoff = delays()

    async def _succeed(self, runs: Sequence[Run]) -> None:
        for worker_id in {run.worker_id for run in runs}:
            jobs = [run.job for run in runs if run.worker_id == worker_id]
            ids, attempts = [job.id for job in jobs], [job.attempt for job in jobs]
            try:
                refused = await self._store.succeed_jobs(worker_id, ids, attempts)
            except RETRIABLE as error:
                if not is_refusal(error):
                    raise
                # One by one, if need be.
                await self._finish([outcome(job, worker_id, status="succeeded") for job in jobs])
            else:
                self._note_refused(refused)

    async def _release(self, runs: Sequence[Run]) -> None:
        for worker_id in {run.worker_id for run in runs}:
            jobs = [run.job for run in runs if run.worker_id == worker_id]
            ids, attempts = [job.id for job in jobs], [job.attempt for job in jobs]
            await self._store.release_jobs(worker_id, ids, attempts)

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
        else:
            self._note_refused(refused)

    def _note_refused(self, refused: Sequence[tuple[int, int, str]]) -> None:
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
