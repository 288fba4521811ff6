"""Under a held snapshot: the next job of a lock is found where it is, and never overtaken."""

from __future__ import annotations

from collections.abc import Callable
from typing import LiteralString

import pytest
from concurrency import (
    Connect,
    Connection,
    WaitUntil,
    Worker,
    begin,
    counted,
    defer,
    rescue,
    value,
)

RUN_THROUGH = 300
LOCKS = ["a", "b"]
PASSED: LiteralString = "select _procrastinate_lock_entries()"
Crowd = Callable[[], None]


@pytest.fixture
def holder(connect: Connect) -> Connection:
    """Who holds the snapshot."""
    holder = connect()
    begin(holder, "repeatable read")
    return holder


@pytest.fixture
def crowd(conn: Connection, worker: Worker, wait_until: WaitUntil) -> Crowd:
    """Let jobs of each lock run until it has a floor above most of them."""

    def risen() -> bool:
        run_through(conn, worker, 10)
        floors = "select min(first_ids[1]) > %s from procrastinate_lock_floors"
        return has_floors(conn) and bool(value(conn, floors, len(LOCKS) * RUN_THROUGH))

    def crowd() -> None:
        conn.execute("select procrastinate_declare_task('t', keep_finished => '0')")
        run_through(conn, worker, RUN_THROUGH)
        wait_until(risen, timeout=60)

    return crowd


def run_through(conn: Connection, worker: Worker, jobs: int) -> None:
    """Run so many jobs of each lock, one after the other."""
    conn.execute(
        "insert into procrastinate_jobs (task_name, lock)"
        " select 't', lock from generate_series(1, %s), unnest(%s::text[]) as lock",
        (jobs, LOCKS),
    )
    while running := worker.fetch(len(LOCKS)):
        for job in running:
            worker.finish(job)


def has_floors(conn: Connection) -> bool:
    query = "select coalesce(pg_sequence_last_value('procrastinate_lock_era'), 0) %% 2 = 1"
    return bool(value(conn, query))


def test_looks_for_the_next_job_do_not_pass_what_has_run(
    conn: Connection, holder: Connection, worker: Worker, crowd: Crowd
) -> None:
    crowd()
    for lock in LOCKS * 2:
        defer(conn, lock)
    looks = "select _procrastinate_heads_from_start(%s)"
    from_start = counted(worker.conn, PASSED, lambda: worker.conn.execute(looks, (LOCKS,)))
    assert from_start > 4 * RUN_THROUGH

    for _ in range(2):
        with worker.conn.transaction():
            before = value(worker.conn, PASSED)
            running = worker.fetch(10)
            passed = value(worker.conn, PASSED) - before
        assert len(running) == len(LOCKS)
        # All but the newest few hundred jobs are left out.
        assert passed < from_start / 3
        for job in running:
            worker.finish(job)


def test_to_make_a_job_ready_passes_less_than_to_claim_it(
    conn: Connection, holder: Connection, worker: Worker, crowd: Crowd
) -> None:
    """Only a unique index is checked for others of the lock, and it holds those that run."""
    crowd()
    blocks = "select pg_stat_get_xact_blocks_fetched('procrastinate_jobs'::regclass)"

    job = defer(conn, "a")
    made_ready = counted(worker.conn, blocks, lambda: worker.fetch(1, ["none"]))
    assert value(conn, "select ready_seq from procrastinate_jobs where id = %s", job)
    claimed = counted(worker.conn, blocks, lambda: worker.fetch(1, ["default"]))
    assert value(conn, "select status from procrastinate_jobs where id = %s", job) == "doing"
    assert made_ready < RUN_THROUGH < claimed


