"""The SQL functions as methods: none is missing or renamed, and errors keep their meaning."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from procrastinate_sql import (
    AsyncJobStore,
    InvalidArgument,
    JobNotFound,
    JobNotRunning,
    JobStore,
    WorkerNotRegistered,
)

Connect = Callable[..., psycopg.Connection[Any]]

# The shorthand for fetch_jobs with one job is for psql.
LEFT_OUT = {"fetch_job"}
# Beside the arguments of the SQL functions: a delay for which those have only a time.
ADDED = {"scheduled_in"}


@pytest.fixture
def store(conn: psycopg.Connection[Any]) -> JobStore:
    return JobStore(conn)


def run_one(store: JobStore, **options: Any) -> tuple[int, int]:
    """Defer and fetch a job; return the ids of the worker and of the job."""
    job_id = store.defer_job("t", **options)
    worker_id = store.register_worker()
    assert [job.id for job in store.fetch_jobs(worker_id)] == [job_id]
    return worker_id, job_id


@pytest.mark.parametrize("kind", [JobStore, AsyncJobStore])
def test_every_function_is_a_method_with_the_same_arguments(
    conn: psycopg.Connection[Any], kind: type
):
    functions = conn.execute("""
        select
            substr(proname, 15),
            proargnames[1:pronargs],
            pronargs - pronargdefaults
        from pg_proc
        where
            proname ~ '^procrastinate_'
            and prorettype <> 'trigger'::regtype
            and pronamespace = current_schema()::regnamespace
    """).fetchall()
    assert functions
    for name, arguments, required in functions:
        if name in LEFT_OUT:
            continue
        parameters = [
            parameter
            for parameter in inspect.signature(getattr(kind, name)).parameters.values()
            if parameter.name not in ADDED
        ]
        names = [parameter.name for parameter in parameters if parameter.name != "self"]
        assert names == (arguments or []), name
        mandatory = [p.name for p in parameters if p.default is p.empty and p.name != "self"]
        assert mandatory == (arguments or [])[:required], name


def test_what_is_left_out_means_the_same(conn: psycopg.Connection[Any]):
    """Defaults are not sent: those of the SQL functions count."""
    defaults = conn.execute("""
        select
            substr(proname, 15),
            proargnames[place],
            pg_get_function_arg_default(pg_proc.oid, place),
            format_type(proargtypes[place - 1], null)
        from pg_proc
        cross join generate_series(pronargs - pronargdefaults + 1, pronargs) as place
        where proname ~ '^procrastinate_' and pronamespace = current_schema()::regnamespace
    """).fetchall()
    assert defaults
    for function, name, default, type_name in defaults:
        if function in LEFT_OUT or (function, name) == ("defer_job", "args"):  # sent as {}
            continue
        ours = inspect.signature(getattr(JobStore, function)).parameters[name].default
        ours = [] if ours == () else ours
        row = conn.execute(f"select {default}::{type_name}, %s::{type_name}", (ours,)).fetchone()
        assert row is not None
        theirs, ours = row
        assert (theirs or None) == (ours or None), (function, name)


def test_each_call_belongs_to_the_transaction_of_the_connection(connect: Connect):
    connection = connect()
    store = JobStore(connection)
    job_id = store.defer_job("t")
    assert store.get_job(job_id) is not None
    connection.rollback()
    assert store.get_job(job_id) is None


def test_the_row_factory_of_a_connection_does_not_matter(connect: Connect):
    store = JobStore(connect(row_factory=dict_row))
    job = store.get_job(store.defer_job("t", {"n": 1}))
    assert job is not None
    assert job.args == {"n": 1}


def test_the_interval_style_of_a_server_does_not_matter(store: JobStore, conn: Any):
    conn.execute("set intervalstyle = 'iso_8601'")
    store.defer_job("t", scheduled_in=timedelta(days=1, seconds=3))
    due = store.next_due()
    assert due is not None
    assert timedelta(days=1) < due <= timedelta(days=1, seconds=3)


def test_a_job_has_one_schedule(store: JobStore):
    with pytest.raises(InvalidArgument, match="exclude each other"):
        store.defer_job("t", scheduled_at=datetime.now(timezone.utc), scheduled_in=1)


def test_a_batch_says_which_jobs_were_created(store: JobStore):
    jobs = [
        {"task_name": "t", "queueing_lock": "q", "on_conflict": "skip"},
        {"task_name": "t"},
        {"task_name": "t", "queueing_lock": "q", "on_conflict": "skip"},
    ]
    (first, created), (_, also), (again, not_created) = store.defer_jobs(jobs)
    assert (created, also, not_created) == (True, True, False)
    assert first == again


def test_the_life_of_a_job(store: JobStore):
    worker_id, job_id = run_one(store, args={"n": 1}, lock="l")
    store.finish_job(job_id, 1, result={"ok": True}, worker_id=worker_id)
    job = store.get_job(job_id)
    assert job is not None
    assert (job.status, job.result, job.attempts) == ("succeeded", {"ok": True}, 1)
    store.rerun_job(job_id)
    assert [job.attempt for job in store.fetch_jobs(worker_id)] == [2]
    assert store.fail_job(job_id, 2, "broken", worker_id) == "failed"


def test_the_policy_of_a_task_decides(store: JobStore):
    store.declare_task("t", max_attempts=2, retry_delay=timedelta(hours=1), jitter=0)
    _, job_id = run_one(store)
    assert store.fail_job(job_id, 1, "broken") == "todo"
    due = store.next_due()
    assert due is not None
    assert timedelta(minutes=59) < due <= timedelta(hours=1)


def test_refused_outcomes_are_told(store: JobStore):
    worker_id, job_id = run_one(store)
    good = {"job_id": job_id, "attempt": 1, "worker_id": worker_id, "status": "succeeded"}
    bad = {**good, "attempt": 2}
    assert store.finish_jobs([bad, good]) == [(1, job_id, "not running")]


def test_a_heartbeat_tells_what_to_abort_and_what_is_lost(store: JobStore):
    worker_id, job_id = run_one(store)
    assert store.cancel_job(job_id, abort=True) == "doing"
    beat = store.heartbeat(worker_id, [job_id, job_id + 1], [1, 1])
    assert beat.abort_job_ids == [job_id]
    assert beat.lost_job_ids == [job_id + 1]
    assert beat.next_heartbeat > timedelta()
    assert not beat.stop_requested


def test_the_other_functions(store: JobStore):
    worker_id, job_id = run_one(store, queue_name="q")
    assert store.release_jobs(worker_id, [job_id], [2]) == []
    assert store.release_jobs(worker_id, [job_id], [1]) == [job_id]
    store.pause_queue("q")
    assert store.fetch_jobs(worker_id, ["q"]) == []
    store.resume_queue("q")
    assert store.cancel_job(job_id) == "cancelled"
    assert store.purge_jobs(timedelta()) == 1
    assert store.listen_channels(["q"]) == ["procrastinate_queue#q"]
    assert store.rescue_jobs() == []
    assert ("silent workers given up", 0) in store.repair(give_up_silent=True)
    store.unregister_worker(worker_id)
    assert store.schema_version() >= 1


@pytest.mark.parametrize(
    ("kind", "call"),
    [
        (JobNotRunning, lambda store: store.finish_job(1, 1)),
        (JobNotFound, lambda store: store.cancel_job(1)),
        (WorkerNotRegistered, lambda store: store.fetch_jobs(1)),
        (InvalidArgument, lambda store: store.defer_job("")),
        (InvalidArgument, lambda store: store.fetch_jobs(1, [])),
        (InvalidArgument, lambda store: store.fetch_jobs(1, max_jobs=2**40)),
    ],
)
def test_errors_are_told_apart_by_their_class(
    store: JobStore, kind: type[Exception], call: Callable[[JobStore], object]
):
    with pytest.raises(kind) as raised:
        call(store)
    assert isinstance(raised.value.__cause__, psycopg.Error)


def test_other_errors_of_the_driver_pass_through(conn: psycopg.Connection[Any]):
    conn.execute("set default_transaction_read_only = on")
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        JobStore(conn).defer_job("t")


async def test_the_async_store_is_the_same(dsn: str):
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        store = AsyncJobStore(connection)
        job_id = await store.defer_job("t", {"n": 1})
        worker_id = await store.register_worker("w")
        (job,) = await store.fetch_jobs(worker_id)
        assert (job.id, job.args, job.attempt) == (job_id, {"n": 1}, 1)
        await store.finish_job(job_id, 1, worker_id=worker_id)
        with pytest.raises(JobNotRunning):
            await store.finish_job(job_id, 1, worker_id=worker_id)
