"""No job of a lock is stranded, overtaken or run beside another, whatever the interleaving.

Each test is one interleaving that breaks the obvious algorithm (whoever finishes a job wakes the
next one): see docs/decisions/0002-locks.md.
"""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest
from concurrency import (
    ISOLATION_LEVELS,
    SUCCEEDED,
    Connect,
    Connection,
    WaitUntil,
    Worker,
    begin,
    blocked,
    cancel,
    defer,
    delete,
    drain,
    fall_due,
    hold,
    never_wait,
    paused,
    refused,
    rescue,
    status,
    value,
)

any_isolation = pytest.mark.parametrize("isolation", ISOLATION_LEVELS)


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
    begin(worker.conn)
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
    begin(worker.conn)
    claimed = worker.fetch(7)
    never_wait(other.conn)
    also_claimed = other.fetch(100)
    worker.conn.execute("commit")
    assert sorted(claimed + also_claimed + other.fetch(100)) == jobs[:20]


def test_a_fetch_rolled_back_leaves_the_job_to_the_next(
    conn: Connection, worker: Worker, other: Worker
) -> None:
    job = defer(conn, "a")
    begin(worker.conn)
    assert worker.fetch() == [job]
    worker.conn.execute("rollback")
    assert other.fetch() == [job]


def test_other_jobs_are_fetched_while_a_session_settles(
    conn: Connection, worker: Worker, other: Worker
) -> None:
    """One session at a time decides who is next; the others go on with what is ready."""
    defer(conn, "a")
    begin(worker.conn)
    worker.fetch()
    free = defer(conn)
    locked = defer(conn, "b")
    assert other.fetch(10) == [free]
    worker.conn.execute("commit")
    assert other.fetch(10) == [locked]


# A fetch against an end, a retry, a rescue, a cancel, a delete that is left open


def end_by_finish(worker: Worker, job: int, conn: Connection) -> None:
    worker.finish(job, conn=conn)


def end_by_failure(worker: Worker, job: int, conn: Connection) -> None:
    worker.end("fail", job, conn=conn)


def end_by_batch(worker: Worker, job: int, conn: Connection) -> None:
    assert worker.finish_many({job: SUCCEEDED}, conn=conn) == []


def end_by_delete(worker: Worker, job: int, conn: Connection) -> None:
    delete(conn, job)


def end_by_abort(worker: Worker, job: int, conn: Connection) -> None:
    assert cancel(conn, job, abort=True) == "doing"
    worker.end("fail", job, conn=conn)


End = Callable[[Worker, int, Connection], None]
any_end = pytest.mark.parametrize(
    "end", [end_by_finish, end_by_failure, end_by_batch, end_by_delete, end_by_abort]
)


@any_isolation
@any_end
def test_fetch_against_an_end_left_open(
    conn: Connection, caller: Connection, worker: Worker, other: Worker, end: End, isolation: str
) -> None:
    """The next job of the lock is committed and fetched for while the end is still open."""
    running = defer(conn, "a")
    assert worker.fetch() == [running]
    begin(caller, isolation)
    end(worker, running, caller)
    following = defer(conn, "a")
    assert other.fetch(10) == []
    caller.execute("commit")
    assert other.fetch(10) == [following]


@any_isolation
@any_end
def test_an_end_that_does_not_see_the_job_that_follows(
    conn: Connection, caller: Connection, worker: Worker, other: Worker, end: End, isolation: str
) -> None:
    """The snapshot of the end is older than the job that it has to release."""
    running = defer(conn, "a")
    assert worker.fetch() == [running]
    begin(caller, isolation)
    following = defer(conn, "a")
    assert other.fetch(10) == []
    end(worker, running, caller)
    assert other.fetch(10) == []
    caller.execute("commit")
    assert other.fetch(10) == [following]


