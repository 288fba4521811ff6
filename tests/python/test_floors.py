"""Nothing is lost below a floor: the next look from the start finds what comes there late."""

from __future__ import annotations

import pytest
from concurrency import Connect, Connection, WaitUntil, Worker, begin, defer, value

RUN_THROUGH = 5_000
QUEUES = [None, ["default"], ["default", "other"]]


def run_through(conn: Connection, worker: Worker, lock: str | None = None) -> None:
    """Leave many dead entries behind: a snapshot must be held."""
    # One by one, for as many events if they have locks.
    conn.execute(
        "select procrastinate_defer_job('t', lock => %s || number)"
        " from generate_series(1, %s) as number",
        (lock, RUN_THROUGH),
    )
    left = RUN_THROUGH
    while left:
        ids = worker.fetch(500)
        worker.conn.execute(
            "select procrastinate_succeed_jobs(%s, %s, %s)", (worker.id, ids, [1] * len(ids))
        )
        left -= len(ids)


def is_crowded(conn: Connection, key: str) -> bool:
    return bool(value(conn, "select _procrastinate_is_crowded(%s)", key))


@pytest.mark.parametrize("queues", QUEUES, ids=["all", "one", "two"])
def test_a_job_committed_late_is_found(
    conn: Connection,
    connect: Connect,
    worker: Worker,
    wait_until: WaitUntil,
    queues: list[str] | None,
) -> None:
    holder, producer = connect(), connect()
    begin(holder, "repeatable read")
    late = defer(producer)
    run_through(conn, worker)
    key = "" if queues is None else "default"
    wait_until(lambda: worker.fetch(1, queues) == [] and is_crowded(conn, key))
    producer.commit()

    wait_until(lambda: worker.fetch(1, queues) == [late], timeout=5)


def test_a_worker_is_told_when_to_look_again(
    conn: Connection, connect: Connect, worker: Worker, wait_until: WaitUntil
) -> None:
    begin(connect(), "repeatable read")
    run_through(conn, worker)

    def told() -> list[float]:
        # Fetches begin at floors for a part of a second only: who asks later is told nothing.
        if worker.fetch():
            return []
        wait = value(conn, "select extract(epoch from procrastinate_next_due())")
        return [] if wait is None else [float(wait)]

    (wait,) = wait_until(told)
    assert 0 <= wait <= 2


def test_a_claim_rolled_back_is_found(
    conn: Connection, connect: Connect, worker: Worker, wait_until: WaitUntil
) -> None:
    begin(connect(), "repeatable read")
    run_through(conn, worker)
    wait_until(lambda: worker.fetch() == [] and is_crowded(conn, ""))
    job = defer(conn)
    wait_until(lambda: not is_crowded(conn, ""))
    begin(worker.conn)
    assert worker.fetch(1) == [job]
    run_through_by_another(conn, connect)
    worker.conn.execute("rollback")

    wait_until(lambda: worker.fetch(1) == [job], timeout=5)


def run_through_by_another(conn: Connection, connect: Connect) -> None:
    run_through(conn, Worker(connect(autocommit=True)))


def test_a_more_urgent_job_is_found(
    conn: Connection, connect: Connect, worker: Worker, wait_until: WaitUntil
) -> None:
    begin(connect(), "repeatable read")
    run_through(conn, worker)
    wait_until(lambda: worker.fetch() == [] and is_crowded(conn, ""))
    urgent = defer(conn, priority=99)

    wait_until(lambda: worker.fetch() == [urgent], timeout=5)


def test_an_event_of_a_lock_committed_late_is_found(
    conn: Connection, connect: Connect, worker: Worker, wait_until: WaitUntil
) -> None:
    holder, producer = connect(), connect()
    begin(holder, "repeatable read")
    late = defer(producer, "late")
    run_through(conn, worker, lock="lock ")
    wait_until(lambda: worker.fetch() == [] and is_crowded(conn, "events"))
    producer.commit()

    wait_until(lambda: worker.fetch() == [late], timeout=5)


def test_floors_wait_for_the_levels_they_belong_to(
    conn: Connection, connect: Connect, worker: Worker, wait_until: WaitUntil
) -> None:
    begin(connect(), "repeatable read")
    run_through(conn, worker)
    conn.execute("delete from procrastinate_levels")
    wait_until(lambda: not is_crowded(conn, ""))
    other = Worker(connect(autocommit=True))
    begin(other.conn)
    assert other.fetch(1) == []
    assert value(other.conn, "select count(*) from procrastinate_levels") == 1

    jobs = [defer(conn) for _ in range(10)]
    assert worker.fetch(10) == jobs


def test_without_dead_entries_every_look_is_from_the_start(
    conn: Connection, worker: Worker
) -> None:
    conn.execute(
        "insert into procrastinate_jobs (task_name) select 't' from generate_series(1, 99)"
    )
    worker.fetch(500)
    assert not is_crowded(conn, "")
