"""Real worker processes: told to stop, killed, and with the server restarted under them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

from procrastinate_sql import App, JobStore

TASKS = """
import asyncio, os, time
from procrastinate_sql import bindings

@bindings.task
async def quick(n):
    pass

@bindings.task
async def brief(n):
    await asyncio.sleep(0.02)

@bindings.task
def brief_in_thread(n):
    time.sleep(0.02)

@bindings.task
async def wait_for(path, started=None):
    if started:
        open(started, "w").close()
    while not os.path.exists(path):
        await asyncio.sleep(0.01)

@bindings.task
def stuck():
    time.sleep(3600)

@bindings.task
def leave_a_child(path):
    if os.fork() == 0:
        os.closerange(0, 3)
        while not os.path.exists(path):
            time.sleep(0.01)
        os._exit(0)
"""

COUNTS = "select status::text, count(*) from procrastinate_jobs group by status"


@pytest.fixture
def start(tmp_path: Path, dsn: str) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a worker process with the tasks above; it is killed at the end if it still runs."""
    (tmp_path / "jobs.py").write_text(TASKS)
    with ExitStack() as started:

        def start_worker(*options: str, address: str = dsn) -> subprocess.Popen[str]:
            command = [sys.executable, "-m", "procrastinate_sql.cli", "worker", "--app", "jobs"]
            environment = {
                **os.environ,
                "PROCRASTINATE_DSN": address,
                "PROCRASTINATE_HEALTH_FILE": str(tmp_path / "alive"),
            }
            process = subprocess.Popen(
                [*command, *options],
                cwd=tmp_path,
                env=environment,
                stderr=subprocess.PIPE,
                text=True,
            )
            started.callback(process.communicate)
            started.callback(process.kill)
            return process

        yield start_worker


@pytest.fixture
def store(conn: psycopg.Connection[Any]) -> JobStore:
    return JobStore(conn)


def status(store: JobStore, job_id: int) -> str:
    job = store.get_job(job_id)
    assert job is not None
    return job.status


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_jobs_finish(
    start: Any, store: JobStore, tmp_path: Path, wait_until: Any, number: signal.Signals
):
    # Seen by what it does: one that is only claimed is handed back.
    paths = {"path": str(tmp_path / "go"), "started": str(tmp_path / "started")}
    running = store.defer_job("wait_for", paths)
    waiting = store.defer_job("quick", {"n": 1}, priority=-1)
    worker = start("--concurrency", "1")
    wait_until((tmp_path / "started").exists)
    worker.send_signal(number)
    (tmp_path / "go").touch()
    assert worker.wait(15) == 0
    assert (status(store, running), status(store, waiting)) == ("succeeded", "todo")


@pytest.mark.parametrize("twice", [True, False], ids=["a second signal", "the end of the grace"])
def test_what_does_not_finish_is_handed_back_at(
    start: Any, store: JobStore, conn: Any, wait_until: Any, twice: bool
):
    ids = [store.defer_job("stuck"), store.defer_job("wait_for", {"path": "/nowhere"})]
    worker = start("--shutdown-timeout", "60" if twice else "0.2")
    wait_until(lambda: [status(store, job_id) for job_id in ids] == ["doing"] * 2)
    worker.terminate()
    if twice:
        wait_until(lambda: "stops" in worker.stderr.readline())
        worker.terminate()
    assert worker.wait(15) == 0
    for job_id in ids:
        job = store.get_job(job_id)
        assert job is not None
        assert (job.status, job.failures, job.lost, job.handed_back) == ("todo", 0, 0, 1)


def test_the_jobs_of_a_killed_worker_are_run_by_another(
    start: Any, store: JobStore, tmp_path: Path, wait_until: Any
):
    job_id = store.defer_job("wait_for", {"path": str(tmp_path / "go")})
    victim = start()
    wait_until(lambda: status(store, job_id) == "doing")
    start()
    victim.kill()
    (tmp_path / "go").touch()
    # Unless the victim was faster than its death.
    wait_until(lambda: status(store, job_id) == "succeeded", timeout=20)