@any_end
def test_fetch_against_an_end_rolled_back(
    conn: Connection, caller: Connection, worker: Worker, other: Worker, end: End
) -> None:
    running, following = defer(conn, "a"), defer(conn, "a")
    assert worker.fetch() == [running]
    begin(caller)
    end(worker, running, caller)
    assert other.fetch(10) == []
    caller.execute("rollback")
    assert other.fetch(10) == []
    worker.finish(running)
    assert other.fetch(10) == [following]


@any_isolation
def test_fetch_against_a_retry_left_open(
    conn: Connection, caller: Connection, worker: Worker, other: Worker, isolation: str
) -> None:
    running, following = defer(conn, "a"), defer(conn, "a")
    assert worker.fetch() == [running]
    begin(caller, isolation)
    worker.end("retry", running, conn=caller)
    assert other.fetch(10) == []
    caller.execute("commit")
    assert other.fetch(10) == [running]
    other.finish(running, attempt=2)
    assert_nothing_is_stranded(worker, following)


def test_fetch_against_a_rescue_left_open(
    conn: Connection, caller: Connection, worker: Worker, other: Worker
) -> None:
    running, following = defer(conn, "a"), defer(conn, "a")
    assert worker.fetch() == [running]
    worker.die()
    begin(caller)
    assert rescue(caller) == [running]
    assert other.fetch(10) == []
    caller.execute("commit")
    assert other.fetch(10) == [running]
    other.finish(running, attempt=2)
    assert_nothing_is_stranded(other, following)


def test_fetch_against_a_hand_back_left_open(
    conn: Connection, caller: Connection, worker: Worker, other: Worker
) -> None:
    running, following = defer(conn, "a"), defer(conn, "a")
    assert worker.fetch() == [running]
    begin(caller)
    assert worker.release(running, conn=caller) == [running]
    assert other.fetch(10) == []
    caller.execute("commit")
    assert other.fetch() == [running]
    other.finish(running, attempt=2)
    assert_nothing_is_stranded(other, following)


@any_isolation
@pytest.mark.parametrize("remove", [cancel, delete])
def test_fetch_against_a_removal_of_the_head_left_open(
    conn: Connection,
    caller: Connection,
    other: Worker,
    remove: Callable[[Connection, int], object],
    isolation: str,
) -> None:
    head, following = defer(conn, "a"), defer(conn, "a")
    begin(caller, isolation)
    remove(caller, head)
    assert other.fetch(10) == []
    caller.execute("commit")
    assert_nothing_is_stranded(other, following)


# A cancel, a delete, a rescue against a fetch that is left open


def test_cancel_against_a_fetch_left_open_finds_the_job_running(
    conn: Connection, caller: Connection, worker: Worker, other: Worker
) -> None:
    head, following = defer(conn, "a"), defer(conn, "a")
    begin(worker.conn)
    assert worker.fetch() == [head]
    with blocked(conn, caller, cancel, caller, head) as cancelled:
        worker.conn.execute("commit")
    assert cancelled.result() == "doing"
    worker.finish(head)
    assert_nothing_is_stranded(other, following)


def test_cancel_against_a_fetch_rolled_back_lets_the_next_job_run(
    conn: Connection, caller: Connection, worker: Worker, other: Worker
) -> None:
    head, following = defer(conn, "a"), defer(conn, "a")
    begin(worker.conn)
    assert worker.fetch() == [head]
    with blocked(conn, caller, cancel, caller, head) as cancelled:
        worker.conn.execute("rollback")
    assert cancelled.result() == "cancelled"
    assert_nothing_is_stranded(other, following)


@pytest.mark.parametrize("ending", ["commit", "rollback"])
def test_delete_against_a_fetch_left_open_lets_the_next_job_run(
    conn: Connection, caller: Connection, worker: Worker, other: Worker, ending: str
) -> None:
    head, following = defer(conn, "a"), defer(conn, "a")
    begin(worker.conn)
    assert worker.fetch() == [head]
    with blocked(conn, caller, delete, caller, head):
        worker.conn.execute(ending)
    with refused("PC001"):
        worker.finish(head)
    assert_nothing_is_stranded(other, following)


