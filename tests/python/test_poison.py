"""Jobs that would break a worker: each of them fails alone, and the worker goes on.

Each kind of task has a real worker process, in which poisonous jobs and good ones run side by side.
What the worker's own tests (test_worker.py) show of one outcome or one error is not repeated here.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

from procrastinate_sql import JobStore
from procrastinate_sql.job import Job

TASKS = """
import asyncio, os, sys, time
import psycopg
from procrastinate_sql import App, bindings


class Unheard(BaseException):
    pass


def raises(error):
    raise error


def recurse():
    recurse()


def circular():
    value = []
    value.append(value)
    return value


def deep():
    value = []
    for _ in range(100_000):
        value = [value]
    return value


def chain():
    error = None
    for number in range(300):
        error, error.__cause__ = ValueError("x" * 10_000), error
    raise error


def deletes_its_job():
    with psycopg.connect(os.environ["PROCRASTINATE_DSN"], autocommit=True) as connection:
        connection.execute(
            "delete from procrastinate_jobs"
            " where args ->> 'poison' = 'deletes_its_job' and status = 'doing'"
        )


def defers():
    app = App()
    app.defer("good_on_loop", n=-1)
    app.close()


def closes_a_loop():
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


def fork(leave):
    child = os.fork()
    if child == 0:
        leave()
    return child


POISONS = {
    "SystemExit": lambda: sys.exit(3),
    "KeyboardInterrupt": lambda: raises(KeyboardInterrupt()),
    "GeneratorExit": lambda: raises(GeneratorExit()),
    "CancelledError": lambda: raises(asyncio.CancelledError()),
    "StopAsyncIteration": lambda: raises(StopAsyncIteration()),
    "MemoryError": lambda: raises(MemoryError()),
    "BaseException": lambda: raises(Unheard()),
    "RecursionError": recurse,
    "long error": lambda: raises(ValueError("\\0" * 500_000 + "x" * 500_000)),
    "long chain of errors": chain,
    "set": lambda: {1},
    "bytes": lambda: b"1",
    "function": lambda: recurse,
    "lambda": lambda: lambda: None,
    "circular": circular,
    "deep": deep,
    "a number too long": lambda: 10**5000,
    "keys that are none": lambda: {(1, 2): 3},
    "NaN": lambda: float("nan"),
    "NUL": lambda: "\\0",
    "deletes_its_job": deletes_its_job,
    "defers": defers,
    "closes_a_loop": closes_a_loop,
    "fork, _exit": lambda: fork(lambda: os._exit(0)),
    "fork, sys.exit": lambda: fork(sys.exit),
    "fork, raise": lambda: fork(lambda: raises(ValueError())),
    "fork, return": lambda: fork(lambda: None),
    "_exit": lambda: os._exit(1),
}


@bindings.task
async def on_loop(poison):
    if poison == "defers":
        await bindings.defer_async("good_on_loop", n=-1)
    elif poison == "closes_a_loop":
        asyncio.get_running_loop().close()
    else:
        return POISONS[poison]()


@bindings.task
def in_thread(poison):
    return POISONS[poison]()


@bindings.task(run_in="process")
def in_process(poison):
    return POISONS[poison]()


@bindings.task
async def good_on_loop(n):
    await asyncio.sleep(0)
    return n


@bindings.task
def good_in_thread(n):
    return n


@bindings.task(run_in="process")
def good_in_process(n):
    return n
"""
KINDS = ("on_loop", "in_thread", "in_process")
# How a job ends that is not to fail; None: it is gone.
OTHER_ENDS = {
    "deletes_its_job": None,
    "defers": "succeeded",
    "closes_a_loop": "succeeded",
    "fork, _exit": "succeeded",
}
FAILS = [
    *("SystemExit", "KeyboardInterrupt", "GeneratorExit", "CancelledError", "StopAsyncIteration"),
    *("MemoryError", "BaseException", "RecursionError", "long error", "long chain of errors"),
    *("set", "bytes", "function", "lambda", "circular", "deep", "a number too long"),
    *("keys that are none", "NaN", "NUL"),
]
FORKS = ["fork, sys.exit", "fork, raise", "fork, return"]
COUNT = "select count(*) from procrastinate_jobs where status in ('todo', 'doing')"


@pytest.fixture
def start(tmp_path: Path, dsn: str) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a worker process with the tasks above; it is killed at the end if it still runs."""
    (tmp_path / "jobs.py").write_text(TASKS)
    with ExitStack() as started:

        def start_worker(*options: str) -> subprocess.Popen[str]:
            command = [sys.executable, "-m", "procrastinate_sql.cli", "worker", "--app", "jobs"]
            process = subprocess.Popen(
                [*command, *options],
                cwd=tmp_path,
                env={**os.environ, "PROCRASTINATE_DSN": dsn},
                stderr=(tmp_path / "stderr").open("w"),
                text=True,
                start_new_session=True,
            )
            started.callback(process.wait)
            # With whatever it has left behind.
            started.callback(end_group, process.pid)
            return process

        yield start_worker


