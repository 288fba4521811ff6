"""Every statement that this package sends. It is the only module with SQL in it.

One function here for each SQL function, with the same name less its prefix and with the same
arguments. It returns a `Call`: data that any connection, sync or async, can send. `JobStore` and
`AsyncJobStore` are these functions bound to a connection. All of them may raise `InvalidArgument`
when they are sent; other errors are listed one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, Generic, TypeVar

from psycopg import sql

from procrastinate_sql.job import FetchedJob, Job

T = TypeVar("T")
Rows = Sequence[tuple[Any, ...]]

# An argument means the same wherever it occurs. Casting makes one statement of each call, whatever
# the size of its integers, and lets the server name the argument that it refuses.
_TYPES: Mapping[str, str] = {
    "abort": "boolean",
    "args": "jsonb",
    "attempt": "integer",
    "attempts": "integer[]",
    "backoff": "text",
    "error": "text",
    "heartbeat_interval": "interval",
    "jitter": "double precision",
    "job_id": "bigint",
    "job_ids": "bigint[]",
    "jobs": "jsonb",
    "keep_finished": "interval",
    "lease": "interval",
    "lock": "text",
    "max_attempts": "integer",
    "max_jobs": "integer",
    "max_lost": "integer",
    "max_retry_delay": "interval",
    "name": "text",
    "older_than": "interval",
    "on_conflict": "text",
    "outcomes": "jsonb",
    "priority": "integer",
    "queue_name": "text",
    "queue_names": "text[]",
    "queueing_lock": "text",
    "rescuer_id": "bigint",
    "result": "jsonb",
    "retry_delay": "interval",
    "retry_in": "interval",
    "scheduled_at": "timestamptz",
    "status": "text",
    "statuses": "text[]",
    "task_name": "text",
    "timeout": "interval",
    "worker_id": "bigint",
}
JSON_ARGUMENTS = frozenset(name for name, type_name in _TYPES.items() if type_name == "jsonb")

# A delay is added to the clock of the server, which is the only one that counts.
_LATER = "clock_timestamp() + %(scheduled_in)s::interval"
_EXPRESSIONS: Mapping[tuple[str, str], str] = {
    ("defer_job", "scheduled_at"): f"coalesce(%(scheduled_at)s::timestamptz, {_LATER})",
    ("defer_jobs", "jobs"): f"""(
        select coalesce(jsonb_agg(
            case when %(scheduled_in)s::interval is null then job
            else job || jsonb_build_object('scheduled_at', {_LATER}) end
            order by place
        ), '[]')
        from jsonb_array_elements(%(jobs)s::jsonb) with ordinality as element (job, place)
    )""",
}


@dataclass(frozen=True)
class Call(Generic[T]):
    """A call of one SQL function.

    Attributes:
        function: Its name, less the prefix `procrastinate_`.
        arguments: Its arguments by name.
        read: Turns the rows of the answer into the value of the call.
        columns: What to select, in the order that `read` expects.
        values: Further values that the statement refers to.
    """

    function: str
    arguments: dict[str, Any]
    read: Callable[[Rows], T]
    columns: str = "*"
    values: Mapping[str, Any] | None = None

    def statement(self, schema: str | None) -> bytes:
        """Return the statement, with placeholders; schema None leaves it to the search_path."""
        return _statement(schema, self.function, self.columns, tuple(self.arguments))


@lru_cache(maxsize=1000)
def _statement(
    schema: str | None, function: str, columns: str, arguments: tuple[str, ...]
) -> bytes:
    prefix = "" if schema is None else quoted(schema) + "."
    named = (
        f"{name} => " + _EXPRESSIONS.get((function, name), f"%({name})s::{_TYPES[name]}")
        for name in arguments
    )
    return f"select {columns} from {prefix}procrastinate_{function}({', '.join(named)})".encode()


def quoted(name: str) -> str:
    """Return a name as an SQL identifier."""
    return sql.Identifier(name).as_string(None)


def _nothing(rows: Rows) -> None:
    pass


def _value(rows: Rows) -> Any:
    return rows[0][0]


def _column(rows: Rows) -> list[Any]:
    return [row[0] for row in rows]


# --- Creating jobs -----------------------------------------------------------------


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
    scheduled_in: timedelta | None = None,
) -> Call[int]:
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
    arguments = {
        "task_name": task_name,
        "args": args or {},
        "queue_name": queue_name,
        "priority": priority,
        "lock": lock,
        "queueing_lock": queueing_lock,
        "scheduled_at": scheduled_at,
        "on_conflict": on_conflict,
    }
    return Call("defer_job", arguments, _value, values={"scheduled_in": scheduled_in})


def defer_jobs(
    jobs: Sequence[Mapping[str, Any]], *, scheduled_in: timedelta | None = None
) -> Call[list[tuple[int, bool]]]:
    """Create many jobs in one statement, all or none (procrastinate_defer_jobs).

    Args:
        jobs: Objects whose keys are the arguments of defer_job, with scheduled_at as ISO text.
        scheduled_in: How much later than now, by the server's clock, all of them are scheduled.

    Returns:
        For each element, in order, the id of its job and whether it was created (False: a job with
        the same queueing lock waited already).

    Raises:
        QueueingLockTaken: As for defer_job.
    """

    def read(rows: Rows) -> list[tuple[int, bool]]:
        return [(job_id, created) for _, job_id, created in sorted(rows)]

    columns = "ordinal, id, created"
    return Call("defer_jobs", {"jobs": jobs}, read, columns, {"scheduled_in": scheduled_in})


def declare_task(
    task_name: str,
    queue_name: str | None = None,
    priority: int | None = None,
    lock: str | None = None,
    max_attempts: int | None = 1,
    backoff: str = "exponential",
    retry_delay: timedelta = timedelta(seconds=1),
    max_retry_delay: timedelta = timedelta(hours=1),
    jitter: float = 0.1,
    timeout: timedelta | None = None,
    keep_finished: timedelta | None = None,
    max_lost: int = 5,
) -> Call[None]:
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
    arguments = {
        "task_name": task_name,
        "queue_name": queue_name,
        "priority": priority,
        "lock": lock,
        "max_attempts": max_attempts,
        "backoff": backoff,
        "retry_delay": retry_delay,
        "max_retry_delay": max_retry_delay,
        "jitter": jitter,
        "timeout": timeout,
        "keep_finished": keep_finished,
        "max_lost": max_lost,
    }
    return Call("declare_task", arguments, _nothing)


# --- A worker's life ---------------------------------------------------------------


def register_worker(
    name: str | None = None,
    heartbeat_interval: timedelta = timedelta(seconds=1.2),
    lease: timedelta = timedelta(seconds=30),
) -> Call[int]:
    """Register a worker and return its id (procrastinate_register_worker).

    Args:
        name: What the worker calls itself.
        heartbeat_interval: How often it will call heartbeat.
        lease: Silence after which it is given up in any case.
    """
    arguments = {"name": name, "heartbeat_interval": heartbeat_interval, "lease": lease}
    return Call("register_worker", arguments, _value)


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


def heartbeat(
    worker_id: int,
    job_ids: Sequence[int] = (),
    attempts: Sequence[int] = (),
    queue_names: Sequence[str] | None = None,
) -> Call[Beat]:
    """Renew the lease of a worker and do the housekeeping of the queue (procrastinate_heartbeat).

    Args:
        worker_id: The worker.
        job_ids: The jobs that it believes to hold.
        attempts: Their attempts, in the same order.
        queue_names: The queues whose next due time is wanted (None: all).

    Raises:
        WorkerNotRegistered: It was given up: register again, and drop all jobs.
    """
    arguments = {
        "worker_id": worker_id,
        "job_ids": list(job_ids),
        "attempts": list(attempts),
        "queue_names": _listed(queue_names),
    }
    columns = ", ".join(field.name for field in fields(Beat))
    return Call("heartbeat", arguments, lambda rows: Beat(*rows[0]), columns)


def unregister_worker(worker_id: int) -> Call[None]:
    """Leave; what the worker still holds waits again (procrastinate_unregister_worker).

    Raises:
        WorkerNotRegistered: It left already, or was given up.
    """
    return Call("unregister_worker", {"worker_id": worker_id}, _nothing)


def fetch_jobs(
    worker_id: int, queue_names: Sequence[str] | None = None, max_jobs: int = 1
) -> Call[list[FetchedJob]]:
    """Claim the next jobs to run (procrastinate_fetch_jobs).

    Args:
        worker_id: The worker that will run them.
        queue_names: From these queues only (None: all).
        max_jobs: At most so many. Fewer come only if nothing else can be run.

    Raises:
        WorkerNotRegistered: It was given up: register again.
    """
    arguments = {
        "worker_id": worker_id,
        "queue_names": _listed(queue_names),
        "max_jobs": max_jobs,
    }
    columns = (
        "id, task_name, args, queue_name, priority, lock, queueing_lock, scheduled_at, attempt, "
        "timeout"
    )
    return Call("fetch_jobs", arguments, lambda rows: [FetchedJob(*row) for row in rows], columns)


def listen_channels(queue_names: Sequence[str] | None = None) -> Call[list[str]]:
    """The channels on which news of these queues come (procrastinate_listen_channels)."""
    return Call("listen_channels", {"queue_names": _listed(queue_names)}, _column)


def next_due(queue_names: Sequence[str] | None = None) -> Call[timedelta | None]:
    """How long until the next scheduled job can be fetched, if any (procrastinate_next_due)."""
    return Call("next_due", {"queue_names": _listed(queue_names)}, _value)


def rescue_jobs(
    rescuer_id: int | None = None, max_jobs: int = 1000
) -> Call[list[tuple[int, int, str]]]:
    """Give back the jobs of workers that are gone (procrastinate_rescue_jobs).

    Args:
        rescuer_id: The worker that asks, if any.
        max_jobs: At most so many of each worker.

    Returns:
        The id, the former worker and the new status of each job.
    """
    arguments = {"rescuer_id": rescuer_id, "max_jobs": max_jobs}
    return Call("rescue_jobs", arguments, list, "job_id, worker_id, status")


# --- Ending runs -------------------------------------------------------------------


def finish_job(
    job_id: int,
    attempt: int,
    status: str = "succeeded",
    result: Any = None,
    error: str | None = None,
    worker_id: int | None = None,
) -> Call[None]:
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
    arguments = {
        "job_id": job_id,
        "attempt": attempt,
        "status": status,
        "result": result,
        "error": error,
        "worker_id": worker_id,
    }
    return Call("finish_job", arguments, _nothing)


def fail_job(job_id: int, attempt: int, error: str, worker_id: int | None = None) -> Call[str]:
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
    arguments = {"job_id": job_id, "attempt": attempt, "error": error, "worker_id": worker_id}
    return Call("fail_job", arguments, _value)


def retry_job(
    job_id: int,
    attempt: int,
    retry_in: timedelta | None = None,
    error: str | None = None,
    worker_id: int | None = None,
) -> Call[None]:
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
    arguments = {
        "job_id": job_id,
        "attempt": attempt,
        "retry_in": retry_in,
        "error": error,
        "worker_id": worker_id,
    }
    return Call("retry_job", arguments, _nothing)


def finish_jobs(outcomes: Sequence[Mapping[str, Any]]) -> Call[list[tuple[int, int, str]]]:
    """End many runs in one statement (procrastinate_finish_jobs).

    Args:
        outcomes: Objects with job_id, attempt and worker_id, and one of: status with result and
            error; `fail: True` with error; retry_in (seconds, or None) with error.

    Returns:
        Those that were refused: ordinal (from 1), id of the job, reason.

    Raises:
        InvalidArgument: An element is malformed; nothing was applied.
    """
    return Call("finish_jobs", {"outcomes": outcomes}, list, "ordinal, job_id, reason")


def release_jobs(worker_id: int, job_ids: Sequence[int]) -> Call[list[int]]:
    """Give back claimed jobs that were not started (procrastinate_release_jobs).

    Args:
        worker_id: The worker that holds them.
        job_ids: The jobs; those that it does not hold are left alone.

    Returns:
        The ids of those given back.
    """
    return Call("release_jobs", {"worker_id": worker_id, "job_ids": list(job_ids)}, _column)


# --- What people do ----------------------------------------------------------------


def cancel_job(job_id: int, abort: bool = False) -> Call[str]:
    """Cancel a waiting job; ask a running one to stop (procrastinate_cancel_job).

    Args:
        job_id: The job.
        abort: If it runs, ask its worker to stop it.

    Returns:
        The status that it has then ("doing" for one that was asked to stop).

    Raises:
        JobNotFound: There is no such job.
    """
    return Call("cancel_job", {"job_id": job_id, "abort": abort}, _value)


def rerun_job(job_id: int) -> Call[None]:
    """Let a finished job wait again (procrastinate_rerun_job).

    Raises:
        JobNotFound: There is no such job.
        JobNotRunning: It is not finished.
    """
    return Call("rerun_job", {"job_id": job_id}, _nothing)


def get_job(job_id: int) -> Call[Job | None]:
    """Read one job; None if there is no such job (procrastinate_get_job)."""

    def read(rows: Rows) -> Job | None:
        return Job(*rows[0]) if rows else None

    columns = ", ".join(field.name for field in fields(Job)).replace("status", "status::text")
    return Call("get_job", {"job_id": job_id}, read, columns)


def pause_queue(queue_name: str) -> Call[None]:
    """Fetch nothing more from a queue, whatever the worker (procrastinate_pause_queue)."""
    return Call("pause_queue", {"queue_name": queue_name}, _nothing)


def resume_queue(queue_name: str) -> Call[None]:
    """Let a paused queue go on (procrastinate_resume_queue)."""
    return Call("resume_queue", {"queue_name": queue_name}, _nothing)


def purge_jobs(
    older_than: timedelta,
    queue_name: str | None = None,
    statuses: Sequence[str] | None = None,
    max_jobs: int = 10000,
) -> Call[int]:
    """Delete old finished jobs, the oldest first (procrastinate_purge_jobs).

    Args:
        older_than: Only jobs that finished longer ago than this.
        queue_name: Only of this queue.
        statuses: Only of these statuses.
        max_jobs: At most so many.

    Returns:
        How many were deleted: call again until it is 0.
    """
    arguments = {
        "older_than": older_than,
        "queue_name": queue_name,
        "statuses": _listed(statuses),
        "max_jobs": max_jobs,
    }
    return Call("purge_jobs", arguments, _value)


def repair() -> Call[list[tuple[str, int]]]:
    """Mend what a restore can leave behind; returns what, and how much (procrastinate_repair)."""
    return Call("repair", {}, list, "mended, amount")


def schema_version() -> Call[int]:
    """Version of the schema in the database (procrastinate_schema_version)."""
    return Call("schema_version", {}, _value)


def _listed(names: Sequence[str] | None) -> list[str] | None:
    return None if names is None else list(names)


# --- Statements about the connection and the schema --------------------------------

BACKEND_PID = b"select pg_backend_pid()"

# What a worker holds by the table, to be compared with what it knows after a fetch whose answer was
# lost. The expression is that of procrastinate_jobs_worker_idx.
_HELD = (
    "select id from {}procrastinate_jobs where worker_id + 0 = %(worker_id)s and status = 'doing'"
)

# One upgrade at a time, in whatever schema.
LOCK_UPGRADES = b"select pg_advisory_xact_lock(hashtext('procrastinate-sql upgrade'))"
PIN_SCHEMA = b"select set_config('search_path', format('%I, pg_temp', current_schema()), true)"
IS_INSTALLED = (
    b"select to_regprocedure(format('%I.procrastinate_schema_version()', current_schema()))"
    b" is not null"
)


def listen(channel: str) -> bytes:
    """Return the statement that subscribes to a channel."""
    return f"listen {quoted(channel)}".encode()


def use_schema(schema: str) -> bytes:
    """Return the statement that makes a schema the current one for this transaction."""
    return f"set local search_path = {quoted(schema)}".encode()


def held_jobs(schema: str | None) -> bytes:
    """Return the query for the jobs that a worker (%(worker_id)s) holds by the table."""
    return _HELD.format("" if schema is None else quoted(schema) + ".").encode()
