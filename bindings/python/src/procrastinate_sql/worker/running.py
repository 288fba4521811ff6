"""The jobs that this process holds: those that run, and a few that start within moments."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from procrastinate_sql.calls import Beat
from procrastinate_sql.job import FetchedJob, UnreadableArgs
from procrastinate_sql.worker.calling import Caller
from procrastinate_sql.worker.finishing import Finisher
from procrastinate_sql.worker.pace import STALE, Pace
from procrastinate_sql.worker.run import Outcome, Run, Work, for_each, outcome
from procrastinate_sql.worker.slots import Slots
from procrastinate_sql.worker.threads import Threads
from procrastinate_sql.worker.waiting import Waiting

if TYPE_CHECKING:
    from procrastinate_sql.app import App

logger = logging.getLogger("procrastinate_sql.worker")

MAX_BATCH = 1000  # jobs in a fetch


class Running:
    """Starts jobs as there is room, and takes in how they end.

    A few jobs are held in advance, but only as many as start soon by the recent averages: that is
    none at all unless jobs are short.

    Args:
        app: Whose tasks are run.
        concurrency: How many calls are made at a time.
        finisher: Takes the outcomes.
        on_room: Called when more jobs could be fetched.
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
        self._tasks = app.tasks
        self._concurrency = concurrency
        self._finisher = finisher
        self._on_room = on_room
        self._log_args = log_args
        self._loop = asyncio.get_running_loop()
        self._context = copy_context()
        self._waiting = Waiting()
        self._caller = Caller(app, concurrency)
        self._slots = Slots(self._waiting, self._caller, self._ended, self._freed, on_room)
        self._threads = Threads(
            self._waiting, self._caller, self._fill_soon, self._ended, self._freed
        )
        # Their task finished them in a transaction of its own: was that committed?
        self._unconfirmed: dict[int, Run] = {}
        self._pace = Pace()
        self._will_fill = False
        self._is_verbose = False
        self._is_closed = False
        self._check: asyncio.TimerHandle | None = None
        self._quiet = asyncio.Event()
        self._quiet.set()

    def wanted(self) -> int:
        """How many jobs to fetch now."""
        busy = self._busy()
        ahead = self._pace.ahead(max(1, busy))
        if self._waiting.jobs > ahead // 2 or self._finisher.is_behind():
            return 0
        free = self._pace.room(self._concurrency - busy)
        return max(0, min(MAX_BATCH, free + ahead - self._waiting.jobs))

    def is_idle(self) -> bool:
        return not self._busy() and not self._waiting

    def _busy(self) -> int:
        return len(self._slots) + len(self._threads)

    def add(self, jobs: Sequence[FetchedJob], worker_id: int) -> None:
        """Take over jobs that were claimed, and begin to start them."""
        # As far as the database knows, no earlier run of theirs goes on: a crash may have taken its
        # claim back. Its outcome would be taken for that of the new run.
        job_ids = {job.id for job in jobs}
        self._finisher.forget(job_ids)
        self._drop([run for run in self._runs() if run.job.id in job_ids])
        now = self._loop.time()
        all_on_loop = self._caller.has_async_middleware()
        self._is_verbose = logger.isEnabledFor(logging.DEBUG)
        runs = []
        for job in jobs:
            task = self._tasks.get(job.task_name)
            if task is None:
                error = f'task "{job.task_name}" is not registered with this worker'
                self._refuse(job, outcome(job, worker_id, status="failed", error=error))
            elif task.batch is not None and isinstance(job.args, UnreadableArgs):
                # Others share the call that would look into them.
                self._refuse(job, outcome(job, worker_id, fail=True, error=job.args.reason))
            else:
                runs.append(Run(job, task, worker_id, now, all_on_loop or task.is_async))
        if self._is_closed:
            self._finisher.release(runs)
            return
        self._waiting.add(runs)
        self._fill()
        if self._waiting and self._check is None:
            self._check = self._loop.call_later(STALE, self._give_back_stale)

    def _fill(self) -> None:
        """Start a call.

        Others follow only when the loop has turned, or when the thread has begun: jobs that never
        wait for anything are all run by the first slot or thread, and the others not even woken.
        """
        self._will_fill = False
        if not self._waiting or self._busy() >= self._concurrency:
            return
        self._quiet.clear()
        if self._waiting.is_for_loop():
            self._slots.open()
            self._fill_soon()
        elif not self._threads.open():
            self._fill_soon()

    def _fill_soon(self) -> None:
        if not self._will_fill and self._waiting:
            self._will_fill = True
            # Not in the context of the job that has just ended.
            self._loop.call_soon(self._fill, context=self._context)

    def _freed(self) -> None:
        self._fill_soon()
        if not self._busy():
            self._quiet.set()
        self._on_room()

    def _ended(self, work: Work, result: Any, error: BaseException | None, seconds: float) -> None:
        self._pace.ended(seconds, work.task.batch or 1)
        if isinstance(work, Run):
            self._take_in(work, result, error)
            return
        if error is not None:
            error = for_each(error)
        for run in work.runs:
            self._take_in(run, None, error)

    def _take_in(self, run: Run, result: Any, error: BaseException | None) -> None:
        if error is None and run.has_plainly_succeeded(result) and not self._is_verbose:
            self._finisher.succeed(run)
        else:
            self._report(run, run.outcome(result, error))

    def _report(self, run: Run, outcome: Outcome | None) -> None:
        if outcome is None:
            if run.finished and run.stop_reason != "lost":
                self._unconfirmed[run.job.id] = run
            ending = "finished in its own transaction" if run.finished else f"{run.stop_reason}"
        else:
            if run.finished:
                self._finisher.report_apart(outcome)
            else:
                self._finisher.report(outcome, frees_lock=run.job.lock is not None)
            ending = _ending(outcome)
        self._log(run.job, ending, outcome, run.stop_reason)

    def _refuse(self, job: FetchedJob, refusal: Outcome) -> None:
        self._finisher.report(refusal, frees_lock=job.lock is not None)
        self._log(job, "failed", refusal, None)

    def _log(
        self, job: FetchedJob, ending: str, outcome: Outcome | None, stop_reason: str | None
    ) -> None:
        level = logging.DEBUG if ending == "succeeded" else logging.WARNING
        if not logger.isEnabledFor(level):
            return
        extra = {
            "job_id": job.id,
            "task_name": job.task_name,
            "attempt": job.attempt,
            "queue_name": job.queue_name,
            "stop_reason": stop_reason,
        }
        private = ""
        if self._log_args:
            extra |= {"job_args": job.args, "job_error": (outcome or {}).get("error")}
            private = f"; args {job.args}; {extra['job_error']}"
        text = "job %s (%s), attempt %s: %s%s"
        logger.log(level, text, job.id, job.task_name, job.attempt, ending, private, extra=extra)

    def _give_back_stale(self) -> None:
        """Give back what did not start soon after all: the averages were wrong."""
        self._check = None
        limit = self._loop.time() - STALE
        if stale := self._waiting.remove(lambda run: run.claimed_at <= limit):
            self._pace.was_too_slow()
            self._finisher.release(stale)
        if self._waiting:
            self._check = self._loop.call_later(STALE / 2, self._give_back_stale)

    def start_no_more(self) -> None:
        """Give back what has not started, and what is still to come."""
        self._is_closed = True
        self._finisher.release(self._waiting.remove(lambda run: True))

    def held(self) -> dict[int, Run]:
        """Return what this worker believes to hold, by job. Called by the heartbeat's thread."""
        runs = [*self._active(), *self._waiting.runs()]
        held = {run.job.id: run for run in runs if not run.finished and run.stop_reason != "lost"}
        return {**self._unconfirmed.copy(), **held}

    def _active(self) -> list[Run]:
        works = (*self._slots.works(), *self._threads.works())
        return [run for work in works for run in work.runs]

    def obey(self, beat: Beat, held: Mapping[int, Run]) -> None:
        """Do what a heartbeat says of jobs here; `held` is what was held when it was sent."""
        self._abort(beat.abort_job_ids)
        self._drop([held[job_id] for job_id in beat.lost_job_ids])
        # As for runs that have ended, it was hoped that their job would be lost.
        for job_id in self._unconfirmed.keys() & held.keys():
            self._finisher.report_apart(self._unconfirmed.pop(job_id).uncommitted())

    def drop_all_but(self, worker_id: int) -> None:
        """Stop everything that was claimed under another id."""
        self._drop([run for run in self._runs() if run.worker_id != worker_id])

    def _abort(self, job_ids: Collection[int]) -> None:
        """Stop jobs as somebody asked."""
        for run in self._waiting.remove(lambda run: run.job.id in job_ids):
            self._finisher.report(run.aborted())
        for run in self._active():
            if run.job.id in job_ids and run.stop_reason is None:
                self._slots.stop(run, "abort")

    def _drop(self, runs: Collection[Run]) -> None:
        """Stop runs that are no longer ours, and forget their outcome."""
        lost = set(runs)
        if not lost:
            return
        lost.difference_update(self._waiting.remove(lost.__contains__))
        for run in lost.intersection(self._runs()):
            if not run.finished:
                logger.warning("a run of job %s was lost", run.job.id)
                self._slots.stop(run, "lost")
        for run in lost:
            if self._unconfirmed.get(run.job.id) is run:
                del self._unconfirmed[run.job.id]

    def hand_back(self) -> None:
        """Stop everything, to be given back."""
        for run in self._active():
            self._slots.stop(run, "handed back")

    async def ended(self) -> None:
        """Wait until nothing runs."""
        await self._quiet.wait()

    def job_ids(self) -> set[int]:
        """Return the ids of all jobs here."""
        return {run.job.id for run in self._runs()}

    def _runs(self) -> list[Run]:
        """Return all runs here of which nothing is known to the finisher yet."""
        with self._waiting.lock:
            runs = [*self._waiting.runs(), *self._active(), *self._unconfirmed.values()]
            runs += [run for work in self._threads.unheard() for run in work.runs]
        return runs

    def close(self) -> None:
        """Let go of threads and processes, without waiting for any."""
        self._threads.close()
        self._caller.close()


def _ending(outcome: Outcome) -> str:
    if "status" in outcome:
        return str(outcome["status"])
    # The type of an exception is safe to log; its text may hold anything.
    return "retry" if "retry_in" in outcome else str(outcome["error"]).partition(":")[0]
