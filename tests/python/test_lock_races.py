"""No job of a lock is stranded, overtaken or run beside another, whatever the interleaving.

Each test is one interleaving that breaks the obvious algorithm (whoever finishes a job wakes the
next one): see docs/decisions/0002-locks.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from concurrency import (
    ISOLATION_LEVELS,
    Connection,
    Worker,
    defer,
    drain,
    in_background,
    is_blocked,
    paused,
    rescue,
    status,
    value,
)

Connect = Callable[..., Connection]
WaitUntil = Callable[..., Any]


@pytest.fixture
def worker(connect: Connect) -> Worker:
    return Worker(connect(autocommit=True))


@pytest.fixture
def other(connect: Connect) -> Worker:
    return Worker(connect(autocommit=True))


def begin(conn: Connection, isolation: str = "read committed") -> None:
    """Open a transaction whose snapshot, where it keeps one, is taken now."""
    conn.execute(f"begin isolation level {isolation}")
    conn.execute("select count(*) from procrastinate_jobs")


def assert_nothing_is_stranded(worker: Worker, *expected: int) -> None:
    """All that waits is run, in this order."""
    assert drain(worker) == list(expected)
    waiting = "select count(*) from procrastinate_jobs where status in ('todo', 'doing')"
    assert value(worker.conn, waiting) == 0


# Two fetches


def test_two_fetches_at_once_never_claim_one_lock_twice(
    conn: Connection, worker: Worker, other: Worker
) -> None:
    first, second = defer(conn, "a"), defer(conn, "a")
    worker.conn.execute("begin")
    assert worker.fetch(10) == [first]
    assert other.fetch(10) == []
    worker.conn.execute("commit")
    assert other.fetch(10) == []
    worker.finish(first)
    assert other.fetch(10) == [second]


def test_two_fetches_at_once_share_many_locks_without_an_error(
    conn: Connection, worker: Worker, other: Worker
) -> None:
    jobs = [defer(conn, str(number % 20)) for number in range(40)]
    worker.conn.execute("begin")
    claimed = worker.fetch(7)
    with in_background() as call:
        also_claimed = call(other.fetch, 100).result(timeout=10)
    worker.conn.execute("commit")
    assert not set(claimed) & set(also_claimed)
    rest = other.fetch(100)
    assert sorted(claimed + also_claimed + rest) == jobs[:20]


def test_a_fetch_rolled_back_leaves_the_job_to_the_next(
    conn: Connection, worker: Worker, other: Worker
) -> None:
    job = defer(conn, "a")
    worker.conn.execute("begin")
    assert worker.fetch() == [job]
    worker.conn.execute("rollback")
    assert other.fetch() == [job]


def test_a_later_job_is_fetched_while_another_session_settles(
    conn: Connection, worker: Worker, other: Worker
) -> None:
    """Who is next of a lock is decided by one session at a time; the others go on with what is ready."""
    defer(conn, "a")
    worker.conn.execute("begin")
    worker.fetch()
    free = defer(conn)
    locked = defer(conn, "b")
    assert other.fetch(10) == [free]
    worker.conn.execute("commit")
    assert other.fetch(10) == [locked]


# A fetch against whatever ends or removes the job before


def release_by_finish(worker: Worker, job: int, conn: Connection) -> None:
    worker.finish(job, conn=conn)


def release_by_finish_batch(worker: Worker, job: int, conn: Connection) -> None:
    assert worker.finish_many([job], conn=conn) == []


def release_by_delete(worker: Worker, job: int, conn: Connection) -> None:
    conn.execute("delete from procrastinate_jobs where id = %s", (job,))


def release_by_failure(worker: Worker, job: int, conn: Connection) -> None:
    conn.execute("select procrastinate_fail_job(%s, 1, 'broken')", (job,))


@pytest.mark.parametrize("isolation", ISOLATION_LEVELS)
@pytest.mark.parametrize(
    "release",
    [release_by_finish, release_by_finish_batch, release_by_delete, release_by_failure],
)
def test_fetch_against_an_end_left_open(
    conn: Connection,
    connect: Connect,
    worker: Worker,
    other: Worker,
    release: Callable[[Worker, int, Connection], None],
    isolation: str,
) -> None:
    """The end is open in the caller's transaction while the next job is committed, and fetched for."""
    running = defer(conn, "a")
    assert worker.fetch() == [running]
    caller = connect(autocommit=True)
    begin(caller, isolation)
    release(worker, running, caller)
    following = defer(conn, "a")
    assert other.fetch(10) == []
    caller.execute("commit")
    assert other.fetch(10) == [following]