def test_rescue_against_a_fetch_left_open_comes_back_for_the_job(
    conn: Connection, worker: Worker, other: Worker
) -> None:
    """The worker was given up while its fetch was under way."""
    head, following = defer(conn, "a"), defer(conn, "a")
    worker.die()
    begin(worker.conn)
    assert worker.fetch() == [head]
    assert rescue(conn) == []
    worker.conn.execute("commit")
    assert other.fetch() == []
    assert rescue(conn) == [head]
    assert_nothing_is_stranded(other, head, following)


# Order of commits


def test_an_earlier_job_committed_after_a_later_one_was_claimed(
    conn: Connection, caller: Connection, worker: Worker, other: Worker
) -> None:
    begin(caller)
    earlier = defer(caller, "a")
    later = defer(conn, "a")
    assert earlier < later
    begin(worker.conn)
    assert worker.fetch(10) == [later]
    caller.execute("commit")
    assert other.fetch(10) == []
    worker.conn.execute("commit")
    assert other.fetch(10) == []
    worker.finish(later)
    assert other.fetch(10) == [earlier]


def test_an_earlier_job_committed_after_a_later_one_became_ready(
    conn: Connection, caller: Connection, worker: Worker
) -> None:
    begin(caller)
    earlier = defer(caller, "a")
    later = defer(conn, "a", queue_name="b")
    assert worker.fetch(10, ["none"]) == []
    caller.execute("commit")
    assert drain(worker) == [earlier, later]


def test_order_holds_while_the_settling_session_stays_open(
    conn: Connection, worker: Worker, other: Worker
) -> None:
    """A job made ready is overtaken by a more urgent one that nobody has settled yet."""
    low = defer(conn, "a", queue_name="q")
    assert worker.fetch(1, ["other"]) == []  # makes it ready, for somebody else
    settling = defer(conn, "b", queue_name="other")
    begin(worker.conn)
    assert worker.fetch(1, ["other"]) == [settling]
    high = defer(conn, "a", queue_name="q", priority=9)
    assert other.fetch(10, ["q"]) == []
    worker.conn.execute("commit")
    assert other.fetch(10, ["q"]) == [high]
    other.finish(high)
    assert other.fetch(10, ["q"]) == [low]


def test_a_more_urgent_job_waits_for_the_claim_that_is_left_open(
    conn: Connection, worker: Worker, other: Worker
) -> None:
    """The claimed job still looks ready: the urgent one must not become ready beside it."""
    low = defer(conn, "a", queue_name="low")
    assert worker.fetch(1, ["none"]) == []
    begin(worker.conn)
    assert worker.fetch(1, ["low"]) == [low]
    high = defer(conn, "a", queue_name="high", priority=9)
    assert other.fetch(10) == []
    worker.conn.execute("commit")
    assert other.fetch(10) == []
    worker.finish(low)
    assert other.fetch(10) == [high]


def test_producers_do_not_wait_for_each_other(
    conn: Connection, connect: Connect, other: Worker
) -> None:
    producers = [connect(autocommit=True) for _ in range(3)]
    for producer in producers:
        begin(producer)
        never_wait(producer)
    jobs = [defer(producer, lock) for producer in producers for lock in ("a", "b")]
    for producer in reversed(producers):
        producer.execute("commit")
    assert sorted(drain(other)) == jobs


# Opposite orders over two locks


@pytest.fixture
def two_callers(connect: Connect) -> tuple[Connection, Connection]:
    """Two open transactions that must not wait for each other."""
    callers = connect(autocommit=True), connect(autocommit=True)
    for each in callers:
        begin(each)
        never_wait(each)
    return callers


def test_two_cancels_in_opposite_order(
    conn: Connection, two_callers: tuple[Connection, Connection], other: Worker
) -> None:
    a1, b1, a2, b2, a3, b3 = (defer(conn, lock) for lock in "ababab")
    one, two = two_callers
    cancel(one, a1)
    cancel(two, b1)
    cancel(one, b2)
    cancel(two, a2)
    one.execute("commit")
    two.execute("commit")
    assert_nothing_is_stranded(other, a3, b3)


