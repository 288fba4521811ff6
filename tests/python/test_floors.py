"""Nothing is lost below a floor: sweeps find what comes there late, or another look does."""

from __future__ import annotations

import pytest
from concurrency import Connect, Connection, WaitUntil, Worker, begin, counted, defer, status, value

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


def has_floors(conn: Connection, key: str) -> bool:
    return bool(value(conn, "select _procrastinate_floor('until ' || %s) > 1", key))


@pytest.mark.parametrize("sweeps", ["heartbeat", "fetch"])
@pytest.mark.parametrize("queues", QUEUES, ids=["all", "one", "two"])
def test_a_job_committed_late_is_found(
    conn: Connection,
    connect: Connect,
    worker: Worker,
    wait_until: WaitUntil,
    queues: list[str] | None,
    sweeps: str,
) -> None:
    holder, producer = connect(), connect()
    begin(holder, "repeatable read")
    late = defer(producer)
    run_through(conn, worker)
    key = "" if queues is None else "default"
    wait_until(lambda: worker.fetch(1, queues) == [] and has_floors(conn, key))
    producer.commit()
    assert worker.fetch(1, queues) == []

    def found() -> bool:
        if sweeps == "heartbeat":
            worker.beat(queues)
        return worker.fetch(1, queues) == [late]

    wait_until(found, timeout=5)


def test_a_worker_is_told_when_to_look_again(
    conn: Connection, connect: Connect, worker: Worker, wait_until: WaitUntil
) -> None:
    begin(connect(), "repeatable read")
    run_through(conn, worker)

    def told() -> list[float]:
        assert worker.fetch() == []
        wait = value(conn, "select extract(epoch from procrastinate_next_due())")
        return [] if wait is None else [float(wait)]

    (wait,) = wait_until(told)
    assert 0 <= wait <= 3


def test_a_claim_rolled_back_is_found(
    conn: Connection, connect: Connect, worker: Worker, wait_until: WaitUntil
) -> None:
    begin(connect(), "repeatable read")
    run_through(conn, worker)
    wait_until(lambda: worker.fetch() == [] and has_floors(conn, ""))
    job = defer(conn)
    begin(worker.conn)
    assert worker.fetch(1) == [job]
    other = Worker(connect(autocommit=True))
    run_through(conn, other)
    worker.conn.execute("rollback")
    assert other.fetch(1) == []

    def found() -> bool:
        other.beat()
        return other.fetch(1) == [job]

    wait_until(found, timeout=5)


def test_a_more_urgent_job_is_found(
    conn: Connection, connect: Connect, worker: Worker, wait_until: WaitUntil
) -> None:
    begin(connect(), "repeatable read")
    run_through(conn, worker)
    wait_until(lambda: worker.fetch() == [] and has_floors(conn, ""))
    urgent = defer(conn, priority=99)

    def found() -> bool:
        worker.beat()
        return worker.fetch() == [urgent]

    wait_until(found, timeout=5)


def test_with_the_snapshot_gone_looks_begin_at_the_start_again(
    conn: Connection, connect: Connect, worker: Worker, wait_until: WaitUntil
) -> None:
    holder = connect()
    begin(holder, "repeatable read")
    run_through(conn, worker)
    wait_until(lambda: worker.fetch() == [] and has_floors(conn, ""))
    holder.rollback()

    def ended() -> bool:
        conn.execute("vacuum procrastinate_jobs")
        worker.beat()
        return not has_floors(conn, "")

    wait_until(ended)


def test_an_event_of_a_lock_committed_late_is_found(
    conn: Connection, connect: Connect, worker: Worker, wait_until: WaitUntil
) -> None:
    holder, producer = connect(), connect()
    begin(holder, "repeatable read")
    late = defer(producer, "late")
    run_through(conn, worker, lock="lock ")
    events = "select _procrastinate_is_crowded('events')"
    wait_until(lambda: worker.fetch() == [] and value(conn, events))
    producer.commit()

    wait_until(lambda: worker.fetch() == [late], timeout=5)


def test_an_event_that_is_late_by_little_is_found_before_the_next_look_from_the_start(
    conn: Connection, connect: Connect, worker: Worker, wait_until: WaitUntil
) -> None:
    begin(connect(), "repeatable read")
    run_through(conn, worker, lock="lock ")
    wait_until(lambda: worker.fetch() == [] and has_floors(conn, "events"))
    conn.execute("select _procrastinate_put_off('events', 60000)")
    producer = connect()
    late = defer(producer, "late")
    for _ in range(10):
        run_one(conn, worker, "another")
    producer.commit()

    wait_until(lambda: worker.fetch() == [late], timeout=5)
    assert value(conn, "select _procrastinate_is_crowded('events')")