@pytest.mark.parametrize("isolation", ISOLATION_LEVELS)
def test_finish_that_does_not_see_the_job_that_follows(
    conn: Connection, connect: Connect, worker: Worker, other: Worker, isolation: str
) -> None:
    """The snapshot of the finish is older than the job that it has to release."""
    running = defer(conn, "a")
    assert worker.fetch() == [running]
    caller = connect(autocommit=True)
    begin(caller, isolation)
    following = defer(conn, "a")
    assert other.fetch(10) == []
    worker.finish(running, conn=caller)
    assert other.fetch(10) == []
    caller.execute("commit")
    assert other.fetch(10) == [following]


@pytest.mark.parametrize("isolation", ISOLATION_LEVELS)
def test_fetch_against_a_retry_left_open(
    conn: Connection, connect: Connect, worker: Worker, other: Worker, isolation: str
) -> None:
    running, following = defer(conn, "a"), defer(conn, "a")
    assert worker.fetch() == [running]
    caller = connect(autocommit=True)
    begin(caller, isolation)
    caller.execute("select procrastinate_retry_job(%s, 1)", (running,))
    assert other.fetch(10) == []
    caller.execute("commit")
    assert other.fetch(10) == [running]
    other.finish(running, attempt=2)
    assert_nothing_is_stranded(worker, following)


def test_a_job_that_waits_for_its_retry_keeps_its_place(
    conn: Connection, worker: Worker, other: Worker
) -> None:
    running, following = defer(conn, "a"), defer(conn, "a", queue_name="elsewhere")
    assert worker.fetch() == [running]
    worker.conn.execute("select procrastinate_retry_job(%s, 1, '1 hour')", (running,))
    assert other.fetch(10) == []
    conn.execute("update procrastinate_jobs set scheduled_at = null where id = %s", (running,))
    assert drain(other) == [running, following]


def test_fetch_against_a_rescue_left_open(
    conn: Connection, connect: Connect, worker: Worker, other: Worker
) -> None:
    running, following = defer(conn, "a"), defer(conn, "a")
    assert worker.fetch() == [running]
    worker.die()
    rescuer = connect(autocommit=True)
    rescuer.execute("begin")
    assert rescue(rescuer) == [running]
    assert other.fetch(10) == []
    rescuer.execute("commit")
    assert other.fetch(10) == [running]
    other.finish(running, attempt=2)
    assert_nothing_is_stranded(other, following)


@pytest.mark.parametrize("isolation", ISOLATION_LEVELS)
def test_fetch_against_a_cancel_of_the_head_left_open(
    conn: Connection, connect: Connect, other: Worker, isolation: str
) -> None:
    head, following = defer(conn, "a"), defer(conn, "a")
    caller = connect(autocommit=True)
    begin(caller, isolation)
    caller.execute("select procrastinate_cancel_job(%s)", (head,))
    assert other.fetch(10) == []
    caller.execute("commit")
    assert_nothing_is_stranded(other, following)


def test_fetch_against_a_delete_of_the_head_left_open(
    conn: Connection, connect: Connect, other: Worker
) -> None:
    head, following = defer(conn, "a"), defer(conn, "a")
    caller = connect(autocommit=True)
    caller.execute("begin")
    caller.execute("delete from procrastinate_jobs where id = %s", (head,))
    assert other.fetch(10) == []
    caller.execute("commit")
    assert_nothing_is_stranded(other, following)


