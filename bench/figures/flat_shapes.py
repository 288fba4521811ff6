"""The shapes of a queue in which the fetches of peers were found to collapse."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg

from bench.queue import register_worker

Load = Callable[[psycopg.Connection[Any], int], None]
READY = 1_000

INSERT = (
    "insert into procrastinate_jobs "
    "(task_name, queue_name, lock, scheduled_at, status, finished_at)"
)
FETCH = "select id, attempt from procrastinate_fetch_jobs(%s, null, 1000)"
FINISH = "select * from procrastinate_finish_jobs(%s::jsonb)"


@dataclass(frozen=True)
class Shape:
    """A shape.

    Attributes:
        name: Its number and name.
        load: Fills an empty queue with so many jobs of it, beside 1,000 that are ready.
        queue_names: From which queues is fetched (None: all).
        holder: Who holds a snapshot, from before the load.
    """

    name: str
    load: Load
    queue_names: tuple[str, ...] | None = None
    holder: str = "none"


def add(
    connection: psycopg.Connection[Any],
    jobs: int,
    *,
    queue: str = "'default'",
    lock: str = "null",
    scheduled_at: str = "null",
    status: str = "'todo'",
    finished_at: str = "null",
) -> None:
    """Create jobs, with these expressions of the number `n`."""
    connection.execute(
        f"{INSERT} select 'noop', {queue}, {lock}, ({scheduled_at})::timestamptz, "
        f"{status}::procrastinate_job_status, ({finished_at})::timestamptz "
        f"from generate_series(0, {jobs} - 1) as n".encode()
    )


def analyze(connection: psycopg.Connection[Any]) -> None:
    connection.execute("analyze procrastinate_jobs")


def _no_statistics(connection: psycopg.Connection[Any]) -> None:
    connection.execute("alter table procrastinate_jobs set (autovacuum_enabled = off)")


def _only_ready(connection: psycopg.Connection[Any], jobs: int) -> None:
    add(connection, READY)
    analyze(connection)


def _ready(connection: psycopg.Connection[Any], jobs: int) -> None:
    add(connection, jobs)
    analyze(connection)


def _scheduled(connection: psycopg.Connection[Any], jobs: int) -> None:
    add(connection, jobs, scheduled_at="now() + interval '1 day'")
    _only_ready(connection, jobs)


def _one_lock(connection: psycopg.Connection[Any], jobs: int) -> None:
    add(connection, jobs, lock="'one'")
    _run_heads(connection, 1)
    _only_ready(connection, jobs)


def _many_locks(connection: psycopg.Connection[Any], jobs: int) -> None:
    locks = min(1_000, jobs // 2)
    add(connection, jobs, lock=f"(n % {locks})::text")
    _run_heads(connection, locks)
    _only_ready(connection, jobs)


def _run_heads(connection: psycopg.Connection[Any], locks: int) -> None:
    """Start the first job of each lock."""
    worker_id = register_worker(connection, "busy")
    running = 0
    while running < locks:
        fetched = connection.execute(
            "select id from procrastinate_fetch_jobs(%s, null, %s)", (worker_id, locks - running)
        ).rowcount
        assert fetched, f"only {running} of {locks} locks run"
        running += fetched


def _other_queue(connection: psycopg.Connection[Any], jobs: int) -> None:
    add(connection, jobs, queue="'other'")
    _only_ready(connection, jobs)


def _paused_queue(connection: psycopg.Connection[Any], jobs: int) -> None:
    connection.execute("select procrastinate_pause_queue('other')")
    _other_queue(connection, jobs)


def _many_queues(connection: psycopg.Connection[Any], jobs: int) -> None:
    queues = min(10_000, jobs)
    add(connection, jobs, queue=f"'queue-' || n % {queues}")
    analyze(connection)


def _finished(connection: psycopg.Connection[Any], jobs: int) -> None:
    add(connection, jobs, status="'succeeded'", finished_at="now()")
    _only_ready(connection, jobs)


def _run_through(connection: psycopg.Connection[Any], jobs: int) -> None:
    worker_id = register_worker(connection, "fast")
    step = 50_000
    for start in range(0, jobs, step):
        add(connection, min(step, jobs - start))
        while rows := connection.execute(FETCH, (worker_id,)).fetchall():
            outcomes = [
                {"job_id": job_id, "attempt": attempt, "status": "succeeded"}
                for job_id, attempt in rows
            ]
            connection.execute(FINISH, (json.dumps(outcomes),))
    _only_ready(connection, jobs)


def _analyzed_empty(connection: psycopg.Connection[Any], jobs: int) -> None:
    _no_statistics(connection)
    analyze(connection)
    add(connection, jobs)


def _never_analyzed(connection: psycopg.Connection[Any], jobs: int) -> None:
    _no_statistics(connection)
    add(connection, jobs)


NAMED = ("default",)
BASELINES = (
    Shape("baseline", _only_ready),
    Shape("baseline, a named queue", _only_ready, NAMED),
)
SHAPES = (
    Shape("1 ready", _ready),
    Shape("1 ready, a named queue", _ready, NAMED),
    Shape("2 scheduled", _scheduled),
    Shape("3 one lock", _one_lock),
    Shape("4 a thousand locks", _many_locks),
    Shape("5 another queue", _other_queue, NAMED),
    Shape("5 a paused queue", _paused_queue),
    Shape("6 ten thousand queues", _many_queues),
    Shape("7 finished", _finished),
    Shape("8 run through, a reader's snapshot", _run_through, holder="reader"),
    Shape("8 run through, a writer's snapshot", _run_through, holder="writer"),
    Shape("9 analysed empty", _analyzed_empty),
    Shape("9 never analysed", _never_analyzed),
)
