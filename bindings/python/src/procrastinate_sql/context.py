"""What a task can know of the job that runs it, and say about how its run ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NoReturn, Protocol

from procrastinate_sql import calls
from procrastinate_sql.calls import Call
from procrastinate_sql.job import FetchedJob
from procrastinate_sql.task import Duration

if TYPE_CHECKING:
    from procrastinate_sql.app import App

Status = Literal["succeeded", "failed", "aborted"]


class Retry(Exception):
    """Raised by a task that wants another run, whatever its policy says.

    Args:
        retry_in: How long to wait: a timedelta, seconds, or {"minutes": 5}. None: not at all.
        error: Text to store as the job's error.
    """

    def __init__(self, retry_in: Duration | None = None, error: str | None = None) -> None:
        super().__init__(retry_in, error)
        self.retry_in = retry_in
        self.error = error


class JobAborted(Exception):
    """Raised by a sync task that stops because `JobContext.abort_requested` says so."""


class RunState(Protocol):
    """What a context needs of the run that it belongs to."""

    job: FetchedJob
    worker_id: int
    stop_reason: str | None
    finished: bool


class JobContext:
    """First argument of a task with pass_context=True, and of middleware.

    Attributes:
        app: The app whose worker runs the job.
        job: The job: id, attempt, args, queue_name and so on.
    """

    __slots__ = ("_run", "app", "job")

    def __init__(self, app: App, run: RunState) -> None:
        self.app = app
        self.job = run.job
        self._run = run

    def abort_requested(self) -> bool:
        """Should this run stop? Somebody asked, its time is up, it was lost, or the worker stops.

        An `async def` task is cancelled instead. A sync one is to look at this now and then, and to
        raise `JobAborted`; a run that returns all the same has succeeded, unless its time was up.
        """
        return self._run.stop_reason is not None

    def retry(self, retry_in: Duration | None = None, error: str | None = None) -> NoReturn:
        """End this run and ask for another one: raise `Retry`."""
        raise Retry(retry_in, error)

    def finish(self, connection: Any, result: Any = None, status: Status = "succeeded") -> None:
        """Finish the job in the task's own transaction, to commit or vanish with its effects.

        The worker then does not report a run that returns; raise to have it tried again after a
        rollback. (procrastinate_finish_job)

        Args:
            connection: The connection with the transaction; see `App.configure`.
            result: What to store as the job's result.
            status: "succeeded", "failed" or "aborted".

        Raises:
            JobNotRunning: The job was given to another worker: roll back.
        """
        self.app.send(self._finishing(result, status), connection)
        self._run.finished = True

    async def finish_async(
        self, connection: Any, result: Any = None, status: Status = "succeeded"
    ) -> None:
        """As `finish`, on an async connection."""
        await self.app.send_async(self._finishing(result, status), connection)
        self._run.finished = True

    def _finishing(self, result: Any, status: Status) -> Call[None]:
        return calls.finish_job(
            self.job.id,
            self.job.attempt,
            status,
            result,
            worker_id=self._run.worker_id,
        )