def test_fetch_against_a_hand_back_left_open(
    conn: Connection, connect: Connect, worker: Worker, other: Worker
) -> None:
    running, following = defer(conn, "a"), defer(conn, "a")
    assert worker.fetch() == [running]
    caller = connect(autocommit=True)
    caller.execute("begin")
    caller.execute("select procrastinate_release_jobs(%s, %s)", (worker.id, [running]))
    assert other.fetch(10) == []
    caller.execute("commit")
    assert other.fetch() == [running]
    other.finish(running, attempt=2)
    assert_nothing_is_stranded(other, following)


# Order of commits


def test_an_earlier_job_committed_after_a_later_one_was_claimed(
    conn: Connection, connect: Connect, worker: Worker, other: Worker
) -> None:
    slow = connect(autocommit=True)
    slow.execute("begin")
    earlier = defer(slow, "a")
    later = defer(conn, "a")
    assert earlier < later
    worker.conn.execute("begin")
    assert worker.fetch(10) == [later]
    slow.execute("commit")
    assert other.fetch(10) == []
    worker.conn.execute("commit")
    assert other.fetch(10) == []
    worker.finish(later)
    assert other.fetch(10) == [earlier]


def test_an_earlier_job_committed_after_a_later_one_became_ready(
    conn: Connection, connect: Connect, worker: Worker
) -> None:
    slow = connect(autocommit=True)
    slow.execute("begin")
    earlier = defer(slow, "a")
    later = defer(conn, "a", queue_name="b")
    assert worker.fetch(10, ["a"]) == []
    slow.execute("commit")
    assert drain(worker) == [earlier, later]


def test_order_holds_while_the_settling_session_stays_open(
    conn: Connection, worker: Worker, other: Worker
) -> None:
    """A job made ready is overtaken by a more urgent one that nobody has settled yet."""
    low = defer(conn, "a", queue_name="q")
    assert worker.fetch(1, ["other"]) == []  # makes it ready, for somebody else
    settling = defer(conn, "b", queue_name="other")
    worker.conn.execute("begin")
    assert worker.fetch(1, ["other"]) == [settling]
    high = defer(conn, "a", queue_name="q", priority=9)
    assert other.fetch(10, ["q"]) == []
    worker.conn.execute("commit")
    assert other.fetch(10, ["q"]) == [high]
    other.finish(high)
    assert other.fetch(10, ["q"]) == [low]


def test_producers_do_not_wait_for_each_other(conn: Connection, connect: Connect, other: Worker) -> None:
    producers = [connect(autocommit=True) for _ in range(3)]
    for producer in producers:
        producer.execute("set lock_timeout = '100 ms'")
        producer.execute("begin")
    jobs = [defer(producer, lock) for producer in producers for lock in ("a", "b")]
    for producer in reversed(producers):
        producer.execute("commit")
    assert sorted(drain(other)) == jobs


# Opposite orders over two locks


def test_two_cancels_in_opposite_order(
    conn: Connection, connect: Connect, other: Worker
) -> None:
    heads = {lock: defer(conn, lock) for lock in "ab"}
    seconds = {lock: defer(conn, lock) for lock in "ab"}
    thirds = {lock: defer(conn, lock) for lock in "ab"}
    one, two = connect(autocommit=True), connect(autocommit=True)
    for caller in (one, two):
        caller.execute("set lock_timeout = '5 s'")
        caller.execute("begin")
    cancel = "select procrastinate_cancel_job(%s)"
    one.execute(cancel, (heads["a"],))
    two.execute(cancel, (heads["b"],))
    one.execute(cancel, (seconds["b"],))
    two.execute(cancel, (seconds["a"],))
    one.execute("commit")
    two.execute("commit")
    assert_nothing_is_stranded(other, thirds["a"], thirds["b"])