def test_two_finishes_in_opposite_order(
    conn: Connection, two_callers: tuple[Connection, Connection], worker: Worker, other: Worker
) -> None:
    a1, b1, a2, b2, a3, b3 = (defer(conn, lock) for lock in "ababab")
    assert worker.fetch(10) == [a1, b1]
    one, two = two_callers
    worker.finish(a1, conn=one)
    worker.finish(b1, conn=two)
    cancel(one, b2)
    cancel(two, a2)
    one.execute("commit")
    two.execute("commit")
    assert_nothing_is_stranded(other, a3, b3)


def test_two_batches_over_two_locks_in_opposite_order(
    conn: Connection, two_callers: tuple[Connection, Connection], worker: Worker, other: Worker
) -> None:
    """One finishes what runs of both locks, the other defers to both."""
    a1, b1 = defer(conn, "a"), defer(conn, "b")
    assert worker.fetch(10) == [a1, b1]
    one, two = two_callers
    batch = """
        select array_agg(id order by ordinal) from procrastinate_defer_jobs(
            '[{"task_name": "task", "lock": "b"}, {"task_name": "task", "lock": "a"}]'
        )
    """
    b2, a2 = value(two, batch)
    assert worker.finish_many({a1: SUCCEEDED, b1: SUCCEEDED}, conn=one) == []
    b3, a3 = value(two, batch)
    two.execute("commit")
    one.execute("commit")
    assert sorted(drain(other)) == [b2, a2, b3, a3]


def test_two_batches_over_the_same_jobs_in_opposite_order(
    conn: Connection, connect: Connect, person: Connection, worker: Worker, other: Worker
) -> None:
    """Both come to a job that somebody holds; neither holds by then what the other wants."""
    a1, b1, a2, b2 = (defer(conn, lock) for lock in "abab")
    assert worker.fetch(10) == [a1, b1]
    one, two = connect(autocommit=True), connect(autocommit=True)
    begin(person)
    hold(person, a1)
    forth, back = {a1: SUCCEEDED, b1: SUCCEEDED}, {b1: SUCCEEDED, a1: SUCCEEDED}
    with (
        blocked(conn, one, worker.finish_many, forth, conn=one) as ahead,
        blocked(conn, two, worker.finish_many, back, conn=two) as behind,
    ):
        person.execute("commit")
    assert ahead.result() == []
    assert sorted(behind.result()) == [(a1, "not running"), (b1, "not running")]
    assert_nothing_is_stranded(other, a2, b2)


# A person in psql


@pytest.mark.parametrize("held", ["head", "following"])
def test_finishing_does_not_wait_for_a_person_who_holds_a_waiting_job(
    conn: Connection,
    person: Connection,
    worker: Worker,
    other: Worker,
    held: str,
    wait_until: WaitUntil,
) -> None:
    running, head, following = (defer(conn, "a") for _ in range(3))
    assert worker.fetch() == [running]
    begin(person)
    hold(person, head if held == "head" else following)
    never_wait(worker.conn)
    worker.finish(running)
    never_wait(other.conn)
    assert other.fetch(10) == ([] if held == "head" else [head])
    person.execute("commit")
    if held == "head":
        assert wait_until(lambda: other.fetch(10)) == [head]
    other.finish(head)
    assert wait_until(lambda: other.fetch(10)) == [following]


def test_a_held_head_does_not_let_the_next_job_overtake(
    conn: Connection, person: Connection, other: Worker, wait_until: WaitUntil
) -> None:
    head, following = defer(conn, "a"), defer(conn, "a")
    begin(person)
    person.execute("update procrastinate_jobs set args = '{\"n\": 1}' where id = %s", (head,))
    assert other.fetch(10) == []
    assert other.fetch(10) == []
    person.execute("rollback")
    assert wait_until(lambda: other.fetch(10)) == [head]
    other.finish(head)
    assert_nothing_is_stranded(other, following)


