"""Tasks: functions with a name and a policy, and how their jobs are deferred."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Concatenate, Generic, Literal, ParamSpec, TypeVar

from procrastinate_sql import calls
from procrastinate_sql.calls import Call, Duration
from procrastinate_sql.errors import InvalidArgument

if TYPE_CHECKING:
    from procrastinate_sql.app import App

P = ParamSpec("P")
R = TypeVar("R")

OnConflict = Literal["raise", "skip", "replace"]
RunIn = Literal["thread", "process"]


class Parameters:
    """What a function takes by keyword."""

    def __init__(self, func: Callable[..., object], pass_context: bool) -> None:
        parameters = list(inspect.signature(func).parameters.values())
        if pass_context:
            parameters = parameters[1:]
        for parameter in parameters:
            if parameter.kind is parameter.POSITIONAL_ONLY:
                raise ValueError(f"task parameter {parameter.name} cannot be passed by keyword")
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        self.names = frozenset(p.name for p in named)
        self.required = tuple(p.name for p in named if p.default is p.empty)
        self.takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)

    def check(self, task_name: str, args: Mapping[str, Any]) -> None:
        """Raise InvalidArgument, naming the parameter, unless the function can be called so."""
        for name in self.required:
            if name not in args:
                raise InvalidArgument(f"args: task {task_name} needs {name}")
        if not self.takes_any and not self.names.issuperset(args):
            name = min(set(args) - self.names)
            raise InvalidArgument(
                f"args: task {task_name} takes no {name}",
                f"It takes: {', '.join(sorted(self.names)) or 'nothing'}.",
            )


def _takes_one(func: Callable[..., object]) -> bool:
    try:
        inspect.signature(func).bind(object())
    except TypeError:
        return False
    return True


@dataclass(frozen=True)
class Deferrer:
    """Defers jobs of one task; made by `App.configure`, which describes the options."""

    app: App
    task_name: str
    _: KW_ONLY
    queue: str | None = None
    priority: int | None = None
    lock: str | None = None
    queueing_lock: str | None = None
    schedule_at: datetime | None = None
    schedule_in: Duration | None = None
    on_conflict: OnConflict = "raise"
    connection: Any = None

    def __post_init__(self) -> None:
        if self.schedule_at is not None and self.schedule_in is not None:
            raise InvalidArgument("schedule_at and schedule_in exclude each other")
        if self.schedule_at is not None and self.schedule_at.tzinfo is None:
            raise InvalidArgument(
                "schedule_at: must have a time zone", "Use datetime.now(timezone.utc), say."
            )

    def defer(self, /, **args: Any) -> int:
        """Create one job with these keyword arguments and return its id.

        Raises:
            InvalidArgument: The task does not take these arguments, or an option is wrong.
            QueueingLockTaken: A job with this queueing lock waits, and on_conflict is "raise".
        """
        return self.app.send(self._call(args), self.connection)

    async def defer_async(self, /, **args: Any) -> int:
        """As `defer`."""
        return await self.app.send_async(self._call(args), self.connection)

    def defer_many(self, jobs: Iterable[Mapping[str, Any]]) -> list[int]:
        """Create a job for each of these keyword arguments, all or none; return their ids.

        Raises:
            InvalidArgument, QueueingLockTaken: As for `defer`.
        """
        return [job_id for job_id, _ in self.app.send(self._call_many(jobs), self.connection)]

    async def defer_many_async(self, jobs: Iterable[Mapping[str, Any]]) -> list[int]:
        """As `defer_many`."""
        created = await self.app.send_async(self._call_many(jobs), self.connection)
        return [job_id for job_id, _ in created]

    def _call(self, args: Mapping[str, Any]) -> Call[int]:
        self._check([args])
        return calls.defer_job(
            args=args,
            scheduled_at=self.schedule_at,
            scheduled_in=self.schedule_in,
            **self._options(),
        )

    def _call_many(self, jobs: Iterable[Mapping[str, Any]]) -> Call[list[tuple[int, bool]]]:
        options = {name: value for name, value in self._options().items() if value is not None}
        if self.schedule_at is not None:
            options["scheduled_at"] = self.schedule_at.isoformat()
        # Each element carries them: the default of most is not said a thousand times.
        if self.on_conflict == "raise":
            del options["on_conflict"]
        jobs = list(jobs)
        self._check(jobs)
        elements = [{**options, "args": args} for args in jobs]
        return calls.defer_jobs(elements, scheduled_in=self.schedule_in)

    def _check(self, jobs: Iterable[Mapping[str, Any]]) -> None:
        task = self.app.tasks.get(self.task_name)
        # What a batch task makes of the arguments of a job is its own affair.
        if task is not None and task.parameters is not None:
            for args in jobs:
                task.parameters.check(self.task_name, args)

    def _options(self) -> dict[str, Any]:
        # What this process knows of the task is sent along: a worker may not have declared it yet.
        task = self.app.tasks.get(self.task_name)
        declared = {} if task is None else task.declaration.arguments
        return {
            "task_name": self.task_name,
            "queue_name": declared.get("queue_name") if self.queue is None else self.queue,
            "priority": declared.get("priority") if self.priority is None else self.priority,
            "lock": declared.get("lock") if self.lock is None else self.lock,
            "queueing_lock": self.queueing_lock,
            "on_conflict": self.on_conflict,
        }


def _configures(
    defers: Callable[Concatenate[App, str, P], Deferrer],
) -> Callable[Concatenate[Task[..., Any], P], Deferrer]:
    def configure(self: Task[..., Any], /, *args: P.args, **options: P.kwargs) -> Deferrer:
        """Say how jobs are to be deferred: with the options of `App.configure`."""
        return defers(self.app, self.name, *args, **options)

    return configure


class Task(Generic[P, R]):
    """A function that workers call for its jobs. Made by `App.task`; calling it calls the function.

    Attributes:
        app: Whose task it is.
        func: The function.
        name: Its name in the queue.
        declaration: The call that tells the database how its jobs are treated.
        parameters: What it takes by keyword; None for a batch task.
        pass_context: Its first argument is a `JobContext`.
        run_in: Where a sync function runs: "thread" or "process".
        batch: It is called for up to so many jobs at once (None: for one).
        is_async: It is an `async def`.
        takes_args_only: A worker calls it with the arguments of a job, and does no more than that.
    """

    def __init__(
        self,
        app: App,
        func: Callable[P, R],
        declaration: Call[None],
        *,
        pass_context: bool = False,
        run_in: RunIn = "thread",
        batch: int | None = None,
    ) -> None:
        self.app = app
        self.func = func
        self.name: str = declaration.arguments["task_name"]
        self.declaration = declaration
        self.parameters = Parameters(func, pass_context) if batch is None else None
        self.pass_context = pass_context
        self.run_in = run_in
        self.batch = batch
        self.is_async = inspect.iscoroutinefunction(func)
        self.takes_args_only = not (pass_context or batch or run_in == "process")
        if run_in == "process" and (self.is_async or pass_context or batch is not None):
            raise ValueError(
                f"task {self.name}: only a sync function without context runs in a process"
            )
        if batch is not None and (batch < 1 or pass_context or not _takes_one(func)):
            raise ValueError(
                f"task {self.name}: a function for batches of 1 or more takes the list of their"
                " contexts, and nothing else"
            )
        self.__doc__ = func.__doc__
        self.__name__ = getattr(func, "__name__", self.name)
        self.__module__ = func.__module__

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.func(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<Task {self.name}>"

    configure = _configures(Deferrer)

    def defer(self, /, **args: Any) -> int:
        """Create one job; see `Deferrer.defer`."""
        return self.configure().defer(**args)

    async def defer_async(self, /, **args: Any) -> int:
        """Create one job; see `Deferrer.defer`."""
        return await self.configure().defer_async(**args)

    def defer_many(self, jobs: Iterable[Mapping[str, Any]]) -> list[int]:
        """Create many jobs; see `Deferrer.defer_many`."""
        return self.configure().defer_many(jobs)

    async def defer_many_async(self, jobs: Iterable[Mapping[str, Any]]) -> list[int]:
        """Create many jobs; see `Deferrer.defer_many`."""
        return await self.configure().defer_many_async(jobs)
