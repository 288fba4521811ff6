"""Tools for tests in which several connections interleave: a worker's calls, blocked calls, pauses.

pgTAP cannot commit, so every race of the protocol is tested from here. Interleavings are made, not
hoped for: a call that must wait runs in a thread until PostgreSQL says that it waits, and a statement
is stopped half-way by a trigger that waits for an advisory lock which the test holds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg

Connection = psycopg.Connection[Any]
ISOLATION_LEVELS = ("read committed", "repeatable read", "serializable")
PAUSE_KEY = 42


def value(conn: Connection, query: str, *params: object) -> Any:
    """The first column of the first row, or None."""
    row = conn.execute(query, params).fetchone()
    return row[0] if row else None


def defer(conn: Connection, lock: str | None = None, **arguments: object) -> int:
    """Defer a job and return its id."""
    named = {"task_name": "task", "lock": lock, **arguments}
    assignments = ", ".join(f"{name} => %({name})s" for name in named)
    row = conn.execute(f"select procrastinate_defer_job({assignments})", named).fetchone()
    assert row is not None
    return int(row[0])


def status(conn: Connection, job_id: int) -> str | None:
    """The status of a job, None if there is no such job."""
    return value(conn, "select status from procrastinate_jobs where id = %s", job_id)


class Worker:
    """A registered worker on a connection: the four calls, with what they return made plain."""

    def __init__(self, conn: Connection) -> None:
        self.conn = conn
        self.id = value(conn, "select procrastinate_register_worker()")

    def fetch(self, max_jobs: int = 1, queue_names: list[str] | None = None) -> list[int]:
        """Claim jobs and return their ids, in the order in which they came."""
        query = "select id from procrastinate_fetch_jobs(%s, %s, %s)"
        return [row[0] for row in self.conn.execute(query, (self.id, queue_names, max_jobs))]

    def finish(self, job_id: int, attempt: int = 1, conn: Connection | None = None) -> None:
        """Finish a job, on another connection if one is given."""
        (conn or self.conn).execute(
            "select procrastinate_finish_job(%s, %s, worker_id => %s)", (job_id, attempt, self.id)
        )

    def retry(self, job_id: int, attempt: int = 1) -> None:
        """Let a job wait for another run, at once."""
        self.conn.execute(
            "select procrastinate_retry_job(%s, %s, worker_id => %s)", (job_id, attempt, self.id)
        )

    def finish_many(self, job_ids: list[int], conn: Connection | None = None) -> list[tuple[Any, ...]]:
        """Finish first attempts in one batch; return what was refused."""
        outcomes = [
            {"job_id": job_id, "attempt": 1, "worker_id": self.id, "status": "succeeded"}
            for job_id in job_ids
        ]
        query = "select * from procrastinate_finish_jobs(%s)"
        return (conn or self.conn).execute(query, (json.dumps(outcomes),)).fetchall()

    def die(self) -> None:
        """Be silent for longer than the lease."""
        self.conn.execute(
            "update procrastinate_workers set last_heartbeat = clock_timestamp() - lease * 2,"
            " server_started_at = '2000-01-01' where id = %s",
            (self.id,),
        )


def rescue(conn: Connection) -> list[int]:
    """Give back the jobs of workers that are gone, as a rescuer that was always awake."""
    rescuer = value(
        conn,
        "insert into procrastinate_workers (heartbeat_interval, lease, awake_since)"
        " values ('1 second', '30 seconds', '2000-01-01') returning id",
    )
    return [row[0] for row in conn.execute("select * from procrastinate_rescue_jobs(%s)", (rescuer,))]


def drain(worker: Worker) -> list[int]:
    """Fetch and finish one job after the other until there is none; return them in order."""
    done: list[int] = []
    while fetched := worker.fetch():
        for job_id in fetched:
            attempt = value(
                worker.conn, "select attempts + 1 from procrastinate_jobs where id = %s", job_id
            )
            worker.finish(job_id, attempt)
            done.append(job_id)
    return done


@contextmanager
def in_background() -> Iterator[Callable[..., Future[Any]]]:
    """Run calls in threads; what they raise is raised by their future."""
    with ThreadPoolExecutor() as pool:
        yield pool.submit


def is_blocked(observer: Connection, blocked: Connection) -> bool:
    """Does this connection wait for a lock that another session holds?"""
    return bool(
        value(observer, "select cardinality(pg_blocking_pids(%s)) > 0", blocked.info.backend_pid)
    )


@contextmanager
def paused(observer: Connection, table: str, event: str) -> Iterator[Callable[[], None]]:
    """Stop statements after `event` ("delete", "update") on `table` until the given function is called."""
    observer.execute(
        "create or replace function test_pause() returns trigger language plpgsql as $$"
        f" begin perform pg_advisory_xact_lock_shared({PAUSE_KEY}); return null; end; $$"
    )
    observer.execute(
        f"create trigger test_pause after {event} on {table}"
        " for each statement execute function test_pause()"
    )
    observer.execute("select pg_advisory_lock(%s)", (PAUSE_KEY,))
    try:
        yield lambda: observer.execute("select pg_advisory_unlock(%s)", (PAUSE_KEY,)) and None
    finally:
        observer.execute("select pg_advisory_unlock_all()")
        observer.execute(f"drop trigger test_pause on {table}")