def test_two_batches_over_two_locks_in_opposite_order(
    conn: Connection, connect: Connect, worker: Worker, other: Worker
) -> None:
    running = [defer(conn, lock) for lock in ("a", "b", "c", "d")]
    following = [defer(conn, lock) for lock in ("a", "b", "c", "d")]
    assert worker.fetch(10) == running
    one, two = connect(autocommit=True), connect(autocommit=True)
    for caller in (one, two):
        caller.execute("set lock_timeout = '5 s'")
        caller.execute("begin")
    assert worker.finish_many([running[0]], conn=one) == []
    assert worker.finish_many([running[3]], conn=two) == []
    assert worker.finish_many([running[2]], conn=one) == []
    assert worker.finish_many([running[1]], conn=two) == []
    one.execute("commit")
    two.execute("commit")
    assert sorted(drain(other)) == following


def test_two_batches_over_the_same_jobs_in_opposite_order(
    conn: Connection, connect: Connect, worker: Worker, wait_until: WaitUntil
) -> None:
    first, second = defer(conn, "a"), defer(conn, "b")
    assert worker.fetch(10) == [first, second]
    one, two = connect(autocommit=True), connect(autocommit=True)
    with in_background() as call, paused(conn, "procrastinate_jobs", "update") as go_on:
        ahead = call(worker.finish_many, [first, second], one)
        wait_until(lambda: is_blocked(conn, one))
        behind = call(worker.finish_many, [second, first], two)
        wait_until(lambda: is_blocked(conn, two))
        go_on()
        assert ahead.result(timeout=10) == []
        assert sorted(row[1:] for row in behind.result(timeout=10)) == [
            (first, "not running"),
            (second, "not running"),
        ]


# A person in psql


@pytest.mark.parametrize("held", ["head", "following"])
def test_finishing_does_not_wait_for_a_person_who_holds_a_waiting_job(
    conn: Connection, connect: Connect, worker: Worker, other: Worker, held: str, wait_until: WaitUntil
) -> None:
    running, head, following = (defer(conn, "a") for _ in range(3))
    assert worker.fetch() == [running]
    person = connect(autocommit=True)
    person.execute("begin")
    job = {"head": head, "following": following}[held]
    person.execute("select from procrastinate_jobs where id = %s for update", (job,))
    worker.conn.execute("set lock_timeout = '1 s'")
    worker.finish(running)
    other.conn.execute("set lock_timeout = '1 s'")
    fetched = other.fetch(10)
    assert fetched == ([head] if held == "following" else [])
    person.execute("commit")
    if held == "head":
        fetched = wait_until(lambda: other.fetch(10))
        assert fetched == [head]
    other.finish(head)
    assert wait_until(lambda: other.fetch(10)) == [following]


def test_a_held_head_does_not_let_the_next_job_overtake(
    conn: Connection, connect: Connect, other: Worker, wait_until: WaitUntil
) -> None:
    head, following = defer(conn, "a"), defer(conn, "a")
    person = connect(autocommit=True)
    person.execute("begin")
    person.execute("update procrastinate_jobs set args = '{\"n\": 1}' where id = %s", (head,))
    assert other.fetch(10) == []
    assert other.fetch(10) == []
    person.execute("rollback")
    assert wait_until(lambda: other.fetch(10)) == [head]
    other.finish(head)
    assert_nothing_is_stranded(other, following)


def test_a_person_moves_the_head_to_another_lock(
    conn: Connection, connect: Connect, other: Worker, wait_until: WaitUntil
) -> None:
    head, following = defer(conn, "a"), defer(conn, "a")
    person = connect(autocommit=True)
    person.execute("begin")
    person.execute("update procrastinate_jobs set lock = 'b' where id = %s", (head,))
    assert other.fetch(10) == []
    person.execute("commit")
    assert wait_until(lambda: sorted(other.fetch(10))) == [head, following]


# Between two statements of one call


def test_a_head_that_changed_before_it_was_made_ready(
    conn: Connection, connect: Connect, worker: Worker, wait_until: WaitUntil
) -> None:
    """A more urgent job is committed after the events were taken and before the head is looked up."""
    low = defer(conn, "a")
    with in_background() as call, paused(conn, "procrastinate_lock_events", "delete") as go_on:
        fetch = call(worker.fetch, 10)
        wait_until(lambda: is_blocked(conn, worker.conn))
        high = defer(conn, "a", priority=9)
        go_on()
        assert fetch.result(timeout=10) == [high]
    worker.finish(high)
    assert_nothing_is_stranded(worker, low)