def test_a_job_committed_late_is_not_overtaken(
    conn: Connection,
    connect: Connect,
    holder: Connection,
    worker: Worker,
    crowd: Crowd,
    wait_until: WaitUntil,
) -> None:
    crowd()
    producer = connect()
    late = defer(producer, "a")
    transaction = value(producer, "select pg_current_xact_id()::text::bigint")

    def tried_to_rise() -> bool:
        run_through(conn, worker, 20)
        query = "select last_value > %s from procrastinate_jobs_drawn_before"
        return bool(value(conn, query, transaction))

    # Floors would rise further as soon as all that run now have ended, and it does not end.
    wait_until(tried_to_rise, timeout=60)
    run_through(conn, worker, 50)
    later = defer(conn, "a")
    newest_event = value(conn, "select max(id) from procrastinate_lock_events")
    producer.commit()
    # Its event may lie below the floor of events, which is a hint: the order does not rest on it.
    conn.execute("delete from procrastinate_lock_events where id < (%s)", (newest_event,))
    assert worker.fetch() == [late]
    assert worker.fetch() == []
    worker.finish(late)
    assert worker.fetch() == [later]


def test_a_claim_rolled_back_leaves_the_floors_as_they_were(
    conn: Connection, holder: Connection, worker: Worker, crowd: Crowd
) -> None:
    crowd()
    first, second = defer(conn, "a"), defer(conn, "a")
    begin(worker.conn)
    assert worker.fetch() == [first]
    worker.conn.execute("rollback")
    assert worker.fetch() == [first]
    assert worker.fetch() == []
    worker.finish(first)
    assert worker.fetch() == [second]


def test_the_job_of_a_dead_worker_goes_first(
    conn: Connection, connect: Connect, holder: Connection, worker: Worker, crowd: Crowd
) -> None:
    crowd()
    first, second = defer(conn, "a"), defer(conn, "a")
    dead = Worker(connect(autocommit=True))
    assert dead.fetch() == [first]
    # Its place may even be another one by then.
    conn.execute("update procrastinate_jobs set priority = -1 where id = %s", (first,))
    third = defer(conn, "a", priority=-1)
    dead.die()
    assert rescue(conn) == [first]
    for job, attempt in ((second, 1), (first, 2), (third, 1)):
        assert worker.fetch(10) == [job]
        worker.finish(job, attempt)


def test_repair_does_without_floors(
    conn: Connection, holder: Connection, worker: Worker, crowd: Crowd
) -> None:
    crowd()
    # As where rows were replicated, but not the sequences that they belong to.
    conn.execute("update procrastinate_lock_floors set priorities = '{0}', first_ids = '{99999}'")
    job = defer(conn, "a")
    assert worker.fetch() == []
    conn.execute("select procrastinate_repair()")
    assert worker.fetch() == [job]


def test_with_the_snapshot_gone_looks_begin_at_the_start_again(
    conn: Connection, holder: Connection, worker: Worker, crowd: Crowd, wait_until: WaitUntil
) -> None:
    crowd()
    holder.rollback()

    def over() -> bool:
        conn.execute("vacuum procrastinate_jobs")
        # To be asked now, not in ten seconds.
        conn.execute("select _procrastinate_set_floor('until locks', 1)")
        run_through(conn, worker, 1)
        return not has_floors(conn)

    wait_until(over, timeout=60)


def test_a_job_run_afresh_goes_first_however_many_events_are_to_be_read(
    conn: Connection, holder: Connection, worker: Worker, crowd: Crowd
) -> None:
    old = defer(conn, "a")
    assert worker.fetch() == [old]
    worker.finish(old)
    crowd()
    first, second = defer(conn, "a"), defer(conn, "a")
    assert worker.fetch() == [first]
    worker.finish(first)
    # A fetch of one job reads events of twenty locks.
    for number in range(50):
        defer(conn, f"other {number}")
    conn.execute("select procrastinate_rerun_job(%s)", (old,))
    assert worker.fetch() == [old]
    worker.finish(old, 2)
    assert second in worker.fetch(100)


def test_many_edits_at_once_are_read_before_the_next_job_starts(
    conn: Connection, holder: Connection, worker: Worker, crowd: Crowd
) -> None:
    crowd()
    jobs = [defer(conn, "a") for _ in range(150)]
    run = worker.fetch()
    assert run == jobs[:1]
    # More than are read at a time: until they are, looks begin at the start.
    conn.execute("update procrastinate_jobs set priority = id - %s where status = 'todo'", run)
    worker.finish(run[0])
    assert worker.fetch() == jobs[-1:]
