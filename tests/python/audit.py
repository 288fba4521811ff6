"""What must be true of a queue that was left alone: nothing is stranded, and everything drains."""

from __future__ import annotations

import time
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

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
                and (
                    other.status = 'doing'
                    or (other.status = 'todo' and other.priority > job.priority)
                    or (
                        other.status = 'todo'
                        and other.priority = job.priority
                        and other.id < job.id
                    )
                )
        )
    order by job.id
"""

Connection = psycopg.Connection[Any]


def claim_all_runnable(connection: Connection, patience: float = 5) -> list[tuple[int, int]]:
    """Fetch until no runnable job is left; return the claimed jobs with their attempts.

    A lock whose job somebody held until a moment ago is looked at again within a second, hence the
    `patience` (seconds). A job that is still there after it is stranded.
    """
    ((worker,),) = connection.execute("select procrastinate_register_worker('audit')").fetchall()
    deadline = time.monotonic() + patience
    claimed: list[tuple[int, int]] = []
    while True:
        claimed += connection.execute(
            "select job.id, job.attempt from procrastinate_fetch_jobs(%s, max_jobs => 1000) as job",
            (worker,),
        )
        stranded = connection.execute(RUNNABLE).fetchall()
        if not stranded:
            return claimed
        assert time.monotonic() < deadline, f"{len(stranded)} stranded jobs: {stranded[:10]}"
        time.sleep(0.005)


def finish_all_running(connection: Connection) -> int:
    """Finish what runs, whoever runs it; return how many jobs that were."""
    running = connection.execute(
        "select job.id, job.attempts + 1, job.worker_id from procrastinate_jobs as job "
        "where job.status = 'doing'"
    ).fetchall()
    outcomes = [
        {"job_id": job_id, "attempt": attempt, "worker_id": worker, "status": "succeeded"}
        for job_id, attempt, worker in running
    ]
    refused = connection.execute(
        "select * from procrastinate_finish_jobs(%s)", (Jsonb(outcomes),)
    ).fetchall()
    assert not refused, f"running, and refused: {refused}"
    return len(outcomes)


def drain(connection: Connection) -> None:
    """Claim and finish until nothing waits; scheduled jobs are brought forward when idle."""
    connection.execute(
        "select procrastinate_resume_queue(queue.queue_name) from procrastinate_queues as queue"
    )
    while True:
        claim_all_runnable(connection)
        if finish_all_running(connection):
            continue
        scheduled = connection.execute(
            "update procrastinate_jobs set scheduled_at = null where status = 'todo'"
        )
        if not scheduled.rowcount:
            return
