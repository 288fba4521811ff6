"""What a producer sees: tasks, their arguments, and the options of deferring."""

from __future__ import annotations

import functools
import json
import os
import select
import threading
from datetime import datetime, timedelta, timezone
from typing import Any

import psycopg
import pytest

from procrastinate_sql import (
    App,
    InvalidArgument,
    JobContext,
    QueueingLockTaken,
    SchemaVersionError,
    bindings,
    schema,
)
from procrastinate_sql.job import Job


@pytest.fixture
def app(dsn: str):
    app = App(dsn)
    yield app
    app.close()


def read(app: App, job_id: int) -> Job:
    job = app.job_store.get_job(job_id)
    assert job is not None
    return job


def test_a_job_is_deferred_by_the_name_of_a_task_that_nobody_knows(app: App):
    job = read(app, app.defer("send_email", to="ann"))
    assert (job.task_name, job.args, job.queue_name) == ("send_email", {"to": "ann"}, "default")
    assert job.status == "todo"


def test_the_arguments_of_a_job_may_have_the_names_of_ours(app: App):
    args = {"self": 1, "task_name": 2, "args": 3, "connection": 4, "queue": 5}
    assert read(app, app.defer("anything", **args)).args == args


def test_a_task_gives_its_jobs_what_it_says_before_any_worker_declared_it(app: App):
    @app.task(queue="mail", priority=3, lock="smtp")
    def send_email(to: str) -> None: ...

    job = read(app, send_email.defer(to="ann"))
    assert (job.queue_name, job.priority, job.lock) == ("mail", 3, "smtp")
    assert read(app, app.defer("send_email", to="ann")).queue_name == "mail"


def test_options_overrule_what_the_task_says(app: App):
    @app.task(queue="mail", priority=3)
    def send_email(to: str) -> None: ...

    job = read(app, send_email.configure(queue="slow", priority=0, lock="a").defer(to="ann"))
    assert (job.queue_name, job.priority, job.lock) == ("slow", 0, "a")


def test_many_jobs_are_deferred_in_order(app: App):
    ids = app.defer_many("send_email", [{"to": n} for n in range(50)])
    assert [read(app, job_id).args["to"] for job_id in ids] == list(range(50))
    assert app.defer_many("send_email", []) == []


def test_many_jobs_share_the_options(app: App):
    deferrer = app.configure("t", queue="q", lock="l", schedule_in={"hours": 1})
    jobs = [read(app, job_id) for job_id in deferrer.defer_many([{}, {}])]
    assert {(job.queue_name, job.lock) for job in jobs} == {("q", "l")}
    assert all(job.scheduled_at > job.created_at + timedelta(minutes=59) for job in jobs)


@pytest.mark.parametrize("delay", [300, timedelta(minutes=5), {"minutes": 5}])
def test_a_delay_counts_from_the_clock_of_the_server(app: App, delay: Any):
    job = read(app, app.configure("t", schedule_in=delay).defer())
    assert job.scheduled_at is not None
    assert abs(job.scheduled_at - job.created_at - timedelta(minutes=5)) < timedelta(seconds=1)


def test_a_job_is_scheduled_at_a_time(app: App):
    when = datetime(2999, 1, 2, tzinfo=timezone.utc)
    deferrer = app.configure("t", schedule_at=when)
    ids = [deferrer.defer(), *deferrer.defer_many([{}])]
    assert [read(app, job_id).scheduled_at for job_id in ids] == [when, when]


@pytest.mark.parametrize(
    "options",
    [
        {"schedule_at": datetime(2999, 1, 1)},
        {"schedule_at": datetime(2999, 1, 1, tzinfo=timezone.utc), "schedule_in": 1},
        {"schedule_in": {"fortnights": 1}},
        {"queue": ""},
        {"priority": 2**40},
        {"on_conflict": "ignore"},
        {"connection": NotImplemented},
    ],
    ids=str,
)
def test_a_wrong_option_is_an_invalid_argument(app: App, options: dict[str, Any]):
    with pytest.raises(InvalidArgument):
        app.configure("t", **options).defer()


@pytest.mark.parametrize("value", [NotImplemented, float("nan"), "\0", "\ud800"], ids=ascii)
def test_what_is_no_json_is_an_invalid_argument(app: App, value: Any):
    with pytest.raises(InvalidArgument):
        app.defer("t", value=value)
    with pytest.raises(InvalidArgument):
        app.defer_many("t", [{"value": value}])


def test_a_queueing_lock_raises_skips_or_replaces(app: App):
    first = app.configure("t", queueing_lock="q").defer(n=1)
    with pytest.raises(QueueingLockTaken) as raised:
        app.configure("t", queueing_lock="q").defer(n=2)
    assert raised.value.hint
    assert isinstance(raised.value.__cause__, psycopg.Error)

    assert app.configure("t", queueing_lock="q", on_conflict="skip").defer(n=3) == first
    assert read(app, first).args == {"n": 1}
    assert app.configure("t", queueing_lock="q", on_conflict="replace").defer(n=4) == first
    assert read(app, first).args == {"n": 4}


