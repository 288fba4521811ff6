"""One run of one job, or of a batch of jobs with one call: what is known of it until it is over."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from procrastinate_sql.context import JobAborted, JobFailed, Retry
from procrastinate_sql.job import FetchedJob
from procrastinate_sql.task import Task
from procrastinate_sql.worker.processes import ChildDied

if TYPE_CHECKING:
    from procrastinate_sql.worker.processes import Child

Outcome = dict[str, Any]

MAX_ERROR = 10_000  # characters


class Run:
    """One run of a job that this worker holds.

    Attributes:
        job: The job.
        task: Its task.
        worker_id: As whom it was claimed: a worker that was given up gets a new id.
        claimed_at: When it came, by the clock of the event loop.
        on_loop: It is called on the event loop, not in a thread.
        stop_reason: Why it is to stop: "abort", "timeout", "lost", "handed back", or None.
        finished: The task finishes the job in a transaction of its own.
        own_end: What the task said of how this run ends: the result, or an error.
        child: The process in which it runs now, if any.
        size: How many jobs its call has.
    """

    size = 1
    # Most runs have none of these, and thousands are made each second.
    stop_reason: str | None = None
    finished: bool = False
    own_end: tuple[Any, BaseException | None] | None = None
    child: Child | None = None

    def __init__(
        self,
        job: FetchedJob,
        task: Task[..., Any],
        worker_id: int,
        claimed_at: float,
        on_loop: bool,
    ) -> None:
        self.job = job
        self.task = task
        self.worker_id = worker_id
        self.claimed_at = claimed_at
        self.on_loop = on_loop

    @property
    def runs(self) -> Sequence[Run]:
        """The runs of the call: this one."""
        return (self,)

    def stop(self, reason: str) -> None:
        """Make the run end: raise its flag, kill its process."""
        # A first reason stays, but for the one that makes any outcome void.
        self.stop_reason = "lost" if reason == "lost" else self.stop_reason or reason
        if child := self.child:
            child.kill()

    def has_plainly_succeeded(self, result: Any) -> bool:
        """Is there nothing to report but that the call returned?"""
        return (
            result is None
            and self.stop_reason is None
            and not self.finished
            and self.own_end is None
        )

    def outcome(self, result: Any, error: BaseException | None) -> Outcome | None:
        """Return what to report, if anything, of a run whose call returned or raised this."""
        # What the task said of this very run holds, whatever then became of the call.
        if self.own_end is not None:
            result, error = self.own_end
        if error is not None:
            return self._raised(error)
        if self.finished or self.stop_reason == "lost":
            return None
        if self.stop_reason == "timeout" and self.own_end is None:
            return self._timed_out()
        return self._outcome(status="succeeded", **({} if result is None else {"result": result}))

    def _raised(self, error: BaseException) -> Outcome | None:
        if isinstance(error, Retry):
            delay = None if error.retry_in is None else error.retry_in.total_seconds()
            return self._outcome(retry_in=delay, error=error.error and storable(str(error.error)))
        gives_up = self.own_end is None or isinstance(error, JobAborted)
        if self.stop_reason == "lost" or (self.stop_reason == "handed back" and gives_up):
            return None
        if self.stop_reason == "timeout" and gives_up:
            return self._timed_out()
        was_cut = isinstance(error, (asyncio.CancelledError, ChildDied))
        if isinstance(error, JobAborted) or (self.stop_reason == "abort" and was_cut):
            return self.aborted()
        text = storable(str(error)) if isinstance(error, JobFailed) else error_text(error)
        return self._outcome(fail=True, error=text)

    def aborted(self) -> Outcome:
        """Return the outcome of a run that was stopped because somebody asked."""
        return self._outcome(status="aborted")

    def uncommitted(self) -> Outcome:
        """Return the outcome of a run whose task finished it, and left the job as it was."""
        error = "the transaction in which the task finished this job was not committed"
        return self._outcome(fail=True, error=error)

    def _timed_out(self) -> Outcome:
        return self._outcome(fail=True, error=f"timed out after {self.job.timeout}")

    def _outcome(self, **ending: Any) -> Outcome:
        return outcome(self.job, self.worker_id, **ending)


class Batch:
    """Runs of a batch task that share one call.

    Attributes:
        runs: The runs; more may join until the call begins.
        job: Any of their jobs.
        task: The task.
        on_loop: It is called on the event loop, not in a thread.
    """

    def __init__(self, first: Run) -> None:
        self.runs = [first]
        self.job = first.job
        self.task = first.task
        self.on_loop = first.on_loop

    @property
    def size(self) -> int:
        return len(self.runs)

    def is_full(self) -> bool:
        return self.size >= (self.task.batch or 1)


# What is run with one call of a task.
Work: TypeAlias = "Run | Batch"


def outcome(job: FetchedJob, worker_id: int, **ending: Any) -> Outcome:
    """Return an element for procrastinate_finish_jobs."""
    return {"job_id": job.id, "attempt": job.attempt, "worker_id": worker_id, **ending}


def is_stopped(work: Work) -> bool:
    """Are all jobs of this call to stop?"""
    return all(run.stop_reason is not None for run in work.runs)


def for_each(error: BaseException) -> BaseException:
    """Return what the error of a call means for each job of its batch."""
    if isinstance(error, (Retry, JobAborted, JobFailed, asyncio.CancelledError)):
        return error
    # Its text is made once, not once for each.
    return JobFailed(error_text(error))


def error_text(error: BaseException) -> str:
    """Return the last line of a traceback, then the traceback, within bounds."""
    try:
        summary = "".join(traceback.format_exception_only(error)).strip()
        trace = "".join(traceback.format_exception(error))
    except Exception:  # an exception whose own __str__ fails
        summary = trace = type(error).__name__
    if len(trace) > MAX_ERROR:
        # The end says where it happened.
        trace = "…" + trace[-MAX_ERROR:]
    return storable(f"{summary[:MAX_ERROR]}\n\n{trace}")


def storable(text: str) -> str:
    """Return a text without what PostgreSQL cannot store: NULs and halves of surrogate pairs."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")
