"""Every statement that this package sends. It is the only module with SQL in it.

One function here for each SQL function, with the same name less its prefix and with the same
arguments. It returns a `Call`: data that any connection, sync or async, can send. `JobStore` and
`AsyncJobStore` are these functions bound to a connection. All of them may raise `InvalidArgument`;
other errors are listed one by one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from functools import lru_cache, wraps
from typing import Any, Generic, ParamSpec, TypeVar

from psycopg import sql

from procrastinate_sql.errors import InvalidArgument
from procrastinate_sql.job import FetchedJob, Job, UnreadableArgs

P = ParamSpec("P")
T = TypeVar("T")
Rows = Sequence[tuple[Any, ...]]
Loads = Callable[[str], Any]
Duration = timedelta | float | Mapping[str, float]

# An argument means the same wherever it occurs. Casting makes one statement of each call, whatever
# the size of its integers, and lets the server name the argument that it refuses.
_TYPES: Mapping[str, str] = {
    name: type_name
    for type_name, names in {
        "bigint": "job_id rescuer_id worker_id",
        "bigint[]": "job_ids known_job_ids",
        "boolean": "abort give_up_silent",
        "double precision": "jitter",
        "integer": "attempt backend_pid first_ordinal max_attempts max_jobs max_lost priority",
        "integer[]": "attempts",
        "interval": "heartbeat_interval keep_finished lease max_retry_delay older_than retry_delay "
        "retry_in scheduled_in timeout",
        "jsonb": "args jobs outcomes result",
        "text": "backoff error lock name on_conflict queue_name queueing_lock status task_name",
        "text[]": "queue_names statuses",
        "timestamptz": "scheduled_at",
    }.items()
    for name in names.split()
}
JSON_ARGUMENTS = frozenset(name for name, type_name in _TYPES.items() if type_name == "jsonb")


def encoded(name: str, value: Any, encode: Callable[[Any], Any]) -> Any:
    """Return a JSON argument with the args and the results in it encoded."""
    if name == "args":
        return encode({} if value is None else value)
    if name == "jobs":
        return [{**job, "args": encoded("args", job.get("args"), encode)} for job in value]
    if name == "outcomes":
        return [
            one if one.get("result") is None else {**one, "result": encode(one["result"])}
            for one in value
        ]
    return None if value is None else encode(value)


PART = 500  # jobs that are sent together

# A delay is no argument of the SQL functions. It is added to the clock of the server, the only one
# that counts: which argument that makes of it, and how.
_LATER = "clock_timestamp() + %(scheduled_in)s::interval"
_WITH_DELAY: Mapping[str, tuple[str, str]] = {
    "defer_job": ("scheduled_at", _LATER),
    "defer_jobs": (
        "jobs",
        f"""(
            select coalesce(
                jsonb_agg(job || jsonb_build_object('scheduled_at', {_LATER}) order by place), '[]'
            )
            from jsonb_array_elements(%(jobs)s::jsonb) with ordinality as element (job, place)
        )""",
    ),
}


@dataclass(frozen=True)
class Answer(Generic[T]):
    """How the answer to a call is read.

    Attributes:
        read: Turns the rows, and a decoder for the JSON texts in them, into the value of the call.
        columns: What to select, in the order that `read` expects.
    """

    read: Callable[[Rows, Loads], T]
    columns: str = "*"


@dataclass(frozen=True)
class Call(Generic[T]):
    """A call of one SQL function.

    Attributes:
        function: Its name, less the prefix `procrastinate_`.
        arguments: Those of its arguments by name that are not its defaults.
        answer: How its answer is read.
    """

    function: str
    arguments: dict[str, Any]
    answer: Answer[T]

    def parts(self) -> list[Call[T]]:
        """Return the calls that, in one transaction, do what this one does.

        Several for many jobs: while the server takes in the first, the next ones are encoded. Jobs
        with queueing locks stay together, since the server takes these locks in an order of its
        own, so that two batches do not wait for each other. What is no list of objects stays as it
        is, for the server to refuse.
        """
        jobs = self.arguments.get("jobs")
        if not isinstance(jobs, (list, tuple)) or len(jobs) <= PART:
            return [self]
        if not all(isinstance(job, dict) and "queueing_lock" not in job for job in jobs):
            return [self]
        return [
            replace(
                self,
                arguments={**self.arguments, "jobs": jobs[start : start + PART]}
                | {"first_ordinal": start + self.arguments.get("first_ordinal", 1)},
            )
            for start in range(0, len(jobs), PART)
        ]

    def statement(self, schema: str | None) -> bytes:
        """Return the statement, with placeholders; schema None leaves it to the search_path."""
        return _statement(schema, self.function, self.answer.columns, tuple(self.arguments))


@lru_cache(maxsize=1000)
def _statement(
    schema: str | None, function: str, columns: str, arguments: tuple[str, ...]
) -> bytes:
    values = {name: f"%({name})s::{_TYPES[name]}" for name in arguments}
    if "scheduled_in" in values:
        name, value = _WITH_DELAY[function]
        values[name] = value
        del values["scheduled_in"]
    named = ", ".join(f"{name} => {value}" for name, value in values.items())
    return f"select {columns} from {_prefix(schema)}procrastinate_{function}({named})".encode()


def _prefix(schema: str | None) -> str:
    return "" if schema is None else _quoted(schema) + "."


def _quoted(name: str) -> str:
    return sql.Identifier(name).as_string(None)


def as_timedelta(duration: Duration | None) -> timedelta | None:
    """Read a duration: a timedelta, seconds, or timedelta's arguments such as {"minutes": 5}.

    Raises:
        InvalidArgument: It is none of these, or too long.
    """
    if duration is None or isinstance(duration, timedelta):
        return duration
    try:
        return timedelta(**duration) if isinstance(duration, Mapping) else timedelta(0, duration)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidArgument(f"not a duration: {duration!r}") from error


def _read_argument(name: str, value: Any) -> Any:
    if value is None:
        return {} if name == "args" else None
    if _TYPES[name] == "interval":
        return as_timedelta(value)
    if _TYPES[name].endswith("[]"):
        if isinstance(value, str):
            raise InvalidArgument(f"{name}: must be a list", f"Pass [{value!r}].")
        if _TYPES[name] == "text[]":
            return list(value)
        # As the text of an array: the driver would take ten times as long to make one of a list.
        return "{" + ",".join(map(str, value)) + "}"
    return value


def _call(function: Callable[P, Answer[T]]) -> Callable[P, Call[T]]:
    """Make a function, which has the parameters of an SQL function, return the call of that."""
    defaults = {name: one.default for name, one in inspect.signature(function).parameters.items()}
    # Also where they are left out, since an empty object may have to be encoded.
    always: dict[str, Any] = {"args": None} if "args" in defaults else {}

    @wraps(function)
    def build(*args: P.args, **kwargs: P.kwargs) -> Call[T]:
        answer = function(*args, **kwargs)  # refuses what it has no parameter for
        given = {**always, **dict(zip(defaults, args, strict=False)), **kwargs}
        arguments = {
            name: _read_argument(name, value)
            for name, value in given.items()
            # What is left out takes the default of the SQL function, which is the same.
            if value is not defaults[name] or name in always
        }
        return Call(function.__name__, arguments, answer)

    return build


# Binary answers know no text of an enum; and JSON is decoded here, from its text: through the
# driver that would cost more than all other columns together.
_READ_AS_TEXT = {"args", "result", "status"}


@lru_cache
def _columns(row: type) -> str:
    names = [field.name for field in fields(row)]
    return ", ".join(f"{name}::text" if name in _READ_AS_TEXT else name for name in names)


_NOTHING: Answer[None] = Answer(lambda rows, loads: None)
_VALUE: Answer[Any] = Answer(lambda rows, loads: rows[0][0])
_COLUMN: Answer[list[Any]] = Answer(lambda rows, loads: [row[0] for row in rows])


def _tuples(columns: str) -> Answer[list[Any]]:
    return Answer(lambda rows, loads: list(rows), columns)


# --- Creating jobs -----------------------------------------------------------------


@_call
def defer_job(
    task_name: str,
    args: Mapping[str, Any] | None = None,
    queue_name: str | None = None,
    priority: int | None = None,
    lock: str | None = None,
    queueing_lock: str | None = None,
    scheduled_at: datetime | None = None,
    on_conflict: str = "raise",
    *,
    scheduled_in: Duration | None = None,
) -> Answer[int]:
    """Create one job and return its id (procrastinate_defer_job).

    Args:
        task_name: Name of the function that a worker is to call.
        args: Its keyword arguments, as JSON can hold them.
        queue_name: By default what the task declares, else "default".
        priority: Higher runs first; by default what the task declares, else 0.
        lock: Jobs with the same lock run one at a time, in order.
        queueing_lock: At most one job that waits and was never started carries it.
        scheduled_at: Not to be started before this time.
        on_conflict: What to do if the queueing lock is taken: "raise", "skip" or "replace".
        scheduled_in: Instead of scheduled_at: how much later than now, by the server's clock.

    Raises:
        QueueingLockTaken: A job with this queueing lock waits, and on_conflict is "raise".
    """
    if scheduled_at is not None and scheduled_in is not None:
        raise InvalidArgument("scheduled_at and scheduled_in exclude each other")
    return _VALUE


@_call
def defer_jobs(
    jobs: Sequence[Mapping[str, Any]],
    first_ordinal: int = 1,
    *,
    scheduled_in: Duration | None = None,
) -> Answer[list[tuple[int, bool]]]:
    """Create many jobs, all or none (procrastinate_defer_jobs).

    Args:
        jobs: Objects whose keys are the arguments of defer_job, with scheduled_at as ISO text.
        first_ordinal: The place of the first of them in a larger batch, for errors to name.
        scheduled_in: How much later than now, by the server's clock, all of them are scheduled.

    Returns:
        For each element, in order, the id of its job and whether it was created (False: a job with
        the same queueing lock waited already).

    Raises:
        QueueingLockTaken: As for defer_job.
    """
    return Answer(
        lambda rows, loads: [(job_id, created) for _, job_id, created in sorted(rows)],
        "ordinal, id, created",
    )


@_call
def declare_task(
    task_name: str,
    queue_name: str | None = None,
    priority: int | None = None,
    lock: str | None = None,
    max_attempts: int | None = 1,
    backoff: str = "exponential",
    retry_delay: Duration = timedelta(seconds=1),
    max_retry_delay: Duration = timedelta(hours=1),
    jitter: float = 0.1,
    timeout: Duration | None = None,
    keep_finished: Duration | None = None,
    max_lost: int = 5,
) -> Answer[None]:
    """Record the defaults and the policy of a task (procrastinate_declare_task).

    Args:
        task_name: Name of the task.
        queue_name: Queue of a job that is deferred without one.
        priority: Its priority.
        lock: Its lock.
        max_attempts: Failed runs after which a job is failed for good (None: never).
        backoff: How retry_delay grows: "constant", "linear" or "exponential".
        retry_delay: Delay before the first retry.
        max_retry_delay: Ceiling of the delay.
        jitter: Share of the delay, 0 to 1, that is random.
        timeout: The longest that a run may take (None: no limit).
        keep_finished: How long finished jobs are kept (None: for ever; zero: not at all).
        max_lost: Runs that may be lost with their worker before the job is failed.
    """
    return _NOTHING


# --- A worker's life ---------------------------------------------------------------


@_call
def register_worker(
    name: str | None = None,
    heartbeat_interval: Duration = timedelta(seconds=1.3),
    lease: Duration = timedelta(seconds=30),
) -> Answer[int]:
    """Register a worker and return its id (procrastinate_register_worker).

    Args:
        name: What the worker calls itself.
        heartbeat_interval: How often it will call heartbeat.
        lease: Silence after which it is given up in any case.
    """
    return _VALUE


@dataclass(frozen=True, slots=True)
class Beat:
    """What a heartbeat tells a worker to do.

    Attributes:
        abort_job_ids: Jobs that were asked to stop.
        lost_job_ids: Jobs that it no longer holds: to be stopped, their outcome dropped.
        stop_requested: Leave in good order.
        next_heartbeat: How long to wait before the next one.
        next_due: How long until the next scheduled job can be fetched (None: none is).
    """

    abort_job_ids: list[int]
    lost_job_ids: list[int]
    stop_requested: bool
    next_heartbeat: timedelta
    next_due: timedelta | None


@_call
def heartbeat(
    worker_id: int,
    job_ids: Sequence[int] = (),
    attempts: Sequence[int] = (),
    queue_names: Sequence[str] | None = None,
    backend_pid: int | None = None,
) -> Answer[Beat]:
    """Renew the lease of a worker and do the housekeeping of the queue (procrastinate_heartbeat).

    Args:
        worker_id: The worker.
        job_ids: The jobs that it believes to hold.
        attempts: Their attempts, in the same order.
        queue_names: The queues whose next due time is wanted (None: all).
        backend_pid: That of the connection as the driver sees it: it shows whether there is a
            pooler in between (None: there is none).

    Raises:
        WorkerNotRegistered: It was given up: register again, and drop all jobs.
    """
    return Answer(lambda rows, loads: Beat(*rows[0]), _columns(Beat))


@_call
def unregister_worker(worker_id: int) -> Answer[None]:
    """Leave; what the worker still holds waits again (procrastinate_unregister_worker).

    Raises:
        WorkerNotRegistered: It left already, or was given up.
    """
    return _NOTHING


@_call
def fetch_jobs(
    worker_id: int, queue_names: Sequence[str] | None = None, max_jobs: int = 1
) -> Answer[list[FetchedJob]]:
    """Claim the next jobs to run (procrastinate_fetch_jobs).

    Args:
        worker_id: The worker that will run them.
        queue_names: From these queues only (None: all).
        max_jobs: At most so many. Fewer come only if nothing else can be run.

    Raises:
        WorkerNotRegistered: It was given up: register again.
    """
    return Answer(_read_fetched, _columns(FetchedJob))


def _read_fetched(rows: Rows, loads: Loads) -> list[FetchedJob]:
    jobs = [FetchedJob(*row) for row in rows]
    for job in jobs:
        try:
            job.args = loads(job.args)  # type: ignore[arg-type]
        except Exception as error:  # the app's own decoder may raise anything
            # They are claimed, all of them: none may be left behind because of another.
            job.args = UnreadableArgs(error)  # type: ignore[assignment]
    return jobs


@_call
def listen_channels(queue_names: Sequence[str] | None = None) -> Answer[list[str]]:
    """The channels on which news of these queues come (procrastinate_listen_channels)."""
    return _COLUMN


@_call
def next_due(queue_names: Sequence[str] | None = None) -> Answer[timedelta | None]:
    """How long until the next scheduled job can be fetched, if any (procrastinate_next_due)."""
    return _VALUE


@_call
def rescue_jobs(
    rescuer_id: int | None = None, max_jobs: int = 1000
) -> Answer[list[tuple[int, int, str]]]:
    """Give back the jobs of workers that are gone (procrastinate_rescue_jobs).

    Args:
        rescuer_id: The worker that asks, if any.
        max_jobs: At most so many of each worker.

    Returns:
        The id, the former worker and the new status of each job.
    """
    return _tuples("job_id, worker_id, status")


# --- Ending runs -------------------------------------------------------------------


@_call
def finish_job(
    job_id: int,
    attempt: int,
    status: str = "succeeded",
    result: Any = None,
    error: str | None = None,
    worker_id: int | None = None,
) -> Answer[None]:
    """Close a running job, in the caller's transaction (procrastinate_finish_job).

    Args:
        job_id: The job.
        attempt: The run that ends.
        status: "succeeded", "failed" or "aborted".
        result: What it returned, as JSON can hold it.
        error: Text of its error.
        worker_id: The worker that ran it: always give it where there is one.

    Raises:
        JobNotRunning: That attempt (of that worker) is not the running one.
    """
    return _NOTHING


@_call
def fail_job(job_id: int, attempt: int, error: str, worker_id: int | None = None) -> Answer[str]:
    """Report a failed run; the task's policy decides what follows (procrastinate_fail_job).

    Args:
        job_id: The job.
        attempt: The run that failed.
        error: Text of its error.
        worker_id: The worker that ran it.

    Returns:
        The new status: "todo", "failed" or "aborted".

    Raises:
        JobNotRunning: As for finish_job.
    """
    return _VALUE


@_call
def retry_job(
    job_id: int,
    attempt: int,
    retry_in: Duration | None = None,
    error: str | None = None,
    worker_id: int | None = None,
) -> Answer[None]:
    """End a run and have another one, whatever the policy (procrastinate_retry_job).

    Args:
        job_id: The job.
        attempt: The run that ends.
        retry_in: How long to wait (None: not at all).
        error: Text of its error.
        worker_id: The worker that ran it.

    Raises:
        JobNotRunning: As for finish_job.
    """
    return _NOTHING


@_call
def finish_jobs(outcomes: Sequence[Mapping[str, Any]]) -> Answer[list[tuple[int, int, str]]]:
    """End many runs in one statement (procrastinate_finish_jobs).

    Args:
        outcomes: Objects with job_id, attempt and worker_id, and one of: status with result and
            error; `fail: True` with error; retry_in (seconds, or None) with error.

    Returns:
        Those that were refused: ordinal (from 1), id of the job, reason.

    Raises:
        InvalidArgument: An element is malformed; nothing was applied.
    """
    return _tuples("ordinal, job_id, reason")


@_call
def succeed_jobs(
    worker_id: int, job_ids: Sequence[int], attempts: Sequence[int]
) -> Answer[list[tuple[int, int, str]]]:
    """Close many runs as succeeded, without a result (procrastinate_succeed_jobs).

    Args:
        worker_id: The worker that ran them.
        job_ids: Their jobs.
        attempts: Their attempts, in the same order.

    Returns:
        Those that were refused: ordinal (from 1), id of the job, reason.
    """
    return _tuples("ordinal, job_id, reason")


@_call
def release_jobs(
    worker_id: int, job_ids: Sequence[int], attempts: Sequence[int] | None = None
) -> Answer[list[int]]:
    """Give back claimed jobs that were not started (procrastinate_release_jobs).

    Args:
        worker_id: The worker that holds them.
        job_ids: The jobs; those that it does not hold are left alone.
        attempts: Their attempts, in the same order; by default whatever runs.

    Returns:
        The ids of those given back.
    """
    return _COLUMN


@_call
def release_unknown_jobs(worker_id: int, known_job_ids: Sequence[int]) -> Answer[list[int]]:
    """Give back what a fetch whose answer was lost claimed (procrastinate_release_unknown_jobs).

    Args:
        worker_id: The worker; no other fetch of it may be under way.
        known_job_ids: The jobs that it knows, also those whose outcome is still to be reported.

    Returns:
        The ids of those given back.
    """
    return _COLUMN


# --- What people do ----------------------------------------------------------------


@_call
def cancel_job(job_id: int, abort: bool = False) -> Answer[str]:
    """Cancel a waiting job; ask a running one to stop (procrastinate_cancel_job).

    Args:
        job_id: The job.
        abort: If it runs, ask its worker to stop it.

    Returns:
        The status that it has then ("doing" for one that was asked to stop).

    Raises:
        JobNotFound: There is no such job.
    """
    return _VALUE


@_call
def rerun_job(job_id: int) -> Answer[None]:
    """Let a finished job wait again (procrastinate_rerun_job).

    Raises:
        JobNotFound: There is no such job.
        JobNotRunning: It is not finished.
        QueueingLockTaken: It was never started, and a job with its queueing lock waits.
    """
    return _NOTHING


@_call
def get_job(job_id: int) -> Answer[Job | None]:
    """Read one job; None if there is no such job (procrastinate_get_job)."""
    return Answer(_read_job, _columns(Job))


def _read_job(rows: Rows, loads: Loads) -> Job | None:
    if not rows:
        return None
    job = Job(*rows[0])
    result = None if job.result is None else loads(job.result)
    return replace(job, args=loads(job.args), result=result)  # type: ignore[arg-type]


@_call
def pause_queue(queue_name: str) -> Answer[None]:
    """Fetch nothing more from a queue, whatever the worker (procrastinate_pause_queue)."""
    return _NOTHING


@_call
def resume_queue(queue_name: str) -> Answer[None]:
    """Let a paused queue go on (procrastinate_resume_queue)."""
    return _NOTHING


@_call
def purge_jobs(
    older_than: Duration,
    queue_name: str | None = None,
    statuses: Sequence[str] | None = None,
    max_jobs: int = 10000,
) -> Answer[int]:
    """Delete old finished jobs, the oldest first (procrastinate_purge_jobs).

    Args:
        older_than: Only jobs that finished longer ago than this.
        queue_name: Only of this queue.
        statuses: Only of these statuses.
        max_jobs: At most so many.

    Returns:
        How many were deleted: call again until it is 0.
    """
    return _VALUE


@_call
def repair(give_up_silent: bool = False) -> Answer[list[tuple[str, int]]]:
    """Mend what a restore can leave behind; returns what, and how much (procrastinate_repair).

    Args:
        give_up_silent: Do not wait for the lease of workers that are silent: none comes back here.
    """
    return _tuples("mended, amount")


@_call
def schema_version() -> Answer[int]:
    """Version of the schema in the database (procrastinate_schema_version)."""
    return _VALUE


# --- Statements about the connection and the schema --------------------------------

# One upgrade at a time, in whatever schema.
LOCK_UPGRADES = b"select pg_advisory_xact_lock(hashtext('procrastinate-sql upgrade'))"

# Whoever waits to lock a table holds up all who come after, so it does not wait long; and not as
# long as deadlock_timeout, so that of two that wait for each other the upgrade gives up.
WAIT_BRIEFLY = b"set local lock_timeout = '500ms'"
# Without a current schema these two change nothing and say no.
PIN_SCHEMA = (
    b"select set_config('search_path', coalesce("
    b"quote_ident(current_schema()) || ', pg_temp', current_setting('search_path')), true)"
)
IS_INSTALLED = (
    b"select to_regprocedure(quote_ident(current_schema()) || '.procrastinate_schema_version()')"
    b" is not null"
)


def greeting(schema: str | None, synchronous_commit: bool = True) -> bytes:
    """Return what to ask a new connection, whose process is %(backend_pid)s to its client.

    The answer is a row: whether a pooler is in between, which makes that number up, and the version
    of the schema. Without a pooler the session is ours alone, and each of its calls becomes read
    committed, as a fetch has to be, whatever the default of the database.

    Args:
        schema: Where the functions are; None: in the search_path.
        synchronous_commit: False: give that up, for a session that is ours alone.
    """
    relaxed = "" if synchronous_commit else ", set_config('synchronous_commit', 'off', false)"
    return f"""
        select
            pid <> %(backend_pid)s,
            {_prefix(schema)}procrastinate_schema_version(),
            case when pid = %(backend_pid)s
                then row(
                    set_config('default_transaction_isolation', 'read committed', false){relaxed}
                )::text
            end
        from pg_backend_pid() as pid
    """.encode()


def listen(channel: str) -> bytes:
    """Return the statement that subscribes to a channel."""
    return f"listen {_quoted(channel)}".encode()


def use_schema(schema: str) -> bytes:
    """Return the statement that makes a schema the current one for this transaction."""
    return f"set local search_path = {_quoted(schema)}".encode()
