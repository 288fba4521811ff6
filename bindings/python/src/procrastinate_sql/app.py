"""The app: knows the tasks, defers their jobs, runs workers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any, Literal, ParamSpec, TypeVar, overload

import psycopg

from procrastinate_sql.calls import Call
from procrastinate_sql.connections import Address, AsyncPool, Dsn, Pool, driver_connection
from procrastinate_sql.context import JobContext
from procrastinate_sql.errors import InvalidArgument
from procrastinate_sql.job_store import AsyncJobStore, Codec, JobStore
from procrastinate_sql.task import Deferrer, Duration, OnConflict, Policy, RunIn, Task
from procrastinate_sql.worker import Worker

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
Middleware = Callable[[JobContext], "Iterator[None] | AsyncIterator[None]"]
M = TypeVar("M", bound=Middleware)


class App:
    """Entry point for producers and workers. Connects when it is first needed.

    Args:
        dsn: A connection string or URL, or a function that returns one for each new connection.
            By default $PROCRASTINATE_DSN, else libpq's own environment (PGHOST and so on).
        schema: The schema that holds the functions, if it is not in the search_path.
        prepared_statements: None: use them unless a pooler is found in between.
        dumps: Turns args and results into JSON text.
        loads: The reverse.

    Attributes:
        tasks: The tasks by name.
        middlewares: What surrounds each run, outermost first.
        job_store: The SQL functions as methods, on connections of the app.
        async_job_store: The same for async code.
    """

    def __init__(
        self,
        dsn: Dsn = None,
        *,
        schema: str | None = None,
        prepared_statements: bool | None = None,
        dumps: Callable[[Any], str] = Codec.dumps,
        loads: Callable[[str | bytes], Any] = json.loads,
    ) -> None:
        self.tasks: dict[str, Task[..., Any]] = {}
        self.middlewares: list[Middleware] = []
        self.codec = Codec(schema, dumps, loads)
        self.connect_to(dsn, prepared_statements=prepared_statements)

    def connect_to(
        self, dsn: Dsn, *, schema: str | None = None, prepared_statements: bool | None = None
    ) -> None:
        """Use another database from now on, for the default app, say; arguments as for App."""
        self.codec = replace(self.codec, schema=schema or self.codec.schema)
        self.address = Address(dsn, self.codec.schema, prepared_statements)
        self._pool = Pool(self.address)
        self._async_pool = AsyncPool(self.address)
        self.job_store = JobStore(self._pool, self.codec)
        self.async_job_store = AsyncJobStore(self._async_pool, self.codec)

    def close(self) -> None:
        """Close the idle sync connections."""
        self._pool.close()

    async def close_async(self) -> None:
        """Close the idle async connections of the running event loop."""
        await self._async_pool.close()

    @overload
    def task(self, func: Callable[P, R], /) -> Task[P, R]: ...

    @overload
    def task(
        self,
        *,
        name: str | None = None,
        queue: str | None = None,
        priority: int | None = None,
        lock: str | None = None,
        max_attempts: int | None = 1,
        backoff: Literal["constant", "linear", "exponential"] = "exponential",
        retry_delay: Duration = 1.0,
        max_retry_delay: Duration = 3600.0,
        jitter: float = 0.1,
        timeout: Duration | None = None,
        keep_finished: Duration | None = None,
        max_lost: int = 5,
        pass_context: bool = False,
        run_in: RunIn = "thread",
    ) -> Callable[[Callable[P, R]], Task[P, R]]: ...

    def task(
        self,
        *func: Callable[..., Any],
        **options: Any,
    ) -> Any:
        """Decorate a function to be called for jobs: `@app.task` or `@app.task(queue="mail", …)`.

        Args:
            name: Its name in the queue; by default the function's.
            pass_context: Pass a `JobContext` as the first argument.
            run_in: Where a sync function runs: "thread", or "process" for one that computes.
            policy: How its jobs are treated, by the database, in every language:

                queue, priority, lock: Taken by jobs that are deferred without.
                max_attempts: Failed runs after which a job is failed for good (None: never).
                backoff: How the delay before a retry grows: constant, linear, exponential.
                retry_delay, max_retry_delay: The first delay, and its ceiling (timedelta, seconds,
                    or {"minutes": 5}).
                jitter: Share of the delay, 0 to 1, that is random.
                timeout: The longest that a run may take. An async task is cancelled, a process
                    killed; a thread cannot be: see `JobContext.abort_requested`.
                keep_finished: How long finished jobs are kept (None: for ever; 0: not at all).
                max_lost: Runs that may be lost with their worker before the job is failed.

        Raises:
            ValueError: Another task has this name, or the function cannot be a task.
        """
        register = partial(self._register, **options)
        return register(*func) if func else register

    def _register(
        self,
        func: Callable[..., Any],
        *,
        name: str | None = None,
        pass_context: bool = False,
        run_in: RunIn = "thread",
        **policy: Any,
    ) -> Task[..., Any]:
        task = Task(
            self,
            func,
            name or func.__name__,
            Policy(**policy),
            pass_context=pass_context,
            run_in=run_in,
        )
        other = self.tasks.get(task.name)
        if other is not None and _origin(other.func) != _origin(func):
            raise ValueError(f"there is another task {task.name} in {other.func.__module__}")
        self.tasks[task.name] = task
        return task

    def middleware(self, func: M) -> M:
        """Decorate a generator function, sync or async, that surrounds each run.

        It gets the `JobContext`, yields once, and sees there what the task raises. A sync one
        around a sync task runs in the thread of the task.
        """
        self.middlewares.append(func)
        return func

    def configure(
        self,
        task_name: str,
        /,
        *,
        queue: str | None = None,
        priority: int | None = None,
        lock: str | None = None,
        queueing_lock: str | None = None,
        schedule_at: datetime | None = None,
        schedule_in: Duration | None = None,
        on_conflict: OnConflict = "raise",
        connection: Any = None,
    ) -> Deferrer:
        """Say how jobs are to be deferred; then call `defer`, `defer_many` or their async forms.

        Args:
            task_name: Name of the task; it need not be known in this process.
            queue: By default what the task says, else "default".
            priority: Higher runs first; by default what the task says, else 0.
            lock: Jobs with the same lock run one at a time, in order.
            queueing_lock: At most one job that waits and was never started carries it.
            schedule_at: Not to be started before this time, which has a time zone.
            schedule_in: Or not before so much later: a timedelta, seconds, or {"minutes": 5}.
            on_conflict: What to do if the queueing lock is taken: "raise"; "skip", which returns
                the id of the job that waits; or "replace", which also gives it the new arguments.
            connection: Defer in the transaction of this connection: psycopg's, SQLAlchemy's or
                Django's. Nothing is committed here.
        """
        return Deferrer(
            self,
            task_name,
            queue,
            priority,
            lock,
            queueing_lock,
            schedule_at,
            schedule_in,
            on_conflict,
            connection,
        )

    def defer(self, task_name: str, /, **args: Any) -> int:
        """Create one job of a task, with these keyword arguments, and return its id.

        Raises:
            InvalidArgument: The task is known here and does not take these arguments.
        """
        return self.configure(task_name).defer(**args)

    async def defer_async(self, task_name: str, /, **args: Any) -> int:
        """As `defer`."""
        return await self.configure(task_name).defer_async(**args)

    def defer_many(self, task_name: str, jobs: Iterable[Mapping[str, Any]]) -> list[int]:
        """Create a job of a task for each of these keyword arguments, all or none."""
        return self.configure(task_name).defer_many(jobs)

    async def defer_many_async(
        self, task_name: str, jobs: Iterable[Mapping[str, Any]]
    ) -> list[int]:
        """As `defer_many`."""
        return await self.configure(task_name).defer_many_async(jobs)

    def send(self, call: Call[T], connection: Any = None) -> T:
        """Send a call on the caller's connection, or on one of the app's."""
        if connection is None:
            return self.job_store.send(call)
        inner = driver_connection(connection)
        if isinstance(inner, psycopg.AsyncConnection):
            raise InvalidArgument("connection: it is async", "Use the function in _async.")
        return JobStore(inner, self.codec).send(call)

    async def send_async(self, call: Call[T], connection: Any = None) -> T:
        """As `send`, for async code."""
        if connection is None:
            return await self.async_job_store.send(call)
        inner = driver_connection(connection)
        if isinstance(inner, psycopg.Connection):
            raise InvalidArgument("connection: it is not async", "Use the function without _async.")
        return await AsyncJobStore(inner, self.codec).send(call)

    def run_worker(self, queues: Iterable[str] | None = None, **options: Any) -> None:
        """Run a worker until it is told to stop: by SIGTERM, SIGINT, or its row's stop_requested.

        Args:
            queues: Take jobs from these queues only (None: all).
            options: See `Worker`: concurrency, name, shutdown_timeout and so on.
        """
        Worker(self, queues, **options).run()

    async def run_worker_async(self, queues: Iterable[str] | None = None, **options: Any) -> None:
        """As `run_worker`, inside a running event loop."""
        await Worker(self, queues, **options).run_async()


def _origin(func: Callable[..., Any]) -> tuple[str, str]:
    """Where a function stands: the same for a module that was imported twice, as __main__ is."""
    code = getattr(func, "__code__", None)
    return getattr(code, "co_filename", func.__module__), func.__qualname__