def test_a_ready_job_that_is_held_is_not_overtaken_and_comes_back(
    conn: Connection, person: Connection, other: Worker, wait_until: WaitUntil
) -> None:
    """It is ready, and a more urgent job should take its place: readiness cannot be taken away."""
    low = defer(conn, "a")
    assert other.fetch(1, ["none"]) == []
    begin(person)
    hold(person, low)
    high = defer(conn, "a", priority=9)
    assert other.fetch(10) == []
    person.execute("commit")
    assert wait_until(lambda: other.fetch(10)) == [high]
    other.finish(high)
    assert_nothing_is_stranded(other, low)


def test_a_person_moves_the_head_to_another_lock(
    conn: Connection, person: Connection, other: Worker, wait_until: WaitUntil
) -> None:
    head, following = defer(conn, "a"), defer(conn, "a")
    begin(person)
    person.execute("update procrastinate_jobs set lock = 'b' where id = %s", (head,))
    assert other.fetch(10) == []
    person.execute("commit")
    assert wait_until(lambda: sorted(other.fetch(10))) == [head, following]


def test_a_person_cannot_make_a_second_job_of_a_lock_ready(
    conn: Connection, worker: Worker, other: Worker
) -> None:
    """The edit itself is refused; no fetch ever meets a unique violation."""
    first, second = defer(conn, "a"), defer(conn, "a")
    assert worker.fetch() == [first]
    with pytest.raises(psycopg.errors.CheckViolation):
        conn.execute("update procrastinate_jobs set ready_seq = 1 where id = %s", (second,))
    assert other.fetch(10) == []
    assert status(conn, second) == "todo"


def test_readiness_taken_away_by_hand_comes_back(conn: Connection, worker: Worker) -> None:
    job = defer(conn, "a")
    assert worker.fetch(1, ["none"]) == []
    conn.execute("update procrastinate_jobs set ready_seq = null where id = %s", (job,))
    assert worker.fetch() == [job]


# A head that changes between two statements of one fetch


EVENTS_TAKEN = "delete on procrastinate_lock_events"
HEAD_MADE_READY = "update of ready_seq on procrastinate_jobs"


@pytest.mark.parametrize(
    "change",
    [
        "select procrastinate_cancel_job({head})",
        "delete from procrastinate_jobs where id = {head}",
        "update procrastinate_jobs set lock = 'b' where id = {head}",
        "update procrastinate_jobs set priority = -1 where id = {head}",
        "update procrastinate_jobs set priority = 9 where id = {following}",
    ],
)
def test_a_head_that_changed_after_the_events_were_taken(
    conn: Connection, worker: Worker, change: str
) -> None:
    head, following = defer(conn, "a"), defer(conn, "a")
    with paused(conn, EVENTS_TAKEN, worker.conn, worker.fetch) as fetch:
        conn.execute(change.format(head=head, following=following))
    assert fetch.result() == [following]
    worker.finish(following)
    rest = [head] if status(conn, head) == "todo" else []
    assert_nothing_is_stranded(worker, *rest)


def test_a_more_urgent_job_comes_after_the_events_were_taken(
    conn: Connection, worker: Worker
) -> None:
    low = defer(conn, "a")
    with paused(conn, EVENTS_TAKEN, worker.conn, worker.fetch) as fetch:
        high = defer(conn, "a", priority=9)
    assert fetch.result() == [high]
    worker.finish(high)
    assert_nothing_is_stranded(worker, low)


def test_a_head_that_was_postponed_after_the_events_were_taken_keeps_its_place(
    conn: Connection, worker: Worker
) -> None:
    head, following = defer(conn, "a"), defer(conn, "a")
    with paused(conn, EVENTS_TAKEN, worker.conn, worker.fetch) as fetch:
        conn.execute(
            "update procrastinate_jobs set scheduled_at = now() + interval '1 day' where id = %s",
            (head,),
        )
    assert fetch.result() == []
    fall_due(conn, head)
    assert_nothing_is_stranded(worker, head, following)


