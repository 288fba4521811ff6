"""What must be true of a queue that is left alone: nothing is stranded, and everything drains."""

from __future__ import annotations

import time
from typing import Any

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

Connection = psycopg.Connection[Any]

# By the contract alone, not by what the queue itself thinks is ready.
RUNNABLE = """
    select job.id, job.lock, job.priority, job.queue_name
    from procrastinate_jobs as job
    where
        job.status = 'todo'
        and coalesce(job.scheduled_at <= clock_timestamp(), true)
        and not exists (
            select from procrastinate_queues as queue
            where queue.queue_name = job.queue_name and queue.paused_at is not null
        )
        and not exists (
            select from procrastinate_jobs as other
            where
                other.lock = job.lock
                and other.status in ('todo', 'doing')
                and (other.status = 'doing', other.priority, -other.id)
                > (false, job.priority, -job.id)
        )
    order by job.id
"""


def call(
    connection: Connection, function: str, columns: str = "*", **arguments: Any
) -> list[tuple[Any, ...]]:
    """Call a function of the protocol by the names of its arguments; return its rows."""
    named = [sql.SQL("{} => {}").format(sql.Identifier(a), sql.Placeholder(a)) for a in arguments]
    query = sql.SQL("select {} from {}({})").format(
        sql.SQL(columns), sql.Identifier(f"procrastinate_{function}"), sql.SQL(", ").join(named)
    )
    return connection.execute(query, arguments).fetchall()


def claim_all(connection: Connection, patience: float = 5) -> list[tuple[Any, ...]]:
    """Fetch until no runnable job is left; return those that are stranded.

    A lock whose job somebody held until a moment ago is looked at again within a second, hence the
    `patience` (seconds).
    """
    ((worker,),) = call(connection, "register_worker", name="audit")
    deadline = time.monotonic() + patience
    while True:
        call(connection, "fetch_jobs", worker_id=worker, max_jobs=1000)
        stranded = connection.execute(RUNNABLE).fetchall()
        if not stranded or time.monotonic() > deadline:
            return stranded
        time.sleep(0.005)


def finish_all(connection: Connection) -> int:
    """Finish what runs, whoever runs it; return how many jobs that were."""
    running = connection.execute(
        "select id, attempts + 1, worker_id from procrastinate_jobs where status = 'doing'"
    ).fetchall()
    outcomes = [
        {"job_id": job_id, "attempt": attempt, "worker_id": worker, "status": "succeeded"}
        for job_id, attempt, worker in running
    ]
    refused = call(connection, "finish_jobs", outcomes=Jsonb(outcomes))
    assert not refused, f"running, and refused: {refused}"
    return len(outcomes)


def drain(connection: Connection) -> list[tuple[Any, ...]]:
    """Claim and finish until nothing waits, scheduled jobs too; return those that are stranded."""
    connection.execute("select procrastinate_resume_queue(queue_name) from procrastinate_queues")
    while not (stranded := claim_all(connection)):
        if finish_all(connection):
            continue
        scheduled = connection.execute(
            "update procrastinate_jobs set scheduled_at = null "
            "where status = 'todo' and scheduled_at is not null"
        )
        if not scheduled.rowcount:
            break
    return stranded
