"""A batch of many jobs is sent in parts, and is still all or nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
import pytest

from procrastinate_sql import App, InvalidArgument
from procrastinate_sql.calls import PART, defer_jobs

MANY = 2 * PART + 200
Batch = list[dict[str, Any]]
DeferJobs = Callable[[Batch], Awaitable[list[tuple[int, bool]]]]


@pytest.fixture(params=["sync", "async"])
async def send(dsn: str, request: pytest.FixtureRequest):
    app = App(dsn)

    async def defer_in_sync(jobs: Batch) -> list[tuple[int, bool]]:
        return app.job_store.defer_jobs(jobs)

    yield defer_in_sync if request.param == "sync" else app.async_job_store.defer_jobs
    app.close()
    await app.close_async()


def batch(**wrong: Any) -> Batch:
    """Return many elements, of which the last but 99 has these keys too."""
    jobs: Batch = [{"task_name": "t", "args": {"n": n}} for n in range(MANY)]
    jobs[-100] |= wrong
    return jobs


def count(conn: psycopg.Connection[Any]) -> int:
    ((jobs,),) = conn.execute("select count(*) from procrastinate_jobs").fetchall()
    return jobs


async def test_a_large_batch_is_one_transaction(send: DeferJobs, conn: psycopg.Connection[Any]):
    jobs = await send(batch())
    assert len(defer_jobs(batch()).parts()) == 3
    assert all(created for _, created in jobs)
    rows = conn.execute("""
        select id, (args ->> 'n')::integer, count(*) over (partition by xmin::text)
        from procrastinate_jobs
        order by id
    """).fetchall()
    assert rows == [(job_id, n, MANY) for n, (job_id, _) in enumerate(jobs)]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"priority": "high"}, f"priority: element {MANY - 99} of jobs cannot be high"),
        ({"size": 1}, f"jobs: element {MANY - 99} has an unknown key size"),
        ({"args": {"n": {1, 2}}}, "jobs: .*set"),
    ],
)
async def test_what_is_wrong_in_a_late_part_takes_back_all(
    send: DeferJobs, conn: psycopg.Connection[Any], wrong: dict[str, Any], message: str
):
    with pytest.raises(InvalidArgument, match=message):
        await send(batch(**wrong))
    assert count(conn) == 0
    # And the connection that was lent for it is of use.
    assert len(await send(batch())) == MANY


async def test_a_broken_connection_takes_back_all(send: DeferJobs, conn: psycopg.Connection[Any]):
    conn.execute("""
        create function pg_temp.break_off() returns trigger language plpgsql as $$
        begin
            perform pg_terminate_backend(pg_backend_pid());
            return null;
        end $$
    """)
    conn.execute(f"""
        create trigger break_off after insert on procrastinate_jobs for each row
        when (new.args = '{{"n": {MANY - 1}}}') execute function pg_temp.break_off()
    """)
    with pytest.raises(psycopg.OperationalError):
        await send(batch())
    conn.execute("drop trigger break_off on procrastinate_jobs")
    assert count(conn) == 0
    assert len(await send(batch())) == MANY


async def test_queueing_locks_are_taken_in_one_order(send: DeferJobs):
    jobs = batch(queueing_lock="once")
    assert len(defer_jobs(jobs).parts()) == 1
    assert len(await send(jobs)) == MANY


@pytest.mark.parametrize(
    ("jobs", "message"),
    [
        (None, "jobs: must be a JSON array of objects"),
        ("t" * MANY, "jobs: must be a JSON array of objects"),
        ([1] * MANY, "jobs: element 1 must be an object, not number"),
    ],
    ids=["null", "text", "numbers"],
)
async def test_what_is_no_list_of_jobs_is_refused_by_the_server(
    send: DeferJobs, conn: psycopg.Connection[Any], jobs: Any, message: str
):
    with pytest.raises(InvalidArgument, match=message):
        await send(jobs)
    assert count(conn) == 0


def test_a_delay_counts_for_each_part(dsn: str, conn: psycopg.Connection[Any]):
    app = App(dsn)
    app.configure("t", schedule_in={"hours": 1}).defer_many([{}] * MANY)
    app.close()
    scheduled = "select count(*) from procrastinate_jobs where scheduled_at > clock_timestamp()"
    assert conn.execute(scheduled).fetchall() == [(MANY,)]