def test_a_head_that_changed_after_it_was_made_ready(
    conn: Connection, worker: Worker, other: Worker, wait_until: WaitUntil
) -> None:
    low = defer(conn, "a")
    with in_background() as call, paused(conn, "procrastinate_jobs", "update") as go_on:
        fetch = call(worker.fetch, 10)
        wait_until(lambda: is_blocked(conn, worker.conn))
        high = defer(conn, "a", priority=9)
        go_on()
        first = fetch.result(timeout=10)
    assert first in ([], [high])
    assert (first or worker.fetch(10)) == [high]
    worker.finish(high)
    assert_nothing_is_stranded(other, low)


def test_a_head_that_is_cancelled_while_it_is_made_ready(
    conn: Connection, connect: Connect, worker: Worker, wait_until: WaitUntil
) -> None:
    head, following = defer(conn, "a"), defer(conn, "a")
    caller = connect(autocommit=True)
    with in_background() as call, paused(conn, "procrastinate_lock_events", "delete") as go_on:
        fetch = call(worker.fetch, 10)
        wait_until(lambda: is_blocked(conn, worker.conn))
        caller.execute("begin")
        caller.execute("select procrastinate_cancel_job(%s)", (head,))
        go_on()
        assert fetch.result(timeout=10) == []
    caller.execute("commit")
    assert wait_until(lambda: worker.fetch(10)) == [following]


def test_a_ready_job_is_claimed_while_a_more_urgent_one_is_settled(
    conn: Connection, worker: Worker, other: Worker, wait_until: WaitUntil
) -> None:
    """The claim of the overtaken job is open: the urgent one must not become ready beside it."""
    low = defer(conn, "a", queue_name="low")
    assert worker.fetch(1, ["none"]) == []
    worker.conn.execute("begin")
    assert worker.fetch(1, ["low"]) == [low]
    high = defer(conn, "a", queue_name="high", priority=9)
    assert other.fetch(10) == []
    worker.conn.execute("commit")
    assert other.fetch(10) == []
    worker.finish(low)
    assert wait_until(lambda: other.fetch(10)) == [high]


def test_a_unique_violation_never_surfaces(conn: Connection, worker: Worker, other: Worker) -> None:
    """Not even when a person makes a second job of a lock ready by hand: the edit itself is refused."""
    first, second = defer(conn, "a"), defer(conn, "a")
    assert worker.fetch() == [first]
    with pytest.raises(psycopg.errors.UniqueViolation):
        conn.execute("update procrastinate_jobs set ready_seq = 1 where id = %s", (second,))
    assert other.fetch(10) == []
    assert status(conn, second) == "todo"


def test_readiness_taken_away_by_hand_comes_back(conn: Connection, worker: Worker) -> None:
    job = defer(conn, "a")
    assert worker.fetch(1, ["none"]) == []
    conn.execute("update procrastinate_jobs set ready_seq = null where id = %s", (job,))
    assert worker.fetch() == [job]


# Queues and time


def test_a_job_in_a_paused_queue_keeps_its_place(conn: Connection, worker: Worker) -> None:
    head, following = defer(conn, "a", queue_name="paused"), defer(conn, "a", queue_name="open")
    conn.execute("select procrastinate_pause_queue('paused')")
    assert worker.fetch(10) == []
    conn.execute("select procrastinate_resume_queue('paused')")
    assert drain(worker) == [head, following]


def test_a_scheduled_job_keeps_its_place(conn: Connection, worker: Worker, wait_until: WaitUntil) -> None:
    conn.execute(
        "insert into procrastinate_jobs (task_name, lock, scheduled_at)"
        " values ('later', 'a', clock_timestamp() + interval '200 milliseconds')"
    )
    following = defer(conn, "a")
    assert worker.fetch(10) == []
    head = wait_until(lambda: worker.fetch(10))
    assert head != [following]
    worker.finish(head[0])
    assert_nothing_is_stranded(worker, following)
