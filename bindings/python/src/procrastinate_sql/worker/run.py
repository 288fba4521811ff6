"""One run of one job: call the task, and say what became of it."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from contextvars import copy_context
from inspect import isasyncgenfunction
from typing import TYPE_CHECKING, Any

from procrastinate_sql.context import JobAborted, JobContext, Retry
from procrastinate_sql.job import FetchedJob
from procrastinate_sql.task import Task, as_timedelta
from procrastinate_sql.worker.processes import Child, ChildFailed

if TYPE_CHECKING:
    from procrastinate_sql.worker.running import Running

Outcome = dict[str, Any]

MAX_ERROR = 10_000  # characters


class Run:
    """One run of a job that this worker holds.

    Attributes:
        job: The job.
        worker_id: As whom it was claimed: a worker that was given up gets a new id.
        task: Its task; None if this worker does not know it.
        claimed_at: When it came, by the clock of the event loop.
        stop_reason: Why it is to stop: "abort", "timeout", "lost", "handed back", or None.
        finished: The task has finished the job in its own transaction.
        child: The process in which it runs, if any.
        coroutine: What runs it, once it was started.
        begun: That is under way.
    """

    __slots__ = (
        "_timer",
        "begun",
        "child",
        "claimed_at",
        "coroutine",
        "finished",
        "job",
        "stop_reason",
        "task",
        "worker_id",
    )

    def __init__(
        self, job: FetchedJob, worker_id: int, task: Task[..., Any] | None, claimed_at: float
    ) -> None:
        self.job = job
        self.worker_id = worker_id
        self.task = task
        self.claimed_at = claimed_at
        self.stop_reason: str | None = None
        self.finished = False
        self.child: Child | None = None
        self.coroutine: asyncio.Task[None] | None = None
        self.begun = False
        self._timer: asyncio.TimerHandle | None = None

    def start(self, loop: asyncio.AbstractEventLoop, coroutine: Any) -> None:
        """Begin; from now on the run can be stopped."""
        self.coroutine = loop.create_task(coroutine)
        if self.job.timeout is not None:
            seconds = self.job.timeout.total_seconds()
            self._timer = loop.call_later(seconds, self.stop, "timeout")

    def stop(self, reason: str) -> None:
        """Make the run end: cancel a coroutine, kill a process, raise the flag of a thread."""
        self.stop_reason = reason
        if self.child is not None:
            self.child.kill()
        # A coroutine that was cancelled before its first step would not even note its end.
        elif self.begun and self.task and self.task.is_async and self.coroutine:
            self.coroutine.cancel()

    async def perform(self, running: Running) -> Outcome | None:
        """Call the task; return what to report, or None."""
        self.begun = True
        task = self.task
        if task is None:
            return self._outcome(
                status="failed",
                error=f'task "{self.job.task_name}" is not registered with this worker',
            )
        try:
            if self.stop_reason is not None:
                raise asyncio.CancelledError
            if running.middlewares or not task.is_async:
                result = await self._call_within(running, task)
            elif task.pass_context:
                result = await task.func(JobContext(running.app, self), **self.job.args)
            else:
                result = await task.func(**self.job.args)
        except GeneratorExit:
            raise
        except BaseException as error:
            return self._raised(error)
        finally:
            if self._timer is not None:
                self._timer.cancel()
        return self._returned(result)

    async def _call_within(self, running: Running, task: Task[..., Any]) -> Any:
        """Call the task with middleware around it, or where it runs elsewhere than on the loop."""
        context = JobContext(running.app, self)
        args = (context,) if task.pass_context else ()
        async with AsyncExitStack() as around:
            inner = []
            for middleware in running.middlewares:
                if isasyncgenfunction(middleware):
                    await around.enter_async_context(asynccontextmanager(middleware)(context))
                elif task.is_async:
                    around.enter_context(contextmanager(middleware)(context))  # type: ignore[arg-type]
                else:
                    inner.append(middleware)
            if task.is_async:
                return await task.func(*args, **self.job.args)

            def call() -> Any:
                with ExitStack() as inside:
                    for middleware in inner:
                        inside.enter_context(contextmanager(middleware)(context))  # type: ignore[arg-type]
                    if task.run_in == "process":
                        return running.children.call(self, task.func, self.job.args)
                    return task.func(*args, **self.job.args)

            return await self._in_thread(running, call)
        # A middleware swallowed what the task raised.
        return None

    async def _in_thread(self, running: Running, call: Callable[[], Any]) -> Any:
        def shielded() -> tuple[Any, BaseException | None]:
            # A StopIteration cannot pass through a future, and a SystemExit would end the loop.
            try:
                return call(), None
            except BaseException as error:
                return None, error

        loop = asyncio.get_running_loop()
        result, error = await loop.run_in_executor(running.threads, copy_context().run, shielded)
        if error is not None:
            raise _Raised(error)
        return result

    def _returned(self, result: Any) -> Outcome | None:
        if self.finished or self.stop_reason == "lost":
            return None
        if self.stop_reason == "timeout":
            return self._timed_out()
        if result is None:
            return {
                "job_id": self.job.id,
                "attempt": self.job.attempt,
                "worker_id": self.worker_id,
                "status": "succeeded",
            }
        return self._outcome(status="succeeded", result=result)

    def _raised(self, error: BaseException) -> Outcome | None:
        if isinstance(error, _Raised):
            error = error.error
        if isinstance(error, Retry):
            delay = as_timedelta(error.retry_in)
            return self._outcome(
                retry_in=None if delay is None else delay.total_seconds(),
                error=None if error.error is None else storable(error.error),
            )
        if self.stop_reason in ("lost", "handed back"):
            return None
        if self.stop_reason == "timeout":
            return self._timed_out()
        if isinstance(error, JobAborted) or (
            self.stop_reason == "abort"
            and (self.child or isinstance(error, asyncio.CancelledError))
        ):
            return self.aborted()
        text = storable(str(error)) if isinstance(error, ChildFailed) else error_text(error)
        return self._outcome(fail=True, error=text)

    def _was_cut(self, error: BaseException) -> bool:
        """Is this error how we stop a run?"""
        return self.child is not None or isinstance(error, asyncio.CancelledError)

    def aborted(self) -> Outcome:
        """Return the outcome of a run that was stopped because somebody asked."""
        return self._outcome(status="aborted")

    def _timed_out(self) -> Outcome:
        return self._outcome(fail=True, error=f"timed out after {self.job.timeout}")

    def _outcome(self, **ending: Any) -> Outcome:
        return {
            "job_id": self.job.id,
            "attempt": self.job.attempt,
            "worker_id": self.worker_id,
            **ending,
        }


class _Raised(Exception):
    """Carries whatever a task raised in a thread."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(error)
        self.error = error


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