def test_a_killed_worker_loses_its_run_within_seconds(
    start: Any, store: JobStore, tmp_path: Path, wait_until: Any
):
    job_id = store.defer_job("wait_for", {"path": str(tmp_path / "go")})
    victim = start()
    wait_until(lambda: status(store, job_id) == "doing")
    victim.kill()
    victim.wait()
    start()

    def lost() -> bool:
        job = store.get_job(job_id)
        return job is not None and (job.lost, job.status) == (1, "doing")

    wait_until(lost, timeout=15)
    (tmp_path / "go").touch()
    wait_until(lambda: status(store, job_id) == "succeeded")


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_all_jobs_are_done_though_the_server_is_restarted(
    restartable_server: Any, start: Any, wait_until: Any, mode: str
):
    def counts() -> dict[str, int]:
        with psycopg.connect(restartable_server.dsn) as connection:
            return dict(connection.execute(COUNTS).fetchall())

    def registered() -> int:
        with psycopg.connect(restartable_server.dsn) as connection:
            row = connection.execute("select count(*) from procrastinate_workers").fetchone()
            assert row is not None
            return int(row[0])

    with psycopg.connect(restartable_server.dsn) as connection:
        store = JobStore(connection)
        names = ("brief", "brief_in_thread", "quick", "brief")
        store.defer_jobs(
            [
                {
                    "task_name": names[n % 4],
                    "args": {"n": n},
                    # Every tenth job is in a chain, so that locks live through it too.
                    **({"lock": f"lock {n % 30}"} if n % 10 == 0 else {}),
                }
                for n in range(1000)
            ]
        )
    workers = [start(address=restartable_server.dsn) for _ in range(2)]
    # Both: one that cannot reach the server at its very start gives up.
    wait_until(lambda: registered() == 2, timeout=60)
    wait_until(lambda: counts().get("succeeded", 0) > 100, timeout=60)
    restartable_server.stop(mode)
    restartable_server.start()
    assert counts().get("succeeded", 0) < 1000
    wait_until(lambda: counts() == {"succeeded": 1000}, timeout=60)
    assert [worker.poll() for worker in workers] == [None, None]
    for worker in workers:
        worker.terminate()
    assert [worker.wait(15) for worker in workers] == [0, 0]


def test_a_worker_survives_the_loss_of_every_connection(
    start: Any, store: JobStore, conn: Any, wait_until: Any
):
    worker = start("--poll-interval", "0.5")
    first = store.defer_job("quick", {"n": 1})
    wait_until(lambda: status(store, first) == "succeeded")
    conn.execute("""
        select pg_terminate_backend(pid) from pg_stat_activity
        where datname = current_database() and pid <> pg_backend_pid()
    """)
    last = store.defer_job("quick", {"n": 2})
    wait_until(lambda: status(store, last) == "succeeded", timeout=15)
    assert worker.poll() is None


def test_a_health_file_tells_of_a_worker_that_is_frozen(
    start: Any, tmp_path: Path, wait_until: Any
):
    def healthcheck(*options: str) -> int:
        command = [sys.executable, "-m", "procrastinate_sql.cli", "healthcheck", *options]
        options = ("--health-file", str(tmp_path / "alive"))
        return subprocess.run([*command, *options], capture_output=True, check=False).returncode

    worker = start()
    wait_until(lambda: healthcheck() == 0)
    worker.send_signal(signal.SIGSTOP)
    wait_until(lambda: healthcheck("--max-age", "2") == 1)
    worker.send_signal(signal.SIGCONT)
    wait_until(lambda: healthcheck("--max-age", "2") == 0)


# The guard, which keeps the lease of a worker whose interpreter is held (tests/faults shows that).


def guards(worker_pid: int) -> list[int]:
    """Return the processes that guard a worker."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has just ended
            _, script, pid, *_ = [*path.read_bytes().split(b"\0"), b"", b""]
            if script.endswith(b"guard_process.py") and int(pid) == worker_pid:
                found.append(int(path.parent.name))
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_guard_ends_with_its_worker(start: Any, wait_until: Any, number: signal.Signals):
    worker = start()
    wait_until(lambda: len(guards(worker.pid)) == 1)
    worker.send_signal(number)
    worker.wait(15)
    wait_until(lambda: not guards(worker.pid))


def test_the_guard_of_a_killed_worker_ends_though_a_child_of_a_task_lives(
    start: Any, store: JobStore, tmp_path: Path, wait_until: Any
):
    """The child has the worker's end of what connects the two."""
    worker = start()
    wait_until(lambda: len(guards(worker.pid)) == 1)
    job_id = store.defer_job("leave_a_child", {"path": str(tmp_path / "go")})
    wait_until(lambda: status(store, job_id) == "succeeded")
    worker.kill()
    worker.wait()
    wait_until(lambda: not guards(worker.pid), timeout=15)
    (tmp_path / "go").touch()


def test_the_guard_ends_with_a_worker_inside_an_application(
    dsn: str, store: JobStore, wait_until: Any
):
    app = App(dsn)

    @app.task
    def look() -> None:
        wait_until(lambda: guards(os.getpid()))

    job_id = store.defer_job("look")
    app.run_worker(wait=False)
    assert status(store, job_id) == "succeeded"
    wait_until(lambda: not guards(os.getpid()))


def test_signals_to_all_processes_are_for_the_worker_alone(start: Any, wait_until: Any):
    """From a terminal they do not reach the guard; where a service is stopped it ignores them."""
    worker = start()
    (guard,) = wait_until(lambda: guards(worker.pid))

    def ignores(number: signal.Signals) -> bool:
        (mask,) = re.findall(r"SigIgn:\s*(\w+)", Path(f"/proc/{guard}/status").read_text())
        return bool(int(mask, 16) >> (number - 1) & 1)

    assert os.getsid(guard) == guard
    wait_until(lambda: ignores(signal.SIGTERM) and ignores(signal.SIGINT))


def test_a_guard_that_was_killed_is_replaced(start: Any, wait_until: Any):
    worker = start()
    (guard,) = wait_until(lambda: guards(worker.pid))
    os.kill(guard, signal.SIGKILL)
    wait_until(lambda: guards(worker.pid) not in ([], [guard]))