def test_arguments_are_checked_against_a_known_function(app: App):
    @app.task
    def send_email(to: str, *, copies: int = 1) -> None: ...

    with pytest.raises(InvalidArgument, match="needs to"):
        send_email.defer(copies=2)
    with pytest.raises(InvalidArgument, match="takes no cc"):
        app.defer("send_email", to="ann", cc="bob")
    with pytest.raises(InvalidArgument, match="takes no cc"):
        send_email.defer_many([{"to": "ann"}, {"to": "ann", "cc": "bob"}])
    send_email.defer(to="ann", copies=2)


def test_the_context_is_no_argument_and_keywords_may_be_open(app: App):
    @app.task(pass_context=True)
    def open_task(context: JobContext, **anything: Any) -> None: ...

    open_task.defer(one=1, two=2)


def test_calling_a_task_calls_the_function(app: App):
    @app.task(queue="sums")
    def add(a: int, b: int) -> int:
        return a + b

    assert add(1, b=2) == 3


def test_two_tasks_cannot_have_one_name(app: App):
    @app.task(name="t")
    def one() -> None: ...

    with pytest.raises(ValueError, match="another task t"):

        @app.task(name="t")
        def two() -> None: ...


def test_a_parameter_without_a_keyword_makes_no_task(app: App):
    with pytest.raises(ValueError, match="keyword"):

        @app.task
        def positional(a: int, /) -> None: ...


def test_several_apps_live_beside_each_other(app: App):
    @app.task(name="t")
    def ours() -> None: ...

    other = App("host=nowhere.invalid")

    @other.task(name="t")
    def theirs() -> None: ...

    assert app.tasks["t"] is ours
    assert other.tasks["t"] is theirs


async def test_everything_has_an_async_form(app: App):
    @app.task
    async def task(n: int) -> None: ...

    ids = [
        await app.defer_async("task", n=1),
        await task.defer_async(n=2),
        await task.configure(priority=1).defer_async(n=3),
        *await app.defer_many_async("task", [{"n": 4}]),
        *await task.defer_many_async([{"n": 5}]),
    ]
    jobs = [await app.async_job_store.get_job(job_id) for job_id in ids]
    assert [job.args["n"] for job in jobs if job] == [1, 2, 3, 4, 5]
    await app.close_async()


def test_the_address_comes_from_the_environment(dsn: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PROCRASTINATE_DSN", dsn)
    bindings.connect_to(None)
    try:
        assert bindings.defer("t") > 0
    finally:
        bindings.close()


def test_the_address_may_be_a_function(dsn: str):
    app = App(lambda: dsn)
    assert app.defer("t") > 0
    app.close()


def test_the_queue_may_be_in_another_schema(app: App, conn: psycopg.Connection[Any]):
    with pytest.raises(SchemaVersionError):
        App(app.address.dsn, schema="elsewhere").defer("t")
    conn.execute("create schema elsewhere")
    schema.install(conn, "elsewhere")
    job_id = App(app.address.dsn, schema="elsewhere").defer("t")
    assert conn.execute("select id from elsewhere.procrastinate_jobs").fetchall() == [(job_id,)]
    assert conn.execute("select id from public.procrastinate_jobs").fetchall() == []


def set_schema_version(conn: psycopg.Connection[Any], version: int) -> None:
    conn.execute(
        "create or replace function procrastinate_schema_version() returns integer"
        f" language sql immutable as 'select {version}'".encode()
    )


def test_an_older_schema_is_refused_at_once(app: App, conn: psycopg.Connection[Any]):
    set_schema_version(conn, 0)
    with pytest.raises(SchemaVersionError, match=r"version 0, .* needs 1") as raised:
        app.defer("t")
    assert "schema upgrade" in (raised.value.hint or "")


def test_a_newer_schema_does(app: App, conn: psycopg.Connection[Any]):
    set_schema_version(conn, 99)
    assert read(app, app.defer("t")).status == "todo"


def test_json_is_read_and_written_as_the_app_says(dsn: str):
    app = App(
        dsn,
        dumps=functools.partial(json.dumps, default=str),
        loads=functools.partial(json.loads, parse_float=str),
    )
    job = read(app, app.defer("t", when=datetime(2024, 1, 1), price=1.25))
    assert job.args == {"when": "2024-01-01 00:00:00", "price": "1.25"}
    app.close()


def test_threads_share_an_app(app: App):
    barrier = threading.Barrier(8)
    ids: list[int] = []

    def defer() -> None:
        barrier.wait()
        ids.extend(app.defer("t") for _ in range(20))

    threads = [threading.Thread(target=defer) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(ids)) == 160


def test_a_connection_that_the_server_closed_is_not_used_again(
    app: App, conn: psycopg.Connection[Any]
):
    app.defer("t")
    with app._pool.lend() as connection:
        pid, descriptor = connection.info.backend_pid, connection.fileno()
    conn.execute("select pg_terminate_backend(%s, 5000)", (pid,))
    assert select.select([descriptor], [], [], 5)[0]
    app.defer("t")


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_does_not_use_its_parents_connection(app: App):
    app.defer("t")
    child = os.fork()
    if child == 0:
        try:
            app.defer("t")
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    app.defer("t")
