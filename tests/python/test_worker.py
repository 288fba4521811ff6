"""A worker inside this process: how it runs tasks, and what becomes of each outcome."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from databases import owned_database
from postgres import free_port, identity
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from procrastinate_sql import (
    App,
    AsyncJobStore,
    InvalidArgument,
    JobAborted,
    JobContext,
    JobStore,
    Retry,
    SchemaVersionError,
    Worker,
    schema,
)
from procrastinate_sql.job import Job
from procrastinate_sql.worker.backoff import delays


@pytest.fixture
def app(dsn: str):
    app = App(dsn)
    yield app
    app.close()


def read(app: App, job_id: int) -> Job:
    job = app.job_store.get_job(job_id)
    assert job is not None
    return job


async def drain(app: App, **options: Any) -> None:
    """Run a worker until there is nothing to run."""
    await asyncio.wait_for(app.run_worker_async(wait=False, **options), 30)


@contextlib.asynccontextmanager
async def working(app: App, **options: Any) -> AsyncIterator[Worker]:
    """Run a worker beside the block; stop it in good order at the end."""
    worker = Worker(app, **options)
    running = asyncio.create_task(worker.run_async())
    try:
        yield worker
    finally:
        worker.stop()
        await asyncio.wait_for(running, 30)


async def until(condition: Callable[[], Any], timeout: float = 15) -> Any:
    """Wait for a condition, on the loop."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not come true"
        await asyncio.sleep(0.01)
    return value


async def beats(conn: psycopg.Connection[Any], name: str | None = None) -> None:
    """Wait until the worker of this database has sent a whole heartbeat from now on."""
    query = "select sum(extract(epoch from last_heartbeat)) from procrastinate_workers"
    for _ in range(2):
        last = conn.execute(query).fetchone()
        await until(lambda last=last: conn.execute(query).fetchone() != last)


async def until_status(app: App, job_id: int, status: str) -> Job:
    await until(lambda: read(app, job_id).status == status)
    return read(app, job_id)


# --- How tasks run -----------------------------------------------------------------


async def test_async_tasks_run_on_the_loop_and_others_in_threads(app: App):
    places = {}

    @app.task
    async def on_loop(name: str) -> str:
        places["async"] = threading.current_thread()
        return name

    @app.task
    def in_thread(name: str) -> str:
        places["sync"] = threading.current_thread()
        return name

    ids = [on_loop.defer(name="a"), in_thread.defer(name="b")]
    await drain(app)
    assert [read(app, job_id).result for job_id in ids] == ["a", "b"]
    assert places["async"] is threading.main_thread()
    assert places["sync"] is not threading.main_thread()


async def test_only_the_queues_named_are_served(app: App):
    @app.task
    async def task() -> None: ...

    mail = task.configure(queue="mail").defer()
    other = task.configure(queue="other").defer()
    await drain(app, queues=["mail"])
    assert (read(app, mail).status, read(app, other).status) == ("succeeded", "todo")


async def test_so_many_jobs_run_at_a_time(app: App):
    running, most = 0, 0
    full = asyncio.Event()

    @app.task
    async def task() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == 3:
            full.set()
        await full.wait()
        await asyncio.sleep(0)
        running -= 1

    task.defer_many([{}] * 9)
    await drain(app, concurrency=3)
    assert most == 3


async def test_so_many_threads_run_at_a_time(app: App):
    together = threading.Barrier(3)
    running: list[int] = []
    most = 0

    @app.task
    def task() -> None:
        nonlocal most
        running.append(1)
        together.wait(15)
        most = max(most, len(running))
        together.wait(15)
        running.pop()

    task.defer_many([{}] * 9)
    await drain(app, concurrency=3)
    assert most == 3


async def test_so_many_jobs_run_at_a_time_on_the_loop_and_in_threads_together(app: App):
    running: list[str] = []
    most, kinds = 0, set()

    def note() -> None:
        nonlocal most
        now = running.copy()
        most = max(most, len(now))
        kinds.update(now)

    @app.task
    async def on_loop() -> None:
        running.append("loop")
        note()
        await asyncio.sleep(0.005)
        running.remove("loop")

    @app.task
    def in_thread() -> None:
        running.append("thread")
        note()
        time.sleep(0.005)
        running.remove("thread")

    for n in range(100):
        app.defer("on_loop" if n % 3 else "in_thread")
    await drain(app, concurrency=4)
    assert most == 4
    assert kinds == {"loop", "thread"}


