"""Whatever makes a job runnable wakes the workers that can run it, and little else does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import psycopg
import pytest
from concurrency import (
    SUCCEEDED,
    Connect,
    Connection,
    WaitUntil,
    Worker,
    begin,
    cancel,
    defer,
    delete,
    drain,
    fall_due,
    hold,
    rescue,
    status,
    value,
)

import procrastinate_sql

FAR = "9000-01-01"
QUEUES = {"all": None, "q": ["q"], "other": ["other"]}


class Ear:
    """Hears what wakes the workers of all queues, those of queue `q`, and those of `other`."""

    def __init__(self, conn: Connection, speaker: Connection) -> None:
        self.conn = conn
        self.speaker = speaker
        channels = "select procrastinate_listen_channels(%s)"
        self.listeners = {value(speaker, channels, QUEUES[name]): name for name in QUEUES}
        for channel in [*self.listeners, "test_end"]:
            conn.execute(f'listen "{channel}"')

    def heard(self) -> set[str]:
        """Who was woken by what has been committed since the last call.

        Notifications come in the order of the commits: with the last one, all have come.
        """
        self.speaker.execute("notify test_end")
        woken: set[str] = set()
        for notification in self.conn.notifies(timeout=10):
            if notification.channel == "test_end":
                return woken
            woken.add(self.listeners[notification.channel])
        raise AssertionError("not even the last notification has come")


@pytest.fixture
def ear(conn: Connection, connect: Connect) -> Ear:
    return Ear(connect(autocommit=True), conn)


# Whatever makes a job runnable: each of these yields when queue `q` has nothing to run yet, and
# again, the job, when it has.

Steps = Iterator["int | None"]
Way = Callable[[Connection, Worker], Steps]
WAYS: list[Way] = []


def way(steps: Way) -> Way:
    WAYS.append(steps)
    return steps


@way
def defer_it(conn: Connection, worker: Worker) -> Steps:
    yield None
    yield defer(conn, queue_name="q")


@way
def defer_it_with_a_lock(conn: Connection, worker: Worker) -> Steps:
    yield None
    yield defer(conn, "a", queue_name="q")


@way
def defer_it_in_a_batch(conn: Connection, worker: Worker) -> Steps:
    yield None
    batch = '[{"task_name": "task", "queue_name": "q"}]'
    yield value(conn, "select id from procrastinate_defer_jobs(%s)", batch)


@way
def insert_it(conn: Connection, worker: Worker) -> Steps:
    yield None
    yield value(
        conn,
        "insert into procrastinate_jobs (task_name, queue_name) values ('task', 'q') returning id",
    )


@way
def copy_it(conn: Connection, worker: Worker) -> Steps:
    yield None
    with conn.cursor().copy("copy procrastinate_jobs (task_name, queue_name) from stdin") as copy:
        copy.write_row(("task", "q"))
    yield value(conn, "select max(id) from procrastinate_jobs")


@way
def replace_it(conn: Connection, worker: Worker) -> Steps:
    job = defer(conn, queue_name="other", queueing_lock="once")
    yield None
    assert job == defer(conn, queue_name="q", queueing_lock="once", on_conflict="replace")
    yield job


def behind_a_lock(conn: Connection, worker: Worker, priority: int = 0) -> tuple[int, int]:
    """A job that runs, from another queue, and one of queue `q` that waits for its lock."""
    running = defer(conn, "a", queue_name="other")
    assert worker.fetch() == [running]
    return running, defer(conn, "a", queue_name="q", priority=priority)


@way
def finish_the_job_before_it(conn: Connection, worker: Worker) -> Steps:
    running, following = behind_a_lock(conn, worker)
    yield None
    worker.finish(running)
    yield following


@way
def finish_the_job_before_a_more_urgent_one(conn: Connection, worker: Worker) -> Steps:
    running, following = behind_a_lock(conn, worker, priority=5)
    yield None
    worker.finish(running)
    yield following


@way
def finish_the_job_before_a_less_urgent_one(conn: Connection, worker: Worker) -> Steps:
    running, following = behind_a_lock(conn, worker, priority=-5)
    yield None
    worker.finish_many({running: SUCCEEDED})
    yield following


@way
def finish_the_job_before_one_that_was_committed_late(conn: Connection, worker: Worker) -> Steps:
    """So that its id is the smaller one."""
    with psycopg.connect(conn.info.dsn) as producer:
        late = defer(producer, "a", queue_name="q")
        running = defer(conn, "a", queue_name="other")
        assert worker.fetch() == [running]
    yield None
    worker.finish(running)
    yield late


@way
def finish_the_job_before_it_in_a_batch(conn: Connection, worker: Worker) -> Steps:
    running, following = behind_a_lock(conn, worker)
    yield None
    worker.finish_many({running: SUCCEEDED})
    yield following


@way
def fail_the_job_before_it(conn: Connection, worker: Worker) -> Steps:
    running, following = behind_a_lock(conn, worker)
    yield None
    worker.end("fail", running)
    yield following


@way
def delete_the_running_job_before_it(conn: Connection, worker: Worker) -> Steps:
    running, following = behind_a_lock(conn, worker)
    yield None
    delete(conn, running)
    yield following


def behind_a_head(conn: Connection) -> tuple[int, int]:
    """A job that waits in another queue, and one of queue `q` that is second of its lock."""
    return defer(conn, "a", queue_name="other"), defer(conn, "a", queue_name="q")


@way
def cancel_the_job_before_it(conn: Connection, worker: Worker) -> Steps:
    head, following = behind_a_head(conn)
    yield None
    cancel(conn, head)
    yield following


@way
def delete_the_job_before_it(conn: Connection, worker: Worker) -> Steps:
    head, following = behind_a_head(conn)
    yield None
    delete(conn, head)
    yield following


@way
def move_the_job_before_it_to_another_lock(conn: Connection, worker: Worker) -> Steps:
    head, following = behind_a_head(conn)
    yield None
    conn.execute("update procrastinate_jobs set lock = 'b' where id = %s", (head,))
    yield following


@way
def move_it_to_another_lock(conn: Connection, worker: Worker) -> Steps:
    _, following = behind_a_head(conn)
    yield None
    conn.execute("update procrastinate_jobs set lock = 'b' where id = %s", (following,))
    yield following


@way
def take_its_lock_away(conn: Connection, worker: Worker) -> Steps:
    _, following = behind_a_head(conn)
    yield None
    conn.execute("update procrastinate_jobs set lock = null where id = %s", (following,))
    yield following


@way
def raise_its_priority(conn: Connection, worker: Worker) -> Steps:
    _, following = behind_a_head(conn)
    yield None
    conn.execute("update procrastinate_jobs set priority = 1 where id = %s", (following,))
    yield following


@way
def move_it_to_the_queue(conn: Connection, worker: Worker) -> Steps:
    job = defer(conn, queue_name="other")
    yield None
    conn.execute("update procrastinate_jobs set queue_name = 'q' where id = %s", (job,))
    yield job


@way
def schedule_it_for_now(conn: Connection, worker: Worker) -> Steps:
    job = defer(conn, queue_name="q", scheduled_at=FAR)
    yield None
    conn.execute("update procrastinate_jobs set scheduled_at = null where id = %s", (job,))
    yield job


@way
def let_its_time_come(conn: Connection, worker: Worker) -> Steps:
    job = defer(conn, queue_name="q", scheduled_at=FAR)
    yield None
    fall_due(conn, job)
    worker.heartbeat()
    yield job


@way
def let_its_time_come_when_it_has_a_lock(conn: Connection, worker: Worker) -> Steps:
    job = defer(conn, "a", queue_name="q", scheduled_at=FAR)
    yield None
    fall_due(conn, job)
    worker.heartbeat()
    yield job


@way
def resume_its_queue(conn: Connection, worker: Worker) -> Steps:
    conn.execute("select procrastinate_pause_queue('q')")
    job = defer(conn, queue_name="q")
    yield None
    conn.execute("select procrastinate_resume_queue('q')")
    yield job


def held(conn: Connection, worker: Worker) -> int:
    """A job of queue `q` that runs."""
    job = defer(conn, queue_name="q")
    assert worker.fetch() == [job]
    return job


@way
def retry_it(conn: Connection, worker: Worker) -> Steps:
    job = held(conn, worker)
    yield None
    worker.end("retry", job)
    yield job


@way
def let_the_delay_of_its_retry_pass(conn: Connection, worker: Worker) -> Steps:
    job = held(conn, worker)
    conn.execute("select procrastinate_retry_job(%s, 1, '1 day')", (job,))
    yield None
    fall_due(conn, job)
    worker.heartbeat()
    yield job


@way
def release_it(conn: Connection, worker: Worker) -> Steps:
    job = held(conn, worker)
    yield None
    worker.release(job)
    yield job


@way
def unregister_its_worker(conn: Connection, worker: Worker) -> Steps:
    job = held(conn, worker)
    yield None
    conn.execute("select procrastinate_unregister_worker(%s)", (worker.id,))
    yield job


@way
def rescue_it(conn: Connection, worker: Worker) -> Steps:
    job = held(conn, worker)
    yield None
    worker.die()
    assert rescue(conn) == [job]
    yield job


@way
def rerun_it(conn: Connection, worker: Worker) -> Steps:
    job = held(conn, worker)
    worker.finish(job)
    yield None
    conn.execute("select procrastinate_rerun_job(%s)", (job,))
    yield job


@way
def make_it_the_first_of_its_lock(conn: Connection, worker: Worker) -> Steps:
    """By a fetch for another queue, which finds out that it is."""
    head, following = behind_a_head(conn)
    yield None
    conn.execute("update procrastinate_jobs set priority = -1 where id = %s", (head,))
    assert worker.fetch(1, ["none"]) == []
    yield following


any_way = pytest.mark.parametrize("way", WAYS)


@any_way
def test_workers_are_woken_by_whoever_can(
    conn: Connection, connect: Connect, worker: Worker, ear: Ear, way: Way
) -> None:
    sleeper = Worker(connect(autocommit=True))
    steps = way(conn, worker)
    next(steps)
    assert sleeper.fetch(1, ["q"]) == []
    ear.heard()
    job = next(steps)
    assert {"all", "q"} <= ear.heard()
    assert sleeper.fetch(1, ["q"]) == [job]


# When, and by whom


def test_workers_are_woken_by_the_commit(conn: Connection, caller: Connection, ear: Ear) -> None:
    begin(caller)
    defer(caller, queue_name="q")
    assert ear.heard() == set()
    caller.execute("commit")
    assert ear.heard() == {"all", "q"}


@pytest.mark.parametrize("wakeful", ["a heartbeat", "a fetch for another queue"])
def test_an_end_that_did_not_see_the_next_job_leaves_waking_to(
    conn: Connection, caller: Connection, worker: Worker, ear: Ear, wakeful: str
) -> None:
    running = defer(conn, "a", queue_name="other")
    assert worker.fetch() == [running]
    begin(caller, "repeatable read")
    defer(conn, "a", queue_name="q")
    worker.finish(running, conn=caller)
    ear.heard()
    caller.execute("commit")
    assert ear.heard() == {"all", "other"}
    if wakeful == "a heartbeat":
        worker.heartbeat()
    else:
        worker.fetch(1, ["other"])
    assert ear.heard() == {"all", "q"}


def test_whoever_made_a_job_ready_wakes_those_who_fetched_in_vain_meanwhile(
    conn: Connection, connect: Connect, worker: Worker, ear: Ear
) -> None:
    job = defer(conn, "a", queue_name="q")
    sleeper = Worker(connect(autocommit=True))
    begin(worker.conn)
    assert worker.fetch(1, ["none"]) == []
    assert sleeper.fetch(1, ["q"]) == []
    ear.heard()
    worker.conn.execute("commit")
    assert ear.heard() == {"all", "q"}
    assert sleeper.fetch(1, ["q"]) == [job]


def test_a_heartbeat_wakes_those_who_fetched_in_vain_while_another_settled(
    conn: Connection, connect: Connect, worker: Worker, ear: Ear
) -> None:
    defer(conn, "b", queue_name="other")
    sleeper = Worker(connect(autocommit=True))
    begin(worker.conn)
    assert worker.fetch(1, ["none"]) == []
    job = defer(conn, "a", queue_name="q")
    assert sleeper.fetch(1, ["q"]) == []
    worker.conn.execute("commit")
    ear.heard()
    worker.heartbeat()
    assert ear.heard() == {"all", "q"}
    assert sleeper.fetch(1, ["q"]) == [job]


def test_a_heartbeat_wakes_workers_for_a_job_that_a_person_held(
    conn: Connection, caller: Connection, worker: Worker, ear: Ear, wait_until: WaitUntil
) -> None:
    job = defer(conn, "a", queue_name="q")
    begin(caller)
    hold(caller, job)
    assert worker.fetch() == []
    caller.execute("commit")
    ear.heard()
    assert wait_until(lambda: worker.heartbeat() and ear.heard()) == {"all", "q"}


def test_a_job_that_is_due_soon_wakes_workers_to_plan_for_it(conn: Connection, ear: Ear) -> None:
    conn.execute(
        "insert into procrastinate_jobs (task_name, queue_name, scheduled_at)"
        " values ('task', 'q', clock_timestamp() + interval '5 seconds')"
    )
    assert ear.heard() == {"all", "q"}


# What wakes nobody


def test_a_job_that_is_rolled_back_wakes_nobody(caller: Connection, ear: Ear) -> None:
    begin(caller)
    defer(caller, queue_name="q")
    caller.execute("rollback")
    assert ear.heard() == set()


def test_a_job_scheduled_for_tomorrow_wakes_nobody(conn: Connection, ear: Ear) -> None:
    conn.execute("select procrastinate_defer_job('task', scheduled_at => now() + interval '1 day')")
    assert ear.heard() == set()


def test_a_job_that_waits_already_wakes_nobody_again(conn: Connection, ear: Ear) -> None:
    defer(conn, queue_name="q", queueing_lock="once")
    ear.heard()
    defer(conn, queue_name="q", queueing_lock="once", on_conflict="skip")
    assert ear.heard() == set()


def test_fetching_and_finishing_a_job_without_a_lock_wakes_nobody(
    conn: Connection, worker: Worker, ear: Ear
) -> None:
    job = defer(conn)
    ear.heard()
    assert drain(worker) == [job]
    assert ear.heard() == set()


def test_cancelling_a_job_without_a_lock_wakes_nobody(conn: Connection, ear: Ear) -> None:
    job = defer(conn)
    ear.heard()
    assert cancel(conn, job) == "cancelled"
    assert ear.heard() == set()


def test_claiming_what_a_fetch_made_ready_wakes_nobody(
    conn: Connection, worker: Worker, ear: Ear
) -> None:
    due, locked = defer(conn, scheduled_at=FAR), defer(conn, "a")
    fall_due(conn, due)
    ear.heard()
    assert sorted(worker.fetch(10)) == [due, locked]
    assert ear.heard() == set()


def test_a_heartbeat_with_nothing_to_tell_wakes_nobody(
    conn: Connection, worker: Worker, ear: Ear
) -> None:
    defer(conn, scheduled_at=FAR)
    assert drain(worker) == []
    ear.heard()
    worker.heartbeat()
    assert ear.heard() == set()


def test_resuming_a_queue_that_was_not_paused_wakes_nobody(conn: Connection, ear: Ear) -> None:
    conn.execute("select procrastinate_resume_queue('q')")
    assert ear.heard() == set()


# From end to end


@asynccontextmanager
async def asleep(dsn: str, conn: Connection, wait_until: WaitUntil) -> AsyncIterator[None]:
    """A worker of queue `q` with nothing to run, that looks for jobs unasked every ten minutes."""
    app = procrastinate_sql.App(dsn)

    @app.task
    async def task() -> None: ...

    sleeper = procrastinate_sql.Worker(app, ["q", "first"], poll_interval=600)
    running = asyncio.create_task(sleeper.run_async())
    listens = "select true from pg_stat_activity where datname = current_database()"
    listens += " and query ~* '^listen'"
    try:
        await asyncio.to_thread(wait_until, lambda: value(conn, listens))
        await runs(conn, defer(conn, queue_name="first"), wait_until)
        yield
    finally:
        sleeper.stop()
        await asyncio.wait_for(running, 15)


async def runs(conn: Connection, job_id: int, wait_until: WaitUntil) -> None:
    """The job is run without delay (a heartbeat, every 1.3 s, may have to come in between)."""
    await asyncio.to_thread(wait_until, lambda: status(conn, job_id) == "succeeded", 15)


@any_way
async def test_a_sleeping_worker_runs_it_promptly(
    dsn: str, conn: Connection, worker: Worker, wait_until: WaitUntil, way: Way
) -> None:
    steps = way(conn, worker)
    next(steps)
    async with asleep(dsn, conn, wait_until):
        job = next(steps)
        assert job is not None
        await runs(conn, job, wait_until)


async def test_a_sleeping_worker_runs_a_job_when_its_time_comes(
    dsn: str, conn: Connection, wait_until: WaitUntil
) -> None:
    async with asleep(dsn, conn, wait_until):
        job = value(
            conn,
            "select procrastinate_defer_job('task', queue_name => 'q',"
            " scheduled_at => clock_timestamp() + interval '0.3 seconds')",
        )
        await runs(conn, job, wait_until)


async def test_a_sleeping_worker_runs_a_job_when_the_delay_of_its_retry_has_passed(
    dsn: str, conn: Connection, worker: Worker, wait_until: WaitUntil
) -> None:
    job = held(conn, worker)
    async with asleep(dsn, conn, wait_until):
        conn.execute("select procrastinate_retry_job(%s, 1, '0.3 seconds')", (job,))
        await runs(conn, job, wait_until)


async def test_a_sleeping_worker_runs_a_job_that_the_end_before_it_did_not_see(
    dsn: str, conn: Connection, caller: Connection, worker: Worker, wait_until: WaitUntil
) -> None:
    running = defer(conn, "a", queue_name="other")
    assert worker.fetch() == [running]
    async with asleep(dsn, conn, wait_until):
        begin(caller, "repeatable read")
        following = defer(conn, "a", queue_name="q")
        worker.finish(running, conn=caller)
        caller.execute("commit")
        await runs(conn, following, wait_until)


async def test_a_sleeping_worker_runs_a_job_that_a_person_held(
    dsn: str, conn: Connection, caller: Connection, worker: Worker, wait_until: WaitUntil
) -> None:
    job = defer(conn, "a", queue_name="q")
    begin(caller)
    hold(caller, job)
    assert worker.fetch() == []
    async with asleep(dsn, conn, wait_until):
        caller.execute("commit")
        await runs(conn, job, wait_until)
