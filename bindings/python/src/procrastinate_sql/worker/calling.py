"""How a task is called: with its context, and with middleware around it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from contextvars import copy_context
from inspect import isasyncgenfunction
from typing import TYPE_CHECKING, Any

from procrastinate_sql.context import JobContext
from procrastinate_sql.worker.processes import Children, end_if_forked
from procrastinate_sql.worker.run import Batch, Work

if TYPE_CHECKING:
    from procrastinate_sql.app import App, Middleware

THREAD_NAME = "procrastinate-task"


class Caller:
    """Calls the tasks of an app.

    Args:
        app: The app.
        concurrency: How many calls there are at most at a time.
    """

    def __init__(self, app: App, concurrency: int) -> None:
        self._app = app
        self._middlewares = app.middlewares
        self._children = Children()
        # For sync tasks with async middleware: that runs on the loop, and they do not.
        self._threads = ThreadPoolExecutor(concurrency, THREAD_NAME)

    def has_async_middleware(self) -> bool:
        """Are sync tasks to be called from the event loop too, for what surrounds them there?"""
        return any(map(isasyncgenfunction, self._middlewares))

    def call_on_loop(self, work: Work) -> Awaitable[Any]:
        """Call a task from the event loop."""
        if self._middlewares or not work.task.is_async:
            return self._call_within(work)
        return self._call(work)  # type: ignore[no-any-return]

    def call_in_thread(self, work: Work) -> Any:
        """Call a sync task from the thread in which it is to run."""
        if self._middlewares:
            return self._call_beside(work, self._contexts(work), self._middlewares)
        return self._call(work)

    async def _call_within(self, work: Work) -> Any:
        """Call a task with middleware around it, a sync one in a thread."""
        task, contexts = work.task, self._contexts(work)
        async with AsyncExitStack() as around:
            beside = []
            for middleware in self._middlewares:
                if not (task.is_async or isasyncgenfunction(middleware)):
                    beside.append(middleware)
                    continue
                for context in contexts:
                    if isasyncgenfunction(middleware):
                        await around.enter_async_context(asynccontextmanager(middleware)(context))
                    else:
                        around.enter_context(contextmanager(middleware)(context))  # type: ignore[arg-type]
            if task.is_async:
                return await self._call(work)
            return await self._hop(lambda: self._call_beside(work, contexts, beside))
        # A middleware swallowed what the task raised.
        return None

    def _call_beside(
        self, work: Work, contexts: list[JobContext], middlewares: list[Middleware]
    ) -> Any:
        """Call a sync task with sync middleware around it."""
        with ExitStack() as around:
            for middleware in middlewares:
                for context in contexts:
                    around.enter_context(contextmanager(middleware)(context))  # type: ignore[arg-type]
            return self._call(work)
        return None

    def _call(self, work: Work) -> Any:
        task = work.task
        if task.takes_args_only:
            return task.func(**work.job.args)
        if isinstance(work, Batch):
            return task.func(self._contexts(work))
        if task.pass_context:
            return task.func(JobContext(self._app, work), **work.job.args)
        return self._children.call(work, task.func, work.job.args)

    def _contexts(self, work: Work) -> list[JobContext]:
        return [JobContext(self._app, run) for run in work.runs]

    async def _hop(self, call: Callable[[], Any]) -> Any:
        process_id = os.getpid()

        def shielded() -> tuple[Any, BaseException | None]:
            # A future takes no StopIteration, and a SystemExit in it would end the loop.
            result, raised = None, None
            try:
                result = call()
            except BaseException as error:
                raised = error
            end_if_forked(process_id)
            return result, raised

        loop = asyncio.get_running_loop()
        result, error = await loop.run_in_executor(self._threads, copy_context().run, shielded)
        if error is not None:
            raise error
        return result

    def close(self) -> None:
        """Let go of threads and processes, without waiting for any."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._children.close()
