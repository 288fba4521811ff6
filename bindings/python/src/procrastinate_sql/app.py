"""The app: knows the tasks, defers their jobs, runs workers."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar, overload

import psycopg

from procrastinate_sql import calls
from procrastinate_sql.calls import Call, Duration
from procrastinate_sql.connections import Address, AsyncPool, Dsn, Pool, driver_connection
from procrastinate_sql.context import JobContext
from procrastinate_sql.errors import InvalidArgument
from procrastinate_sql.job_store import AsyncJobStore, Codec, JobStore
from procrastinate_sql.task import Deferrer, RunIn, Task
from procrastinate_sql.worker import Worker

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
Middleware = Callable[[JobContext], "Iterator[None] | AsyncIterator[None]"]
M = TypeVar("M", bound=Middleware)


def _passed_to(
    model: Callable[Concatenate[App, P], object],
) -> Callable[[Callable[..., R]], Callable[Concatenate[App, P], R]]:
    """Declare, to type checkers and to `help`, that a method passes its arguments on to a class."""

    def declare(method: Callable[..., R]) -> Callable[Concatenate[App, P], R]:
        returns = inspect.signature(method).return_annotation
        signature = inspect.signature(model).replace(return_annotation=returns)
        vars(method)["__signature__"] = signature
        return method

    return declare


class App:
    """Entry point for producers and workers. Connects when it is first needed.

    Args:
        dsn: A connection string or URL, or a function that returns one for each new connection.
            By default $PROCRASTINATE_DSN, else libpq's own environment (PGHOST and so on).
        schema: The schema that holds the functions, if it is not in the search_path.
        prepared_statements: None: use them unless a pooler is found in between.
        dumps: Turns args and results into JSON text.
        loads: The reverse.
        encode: Turns the args of a job, or a result, into what is to be stored of it, to encrypt it
            for example (args have to stay a dict). By default it is stored as it is.
        decode: The reverse. A job whose args it refuses (raising anything) fails, and no other.

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
        loads: Callable[[str], Any] = Codec.loads,
        encode: Callable[[Any], Any] | None = None,
        decode: Callable[[Any], Any] | None = None,
    ) -> None:
        self.tasks: dict[str, Task[..., Any]] = {}
        self.middlewares: list[Middleware] = []
        self.codec = Codec(schema, dumps, loads, encode, decode)
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
        name: str | None = None,
        pass_context: bool = False,
        run_in: RunIn = "thread",
        batch: int | None = None,
    ) -> Callable[[Callable[P, R]], Task[P, R]]: ...

    def task(
        self,
        *func: Callable[..., Any],
        **options: Any,
    ) -> Any:
        """Decorate a function to be called for jobs: `@app.task` or `@app.task(queue="mail", …)`.

        All but the last four options say, to the database, how jobs of the task are treated,
        whatever the language of who defers and who runs them.

        Args:
            queue, priority, lock: Taken by jobs that are deferred without.
            max_attempts: Failed runs after which a job is failed for good (None: never).
            backoff: How the delay before a retry grows: "constant", "linear" or "exponential".
            retry_delay, max_retry_delay: The first delay, and its ceiling (timedelta, seconds, or
                {"minutes": 5}).
            jitter: Share of the delay, 0 to 1, that is random.
            timeout: The longest that a run may take. An async task is cancelled, a process killed;
                a thread cannot be: see `JobContext.abort_requested`.
            keep_finished: How long finished jobs are kept (None: for ever; 0: not at all).
            max_lost: Runs that may be lost with their worker before the job is failed.
            name: Its name in the queue; by default the function's.
            pass_context: Pass a `JobContext` as the first argument.
            run_in: Where a sync function runs: "thread", or "process" for one that computes.
            batch: Call the function once for up to so many jobs, with a list of their `JobContext`
                as its only argument. It never waits for more jobs than there are. When it returns
                they have succeeded, when it raises they have failed, but for those that it ended
                one by one: see `JobContext.set_result`.

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
        queue: str | None = None,
        pass_context: bool = False,
        run_in: RunIn = "thread",
        batch: int | None = None,
        **policy: Any,
    ) -> Task[..., Any]:
        declaration = calls.declare_task(name or func.__name__, queue_name=queue, **policy)
        task = Task(self, func, declaration, pass_context=pass_context, run_in=run_in, batch=batch)
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

    @_passed_to(Deferrer)
    def configure(self, *args: Any, **options: Any) -> Deferrer:
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
        return Deferrer(self, *args, **options)

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

    @_passed_to(Worker)
    def run_worker(self, *args: Any, **options: Any) -> None:
        """Run a `Worker`, which describes the options, until it is told to stop.

        By SIGTERM, by SIGINT, or by the stop_requested of its row in procrastinate_workers.
        """
        Worker(self, *args, **options).run()

    @_passed_to(Worker)
    async def run_worker_async(self, *args: Any, **options: Any) -> None:
        """As `run_worker`, inside a running event loop."""
        await Worker(self, *args, **options).run_async()


def _origin(func: Callable[..., Any]) -> tuple[str, str]:
    """Where a function stands: the same for a module that was imported twice, as __main__ is."""
    code = getattr(func, "__code__", None)
    return getattr(code, "co_filename", func.__module__), func.__qualname__
