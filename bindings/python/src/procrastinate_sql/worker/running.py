"""The jobs that this process holds: those that run, and a few that start within moments."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import TYPE_CHECKING

from procrastinate_sql.calls import Beat
from procrastinate_sql.job import FetchedJob
from procrastinate_sql.worker.finishing import Finisher
from procrastinate_sql.worker.processes import Children
from procrastinate_sql.worker.run import Outcome, Run

if TYPE_CHECKING:
    from procrastinate_sql.app import App

logger = logging.getLogger("procrastinate_sql.worker")

MAX_BATCH = 1000  # jobs in a fetch
SOON = 0.25  # seconds within which a job that is held in advance is to start
STALE = 1.0  # seconds after which one that did not is given back


class Running:
    """Starts jobs as slots become free.

    A few jobs are held in advance, but only as many as start within `SOON` by the recent average:
    that is none at all unless jobs are short.

    Args:
        app: Whose tasks are run.
        concurrency: How many run at a time.
        finisher: Takes the outcomes.
        on_room: Called when a slot becomes free and more jobs could be fetched.
        log_args: Log arguments and error texts too.
    """

    def __init__(
        self,
        app: App,
        concurrency: int,
        finisher: Finisher,
        on_room: Callable[[], None],
        log_args: bool,
    ) -> None:
        self.app = app
        self.middlewares = app.middlewares
        self.threads = ThreadPoolExecutor(concurrency, "procrastinate-task")
        self.children = Children()
        self._concurrency = concurrency
        self._finisher = finisher
        self._on_room = on_room
        self._log_args = log_args
        self._loop = asyncio.get_running_loop()
        self._active: set[Run] = set()
        self._waiting: deque[Run] = deque()
        # Their task finished them in a transaction of its own: was that committed?
        self._unconfirmed: dict[int, Run] = {}
        self._average = SOON  # seconds a run takes; so at first nothing is held in advance
        self._check: asyncio.TimerHandle | None = None

    def wanted(self) -> int:
        """How many jobs to fetch now."""
        ahead = max(0, min(MAX_BATCH, int(self._concurrency * (SOON / self._average - 1))))
        if len(self._waiting) > ahead // 2 or self._finisher.is_behind():
            return 0
        free = self._concurrency - len(self._active)
        return min(MAX_BATCH, free + ahead - len(self._waiting))

    def is_idle(self) -> bool:
        return not self._active and not self._waiting

    def add(self, jobs: Sequence[FetchedJob], worker_id: int) -> None:
        """Take over jobs that were claimed; start those for which there is a slot."""
        tasks = self.app.tasks
        now = self._loop.time()
        for job in jobs:
            self._waiting.append(Run(job, worker_id, tasks.get(job.task_name), now))
            self._unconfirmed.pop(job.id, None)
        while self._waiting and len(self._active) < self._concurrency:
            self._start(self._waiting.popleft())
        if self._waiting and self._check is None:
            self._check = self._loop.call_later(STALE, self._give_back_stale)

    def _start(self, run: Run) -> None:
        self._active.add(run)
        run.start(self._loop, self._perform(run))

    async def _perform(self, run: Run) -> None:
        started = perf_counter()
        try:
            outcome = await run.perform(self)
        finally:
            self._active.discard(run)
        if outcome is None:
            if run.finished and run.stop_reason != "lost":
                self._unconfirmed[run.job.id] = run
        elif run.finished:
            self._finisher.report_apart(outcome)
        else:
            self._finisher.report(outcome, frees_lock=run.job.lock is not None)
        self._log(run, outcome)
        self._average += (perf_counter() - started - self._average) * 0.1
        if self._waiting and len(self._active) < self._concurrency:
            self._start(self._waiting.popleft())
        self._on_room()

    def _log(self, run: Run, outcome: Outcome | None) -> None:
        ending = _ending(run, outcome)
        level = logging.DEBUG if ending == "succeeded" else logging.WARNING
        if not logger.isEnabledFor(level):
            return
        job = run.job
        extra = {
            "job_id": job.id,
            "task_name": job.task_name,
            "attempt": job.attempt,
            "queue_name": job.queue_name,
            "stop_reason": run.stop_reason,
        }
        private = ""
        if self._log_args:
            extra |= {"job_args": job.args, "job_error": (outcome or {}).get("error")}
            private = f"; args {job.args}; {extra['job_error']}"
        text = "job %s (%s), attempt %s: %s%s"
        logger.log(level, text, job.id, job.task_name, job.attempt, ending, private, extra=extra)

    def _give_back_stale(self) -> None:
        """Give back what did not start soon after all: the average was wrong."""
        self._check = None
        limit = self._loop.time() - STALE
        stale = [run for run in self._waiting if run.claimed_at <= limit]
        if stale:
            self._average = STALE
            self._release(stale)
        if self._waiting:
            self._check = self._loop.call_later(STALE / 2, self._give_back_stale)

    def release_waiting(self) -> None:
        """Give back what has not started."""
        self._release(list(self._waiting))

    def _release(self, runs: Sequence[Run]) -> None:
        gone = set(runs)
        self._waiting = deque(run for run in self._waiting if run not in gone)
        self._finisher.release(runs)

    def held(self) -> dict[int, Run]:
        """Return what this worker believes to hold, by job. Called by the heartbeat's thread."""
        runs = [*self._active.copy(), *self._waiting.copy()]
        held = {run.job.id: run for run in runs if not run.finished and run.stop_reason != "lost"}
        return {**self._unconfirmed.copy(), **held}

    def obey(self, beat: Beat, held: Mapping[int, Run]) -> None:
        """Do what a heartbeat says of jobs here; `held` is what was held when it was sent."""
        self._abort(beat.abort_job_ids)
        self._drop([held[job_id] for job_id in beat.lost_job_ids])
        # As for runs that have ended, it was hoped that their job would be lost.
        for job_id in self._unconfirmed.keys() & held.keys():
            self._finisher.report_apart(self._unconfirmed.pop(job_id).uncommitted())

    def drop_all_but(self, worker_id: int) -> None:
        """Stop everything that was claimed under another id."""
        runs = [*self._active, *self._waiting, *self._unconfirmed.values()]
        self._drop([run for run in runs if run.worker_id != worker_id])

    def _abort(self, job_ids: Collection[int]) -> None:
        """Stop jobs as somebody asked."""
        for run in [run for run in self._waiting if run.job.id in job_ids]:
            self._waiting.remove(run)
            self._finisher.report(run.aborted())
        for run in self._active:
            if run.job.id in job_ids and run.stop_reason is None:
                run.stop("abort")

    def _drop(self, runs: Collection[Run]) -> None:
        """Stop runs that are no longer ours, and forget their outcome."""
        for run in runs:
            if run in self._active and not run.finished:
                logger.warning("job %s was lost to another worker", run.job.id)
                run.stop("lost")
            elif run in self._waiting:
                self._waiting.remove(run)
            elif self._unconfirmed.get(run.job.id) is run:
                del self._unconfirmed[run.job.id]

    def hand_back(self) -> None:
        """Stop everything, to be given back."""
        for run in self._active:
            run.stop("handed back")

    async def ended(self) -> None:
        """Wait until nothing runs."""
        while self._active:
            await asyncio.wait([run.coroutine for run in self._active if run.coroutine])

    def job_ids(self) -> set[int]:
        """Return the ids of all jobs here."""
        return {run.job.id for run in (*self._active, *self._waiting, *self._unconfirmed.values())}

    def close(self) -> None:
        """Let go of threads and processes, without waiting for any."""
        self.threads.shutdown(wait=False, cancel_futures=True)
        self.children.close()


def _ending(run: Run, outcome: Outcome | None) -> str:
    if outcome is None:
        return "finished in its own transaction" if run.finished else f"{run.stop_reason}"
    if "status" in outcome:
        return str(outcome["status"])
    # The type of an exception is safe to log; its text may hold anything.
    return "retry" if "retry_in" in outcome else str(outcome["error"]).partition(":")[0]
