"""What an app encodes before it is stored: the encryption of examples/python, and what fails."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import psycopg
import pytest
from cryptography.fernet import Fernet
from psycopg.conninfo import conninfo_to_dict
from psycopg.types.json import Jsonb

from procrastinate_sql import App, InvalidArgument, JobContext
from procrastinate_sql.job import Job

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "python"
WORKER = Path(sysconfig.get_path("scripts"), "procrastinate-sql")
OLD, NEW, OTHER = (Fernet.generate_key().decode() for _ in range(3))
SECRET = "4711-secret"
TASKS = ("echo", "echo_async", "echo_in_process")

Connection = psycopg.Connection[Any]
MakeApp = Callable[..., App]


def echo(secret: str) -> str:
    return secret


async def echo_async(context: JobContext, secret: str) -> str:
    assert context.job.args == {"secret": secret}
    return secret


def echo_in_process(secret: str) -> str:
    return secret


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch, dsn: str) -> Iterator[ModuleType]:
    """The module of the example."""
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setenv("JOB_KEYS", OLD)
    module = importlib.import_module("with_encryption")
    module.app.connect_to(dsn)
    yield module
    module.app.close()
    del sys.modules["with_encryption"]


@pytest.fixture
def make_app(dsn: str, example: ModuleType) -> Iterator[MakeApp]:
    """Make an app that has these keys, or none."""
    made: list[App] = []

    def make(*keys: str) -> App:
        encryption = example.Encryption(",".join(keys)) if keys else None
        app = App(
            dsn,
            encode=encryption and encryption.encode,
            decode=encryption and encryption.decode,
        )
        app.task(echo)
        app.task(pass_context=True)(echo_async)
        app.task(run_in="process")(echo_in_process)
        made.append(app)
        return app

    yield make
    for app in made:
        app.close()


async def drain(app: App, **options: Any) -> None:
    await asyncio.wait_for(app.run_worker_async(wait=False, **options), 30)


def read(app: App, job_id: int) -> Job:
    job = app.job_store.get_job(job_id)
    assert job is not None
    return job


def ending(conn: Connection, job_id: int) -> tuple[str, str]:
    """Return the status of a job and the first line of its error."""
    query = "select status::text, coalesce(error, '') from procrastinate_jobs where id = %s"
    row = conn.execute(query, [job_id]).fetchone()
    assert row is not None
    return row[0], row[1].partition("\n")[0]


def stored(conn: Connection) -> str:
    """Return all that is in the rows of the queue."""
    rows = conn.execute("select job::text from procrastinate_jobs as job order by id")
    return "\n".join(row[0] for row in rows)


# --- Encryption --------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
async def test_a_job_runs_and_its_row_shows_no_plain_text(
    make_app: MakeApp, conn: Connection, task: str
):
    app = make_app(NEW)
    job_id = app.defer(task, secret=SECRET)
    assert SECRET not in stored(conn)
    await drain(app)
    assert SECRET not in stored(conn)
    [(args, result)] = conn.execute("select args, result from procrastinate_jobs")
    assert [*args, *result] == ["encrypted", "encrypted"]

    job = read(app, job_id)
    assert (job.status, job.args, job.result) == ("succeeded", {"secret": SECRET}, SECRET)


async def test_every_way_to_defer_encrypts(make_app: MakeApp, conn: Connection, dsn: str):
    app = make_app(NEW)
    many = app.configure("echo", schedule_in=0)
    ids = [
        app.defer("echo", secret=SECRET),
        await app.defer_async("echo", secret=SECRET),
        *app.defer_many("echo", [{"secret": SECRET}]),
        *await many.defer_many_async([{"secret": SECRET}]),
        app.configure("echo", connection=conn).defer(secret=SECRET),
        app.job_store.defer_job("echo", {"secret": SECRET}),
    ]
    empty = [
        app.defer("other"),
        app.job_store.defer_job("other"),
        app.job_store.defer_jobs([{"task_name": "other"}])[0][0],
    ]
    assert SECRET not in stored(conn)
    assert stored(conn).count("encrypted") == len(ids + empty)
    assert [read(app, job_id).args for job_id in ids] == [{"secret": SECRET}] * len(ids)
    assert [read(app, job_id).args for job_id in empty] == [{}] * len(empty)


async def test_a_result_is_encrypted_wherever_the_job_is_finished(
    make_app: MakeApp, conn: Connection, dsn: str
):
    app = make_app(NEW)

    @app.task(pass_context=True)
    def finishing(context: JobContext) -> None:
        with psycopg.connect(dsn) as own:
            context.finish(own, result=SECRET)

    @app.task(pass_context=True)
    def telling(context: JobContext) -> None:
        context.set_result(SECRET)

    ids = [finishing.defer(), telling.defer()]
    await drain(app)
    assert [read(app, job_id).result for job_id in ids] == [SECRET] * 2
    assert SECRET not in stored(conn)


@pytest.mark.parametrize("task", TASKS)
async def test_a_worker_without_the_key_fails_that_job_alone(
    make_app: MakeApp, conn: Connection, task: str
):
    app = make_app(NEW)
    before = app.defer(task, secret="readable")
    foreign = make_app(OTHER).defer(task, secret=SECRET)
    plain = make_app().defer(task, secret=SECRET)
    after = app.defer(task, secret="readable")
    await drain(app)

    refusal = "args: cannot be decoded: not encrypted with a key of this process"
    assert [ending(conn, job_id)[0] for job_id in (before, foreign, plain, after)] == [
        "succeeded",
        "failed",
        "failed",
        "succeeded",
    ]
    assert refusal in ending(conn, foreign)[1]
    assert refusal in ending(conn, plain)[1]


async def test_the_policy_of_the_task_decides_of_a_job_that_cannot_be_read(
    make_app: MakeApp, conn: Connection
):
    """It may be run again, by a worker that has the key."""
    job_id = make_app(NEW).defer("patient", secret=SECRET)
    without, with_key = make_app(OTHER), make_app(OTHER, NEW)
    for app in (without, with_key):
        app.task(name="patient", max_attempts=2, retry_delay={"hours": 1})(lambda secret: secret)
    await drain(without)
    assert ending(conn, job_id)[0] == "todo"
    conn.execute("update procrastinate_jobs set scheduled_at = null")
    await drain(with_key)
    assert read(with_key, job_id).result == SECRET


async def test_what_was_tampered_with_is_refused(make_app: MakeApp, conn: Connection):
    app = make_app(NEW)
    job_id = app.defer("echo", secret=SECRET)
    token = conn.execute("select args ->> 'encrypted' from procrastinate_jobs").fetchone()[0]
    flipped = token[:40] + ("A" if token[40] != "A" else "B") + token[41:]
    conn.execute("update procrastinate_jobs set args = %s", [Jsonb({"encrypted": flipped})])
    await drain(app)
    assert ending(conn, job_id)[0] == "failed"


def test_the_example_does_what_its_header_says(dsn: str, conn: Connection):
    place = {name: str(value) for name, value in conninfo_to_dict(dsn).items()}
    address = {
        "PGHOST": place["host"],
        "PGPORT": place["port"],
        "PGUSER": place["user"],
        "PGPASSWORD": place.get("password", ""),
        "PGDATABASE": place["dbname"],
    }

    def run(keys: str, *command: object) -> str:
        output = subprocess.run(
            [str(word) for word in command],
            cwd=EXAMPLES,
            env={**os.environ, **address, "JOB_KEYS": keys},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert output.returncode == 0, output.stderr
        return output.stdout.strip()

    program = (sys.executable, "with_encryption.py")
    worker = (WORKER, "worker", "--app", "with_encryption:app", "--no-wait")
    job_id = int(run(OLD, *program, "defer", "ann@example.org", SECRET))
    assert run(f"{NEW},{OLD}", *program, "rotate") == "1"
    run(NEW, *worker)
    assert ending(conn, job_id) == ("succeeded", "")
    assert SECRET not in stored(conn)


# --- Rotation ----------------------------------------------------------------------


async def test_workers_with_both_keys_run_what_is_encrypted_with_either(
    make_app: MakeApp, conn: Connection
):
    old = make_app(OLD).defer("echo", secret="old")
    new = make_app(NEW, OLD).defer("echo", secret="new")
    app = make_app(OLD, NEW)
    await drain(app)
    assert [read(app, old).result, read(app, new).result] == ["old", "new"]


async def test_after_a_rotation_the_old_key_is_not_needed(
    make_app: MakeApp, conn: Connection, example: ModuleType
):
    old, both, new = make_app(OLD), make_app(NEW, OLD), make_app(NEW)
    finished = old.defer("echo", secret="finished")
    await drain(old)
    running = old.configure("echo", queue="running").defer(secret="running")
    worker_id = old.job_store.register_worker()
    [job] = old.job_store.fetch_jobs(worker_id, ["running"])
    waiting = old.configure("echo", schedule_in=0, lock="lock").defer(secret="waiting")
    both.defer("echo", secret="new already")

    rotate = example.Encryption(f"{NEW},{OLD}").rotate
    assert rotate(conn) == 2
    old.job_store.finish_job(job.id, job.attempt, result="done", worker_id=worker_id)
    assert rotate(conn) == 1
    assert rotate(conn) == 0

    await drain(new)
    assert read(new, finished).result == "finished"
    assert read(new, running).result == "done"
    assert read(new, waiting).result == "waiting"
    statuses = conn.execute("select distinct status::text from procrastinate_jobs").fetchall()
    assert statuses == [("succeeded",)]


# --- Codecs that fail --------------------------------------------------------------


def fail(value: object) -> Any:
    raise RuntimeError("no luck")


async def test_what_cannot_be_encoded_is_not_deferred(dsn: str, conn: Connection):
    app = App(dsn, encode=fail)
    with pytest.raises(InvalidArgument, match="args: no luck"):
        app.defer("echo", secret=SECRET)
    with pytest.raises(InvalidArgument, match="jobs: no luck"):
        app.defer_many("echo", [{"secret": SECRET}])
    assert stored(conn) == ""
    app.close()


async def test_args_that_are_encoded_as_no_object_are_refused(dsn: str, conn: Connection):
    app = App(dsn, encode=lambda value: "gibberish")
    with pytest.raises(InvalidArgument, match="args: must be a JSON object"):
        app.defer("echo", secret=SECRET)
    app.close()


async def test_a_result_that_cannot_be_encoded_fails_its_job_alone(dsn: str, conn: Connection):
    def encode(value: Any) -> Any:
        return value if isinstance(value, Mapping) or value == 1 else fail(value)

    app = App(dsn, encode=encode)

    @app.task
    async def task(n: int) -> int:
        return n

    ids = task.defer_many([{"n": n} for n in range(3)])
    await drain(app)
    endings = [ending(conn, job_id) for job_id in ids]
    assert [status for status, _ in endings] == ["failed", "succeeded", "failed"]
    assert endings[0][1].endswith("no luck")
    app.close()


async def test_a_loads_that_fails_fails_its_job_alone(dsn: str, conn: Connection):
    def loads(text: str) -> Any:
        return fail(text) if "secret" in text else {}

    app = App(dsn, loads=loads)
    app.task(echo)
    app.task(name="other")(lambda: None)
    ids = [app.defer("echo", secret=SECRET), app.defer("other")]
    await drain(app)
    assert [ending(conn, job_id)[0] for job_id in ids] == ["failed", "succeeded"]
    assert "args: cannot be decoded: no luck" in ending(conn, ids[0])[1]
    app.close()


async def test_args_that_cannot_be_read_can_be_logged(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture
):
    make_app(OTHER).defer("echo", secret=SECRET)
    with caplog.at_level(logging.DEBUG, "procrastinate_sql"):
        await drain(make_app(NEW), log_args=True)
    assert "not encrypted with a key of this process" in caplog.text


async def test_args_that_cannot_be_read_fail_their_job_alone_in_a_batch_too(
    dsn: str, conn: Connection
):
    def decode(value: Any) -> Any:
        return fail(value) if value == {"n": 1} else value

    app = App(dsn, decode=decode)

    @app.task(batch=10)
    async def task(jobs: list[Any]) -> None:
        assert [job.job.args["n"] for job in jobs] == [0, 2]

    ids = task.defer_many([{"n": n} for n in range(3)])
    await drain(app)
    statuses = [ending(conn, job_id)[0] for job_id in ids]
    assert statuses == ["succeeded", "failed", "succeeded"]
    app.close()