def test_a_head_whose_cancel_is_open_after_the_events_were_taken(
    conn: Connection, caller: Connection, worker: Worker, wait_until: WaitUntil
) -> None:
    head, following = defer(conn, "a"), defer(conn, "a")
    with paused(conn, EVENTS_TAKEN, worker.conn, worker.fetch, 10) as fetch:
        begin(caller)
        cancel(caller, head)
    assert fetch.result() == []
    caller.execute("commit")
    assert wait_until(lambda: worker.fetch(10)) == [following]


def test_a_lock_that_became_free_after_the_events_were_taken(
    conn: Connection, worker: Worker, other: Worker
) -> None:
    running = defer(conn, "a")
    assert worker.fetch() == [running]
    following = defer(conn, "a")
    with paused(conn, EVENTS_TAKEN, other.conn, other.fetch) as fetch:
        worker.finish(running)
    assert fetch.result() == [following]
    other.finish(following)
    assert_nothing_is_stranded(worker)


def test_a_retry_after_the_events_were_taken_goes_first(
    conn: Connection, worker: Worker, other: Worker
) -> None:
    running = defer(conn, "a")
    assert worker.fetch() == [running]
    following = defer(conn, "a")
    with paused(conn, EVENTS_TAKEN, other.conn, other.fetch) as fetch:
        worker.end("retry", running)
    assert fetch.result() == [running]
    other.finish(running, attempt=2)
    assert_nothing_is_stranded(worker, following)


def test_a_more_urgent_job_comes_after_the_head_was_made_ready(
    conn: Connection, worker: Worker, other: Worker
) -> None:
    # It is made ready since there are more than are wanted.
    ready, low = defer(conn, priority=-1), defer(conn, "a")
    with paused(conn, HEAD_MADE_READY, worker.conn, worker.fetch, 1) as fetch:
        high = defer(conn, "a", priority=9)
    assert fetch.result() == [ready]
    worker.finish(ready)
    assert other.fetch(10) == [high]
    other.finish(high)
    assert_nothing_is_stranded(other, low)


def test_a_queue_that_is_paused_after_its_head_was_made_ready(
    conn: Connection, worker: Worker, other: Worker
) -> None:
    ready = defer(conn, queue_name="other", priority=-1)
    head, following = defer(conn, "a"), defer(conn, "a")
    with paused(conn, HEAD_MADE_READY, worker.conn, worker.fetch, 1) as fetch:
        conn.execute("select procrastinate_pause_queue('default')")
    assert fetch.result() == [ready]
    worker.finish(ready)
    assert other.fetch(10) == []
    conn.execute("select procrastinate_resume_queue('default')")
    assert_nothing_is_stranded(other, head, following)


# Queues and time


def test_a_job_in_a_paused_queue_keeps_its_place(conn: Connection, worker: Worker) -> None:
    head, following = defer(conn, "a", queue_name="paused"), defer(conn, "a", queue_name="open")
    conn.execute("select procrastinate_pause_queue('paused')")
    assert worker.fetch(10) == []
    conn.execute("select procrastinate_resume_queue('paused')")
    assert_nothing_is_stranded(worker, head, following)


def test_a_scheduled_job_keeps_its_place(conn: Connection, worker: Worker) -> None:
    head = defer(conn, "a", scheduled_at="9000-01-01")
    following = defer(conn, "a")
    assert worker.fetch(10) == []
    fall_due(conn, head)
    assert_nothing_is_stranded(worker, head, following)


def test_a_job_that_waits_for_its_retry_keeps_its_place(
    conn: Connection, worker: Worker, other: Worker
) -> None:
    running, following = defer(conn, "a"), defer(conn, "a", queue_name="elsewhere")
    assert worker.fetch() == [running]
    worker.conn.execute("select procrastinate_retry_job(%s, 1, '1 hour')", (running,))
    assert other.fetch(10) == []
    fall_due(conn, running)
    assert_nothing_is_stranded(other, running, following)
