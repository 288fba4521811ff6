"""One run of one job: call the task, and say what became of it."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from inspect import isasyncgenfunction
from typing import TYPE_CHECKING, Any

from procrastinate_sql.context import JobAborted, JobContext, Retry
from procrastinate_sql.job import FetchedJob
from procrastinate_sql.task import Task
from procrastinate_sql.worker.processes import Child, ChildDied, ChildFailed

if TYPE_CHECKING:
    from procrastinate_sql.worker.running import Running

Outcome = dict[str, Any]

MAX_ERROR = 10_000  # characters


@dataclass(slots=True, eq=False)
class Run:
    """One run of a job that this worker holds.

    Attributes:
        job: The job.
        worker_id: As whom it was claimed: a worker that was given up gets a new id.
        task: Its task; None if this worker does not know it.
        claimed_at: When it came, by the clock of the event loop.
        stop_reason: Why it is to stop: "abort", "timeout", "lost", "handed back", or None.
        finished: The task finishes the job in a transaction of its own.
        child: The process in which it runs now, if any.
        coroutine: What runs it, once it was started.
        begun: That is under way.
    """

    job: FetchedJob
    worker_id: int
    task: Task[..., Any] | None
    claimed_at: float
    stop_reason: str | None = None
    finished: bool = False
    child: Child | None = None
    coroutine: asyncio.Task[None] | None = None
    begun: bool = False
    _timer: asyncio.TimerHandle | None = None

    def start(self, loop: asyncio.AbstractEventLoop, coroutine: Any) -> None:
        """Begin; from now on the run can be stopped."""
        self.coroutine = loop.create_task(coroutine)
        if self.job.timeout is not None:
            seconds = self.job.timeout.total_seconds()
            self._timer = loop.call_later(seconds, self.stop, "timeout")

    def stop(self, reason: str) -> None:
        """Make the run end: cancel a coroutine, kill a process, raise the flag of a thread."""
        # A first reason stays, but for the one that makes any outcome void.
        self.stop_reason = "lost" if reason == "lost" else self.stop_reason or reason
        if child := self.child:
            child.kill()
        # A coroutine that was cancelled before its first step would not even note its end.
        if self.begun and self.task and self.task.is_async and self.coroutine:
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
            else:
                args = (JobContext(running.app, self),) if task.pass_context else ()
                result = await task.func(*args, **self.job.args)
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

            return await _in_thread(running, call)
        # A middleware swallowed what the task raised.
        return None

    def _returned(self, result: Any) -> Outcome | None:
        if self.finished or self.stop_reason == "lost":
            return None
        if self.stop_reason == "timeout":
            return self._timed_out()
        if result is None:
            return self._outcome(status="succeeded")
        return self._outcome(status="succeeded", result=result)

    def _raised(self, error: BaseException) -> Outcome | None:
        if isinstance(error, Retry):
            delay = None if error.retry_in is None else error.retry_in.total_seconds()
            return self._outcome(retry_in=delay, error=error.error and storable(str(error.error)))
        if self.stop_reason in ("lost", "handed back"):
            return None
        if self.stop_reason == "timeout":
            return self._timed_out()
        was_cut = isinstance(error, (asyncio.CancelledError, ChildDied))
        if isinstance(error, JobAborted) or (self.stop_reason == "abort" and was_cut):
            return self.aborted()
        text = storable(str(error)) if isinstance(error, ChildFailed) else error_text(error)
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
        return {
            "job_id": self.job.id,
            "attempt": self.job.attempt,
            "worker_id": self.worker_id,
            **ending,
        }


async def _in_thread(running: Running, call: Callable[[], Any]) -> Any:
    def shielded() -> tuple[Any, BaseException | None]:
        # A future takes no StopIteration, and a SystemExit in it would end the loop.
        try:
            return call(), None
        except BaseException as error:
            return None, error

    loop = asyncio.get_running_loop()
    result, error = await loop.run_in_executor(running.threads, copy_context().run, shielded)
    if error is not None:
        raise error
    return result


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
