"""What a task can know of the job that runs it, and say about how its run ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NoReturn

from procrastinate_sql import calls
from procrastinate_sql.calls import Call, Duration, as_timedelta

if TYPE_CHECKING:
    from procrastinate_sql.app import App
    from procrastinate_sql.worker.run import Run

Status = Literal["succeeded", "failed", "aborted"]


class Retry(Exception):
    """Raised by a task that wants another run, whatever its policy says.

    Args:
        retry_in: How long to wait: a timedelta, seconds, or {"minutes": 5}. None: not at all.
        error: Text to store as the job's error.

    Raises:
        InvalidArgument: retry_in is no duration.
    """

    def __init__(self, retry_in: Duration | None = None, error: str | None = None) -> None:
        super().__init__(retry_in, error)
        self.retry_in = as_timedelta(retry_in)
        self.error = error


class JobAborted(Exception):
    """Raised by a sync task that stops because `JobContext.abort_requested` says so."""


class JobFailed(Exception):
    """A run failed, and this text is all there is to say about it."""


class JobContext:
    """First argument of a task with pass_context=True, and of middleware.

    A batch task gets a list of them. For its jobs `set_result`, `set_error` and `set_retry` do what
    for a single one `return` and `raise` do, as the methods of a `Future`: the run ends so when the
    task returns or raises, whatever else that means for the other jobs. The last one counts.

    Attributes:
        app: The app whose worker runs the job.
        job: The job: id, attempt, args, queue_name and so on.
    """

    __slots__ = ("_run", "app", "job")

    def __init__(self, app: App, run: Run) -> None:
        self.app = app
        self.job = run.job
        self._run = run

    def abort_requested(self) -> bool:
        """Should this run stop? Somebody asked, its time is up, it was lost, or the worker stops.

        An `async def` task is cancelled instead (in a batch, when all of its jobs are to stop). A
        sync one is to look at this now and then, and to raise `JobAborted`; a run that returns all
        the same has succeeded, unless its time was up.
        """
        return self._run.stop_reason is not None

    def set_result(self, result: Any = None) -> None:
        """Let this run succeed, whatever becomes of the others in its batch."""
        self._run.own_end = (result, None)

    def set_error(self, error: BaseException | str) -> None:
        """Let this run fail as if the task had raised this error, or with this text.

        `JobAborted` and `Retry` mean here what they mean when they are raised.
        """
        self._run.own_end = (None, JobFailed(error) if isinstance(error, str) else error)

    def set_retry(self, retry_in: Duration | None = None, error: str | None = None) -> None:
        """Let this run end and the job have another one; arguments and errors as for `Retry`."""
        self.set_error(Retry(retry_in, error))

    def retry(self, retry_in: Duration | None = None, error: str | None = None) -> NoReturn:
        """End this run and ask for another one: raise `Retry`."""
        raise Retry(retry_in, error)

    def finish(self, connection: Any, result: Any = None, status: Status = "succeeded") -> None:
        """Finish the job in the task's own transaction, to commit or vanish with its effects.

        The worker then does not report a run that returns. If it finds out that the transaction was
        not committed, the run has failed. (procrastinate_finish_job)

        Args:
            connection: The connection with the transaction; see `App.configure`.
            result: What to store as the job's result.
            status: "succeeded", "failed" or "aborted".

        Raises:
            JobNotRunning: The job was given to another worker: roll back.
        """
        self.app.send(self._finishing(result, status), connection)

    async def finish_async(
        self, connection: Any, result: Any = None, status: Status = "succeeded"
    ) -> None:
        """As `finish`, on an async connection."""
        await self.app.send_async(self._finishing(result, status), connection)

    def _finishing(self, result: Any, status: Status) -> Call[None]:
        call = calls.finish_job(
            self.job.id, self.job.attempt, status, result, worker_id=self._run.worker_id
        )
        # Before it is sent: it may be committed before the answer is here.
        self._run.finished = True
        return call