def end_group(leader: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


@pytest.fixture
def store(conn: psycopg.Connection[Any]) -> JobStore:
    return JobStore(conn)


def is_done(conn: psycopg.Connection[Any]) -> bool:
    return conn.execute(COUNT).fetchone() == (0,)


def with_good_ones(store: JobStore, kind: str, poisons: list[str]) -> tuple[list[int], list[int]]:
    """Defer poisonous jobs with good ones before, between and after; return the ids of both."""
    jobs: list[dict[str, Any]] = [{"task_name": f"good_{kind}", "args": {"n": 0}}]
    for n, poison in enumerate(poisons, 1):
        jobs.append({"task_name": kind, "args": {"poison": poison}})
        jobs += [{"task_name": f"good_{one}", "args": {"n": n}} for one in (kind, "on_loop")]
    ids = [job_id for job_id, _ in store.defer_jobs(jobs)]
    bad = [job_id for job_id, job in zip(ids, jobs, strict=True) if job["task_name"] == kind]
    return bad, [job_id for job_id in ids if job_id not in bad]


def ends(store: JobStore, ids: list[int]) -> list[str | None]:
    jobs = [store.get_job(job_id) for job_id in ids]
    return [job.status if job is not None else None for job in jobs]


def check_good(store: JobStore, ids: list[int]) -> None:
    """Good jobs have run once, and have their own results."""
    jobs: list[Job] = [job for job_id in ids if (job := store.get_job(job_id))]
    wrong = {
        job.id: (job.status, job.args, job.result, job.error)
        for job in jobs
        if (job.status, job.result) != ("succeeded", job.args["n"])
        or job.attempts - job.handed_back != 1
    }
    assert not wrong


@pytest.mark.parametrize("kind", KINDS)
def test_what_breaks_a_job_breaks_nothing_else(
    start: Any, store: JobStore, conn: Any, wait_until: Any, kind: str
):
    expected = dict.fromkeys(FAILS, "failed") | OTHER_ENDS
    if kind == "on_loop":
        expected["closes_a_loop"] = "failed"  # a loop that runs cannot be closed
        del expected["GeneratorExit"]  # below
    if kind == "in_process":
        expected["_exit"] = "failed"
    bad, good = with_good_ones(store, kind, list(expected))
    worker = start("--concurrency", "3")
    wait_until(lambda: is_done(conn) or worker.poll() is not None, timeout=60)
    assert worker.poll() is None
    assert dict(zip(expected, ends(store, bad), strict=True)) == expected
    check_good(store, good)
    assert conn.execute(
        "select count(*), min(status::text) from procrastinate_jobs where args = '{\"n\": -1}'"
    ).fetchone() == (1, "succeeded")
    worker.terminate()
    assert worker.wait(15) == 0


def test_a_generator_exit_on_the_loop_fails_its_job_alone(
    start: Any, store: JobStore, conn: Any, wait_until: Any
):
    (bad,), good = with_good_ones(store, "on_loop", ["GeneratorExit"])
    start("--concurrency", "1")
    wait_until(lambda: is_done(conn), timeout=5)
    assert ends(store, [bad]) == ["failed"]
    check_good(store, good)


@pytest.mark.parametrize("kind", KINDS)
def test_the_child_of_a_task_that_forks_does_not_go_on_as_a_worker(
    start: Any, store: JobStore, conn: Any, wait_until: Any, kind: str
):
    bad, good = with_good_ones(store, kind, FORKS)
    worker = start("--concurrency", "1")
    wait_until(lambda: is_done(conn) or worker.poll() is not None, timeout=10)
    assert worker.poll() is None
    jobs = [job for job_id in bad if (job := store.get_job(job_id))]
    assert [job.status for job in jobs] == ["succeeded"] * len(FORKS)
    check_good(store, good)
    wait_until(lambda: not any(is_running(job.result) for job in jobs), timeout=5)
    worker.terminate()
    assert worker.wait(5) == 0


def is_running(pid: int) -> bool:
    """Does a process run, and not just wait for its parent to take note of its end?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


ODD_ARGS = {
    "nested deep": '{"n": ' + "[" * 6000 + "]" * 6000 + "}",
    "a number too long": '{"n": 1e5000}',
    "an empty name": '{"n": 1, "": 2}',
    "other names": '{"n": 1, "self": 2, "func": 3}',
    "another case": '{"N": 1}',
    "none": "{}",
}


def can_read(text: str) -> bool:
    try:
        json.loads(text)
    except RecursionError:
        return False
    return True


@pytest.mark.parametrize("kind", KINDS)
def test_arguments_that_no_call_can_take_fail_their_job_alone(
    start: Any, store: JobStore, conn: Any, wait_until: Any, kind: str
):
    ids = {}
    good = [store.defer_job(f"good_{kind}", {"n": 0})]
    for name, args in ODD_ARGS.items():
        defer = "select procrastinate_defer_job(%s, %s)"
        (ids[name],) = conn.execute(defer, (f"good_{kind}", args)).fetchone()
        good.append(store.defer_job(f"good_{kind}", {"n": 1}))
    worker = start()
    wait_until(lambda: is_done(conn) or worker.poll() is not None, timeout=20)
    assert worker.poll() is None
    query = "select id, status::text from procrastinate_jobs where id = any(%s)"
    status = dict(conn.execute(query, (list(ids.values()),)).fetchall())
    ended = {name: status[job_id] for name, job_id in ids.items()}
    expected = dict.fromkeys(ODD_ARGS, "failed")
    # As deep as this Python can read, it is an argument like any other; but no process is sent it.
    if can_read(ODD_ARGS["nested deep"]) and kind != "in_process":
        expected["nested deep"] = "succeeded"
    assert ended == expected
    check_good(store, good)
