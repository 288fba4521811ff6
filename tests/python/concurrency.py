"""Tools for tests in which several connections interleave: a worker's calls, blocked calls, pauses.

pgTAP cannot commit, so every race of the protocol is tested from here. Interleavings are made, not
hoped for: a call that must wait runs in a thread until PostgreSQL says that it waits, and a call is
stopped half-way by a trigger that waits for an advisory lock which the test holds.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier
from typing import Any, LiteralString, TypeVar

import psycopg
import pytest

T = TypeVar("T")
Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]
WaitUntil = Callable[..., Any]

ISOLATION_LEVELS = ("read committed", "repeatable read", "serializable")
PAUSE_KEY = 42
ENDS = {
    "finish": "procrastinate_finish_job(%(job)s, %(attempt)s, worker_id => %(worker)s)",
    "fail": "procrastinate_fail_job(%(job)s, %(attempt)s, 'broken', worker_id => %(worker)s)",
    "retry": "procrastinate_retry_job(%(job)s, %(attempt)s, worker_id => %(worker)s)",
}
SUCCEEDED = {"status": "succeeded"}


def value(conn: Connection, query: str, *params: object) -> Any:
    """The first column of the first row, or None."""
    row = conn.execute(query, params).fetchone()
    return row[0] if row else None


def counted(conn: Connection, counter: LiteralString, call: Callable[[], object]) -> int:
    """By how much a counter of the transaction grows in a call, which is made in one of its own."""
    with conn.transaction():
        before = value(conn, counter)
        call()
        return int(value(conn, counter) - before)


def defer(conn: Connection, lock: str | None = None, **arguments: object) -> int:
    """Defer a job and return its id."""
    named = {"task_name": "task", "lock": lock, **arguments}
    assignments = ", ".join(f"{name} => %({name})s" for name in named)
    row = conn.execute(f"select procrastinate_defer_job({assignments})", named).fetchone()
    assert row is not None
    return int(row[0])


def cancel(conn: Connection, job_id: int, *, abort: bool = False) -> str:
    """Cancel a job and return the status that it then has."""
    return str(value(conn, "select procrastinate_cancel_job(%s, %s)", job_id, abort))


def delete(conn: Connection, job_id: int) -> None:
    """Delete a job, as a person may."""
    conn.execute("delete from procrastinate_jobs where id = %s", (job_id,))


def hold(conn: Connection, job_id: int) -> None:
    """Hold the row of a job, as a person may, until the transaction ends."""
    conn.execute("select from procrastinate_jobs where id = %s for update", (job_id,))


def status(conn: Connection, job_id: int) -> str | None:
    """The status of a job, None if there is no such job."""
    return value(conn, "select status from procrastinate_jobs where id = %s", job_id)


class Worker:
    """A registered worker on a connection: its calls, with what they return made plain."""

    def __init__(self, conn: Connection) -> None:
        never_hang(conn)
        self.conn = conn
        self.id = value(conn, "select procrastinate_register_worker()")

    def fetch(self, max_jobs: int = 1, queue_names: list[str] | None = None) -> list[int]:
        """Claim jobs and return their ids, in the order in which they came."""
        query = "select id from procrastinate_fetch_jobs(%s, %s, %s)"
        return [row[0] for row in self.conn.execute(query, (self.id, queue_names, max_jobs))]

    def beat(self, queue_names: list[str] | None = None) -> None:
        """Be heard of, and do the housekeeping."""
        beat = "select procrastinate_heartbeat(%s, queue_names => %s)"
        self.conn.execute(beat, (self.id, queue_names))

    def finish(self, job_id: int, attempt: int = 1, *, conn: Connection | None = None) -> None:
        """Finish a job, on another connection if one is given."""
        self.end("finish", job_id, attempt, conn=conn)

    def end(
        self,
        how: str,
        job_id: int,
        attempt: int = 1,
        *,
        conn: Connection | None = None,
        fenced: bool = True,
    ) -> None:
        """End a run in one of the ways of `ENDS`; unfenced: without saying whose run it is."""
        run = {"job": job_id, "attempt": attempt, "worker": self.id if fenced else None}
        (conn or self.conn).execute(f"select {ENDS[how]}", run)

    def finish_many(
        self, outcomes: Mapping[int, Mapping[str, object]], *, conn: Connection | None = None
    ) -> list[tuple[int, str]]:
        """End first runs in one batch; return those that were refused, and why."""
        batch = [
            {"job_id": job_id, "attempt": 1, "worker_id": self.id, **outcome}
            for job_id, outcome in outcomes.items()
        ]
        query = "select job_id, reason from procrastinate_finish_jobs(%s)"
        return (conn or self.conn).execute(query, (json.dumps(batch),)).fetchall()

    def release(self, *job_ids: int, conn: Connection | None = None) -> list[int]:
        """Give jobs back that were not started; return those that were taken back."""
        query = "select * from procrastinate_release_jobs(%s, %s) as job_id order by job_id"
        return [row[0] for row in (conn or self.conn).execute(query, (self.id, list(job_ids)))]

    def heartbeat(self, *job_ids: int) -> tuple[list[int], list[int]]:
        """Beat, believing to hold first runs; return the jobs to abort, and those that are lost."""
        query = "select abort_job_ids, lost_job_ids from procrastinate_heartbeat(%s, %s, %s)"
        beat = self.conn.execute(query, (self.id, list(job_ids), [1] * len(job_ids))).fetchone()
        assert beat is not None
        return beat

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
    query = "select job_id from procrastinate_rescue_jobs(%s)"
    return [row[0] for row in conn.execute(query, (rescuer,))]


def fall_due(conn: Connection, job_id: int) -> None:
    """Let the time come for which a job waits."""
    conn.execute(
        "update procrastinate_jobs set due_at = clock_timestamp() where id = %s", (job_id,)
    )


def drain(worker: Worker) -> list[int]:
    """Fetch and finish one job after the other until there is none; return them in order."""
    done: list[int] = []
    query = "select id, attempt from procrastinate_fetch_jobs(%s)"
    while row := worker.conn.execute(query, (worker.id,)).fetchone():
        job_id, attempt = row
        worker.finish(job_id, attempt)
        done.append(job_id)
    return done


def begin(conn: Connection, isolation: str = "read committed") -> None:
    """Open a transaction whose snapshot, where it keeps one, is taken now."""
    never_hang(conn)
    conn.execute(f"begin isolation level {isolation}")
    conn.execute("select 1")


def never_hang(conn: Connection) -> None:
    """Let a statement that waits for ever fail its test instead."""
    conn.execute("set lock_timeout = '10 s'")


def never_wait(conn: Connection) -> None:
    """Let a statement that waits for another session fail its test."""
    conn.execute("set lock_timeout = '100 ms'")


@contextmanager
def refused(sqlstate: str) -> Iterator[None]:
    """The block raises this SQLSTATE."""
    with pytest.raises(psycopg.Error) as error:
        yield
    assert error.value.sqlstate == sqlstate, error.value


def at_once(*calls: Callable[[], T]) -> list[T]:
    """Make calls at the same moment, each in a thread of its own; return what they return."""
    barrier = Barrier(len(calls))

    def start(call: Callable[[], T]) -> T:
        barrier.wait(10)
        return call()

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(start, calls))


@contextmanager
def blocked(
    observer: Connection, waiting: Connection, call: Callable[..., T], *args: Any, **options: Any
) -> Iterator[Future[T]]:
    """Run a call that must wait for another session; the block begins when it waits.

    The call has ended when the block has: the block must release it.
    """
    never_hang(waiting)
    with ThreadPoolExecutor(1) as thread:
        future = thread.submit(call, *args, **options)
        while not is_blocked(observer, waiting):
            assert not future.done(), f"it did not wait: {future}"
            time.sleep(0.005)
        yield future


def is_blocked(observer: Connection, waiting: Connection) -> bool:
    """Does this connection wait for a lock that another session holds?"""
    pids = "select pg_blocking_pids(%s)"
    return value(observer, pids, waiting.info.backend_pid) != []


@contextmanager
def paused(
    observer: Connection,
    event: str,
    waiting: Connection,
    call: Callable[..., T],
    *args: Any,
) -> Iterator[Future[T]]:
    """Run a call that stops after its first `event` ("delete on a_table") until the block ends."""
    never_hang(observer)
    observer.execute(
        "create function test_pause() returns trigger language plpgsql as $$"
        f" begin perform pg_advisory_xact_lock_shared({PAUSE_KEY}); return null; end; $$"
    )
    # It stays, and does nothing when nobody holds that lock: dropping it could wait for the test.
    observer.execute(
        f"create trigger test_pause after {event} for each row execute function test_pause()"
    )
    observer.execute("select pg_advisory_lock(%s)", (PAUSE_KEY,))
    with blocked(observer, waiting, call, *args) as future:
        try:
            yield future
        finally:
            observer.execute("select pg_advisory_unlock(%s)", (PAUSE_KEY,))
