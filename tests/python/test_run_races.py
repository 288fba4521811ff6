"""A run is ended once, by whoever holds it; what comes too late changes nothing, and is told so."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from concurrency import (
    ENDS,
    ISOLATION_LEVELS,
    SUCCEEDED,
    Connect,
    Connection,
    Worker,
    begin,
    blocked,
    cancel,
    defer,
    delete,
    drain,
    hold,
    never_wait,
    refused,
    rescue,
    status,
    value,
)

any_isolation = pytest.mark.parametrize("isolation", ISOLATION_LEVELS)
any_end = pytest.mark.parametrize("how", ENDS)
RETRY = {"retry_in": None}
ENDED_AS = {"finish": "succeeded", "fail": "failed", "retry": "todo"}


@pytest.fixture
def running(conn: Connection, worker: Worker) -> int:
    """A job in its first run, by `worker`."""
    job = defer(conn)
    assert worker.fetch() == [job]
    return job


def row(conn: Connection, job_id: int) -> str:
    """All that the table says of a job."""
    return str(value(conn, "select job::text from procrastinate_jobs as job where id = %s", job_id))


def rerun(conn: Connection, job_id: int) -> None:
    conn.execute("select procrastinate_rerun_job(%s)", (job_id,))


def purge(conn: Connection) -> int:
    return int(value(conn, "select procrastinate_purge_jobs('0')"))


def unregister(worker: Worker) -> None:
    worker.conn.execute("select procrastinate_unregister_worker(%s)", (worker.id,))


def declare(conn: Connection, **policy: object) -> None:
    """Declare the policy of the task whose jobs `defer` makes."""
    named = ", ".join(f"{name} => %({name})s" for name in policy)
    conn.execute(f"select procrastinate_declare_task('task', {named})", policy)


# Two ends of one run


@pytest.mark.parametrize("second", ENDS)
@pytest.mark.parametrize("first", ENDS)
def test_a_second_end_waits_for_the_first_and_is_refused(
    conn: Connection, caller: Connection, worker: Worker, running: int, first: str, second: str
) -> None:
    begin(caller)
    worker.end(first, running, conn=caller)
    with blocked(conn, worker.conn, worker.end, second, running) as late:
        caller.execute("commit")
    with refused("PC001"):
        late.result()
    assert status(conn, running) == ENDED_AS[first]


@any_end
def test_a_second_end_takes_the_place_of_one_that_is_rolled_back(
    conn: Connection, caller: Connection, worker: Worker, running: int, how: str
) -> None:
    begin(caller)
    worker.finish(running, conn=caller)
    with blocked(conn, worker.conn, worker.end, how, running) as second:
        caller.execute("rollback")
    second.result()
    assert status(conn, running) == ENDED_AS[how]


def test_a_second_batch_waits_for_the_first_and_is_told_what_was_refused(
    conn: Connection, caller: Connection, worker: Worker
) -> None:
    first, second = defer(conn), defer(conn)
    assert worker.fetch(2) == [first, second]
    begin(caller)
    assert worker.finish_many({first: SUCCEEDED}, conn=caller) == []
    both = {first: RETRY, second: SUCCEEDED}
    with blocked(conn, worker.conn, worker.finish_many, both) as late:
        caller.execute("commit")
    assert late.result() == [(first, "not running")]
    assert status(conn, second) == "succeeded"


@any_end
def test_a_second_end_of_a_job_that_is_not_kept_is_refused(
    conn: Connection, caller: Connection, worker: Worker, running: int, how: str
) -> None:
    declare(conn, keep_finished="0")
    begin(caller)
    worker.finish(running, conn=caller)
    with blocked(conn, worker.conn, worker.end, how, running) as late:
        caller.execute("commit")
    with refused("PC001"):
        late.result()
    assert status(conn, running) is None


@any_end
def test_an_end_of_a_job_that_a_person_deletes_is_refused(
    conn: Connection, caller: Connection, worker: Worker, running: int, how: str
) -> None:
    begin(caller)
    delete(caller, running)
    with blocked(conn, worker.conn, worker.end, how, running) as late:
        caller.execute("commit")
    with refused("PC001"):
        late.result()


# Batches in opposite order


@pytest.mark.parametrize("keep_finished", [None, "0"])
@pytest.mark.parametrize(
    ("first", "second"),
    [(SUCCEEDED, SUCCEEDED), (SUCCEEDED, RETRY), (RETRY, RETRY)],
    ids=["finishes", "a finish and a retry", "retries"],
)
def test_two_batches_in_opposite_order_do_not_deadlock(
    conn: Connection,
    connect: Connect,
    worker: Worker,
    first: dict[str, object],
    second: dict[str, object],
    keep_finished: str | None,
) -> None:
    """Whatever becomes of the jobs (kept or deleted), both batches come to them in one order."""
    declare(conn, keep_finished=keep_finished)
    one_job, other_job = defer(conn), defer(conn)
    assert worker.fetch(2) == [one_job, other_job]
    one, two, person, another = (connect(autocommit=True) for _ in range(4))
    for holder, job in ((person, one_job), (another, other_job)):
        begin(holder)
        hold(holder, job)
    forth, back = {one_job: first, other_job: second}, {other_job: first, one_job: second}
    with (
        blocked(conn, one, worker.finish_many, forth, conn=one) as ahead,
        blocked(conn, two, worker.finish_many, back, conn=two) as behind,
    ):
        person.execute("commit")
        another.execute("commit")
    refusals = ahead.result() + behind.result()
    assert sorted(refusals) == [(one_job, "not running"), (other_job, "not running")]


# An end that comes after a rescue


any_fence = pytest.mark.parametrize("fenced", [True, False], ids=["with worker", "without worker"])


@any_fence
@any_end
def test_a_late_end_of_a_rescued_job_that_waits_is_refused(
    conn: Connection, worker: Worker, running: int, how: str, fenced: bool
) -> None:
    worker.die()
    assert rescue(conn) == [running]
    before = row(conn, running)
    with refused("PC001"):
        worker.end(how, running, fenced=fenced)
    assert row(conn, running) == before


@any_fence
@any_end
def test_a_late_end_leaves_the_run_of_the_successor_alone(
    conn: Connection, worker: Worker, other: Worker, running: int, how: str, fenced: bool
) -> None:
    worker.die()
    assert rescue(conn) == [running]
    assert other.fetch() == [running]
    before = row(conn, running)
    with refused("PC001"):
        worker.end(how, running, fenced=fenced)
    assert row(conn, running) == before
    other.finish(running, attempt=2)


def test_a_late_batch_is_told_what_was_refused(
    conn: Connection, worker: Worker, other: Worker, running: int
) -> None:
    worker.die()
    assert rescue(conn) == [running]
    assert other.fetch() == [running]
    before = row(conn, running)
    assert worker.finish_many({running: SUCCEEDED}) == [(running, "not running")]
    assert worker.release(running) == []
    assert row(conn, running) == before


@any_end
def test_an_end_waits_for_a_rescue_left_open_and_is_refused(
    conn: Connection, caller: Connection, worker: Worker, running: int, how: str
) -> None:
    worker.die()
    begin(caller)
    assert rescue(caller) == [running]
    with blocked(conn, worker.conn, worker.end, how, running) as late:
        caller.execute("commit")
    with refused("PC001"):
        late.result()
    assert status(conn, running) == "todo"


def test_a_finish_succeeds_when_the_rescue_is_rolled_back(
    conn: Connection, caller: Connection, worker: Worker, running: int
) -> None:
    worker.die()
    begin(caller)
    assert rescue(caller) == [running]
    with blocked(conn, worker.conn, worker.finish, running) as finish:
        caller.execute("rollback")
    finish.result()
    assert status(conn, running) == "succeeded"


def test_a_worker_that_was_given_up_learns_it_with_its_next_call(
    conn: Connection, worker: Worker, running: int
) -> None:
    worker.die()
    assert rescue(conn) == [running]
    with refused("PC004"):
        worker.heartbeat(running)
    with refused("PC004"):
        worker.fetch()


# A claim that is lost in a crash: its attempt number comes again


@pytest.fixture
def taken_over(conn: Connection, worker: Worker, other: Worker, running: int) -> int:
    """A job that `worker` believes to run, and `other` runs: both as attempt 1.

    The claim of `worker` was committed asynchronously, and the server crashed before it was on
    disk: the row is as it was before, and no trigger ever knew.
    """
    with conn.transaction():
        conn.execute("set local session_replication_role = replica")
        conn.execute(
            "update procrastinate_jobs set status = 'todo', worker_id = null, started_at = null,"
            " ready_seq = nextval('procrastinate_ready_seq') where id = %s",
            (running,),
        )
    assert other.fetch() == [running]
    assert value(conn, "select attempts from procrastinate_jobs where id = %s", running) == 0
    return running


@any_end
def test_an_end_of_a_claim_lost_in_a_crash_is_refused(
    conn: Connection, worker: Worker, other: Worker, taken_over: int, how: str
) -> None:
    before = row(conn, taken_over)
    with refused("PC001"):
        worker.end(how, taken_over)
    assert row(conn, taken_over) == before
    other.finish(taken_over)


def test_a_batch_of_claims_lost_in_a_crash_is_refused(
    conn: Connection, worker: Worker, taken_over: int
) -> None:
    before = row(conn, taken_over)
    assert worker.finish_many({taken_over: SUCCEEDED}) == [(taken_over, "not running")]
    assert worker.release(taken_over) == []
    assert row(conn, taken_over) == before


def test_the_heartbeat_tells_of_a_claim_lost_in_a_crash(
    worker: Worker, other: Worker, taken_over: int
) -> None:
    assert worker.heartbeat(taken_over) == ([], [taken_over])
    assert other.heartbeat(taken_over) == ([], [])


# A run that comes back to waiting and meets its queueing lock


def come_back_by_retry(conn: Connection, worker: Worker, job: int) -> None:
    worker.end("retry", job)


def come_back_by_batch(conn: Connection, worker: Worker, job: int) -> None:
    assert worker.finish_many({job: RETRY}) == []


def come_back_by_failure(conn: Connection, worker: Worker, job: int) -> None:
    worker.end("fail", job)


def come_back_by_release(conn: Connection, worker: Worker, job: int) -> None:
    assert worker.release(job) == [job]


def come_back_by_unregister(conn: Connection, worker: Worker, job: int) -> None:
    unregister(worker)


def come_back_by_rescue(conn: Connection, worker: Worker, job: int) -> None:
    worker.die()
    assert rescue(conn) == [job]


ComeBack = Callable[[Connection, Worker, int], None]
any_way_back = pytest.mark.parametrize(
    "come_back",
    [
        come_back_by_retry,
        come_back_by_batch,
        come_back_by_failure,
        come_back_by_release,
        come_back_by_unregister,
        come_back_by_rescue,
    ],
)


@any_way_back
def test_a_run_comes_back_beside_the_job_that_waits_with_its_queueing_lock(
    conn: Connection, worker: Worker, other: Worker, come_back: ComeBack
) -> None:
    """The queueing lock is an identity among jobs that wait and were never started."""
    declare(conn, max_attempts=2, retry_delay="0")
    first = defer(conn, queueing_lock="q")
    assert worker.fetch() == [first]
    second = defer(conn, queueing_lock="q")
    come_back(conn, worker, first)
    assert [status(conn, job) for job in (first, second)] == ["todo", "todo"]
    assert defer(conn, queueing_lock="q", on_conflict="skip") == second
    assert sorted(drain(other)) == [first, second]


@any_way_back
def test_a_run_comes_back_without_waiting_for_a_producer_with_its_queueing_lock(
    conn: Connection, caller: Connection, worker: Worker, other: Worker, come_back: ComeBack
) -> None:
    declare(conn, max_attempts=2, retry_delay="0")
    first = defer(conn, queueing_lock="q")
    assert worker.fetch() == [first]
    begin(caller)
    second = defer(caller, queueing_lock="q")
    never_wait(worker.conn)
    come_back(conn, worker, first)
    caller.execute("commit")
    assert sorted(drain(other)) == [first, second]


# A request to abort


@any_end
def test_asking_to_abort_never_waits_for_an_open_end(
    conn: Connection, caller: Connection, worker: Worker, running: int, how: str
) -> None:
    begin(caller)
    worker.end(how, running, conn=caller)
    never_wait(conn)
    assert cancel(conn, running, abort=True) == "doing"
    assert cancel(conn, running) == "doing"


@pytest.mark.parametrize("how", ["finish", "fail"])
def test_a_request_to_abort_is_void_when_the_open_end_commits(
    conn: Connection, caller: Connection, worker: Worker, running: int, how: str
) -> None:
    begin(caller)
    worker.end(how, running, conn=caller)
    cancel(conn, running, abort=True)
    caller.execute("commit")
    assert worker.heartbeat() == ([], [])
    assert status(conn, running) == ENDED_AS[how]
    rerun(conn, running)
    assert worker.heartbeat() == ([], [])
    assert drain(worker) == [running]


def test_a_request_to_abort_is_carried_over_when_the_open_finish_is_rolled_back(
    conn: Connection, caller: Connection, worker: Worker, running: int
) -> None:
    begin(caller)
    worker.finish(running, conn=caller)
    cancel(conn, running, abort=True)
    assert worker.heartbeat(running) == ([], [])
    caller.execute("rollback")
    assert worker.heartbeat(running) == ([running], [])
    worker.end("retry", running)
    assert status(conn, running) == "aborted"


@any_end
def test_a_request_to_abort_counts_before_any_heartbeat_carried_it_over(
    conn: Connection, caller: Connection, worker: Worker, running: int, how: str
) -> None:
    begin(caller)
    worker.finish(running, conn=caller)
    cancel(conn, running, abort=True)
    caller.execute("rollback")
    worker.end(how, running)
    assert status(conn, running) == ("succeeded" if how == "finish" else "aborted")


def test_a_request_to_abort_cancels_the_job_that_an_open_retry_lets_wait(
    conn: Connection, caller: Connection, worker: Worker, running: int
) -> None:
    begin(caller)
    worker.end("retry", running, conn=caller)
    cancel(conn, running, abort=True)
    caller.execute("commit")
    assert worker.heartbeat() == ([], [])
    assert status(conn, running) == "cancelled"


def test_a_request_to_abort_reaches_the_run_that_an_open_retry_led_to(
    conn: Connection, caller: Connection, worker: Worker, other: Worker, running: int
) -> None:
    begin(caller)
    worker.end("retry", running, conn=caller)
    cancel(conn, running, abort=True)
    caller.execute("commit")
    assert other.fetch() == [running]
    assert worker.heartbeat() == ([], [])
    assert other.heartbeat() == ([running], [])


@any_end
def test_an_end_that_waits_for_an_open_request_to_abort_obeys_it(
    conn: Connection, caller: Connection, worker: Worker, running: int, how: str
) -> None:
    begin(caller)
    assert cancel(caller, running, abort=True) == "doing"
    with blocked(conn, worker.conn, worker.end, how, running) as end:
        caller.execute("commit")
    end.result()
    assert status(conn, running) == ("succeeded" if how == "finish" else "aborted")


def test_a_request_to_abort_that_is_rolled_back_never_was(
    conn: Connection, caller: Connection, worker: Worker, running: int
) -> None:
    begin(caller)
    assert cancel(caller, running, abort=True) == "doing"
    with blocked(conn, worker.conn, worker.end, "retry", running):
        caller.execute("rollback")
    assert status(conn, running) == "todo"


def test_asking_to_abort_a_job_that_is_being_claimed_reaches_its_run(
    conn: Connection, caller: Connection, worker: Worker
) -> None:
    job = defer(conn)
    begin(worker.conn)
    assert worker.fetch() == [job]
    with blocked(conn, caller, cancel, caller, job, abort=True) as asked:
        worker.conn.execute("commit")
    assert asked.result() == "doing"
    assert worker.heartbeat(job) == ([job], [])


# Rescue, heartbeat and hand-back against an open end


@any_end
def test_rescue_skips_a_run_whose_end_is_open_and_loses_nothing_when_it_commits(
    conn: Connection, caller: Connection, worker: Worker, running: int, how: str
) -> None:
    worker.die()
    begin(caller)
    worker.end(how, running, conn=caller)
    never_wait(conn)
    assert rescue(conn) == []
    caller.execute("commit")
    assert rescue(conn) == []
    assert status(conn, running) == ENDED_AS[how]


def test_rescue_takes_a_run_whose_open_end_is_rolled_back(
    conn: Connection, caller: Connection, worker: Worker, other: Worker, running: int
) -> None:
    worker.die()
    begin(caller)
    worker.finish(running, conn=caller)
    assert rescue(conn) == []
    caller.execute("rollback")
    assert rescue(conn) == [running]
    assert other.fetch() == [running]


def test_rescue_hands_back_what_a_worker_could_not_when_it_left(
    conn: Connection, caller: Connection, worker: Worker, running: int
) -> None:
    begin(caller)
    worker.finish(running, conn=caller)
    never_wait(worker.conn)
    unregister(worker)
    caller.execute("rollback")
    assert rescue(conn) == [running]
    ended_as = "select array[handed_back, lost] from procrastinate_jobs where id = %s"
    assert value(conn, ended_as, running) == [1, 0]


def test_two_rescues_at_once_take_each_run_once(
    conn: Connection, caller: Connection, worker: Worker, running: int
) -> None:
    worker.die()
    begin(caller)
    assert rescue(caller) == [running]
    never_wait(conn)
    assert rescue(conn) == []
    caller.execute("commit")
    assert rescue(conn) == []
    lost = "select lost from procrastinate_jobs where id = %s"
    assert value(conn, lost, running) == 1


@pytest.mark.parametrize("keep_finished", [None, "0"], ids=["kept", "not kept"])
@any_end
def test_a_heartbeat_does_not_wait_for_an_open_end(
    conn: Connection,
    caller: Connection,
    worker: Worker,
    other: Worker,
    running: int,
    how: str,
    keep_finished: str | None,
) -> None:
    declare(conn, keep_finished=keep_finished)
    begin(caller)
    worker.end(how, running, conn=caller)
    for beating in (worker, other):
        never_wait(beating.conn)
    assert worker.heartbeat(running) == ([], [])
    assert other.heartbeat() == ([], [])


@pytest.mark.parametrize("ending", ["commit", "rollback"])
def test_a_hand_back_waits_for_an_open_finish(
    conn: Connection, caller: Connection, worker: Worker, running: int, ending: str
) -> None:
    begin(caller)
    worker.finish(running, conn=caller)
    with blocked(conn, worker.conn, worker.release, running) as released:
        caller.execute(ending)
    assert released.result() == ([] if ending == "commit" else [running])
    assert status(conn, running) == ("succeeded" if ending == "commit" else "todo")


@any_end
def test_an_end_waits_for_an_open_hand_back_and_is_refused(
    conn: Connection, caller: Connection, worker: Worker, running: int, how: str
) -> None:
    begin(caller)
    assert worker.release(running, conn=caller) == [running]
    with blocked(conn, worker.conn, worker.end, how, running) as end:
        caller.execute("commit")
    with refused("PC001"):
        end.result()
    assert status(conn, running) == "todo"


def test_a_finish_succeeds_when_the_hand_back_is_rolled_back(
    conn: Connection, caller: Connection, worker: Worker, running: int
) -> None:
    begin(caller)
    assert worker.release(running, conn=caller) == [running]
    with blocked(conn, worker.conn, worker.finish, running) as finish:
        caller.execute("rollback")
    finish.result()
    assert status(conn, running) == "succeeded"


# Reruns


def test_of_two_reruns_at_once_the_second_is_refused(
    conn: Connection, connect: Connect, caller: Connection, worker: Worker, running: int
) -> None:
    worker.finish(running)
    begin(caller)
    rerun(caller, running)
    second = connect(autocommit=True)
    with blocked(conn, second, rerun, second, running) as refusal:
        caller.execute("commit")
    with refused("PC001"):
        refusal.result()
    assert drain(worker) == [running]


def test_a_rerun_takes_the_place_of_one_that_is_rolled_back(
    conn: Connection, connect: Connect, caller: Connection, worker: Worker, running: int
) -> None:
    worker.finish(running)
    begin(caller)
    rerun(caller, running)
    second = connect(autocommit=True)
    with blocked(conn, second, rerun, second, running) as succeeds:
        caller.execute("rollback")
    succeeds.result()
    assert drain(worker) == [running]


@pytest.mark.parametrize("ending", ["commit", "rollback"])
def test_of_two_reruns_with_one_queueing_lock_one_waits(
    conn: Connection, connect: Connect, caller: Connection, worker: Worker, ending: str
) -> None:
    """Both were cancelled before they were ever started."""
    jobs = []
    for _ in range(2):
        jobs.append(defer(conn, queueing_lock="q"))
        cancel(conn, jobs[-1])
    begin(caller)
    rerun(caller, jobs[0])
    second = connect(autocommit=True)
    with blocked(conn, second, rerun, second, jobs[1]) as late:
        caller.execute(ending)
    if ending == "commit":
        with refused("PC002"):
            late.result()
    assert drain(worker) == jobs[:1] if ending == "commit" else jobs[1:]


@pytest.mark.parametrize("ending", ["commit", "rollback"])
def test_purging_does_not_wait_for_an_open_rerun(
    conn: Connection, caller: Connection, worker: Worker, running: int, ending: str
) -> None:
    worker.finish(running)
    begin(caller)
    rerun(caller, running)
    never_wait(conn)
    assert purge(conn) == 0
    caller.execute(ending)
    assert purge(conn) == (0 if ending == "commit" else 1)
    assert drain(worker) == ([running] if ending == "commit" else [])


@pytest.mark.parametrize("ending", ["commit", "rollback"])
def test_a_rerun_waits_for_an_open_purge(
    conn: Connection,
    connect: Connect,
    caller: Connection,
    worker: Worker,
    running: int,
    ending: str,
) -> None:
    worker.finish(running)
    begin(caller)
    assert purge(caller) == 1
    second = connect(autocommit=True)
    with blocked(conn, second, rerun, second, running) as late:
        caller.execute(ending)
    if ending == "commit":
        with refused("PC005"):
            late.result()
    assert drain(worker) == ([] if ending == "commit" else [running])


# Ends inside the caller's transaction, at every isolation level


@any_isolation
@pytest.mark.parametrize("ending", ["commit", "rollback"])
def test_the_effects_of_a_run_and_its_completion_are_committed_together(
    conn: Connection,
    caller: Connection,
    worker: Worker,
    running: int,
    isolation: str,
    ending: str,
) -> None:
    conn.execute("create table effects (job_id bigint)")
    begin(caller, isolation)
    caller.execute("insert into effects values (%s)", (running,))
    worker.finish(running, conn=caller)
    caller.execute(ending)
    effects = value(conn, "select count(*) from effects")
    ended = (1, "succeeded") if ending == "commit" else (0, "doing")
    assert (effects, status(conn, running)) == ended


keeps_its_snapshot = pytest.mark.parametrize("isolation", ISOLATION_LEVELS[1:])


@keeps_its_snapshot
def test_a_finish_that_is_late_by_its_snapshot_is_a_serialization_failure(
    conn: Connection, caller: Connection, worker: Worker, running: int, isolation: str
) -> None:
    """Its own snapshot says that the job still runs: PC001 comes when the caller tries again."""
    begin(caller, isolation)
    worker.die()
    assert rescue(conn) == [running]
    with refused("40001"):
        worker.finish(running, conn=caller)
    caller.execute("rollback")
    begin(caller, isolation)
    with refused("PC001"):
        worker.finish(running, conn=caller)


@keeps_its_snapshot
def test_a_finish_whose_snapshot_is_older_than_a_request_to_abort_can_be_tried_again(
    conn: Connection, caller: Connection, worker: Worker, running: int, isolation: str
) -> None:
    begin(caller, isolation)
    assert cancel(conn, running, abort=True) == "doing"
    with refused("40001"):
        worker.finish(running, conn=caller)
    caller.execute("rollback")
    begin(caller, isolation)
    worker.finish(running, conn=caller)
    caller.execute("commit")
    assert status(conn, running) == "succeeded"


@any_isolation
@pytest.mark.parametrize("lock", [None, "a"])
def test_callers_that_finish_different_jobs_do_not_disturb_each_other(
    conn: Connection,
    connect: Connect,
    caller: Connection,
    worker: Worker,
    isolation: str,
    lock: str | None,
) -> None:
    jobs = [defer(conn, lock), defer(conn, lock and "b")]
    assert worker.fetch(2) == jobs
    another = connect(autocommit=True)
    begin(caller, isolation)
    begin(another, isolation)
    worker.finish(jobs[0], conn=caller)
    worker.finish(jobs[1], conn=another)
    caller.execute("commit")
    another.execute("commit")
    assert [status(conn, job) for job in jobs] == ["succeeded", "succeeded"]