async def test_jobs_start_in_their_order_wherever_they_run(app: App):
    seen = []

    @app.task
    async def on_loop(n: int) -> None:
        seen.append(n)

    @app.task
    def in_thread(n: int) -> None:
        seen.append(n)

    for n in range(200):
        app.defer("on_loop" if n // 3 % 2 else "in_thread", n=n)
    await drain(app, concurrency=1)
    assert seen == list(range(200))


async def test_jobs_that_never_wait_do_not_hold_up_the_loop(app: App):
    ticks: list[float] = []

    async def tick() -> None:
        while True:
            ticks.append(time.monotonic())
            await asyncio.sleep(0)

    @app.task
    async def busy() -> None:
        time.sleep(0.0005)  # as one that computes

    busy.defer_many([{}] * 1000)
    ticking = asyncio.create_task(tick())
    started = time.monotonic()
    await drain(app, concurrency=100)
    ticking.cancel()
    ended = time.monotonic()
    assert len(ticks) > (ended - started) / 0.05


async def test_a_job_that_cannot_start_soon_is_left_to_other_workers(app: App, conn: Any):
    go_on = asyncio.Event()

    @app.task
    async def slow() -> None:
        await go_on.wait()

    slow.defer_many([{}] * 10)
    count = "select count(*) from procrastinate_jobs where status = 'doing'"
    async with working(app, concurrency=2, poll_interval=0.05):
        await until(lambda: conn.execute(count).fetchone() == (2,))
        other = JobStore(conn)
        # While it looks, and sees them, again and again.
        await beats(conn)
        assert len(other.fetch_jobs(other.register_worker(), max_jobs=10)) == 8
        go_on.set()


async def test_each_run_has_a_context_of_its_own(app: App):
    variable = contextvars.ContextVar("variable", default=0)

    @app.task
    async def on_loop() -> int:
        before = variable.get()
        variable.set(1)
        return before

    @app.task
    def in_thread() -> int:
        before = variable.get()
        variable.set(1)
        return before

    ids = on_loop.defer_many([{}] * 5) + in_thread.defer_many([{}] * 5)
    await drain(app, concurrency=1)
    assert [read(app, job_id).result for job_id in ids] == [0] * 10


async def test_each_run_sees_the_context_of_the_worker(app: App):
    variable = contextvars.ContextVar("variable", default=0)
    variable.set(1)

    @app.task
    async def on_loop() -> int:
        return variable.get()

    @app.task
    def in_thread() -> int:
        return variable.get()

    ids = [app.defer(name) for name in ("on_loop", "in_thread") * 20]
    await drain(app, concurrency=3)
    assert {read(app, job_id).result for job_id in ids} == {1}


async def test_the_context_tells_of_the_job(app: App):
    @app.task(pass_context=True, max_attempts=2, retry_delay=0)
    async def task(context: JobContext, n: int) -> dict[str, Any]:
        assert context.app is app
        if context.job.attempt == 1:
            raise ValueError
        return {"id": context.job.id, "attempt": context.job.attempt, "args": context.job.args}

    job_id = task.defer(n=3)
    await drain(app)
    assert read(app, job_id).result == {"id": job_id, "attempt": 2, "args": {"n": 3}}


async def test_a_slot_is_filled_again_after_a_long_job(app: App):
    @app.task
    async def slow() -> None:
        await asyncio.sleep(0.4)  # longer than jobs are held in advance for

    ids = slow.defer_many([{}] * 5)
    await drain(app, concurrency=1, poll_interval=60)
    assert {read(app, job_id).status for job_id in ids} == {"succeeded"}


async def test_many_jobs_all_run_once(app: App):
    seen = []

    @app.task
    async def task(n: int) -> None:
        seen.append(n)

    task.defer_many([{"n": n} for n in range(3000)])
    await drain(app, concurrency=20)
    assert sorted(seen) == list(range(3000))


async def test_jobs_of_a_lock_run_one_at_a_time_in_order(app: App):
    seen, running = [], 0

    @app.task
    async def task(n: int) -> None:
        nonlocal running
        running += 1
        assert running == 1
        await asyncio.sleep(0)
        running -= 1
        seen.append(n)

    task.configure(lock="l").defer_many([{"n": n} for n in range(40)])
    await drain(app, listen=False, poll_interval=60)
    assert seen == list(range(40))


async def test_middleware_surrounds_each_run(app: App):
    seen = []

    @app.middleware
    async def outer(context: JobContext) -> AsyncIterator[None]:
        seen.append(("enter", context.job.task_name))
        try:
            yield
        except ValueError:
            seen.append(("raised", context.job.task_name))
            raise

    @app.middleware
    def inner(context: JobContext) -> Iterator[None]:
        place = threading.current_thread()
        yield
        assert place is threading.current_thread()
        seen.append(("done", context.job.task_name, place is threading.main_thread()))

    @app.task
    async def good() -> None: ...

    @app.task
    def sync() -> int:
        return 5

    @app.task
    async def bad() -> None:
        raise ValueError

    good.defer()
    sync_id = sync.defer()
    bad_id = bad.defer()
    await drain(app, concurrency=1)
    assert seen == [
        ("enter", "good"),
        ("done", "good", True),
        ("enter", "sync"),
        ("done", "sync", False),
        ("enter", "bad"),
        ("raised", "bad"),
    ]
    assert read(app, sync_id).result == 5
    assert read(app, bad_id).status == "failed"


async def test_middleware_sees_what_a_task_raises_wherever_it_runs(app: App):
    seen = []

    @app.middleware
    async def on_loop(context: JobContext) -> AsyncIterator[None]:
        try:
            yield
        except LookupError as error:
            seen.append((context.job.task_name, "on the loop", str(error)))
            raise

    @app.middleware
    def beside(context: JobContext) -> Iterator[None]:
        try:
            yield
        except LookupError as error:
            seen.append((context.job.task_name, "beside the task", str(error)))
            raise

    @app.task(name="async")
    async def one() -> None:
        raise LookupError("gone")

    @app.task(name="thread")
    def other() -> None:
        raise LookupError("gone")

    for name in ("async", "thread"):
        job_id = app.defer(name)
        await drain(app)
        assert (read(app, job_id).error or "").startswith("LookupError: gone")
    places = ("beside the task", "on the loop")
    assert seen == [(name, place, "gone") for name in ("async", "thread") for place in places]


# --- Outcomes ----------------------------------------------------------------------


@pytest.mark.parametrize("is_async", [True, False])
@pytest.mark.parametrize(
    "error",
    [ValueError("no such address"), SystemExit(3), KeyboardInterrupt(), StopIteration(1)],
    ids=repr,
)
async def test_what_a_task_raises_fails_its_job_alone(
    app: App, error: BaseException, is_async: bool
):
    if is_async:

        @app.task(name="bad")
        async def bad() -> None:
            raise error
    else:

        @app.task(name="bad")
        def also_bad() -> None:
            raise error

    @app.task
    async def good() -> None: ...

    bad_id, good_id = app.defer("bad"), good.defer()
    await drain(app)
    job = read(app, bad_id)
    assert job.status == "failed"
    assert type(error).__name__ in (job.error or "")
    assert read(app, good_id).status == "succeeded"


async def test_the_error_holds_the_text_first_and_then_the_traceback(app: App):
    @app.task
    def bad() -> None:
        raise ValueError("a \0 and a \ud800" + "x" * 50_000)

    job_id = bad.defer()
    await drain(app)
    error = read(app, job_id).error or ""
    assert error.startswith("ValueError: a \ufffd and a ?")
    assert len(error) < 25_000


async def test_an_error_that_cannot_be_shown_fails_its_job_all_the_same(app: App):
    class Unshowable(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    @app.task
    async def bad() -> None:
        raise Unshowable

    job_id = bad.defer()
    await drain(app)
    assert read(app, job_id).status == "failed"


async def test_the_declared_policy_retries(app: App):
    @app.task(max_attempts=3, retry_delay=0)
    async def bad() -> None:
        raise ValueError

    job_id = bad.defer()
    await drain(app)
    job = read(app, job_id)
    assert (job.status, job.attempts, job.failures) == ("failed", 3, 3)


async def test_a_task_may_ask_for_another_run(app: App):
    @app.task(pass_context=True)
    async def task(context: JobContext) -> None:
        if context.job.attempt == 1:
            raise Retry(error="busy")
        if context.job.attempt == 2:
            context.retry({"milliseconds": 1})

    job_id = task.defer()
    async with working(app):
        job = await until_status(app, job_id, "succeeded")
    assert (job.attempts, job.error) == (3, "busy")


@pytest.mark.parametrize("delay", [-1, "soon", {"fortnights": 1}, 1e300], ids=str)
async def test_another_run_after_no_such_delay_fails_the_job(app: App, delay: Any):
    @app.task
    async def task() -> None:
        raise Retry(delay, error="a \0")

    job_id = task.defer()
    await drain(app)
    assert read(app, job_id).status == "failed"


async def test_a_task_that_nobody_knows_fails_its_job(app: App):
    job_id = app.defer("unheard_of")
    await drain(app)
    job = read(app, job_id)
    assert job.status == "failed"
    assert job.error == 'task "unheard_of" is not registered with this worker'


async def test_one_poisonous_outcome_fails_its_job_alone(app: App):
    poison: list[Any] = ["\0", "\ud800", float("nan"), object(), {"deep": {1, 2}}]

    @app.task
    async def task(n: int) -> Any:
        return poison[n] if n < len(poison) else n

    ids = task.defer_many([{"n": n} for n in range(100)])
    await drain(app, concurrency=100)
    jobs = [read(app, job_id) for job_id in ids]
    assert [job.status for job in jobs[: len(poison)]] == ["failed"] * len(poison)
    assert all("cannot be stored" in (job.error or "") for job in jobs[: len(poison)])
    assert [job.result for job in jobs[len(poison) :]] == list(range(len(poison), 100))


async def test_a_success_that_the_database_refuses_fails_its_job_alone(app: App, conn: Any):
    conn.execute("""
        alter table procrastinate_jobs
        add constraint refuses_one check (args <> '{"n": 1}' or status <> 'succeeded')
    """)

    @app.task
    async def task(n: int) -> None: ...

    ids = task.defer_many([{"n": n} for n in range(5)])
    await drain(app)
    assert [read(app, job_id).status == "failed" for job_id in ids] == [n == 1 for n in range(5)]


async def test_an_encoder_that_fails_fails_its_job_alone(dsn: str):
    def encode(value: Any) -> str:
        if isinstance(value, list) and any(one.get("result") == 1 for one in value):
            raise RuntimeError("no ones")
        return encoder(value)

    encoder = App().codec.dumps
    app = App(dsn, dumps=encode)

    @app.task
    async def task(n: int) -> int:
        return n

    ids = task.defer_many([{"n": n} for n in range(3)])
    await drain(app)
    assert [read(app, job_id).status for job_id in ids] == ["succeeded", "failed", "succeeded"]
    app.close()


@pytest.mark.parametrize(
    ("function", "parameters", "length", "arguments"),
    [
        ("finish_jobs", "outcomes jsonb", "jsonb_array_length(outcomes)", "outcomes"),
        (
            "succeed_jobs",
            "worker_id bigint, job_ids bigint[], attempts integer[]",
            "cardinality(job_ids)",
            "worker_id, job_ids, attempts",
        ),
    ],
)
async def test_a_report_that_breaks_the_connection_is_sent_in_parts(
    app: App, conn: Any, function: str, parameters: str, length: str, arguments: str
):
    conn.execute(f"alter function procrastinate_{function} rename to the_real_one")
    conn.execute(f"""
        create function procrastinate_{function}({parameters})
        returns table (ordinal integer, job_id bigint, reason text) language plpgsql as $$
        begin
            if {length} > 3 then
                perform pg_terminate_backend(pg_backend_pid());
            end if;
            return query select * from the_real_one({arguments});
        end $$
    """)
    result = 1 if function == "finish_jobs" else None

    @app.task
    async def task() -> int | None:
        return result

    ids = task.defer_many([{}] * 50)
    await drain(app, concurrency=50)
    assert {(read(app, job_id).status, read(app, job_id).attempts) for job_id in ids} == {
        ("succeeded", 1)
    }


@pytest.mark.parametrize("is_async", [True, False])
async def test_a_job_is_finished_in_the_transaction_of_its_task(
    app: App, dsn: str, conn: psycopg.Connection[Any], is_async: bool
):
    conn.execute("create table effects (n integer)")

    @app.task(pass_context=True, name="task")
    async def on_loop(context: JobContext, n: int) -> None:
        async with await psycopg.AsyncConnection.connect(dsn) as connection:
            await connection.execute("insert into effects values (%s)", (n,))
            await context.finish_async(connection, result={"n": n})
            if n == 2:
                raise ValueError("after all")

    def in_thread(context: JobContext, n: int) -> None:
        with psycopg.connect(dsn) as connection:
            connection.execute("insert into effects values (%s)", (n,))
            context.finish(connection, result={"n": n})
            if n == 2:
                raise ValueError("after all")

    if not is_async:
        del app.tasks["task"]
        app.task(name="task", pass_context=True)(in_thread)

    good, bad = app.defer("task", n=1), app.defer("task", n=2)
    await drain(app)
    assert (read(app, good).status, read(app, good).result) == ("succeeded", {"n": 1})
    assert read(app, bad).status == "failed"
    assert conn.execute("select n from effects").fetchall() == [(1,)]


async def test_a_finish_that_the_task_did_not_commit_fails_its_run(app: App, dsn: str):
    @app.task(pass_context=True)
    def forgetful(context: JobContext) -> None:
        connection = psycopg.connect(dsn)
        context.finish(connection)
        connection.close()

    job_id = forgetful.defer()
    async with working(app):
        job = await until_status(app, job_id, "failed")
    assert "not committed" in (job.error or "")


@pytest.mark.parametrize("then", ["commit", "rollback"])
@pytest.mark.parametrize("raises", [True, False])
async def test_a_transaction_that_a_task_leaves_open_holds_up_nobody_else(
    app: App, connect: Any, conn: Any, then: str, raises: bool
):
    connection = connect()

    @app.task(pass_context=True)
    def careless(context: JobContext) -> None:
        context.finish(connection)
        if raises:
            raise ValueError

    @app.task
    async def other() -> None: ...

    job_id = careless.defer()
    async with working(app):
        waits = "select 1 from pg_stat_activity where pg_blocking_pids(pid) = array[%s::int]"
        await until(lambda: conn.execute(waits, [connection.info.backend_pid]).fetchone())
        await until_status(app, other.defer(), "succeeded")
        getattr(connection, then)()
        await until_status(app, job_id, "succeeded" if then == "commit" else "failed")


# --- Stopping runs -----------------------------------------------------------------


async def test_an_async_task_is_cancelled_when_somebody_asks(app: App):
    @app.task
    async def endless() -> None:
        await asyncio.Event().wait()

    job_id = endless.defer()
    async with working(app):
        await until_status(app, job_id, "doing")
        app.job_store.cancel_job(job_id, abort=True)
        await until_status(app, job_id, "aborted")


@pytest.mark.parametrize("wait", [True, False])
async def test_a_task_that_cancels_itself_does_not_cancel_the_next(app: App, wait: bool):
    @app.task
    async def cancels_itself() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        if wait:
            await asyncio.sleep(0)

    @app.task
    async def other() -> None:
        await asyncio.sleep(0)

    ids = [app.defer(name) for name in ("cancels_itself", "other") * 5]
    await drain(app, concurrency=1)
    ends = ["failed" if wait else "succeeded", "succeeded"] * 5
    assert [read(app, job_id).status for job_id in ids] == ends


async def test_a_task_may_survive_being_cancelled_and_the_next_is_not(app: App):
    @app.task
    async def stubborn() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0.01)
        return "all the same"

    @app.task
    async def other() -> None:
        await asyncio.sleep(0.01)

    first, second = stubborn.defer(), other.defer()
    async with working(app, concurrency=1):
        await until_status(app, first, "doing")
        app.job_store.cancel_job(first, abort=True)
        await until_status(app, second, "succeeded")
    job = read(app, first)
    assert (job.status, job.result) == ("succeeded", "all the same")


async def test_a_sync_task_sees_that_somebody_asks(app: App):
    @app.task(pass_context=True)
    def endless(context: JobContext) -> None:
        while not context.abort_requested():
            time.sleep(0.01)
        raise JobAborted

    job_id = endless.defer()
    async with working(app):
        await until_status(app, job_id, "doing")
        app.job_store.cancel_job(job_id, abort=True)
        await until_status(app, job_id, "aborted")


async def test_a_task_has_so_much_time_and_no_more(app: App):
    @app.task(timeout=0.1)
    async def on_loop() -> None:
        await asyncio.Event().wait()

    @app.task(timeout=0.1, pass_context=True)
    def in_thread(context: JobContext) -> None:
        while not context.abort_requested():
            time.sleep(0.01)

    ids = [on_loop.defer(), in_thread.defer()]
    await drain(app)
    for job_id in ids:
        job = read(app, job_id)
        assert job.status == "failed"
        assert "timed out after 0:00:00.1" in (job.error or "")


async def test_a_worker_that_was_given_up_drops_its_jobs_and_registers_again(
    app: App, conn: psycopg.Connection[Any]
):
    runs = []

    @app.task(pass_context=True)
    async def task(context: JobContext) -> None:
        runs.append(context.job.attempt)
        if context.job.attempt == 1:
            await asyncio.Event().wait()

    job_id = task.defer()
    async with working(app):
        await until(lambda: runs)
        conn.execute("update procrastinate_workers set gone_at = now()")
        job = await until_status(app, job_id, "succeeded")
    assert runs == [1, 2]
    assert (job.attempts, job.lost) == (2, 1)


async def test_a_fetch_that_hears_late_that_the_worker_was_given_up_does_not_stop_the_new_one(
    app: App,
    conn: psycopg.Connection[Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    caplog.set_level("INFO")
    fetch_jobs = AsyncJobStore.fetch_jobs
    given_up: list[int] = []

    async def delayed(store: AsyncJobStore, worker_id: int, *args: Any) -> Any:
        """The first fetch is on its way until the worker has another id."""
        if not given_up:
            given_up.append(worker_id)
            conn.execute("update procrastinate_workers set gone_at = now()")
            await until(lambda: caplog.text.count("registered as worker") == 2)
        return await fetch_jobs(store, worker_id, *args)

    monkeypatch.setattr(AsyncJobStore, "fetch_jobs", delayed)

    @app.task
    async def task() -> None: ...

    job_id = task.defer()
    async with working(app):
        job = await until_status(app, job_id, "succeeded")
    assert job.worker_id not in given_up


async def test_a_job_that_is_no_longer_held_is_stopped(app: App):
    stopped = asyncio.Event()

    @app.task
    async def task() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    job_id = task.defer()
    async with working(app):
        await until_status(app, job_id, "doing")
        app.job_store.finish_job(job_id, 1)
        await asyncio.wait_for(stopped.wait(), 15)
    assert read(app, job_id).status == "succeeded"


async def test_a_sync_task_sees_that_its_job_is_no_longer_held(app: App):
    stopped = threading.Event()

    @app.task(pass_context=True)
    def task(context: JobContext) -> None:
        while not context.abort_requested():
            time.sleep(0.01)
        stopped.set()
        raise JobAborted

    job_id = task.defer()
    async with working(app):
        await until_status(app, job_id, "doing")
        app.job_store.finish_job(job_id, 1, result="by somebody else")
        await until(stopped.is_set)
    assert read(app, job_id).result == "by somebody else"


def take_claim_back(conn: psycopg.Connection[Any], job_id: int) -> None:
    """Leave a job as it was before its claim, as a crash does to one that was not durable."""
    with conn.transaction():
        conn.execute("set local session_replication_role = replica")
        conn.execute(
            "update procrastinate_jobs set status = 'todo', worker_id = null, started_at = null,"
            " ready_seq = nextval('procrastinate_ready_seq') where id = %s",
            [job_id],
        )


async def test_a_run_ends_when_its_job_is_claimed_again(app: App, conn: psycopg.Connection[Any]):
    runs, stopped = [], asyncio.Event()

    @app.task(pass_context=True)
    async def task(context: JobContext) -> None:
        runs.append(context.job.attempt)
        if len(runs) == 1:
            try:
                await asyncio.Event().wait()
            finally:
                stopped.set()
        # The second run goes on until the first is over.
        await stopped.wait()

    job_id = task.defer()
    async with working(app, poll_interval=0.05):
        await until(lambda: runs)
        take_claim_back(conn, job_id)
        await until_status(app, job_id, "succeeded")
    assert runs == [1, 1]


async def test_what_a_run_has_to_report_is_dropped_when_its_job_is_claimed_again(
    app: App, conn: psycopg.Connection[Any], connect: Any
):
    """Same job, same attempt, same worker: it would end the second run."""
    ends = {name: asyncio.Event() for name in ("other", "first", "second")}
    runs = []

    @app.task
    async def other() -> None:
        await ends["other"].wait()

    @app.task
    async def task() -> None:
        runs.append("second" if runs else "first")
        await ends[runs[-1]].wait()
        runs.append("returned")

    other_id, job_id = other.defer(), task.defer()
    holder = connect()
    async with working(app, poll_interval=0.05):
        for held in (other_id, job_id):
            await until_status(app, held, "doing")
        # The report on the one job hangs, so that the one on the other has to wait.
        holder.execute("select from procrastinate_jobs where id = %s for update", [other_id])
        ends["other"].set()
        waits = "select 1 from pg_stat_activity where wait_event_type = 'Lock'"
        await until(lambda: conn.execute(waits).fetchone())
        await until(lambda: runs)
        ends["first"].set()
        await until(lambda: "returned" in runs)
        take_claim_back(conn, job_id)
        await until(lambda: "second" in runs)
        holder.rollback()
        await until_status(app, other_id, "succeeded")
        await beats(conn)
        assert read(app, job_id).status == "doing"
        ends["second"].set()
        await until_status(app, job_id, "succeeded")
    assert runs == ["first", "returned", "second", "returned"]


async def test_stopping_lets_jobs_finish_and_fetches_no_more(app: App):
    started, go_on = asyncio.Event(), asyncio.Event()

    @app.task
    async def task() -> None:
        started.set()
        await go_on.wait()

    first, second = task.defer(), task.defer()
    async with working(app, concurrency=1) as worker:
        await asyncio.wait_for(started.wait(), 15)
        worker.stop()
        go_on.set()
    assert read(app, first).status == "succeeded"
    assert (read(app, second).status, read(app, second).failures) == ("todo", 0)


@pytest.mark.parametrize("again", [True, False], ids=["told twice", "out of time"])
async def test_what_does_not_finish_is_handed_back(app: App, again: bool):
    started = asyncio.Event()

    @app.task
    async def endless() -> None:
        started.set()
        await asyncio.Event().wait()

    job_id = endless.defer()
    async with working(app, shutdown_timeout=60 if again else 0.1) as worker:
        await asyncio.wait_for(started.wait(), 15)
        worker.stop()
        if again:
            worker.stop()
    job = read(app, job_id)
    assert (job.status, job.failures, job.lost, job.handed_back) == ("todo", 0, 0, 1)


async def test_told_twice_it_does_not_wait_for_a_fetch(app: App, conn: Any):
    @app.task
    async def task() -> None: ...

    async with working(app, concurrency=1) as worker:
        with claims_blocked(conn) as (is_waiting, _):
            job_id = task.defer()
            await until(is_waiting)
            worker.stop()
            worker.stop()
            waits = "select 1 from procrastinate_workers where gone_at is null"
            await until(lambda: not conn.execute(waits).fetchone())
            assert not is_waiting()
    assert (read(app, job_id).status, read(app, job_id).failures) == ("todo", 0)


@contextlib.contextmanager
def claims_blocked(
    conn: psycopg.Connection[Any],
) -> Iterator[tuple[Callable[[], bool], Callable[[], Any]]]:
    """Stop fetches that have claimed jobs. Yields whether one waits, and what lets it go on."""
    conn.execute("""
        create function wait_for_test() returns trigger language plpgsql as
        $$ begin perform pg_advisory_xact_lock_shared(42); return null; end $$
    """)
    conn.execute("""
        create trigger wait_for_test after update on procrastinate_jobs for each row
        when (old.status = 'todo' and new.status = 'doing') execute function wait_for_test()
    """)
    waiting = """
        select count(*) > 0 from pg_stat_activity
        where datname = current_database() and wait_event = 'advisory'
    """
    conn.execute("select pg_advisory_lock(42)")
    try:
        yield (
            lambda: conn.execute(waiting).fetchone() == (True,),
            lambda: conn.execute("select pg_advisory_unlock_all()"),
        )
    finally:
        conn.execute("select pg_advisory_unlock_all()")
        conn.execute("drop trigger wait_for_test on procrastinate_jobs")
        conn.execute("drop function wait_for_test")


async def test_signals_mean_afterwards_what_they_meant_before(app: App):
    def handler(*_: object) -> None: ...

    before = signal.signal(signal.SIGTERM, handler)
    try:
        await drain(app)
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)


async def test_it_leaves_no_connection_behind(dsn: str, conn: Any):
    app = App(make_conninfo(dsn, application_name="the worker"))
    await drain(app)
    count = "select count(*) from pg_stat_activity where application_name = 'the worker'"
    await until(lambda: conn.execute(count).fetchone() == (0,))


async def test_the_table_can_ask_a_worker_to_stop(app: App, conn: psycopg.Connection[Any]):
    running = asyncio.create_task(app.run_worker_async(name="w"))
    statement = "update procrastinate_workers set stop_requested = true where name = 'w'"
    await until(lambda: conn.execute(statement).rowcount)
    await asyncio.wait_for(running, 15)


async def test_a_worker_unregisters(app: App, conn: psycopg.Connection[Any]):
    await drain(app, name="w")
    gone = conn.execute("select name, gone_at is not null from procrastinate_workers").fetchall()
    assert gone == [("w", True)]


async def test_jobs_held_in_advance_are_given_back_when_they_do_not_start(app: App):
    blocked, go_on = asyncio.Event(), asyncio.Event()

    @app.task
    async def quick() -> None: ...

    @app.task
    async def slow() -> None:
        blocked.set()
        await go_on.wait()

    quick.defer_many([{}] * 200)
    slow.defer()
    others = quick.defer_many([{}] * 1500)
    async with working(app, concurrency=1):
        await asyncio.wait_for(blocked.wait(), 15)
        await until(lambda: all(read(app, job_id).status == "todo" for job_id in others))
        go_on.set()
        await until(lambda: read(app, others[-1]).status == "succeeded")
    assert {read(app, job_id).failures for job_id in others} == {0}


# --- When it looks -----------------------------------------------------------------


async def test_a_notification_wakes_it(app: App, conn: psycopg.Connection[Any]):
    @app.task
    async def task() -> None: ...

    async with working(app, poll_interval=3600):
        listening = (
            "select 1 from pg_stat_activity"
            " where query like 'listen %' and datname = current_database()"
        )
        await until(lambda: conn.execute(listening).fetchone())
        await until_status(app, task.defer(), "succeeded")
        await until_status(app, task.defer(), "succeeded")


async def test_without_notifications_it_polls(app: App):
    @app.task
    async def task() -> None: ...

    async with working(app, poll_interval=0.1, listen=False):
        await until_status(app, task.defer(), "succeeded")
        await until_status(app, task.defer(), "succeeded")


async def test_a_scheduled_job_starts_at_its_time(app: App):
    started = []

    @app.task
    async def task() -> None:
        started.append(time.time())

    async with working(app, poll_interval=3600):
        job = read(app, task.configure(schedule_in=0.5).defer())
        await until(lambda: started)
    assert job.scheduled_at is not None
    assert 0 <= started[0] - job.scheduled_at.timestamp() < 0.3


async def test_it_polls_with_jitter(app: App, monkeypatch: pytest.MonkeyPatch):
    looks: list[float] = []
    fetch_jobs = AsyncJobStore.fetch_jobs

    def noted(*args: Any, **options: Any) -> Any:
        looks.append(time.monotonic())
        return fetch_jobs(*args, **options)

    monkeypatch.setattr(AsyncJobStore, "fetch_jobs", noted)
    async with working(app, poll_interval=0.1, listen=False):
        await until(lambda: len(looks) > 10)
    pauses = [after - before for before, after in itertools.pairwise(looks[1:])]
    assert min(pauses) > 0.07
    assert max(pauses) - min(pauses) > 0.005


async def test_it_does_not_spin_for_a_due_job_that_somebody_holds(
    app: App, connect: Any, monkeypatch: pytest.MonkeyPatch
):
    looks: list[float] = []
    fetch_jobs = AsyncJobStore.fetch_jobs

    def noted(*args: Any, **options: Any) -> Any:
        looks.append(time.monotonic())
        return fetch_jobs(*args, **options)

    monkeypatch.setattr(AsyncJobStore, "fetch_jobs", noted)

    @app.task
    async def task() -> None: ...

    holder = connect()
    # Held before it is due: else it might be ready by then, and nobody would look out for it.
    job_id = task.configure(schedule_in=0.3).defer()
    holder.execute("select from procrastinate_jobs where id = %s for update", [job_id])
    async with working(app, poll_interval=3600):
        await until(lambda: len(looks) > 10)
        assert looks[10] - looks[5] > 0.2
        holder.rollback()
        await until_status(app, job_id, "succeeded")


# --- The server and what is in between ---------------------------------------------


def test_it_waits_a_second_at_most_before_it_tries_again():
    first = list(itertools.islice(delays(), 50))
    assert first[0] <= 0.05
    assert 0.5 <= max(first) <= 1


class Cable:
    """Something in between that can be cut: the server does not notice, its client does."""

    def __init__(self, dsn: str) -> None:
        place = conninfo_to_dict(dsn)
        host = str(place["host"])
        self._server = ("127.0.0.1" if host.startswith("/") else host, int(place["port"] or 5432))
        self._clients: list[asyncio.StreamWriter] = []
        self._servers: list[asyncio.StreamWriter] = []
        self._dsn = dsn

    async def __aenter__(self) -> Cable:
        self._listener = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        port = self._listener.sockets[0].getsockname()[1]
        self.dsn = make_conninfo(self._dsn, host="127.0.0.1", port=port, sslmode="disable")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()
        self.cut()
        for writer in self._servers:
            writer.close()

    def cut(self) -> None:
        for writer in self._clients:
            writer.transport.abort()
        self._clients.clear()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection(*self._server)
        self._clients.append(writer)
        self._servers.append(to_server)

        async def pass_on(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError):
                while data := await source.read(65536):
                    sink.write(data)

        await asyncio.gather(pass_on(reader, to_server), pass_on(from_server, writer))


async def test_a_database_without_an_encoding_serves_as_well(dsn: str):
    ascii_only = "encoding 'SQL_ASCII' template template0 lc_collate 'C' lc_ctype 'C'"
    with owned_database(dsn, ascii_only) as database, database.connect() as conn:
        schema.install(conn)
        app = App(database.dsn)

        @app.task
        async def task(name: str) -> str:
            return name

        async with working(app, poll_interval=600):
            listens = "select 1 from pg_stat_activity where query = 'listen \"{}\"'"
            query = listens.format("procrastinate_any_queue").encode()
            await until(lambda: conn.execute(query).fetchone())
            # Of this it hears, or it would run in ten minutes.
            job_id = task.defer(name="ann")
            assert (await until_status(app, job_id, "succeeded")).result == "ann"
        app.close()


@pytest.mark.parametrize(("durable_claims", "sessions"), [(True, 3), (False, 4)])
async def test_fetches_have_sessions_of_their_own_only_if_they_must(
    app: App, conn: psycopg.Connection[Any], durable_claims: bool, sessions: int
):
    """One for the heartbeat, one to listen, one for the rest."""
    query = "select count(*) from pg_stat_activity where application_name = 'counted'"
    counted = App(f"{app.address.dsn} application_name=counted")
    async with working(counted, durable_claims=durable_claims):
        # Two of them, so that it has also fetched.
        await beats(conn)
        await until(lambda: conn.execute(query).fetchone() == (sessions,))


@pytest.mark.parametrize("late", [True, False], ids=["late", "at once"])
async def test_what_a_fetch_claimed_whose_answer_was_lost_is_run(
    dsn: str, app: App, conn: Any, late: bool, monkeypatch: pytest.MonkeyPatch
):
    checks: list[list[int]] = []
    release_unknown_jobs = AsyncJobStore.release_unknown_jobs

    def noted(store: AsyncJobStore, worker_id: int, known: list[int]) -> Any:
        checks.append(known)
        return release_unknown_jobs(store, worker_id, known)

    monkeypatch.setattr(AsyncJobStore, "release_unknown_jobs", noted)
    runs = []
    go_on = asyncio.Event()

    async with Cable(dsn) as cable:
        remote = App(cable.dsn)

        @remote.task(pass_context=True)
        async def task(context: JobContext, wait: bool = False) -> None:
            runs.append(context.job.id)
            if wait:
                await go_on.wait()

        async with working(remote, poll_interval=3600):
            known = app.defer("task", wait=True)
            await until(lambda: runs == [known])
            with claims_blocked(conn) as (is_waiting, let_go):
                lost = app.defer("task")
                await until(is_waiting)
                cable.cut()
                if late:
                    await until(lambda: checks)
                let_go()
                job = await until_status(app, lost, "succeeded")
            go_on.set()
            assert (await until_status(app, known, "succeeded")).attempts == 1
    assert runs == [known, lost]
    assert (job.attempts, job.handed_back, job.failures, job.lost) == (2, 1, 0, 0)
    assert all(known in check for check in checks)


async def test_it_fetches_whatever_the_isolation_level_of_the_database(app: App, conn: Any):
    name = conn.info.dbname
    conn.execute(f"alter database {name} set default_transaction_isolation = 'serializable'")

    @app.task
    async def task() -> None: ...

    job_id = task.defer()
    await drain(app)
    assert read(app, job_id).status == "succeeded"


async def test_it_leaves_a_server_that_became_read_only(app: App, conn: Any):
    @app.task
    async def task() -> None: ...

    drop = """
        select pg_terminate_backend(pid) from pg_stat_activity
        where datname = current_database() and pid <> pg_backend_pid()
    """
    read_only = f"alter database {conn.info.dbname} set default_transaction_read_only"
    conn.execute("set default_transaction_read_only = off")
    store = JobStore(conn)
    count = "select count(*) from pg_stat_activity where query like '%procrastinate_heartbeat%'"
    async with working(app, poll_interval=0.1):
        await beats(conn)
        # As after a failover: who connects now gets a session that cannot write, for good.
        conn.execute(f"{read_only} = on")
        conn.execute(drop)
        await until(lambda: conn.execute(count).fetchone() != (0,))
        conn.execute(f"{read_only} = off")
        job_id = store.defer_job("task")
        await until_status(app, job_id, "succeeded")


@pytest.fixture
def pooler(dsn: str) -> Iterator[str]:
    """The address of this test's database behind PgBouncer, two sessions in transaction mode."""
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip("there is no pgbouncer")
    place, port = conninfo_to_dict(dsn), free_port()
    address = f"host=127.0.0.1 port={port} user={place['user']} dbname={place['dbname']}"
    with tempfile.TemporaryDirectory() as folder:
        configuration = Path(folder) / "pgbouncer.ini"
        configuration.write_text(f"""
            [databases]
            * = host={place["host"]} port={place["port"]} user={place["user"]}
            [pgbouncer]
            listen_addr = 127.0.0.1
            listen_port = {port}
            unix_socket_dir =
            auth_type = any
            pool_mode = transaction
            default_pool_size = 2
        """)
        Path(folder).chmod(0o755)
        command = [program, "--quiet", str(configuration)]
        with subprocess.Popen(command, cwd="/", **identity()) as process:  # type: ignore[call-overload]
            try:
                deadline = time.monotonic() + 15
                while not accepts(address):
                    assert process.poll() is None
                    assert time.monotonic() < deadline
                yield address
            finally:
                process.kill()


def accepts(address: str) -> bool:
    with contextlib.suppress(psycopg.OperationalError), psycopg.connect(address):
        return True
    return False


@pytest.mark.parametrize("listen", [True, False])
async def test_behind_a_pooler(
    pooler: str, dsn: str, caplog: pytest.LogCaptureFixture, listen: bool
):
    """Statements prepared in one session of it would be missing, or double, in the other."""
    app = App(pooler)

    @app.task(pass_context=True)
    async def on_loop(context: JobContext, n: int) -> int:
        await context.app.defer_async("in_thread", n=n)
        return n

    @app.task(pass_context=True)
    def in_thread(context: JobContext, n: int) -> int:
        return n

    direct = dsn if listen else None
    async with working(app, concurrency=4, poll_interval=0.2, listen_dsn=direct):
        ids = [await on_loop.defer_async(n=n) for n in range(50)]
        await until_status(app, ids[-1], "succeeded")
        later = [app.defer("in_thread", n=n) for n in range(20)]
        await until_status(app, later[-1], "succeeded")
        await until(lambda: {read(app, job_id).status for job_id in later} == {"succeeded"})
    assert [read(app, job_id).result for job_id in ids] == list(range(50))
    assert "trying again" not in caplog.text
    app.close()
    await app.close_async()


async def test_behind_a_pooler_it_does_not_listen(pooler: str, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    async with working(App(pooler)):
        await until(lambda: "polling only" in caplog.text)


# --- Processes ---------------------------------------------------------------------


def in_process(n: int) -> list[int]:
    return [n * n, os.getpid()]


def ends_its_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def cannot_be_sent() -> Any:
    return lambda: None


def raises() -> None:
    raise ValueError("no such number")


def endless_in_process() -> None:
    while True:
        time.sleep(0.01)


async def test_tasks_that_compute_run_in_processes(app: App):
    task = app.task(run_in="process")(in_process)
    ids = task.defer_many([{"n": n} for n in range(4)])
    await drain(app, concurrency=2)
    results = [read(app, job_id).result for job_id in ids]
    assert [square for square, _ in results] == [0, 1, 4, 9]
    assert os.getpid() not in {pid for _, pid in results}


async def test_a_process_that_dies_fails_its_job_alone(app: App):
    app.task(run_in="process")(in_process)
    for function in (ends_its_process, cannot_be_sent, raises):
        app.task(run_in="process")(function)
    bad = [app.defer(name) for name in ("ends_its_process", "cannot_be_sent", "raises")]
    good = app.defer_many("in_process", [{"n": 1}] * 4)
    await drain(app, concurrency=3)
    errors = [read(app, job_id).error or "" for job_id in bad]
    assert "exit code -9" in errors[0]
    assert "cannot be sent" in errors[1]
    assert errors[2].startswith("ValueError: no such number")
    assert {read(app, job_id).status for job_id in good} == {"succeeded"}


async def test_a_process_is_killed_when_its_time_is_up_or_somebody_asks(app: App):
    app.task(run_in="process", timeout=1, name="timed")(endless_in_process)
    app.task(run_in="process", name="endless")(endless_in_process)
    timed, endless = app.defer("timed"), app.defer("endless")
    async with working(app):
        await until_status(app, endless, "doing")
        app.job_store.cancel_job(endless, abort=True)
        await until_status(app, endless, "aborted")
        job = await until_status(app, timed, "failed")
    assert "timed out" in (job.error or "")


# --- How it starts -----------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{"queues": []}, {"queues": "mail"}, {"concurrency": 0}, {"poll_interval": 0}]
)
def test_a_wrong_option_is_refused(app: App, options: dict[str, Any]):
    with pytest.raises(InvalidArgument):
        Worker(app, **options)


async def test_a_schema_that_is_not_there_ends_it_at_once(app: App):
    with pytest.raises(SchemaVersionError):
        await App(app.address.dsn, schema="nowhere").run_worker_async()


def test_it_runs_in_a_thread_without_signals(app: App):
    @app.task
    async def task() -> None: ...

    job_id = task.defer()
    thread = threading.Thread(target=lambda: app.run_worker(wait=False))
    thread.start()
    thread.join(30)
    assert read(app, job_id).status == "succeeded"