def test_looks_for_due_times_pass_only_what_went_on_moments_ago(
    conn: Connection, connect: Connect, worker: Worker, wait_until: WaitUntil
) -> None:
    begin(connect(), "repeatable read")
    soon = (
        "insert into procrastinate_jobs (task_name, scheduled_at)"
        " select 't', clock_timestamp() + interval '0.2 seconds' from generate_series(1, %s)"
    )
    for number in (RUN_THROUGH, 500):
        conn.execute(soon, (number,))
        left = number
        while left:
            left -= len(worker.fetch(500))
        wait_until(lambda: worker.fetch() == [] and has_floors(conn, "due"))
        conn.execute("select _procrastinate_put_off('due', 60000)")

    def passed() -> int:
        return counted(worker.conn, DUE, lambda: worker.fetch())

    wait_until(lambda: passed() < 10, timeout=5)
    conn.execute(soon, (1,))
    wait_until(lambda: len(worker.fetch()) == 1, timeout=5)


def test_a_claim_of_a_worker_given_up_is_taken_back_though_committed_late(
    conn: Connection, connect: Connect, worker: Worker, wait_until: WaitUntil
) -> None:
    """While most heartbeats leave the entries of all that the worker has run to others."""
    begin(connect(), "repeatable read")
    run_through(conn, worker)
    job = defer(conn)
    begin(worker.conn)
    assert worker.fetch() == [job]
    conn.execute(
        "update procrastinate_workers set gone_at = clock_timestamp() where id = %s", (worker.id,)
    )
    other = Worker(connect(autocommit=True))
    effort = "select _procrastinate_effort('procrastinate_jobs_worker_idx')"

    def passes_little() -> bool:
        passed = counted(other.conn, effort, other.beat)
        return has_floors(conn, "gone") and passed < 15

    wait_until(passes_little)
    worker.conn.execute("commit")

    def is_back() -> bool:
        other.beat()
        return value(conn, "select status from procrastinate_jobs where id = %s", job) == "todo"

    wait_until(is_back, timeout=5)


def run_one(conn: Connection, worker: Worker, lock: str | None = None) -> int:
    job = defer(conn, lock, task_name="t")
    assert worker.fetch() == [job]
    worker.finish(job)
    return job


DUE = "select pg_stat_get_xact_tuples_returned('procrastinate_jobs_due_idx'::regclass)"
PURGE = "select procrastinate_purge_jobs('0')"
FINISHED = "select pg_stat_get_xact_tuples_returned('procrastinate_jobs_finished_idx'::regclass)"
TO_PURGE = "select pg_stat_get_xact_tuples_returned('procrastinate_jobs_purge_idx'::regclass)"


def test_a_purge_does_not_pass_what_others_have_purged(
    conn: Connection, connect: Connect, worker: Worker
) -> None:
    begin(connect(), "repeatable read")
    run_through(conn, worker)
    late = defer(conn)
    assert worker.fetch() == [late]
    finisher = connect()
    worker.finish(late, conn=finisher)
    assert value(conn, PURGE) == RUN_THROUGH

    def purge_one() -> int:
        run_one(conn, worker)
        return counted(conn, FINISHED, lambda: value(conn, PURGE))

    assert purge_one() > RUN_THROUGH
    assert has_floors(conn, "finished")
    assert purge_one() < 10
    assert purge_one() < 10

    # Nothing is left only if nothing is left below the floor.
    finisher.commit()
    run_one(conn, worker)
    assert [value(conn, PURGE) for _ in range(3)] == [1, 1, 0]


def test_heartbeats_do_not_pass_what_others_have_purged(
    conn: Connection, connect: Connect, worker: Worker
) -> None:
    begin(connect(), "repeatable read")
    conn.execute("select procrastinate_declare_task('t', keep_finished => '1 microsecond')")
    run_through(conn, worker)
    late = defer(conn, task_name="t")
    assert worker.fetch() == [late]
    finisher = connect()
    worker.finish(late, conn=finisher)
    for _ in range(RUN_THROUGH // 1000):
        worker.beat()
    assert value(conn, "select count(*) from procrastinate_jobs where purge_at is not null") == 0

    def purge_one() -> int:
        job = run_one(conn, worker)
        number = counted(worker.conn, TO_PURGE, worker.beat)
        assert status(conn, job) is None
        return number

    purge_one()
    assert has_floors(conn, "purge")
    assert purge_one() < 10

    finisher.commit()
    worker.beat()
    assert status(conn, late) == "succeeded"
    # A minute later.
    conn.execute("select _procrastinate_set_floor('until purge', 2)")
    worker.beat()
    assert status(conn, late) is None


def test_floors_wait_for_the_levels_they_belong_to(
    conn: Connection, connect: Connect, worker: Worker, wait_until: WaitUntil
) -> None:
    begin(connect(), "repeatable read")
    run_through(conn, worker)
    conn.execute("delete from procrastinate_levels")
    conn.execute("select _procrastinate_set_floor('until ', 1)")
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
    assert not has_floors(conn, "")
