"""An upgrade while producers and workers of the old and of the new release are at work.

The new release is made up (next_version.py), the rest is real: processes of both bindings, the
schema upgraded by psql or by the binding, a reader that will not let go of the jobs.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import next_version as next_release
import psycopg
import pytest
from concurrency import value
from databases import INSTALL, Database, owned_database, succeed
from next_version import LEFT_BEHIND, MIGRATION, NEXT, NextVersion
from psycopg.conninfo import make_conninfo

from procrastinate_sql import JobStore, calls, schema
from procrastinate_sql.connections import SCHEMA_VERSION

TASKS = """
import os
from procrastinate_sql import bindings

ran = open(os.environ["RAN"], "a", buffering=1)

@bindings.task
def run(key):
    ran.write(key + "\\n")
"""

PROGRAM = Path(__file__).with_name("upgrade_process.py")


@pytest.fixture
def role(dsn: str) -> Iterator[str]:
    """An ordinary role that owns nothing: whoever works with the queue of another."""
    name = f"user_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(dsn, autocommit=True) as administrator:
        administrator.execute(f"create role {name} login password '{name}'".encode())
        yield name
        administrator.execute(f"drop role {name}".encode())


@pytest.fixture
def database(dsn: str, role: str) -> Iterator[Database]:
    """A database with the schema of this release; the role may call its functions, no more."""
    with owned_database(dsn) as made:
        succeed(made.psql("-f", INSTALL))
        made.execute(f"""
            grant usage on schema public to {role};
            grant execute on all functions in schema public to {role};
        """)
        yield made


@pytest.fixture
def new(tmp_path: Path) -> NextVersion:
    """The release after this one."""
    return next_release.make(tmp_path / "new")


# --- Under load --------------------------------------------------------------------


@dataclass
class Load:
    """Processes that work with the queue until they are told to stop."""

    dsn: str
    folder: Path
    started: ExitStack
    reporting: list[subprocess.Popen[str]] = field(default_factory=list)
    workers: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def file(self) -> Path:
        return self.folder / "ran"

    def ran(self) -> list[str]:
        """What was run, once for each time that it was."""
        return self.file.read_text().splitlines()

    def start(self, role: str, name: str, python_path: Path | None = None) -> None:
        """Start a producer or a runner: one that reports what reached it."""
        command = [sys.executable, PROGRAM, role, self.dsn, name, self.file]
        self.reporting.append(self._start(command, python_path))

    def start_worker(self, python_path: Path | None = None) -> None:
        """Start a worker as users do; what it warns of, it logs."""
        command = [*CLI, "worker", "--app", "jobs"]
        options = ["--log-level", "warning", "--health-file", self.folder / "alive"]
        self.workers.append(self._start([*command, *options], python_path))

    def _start(self, command: list[Any], python_path: Path | None) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command,
            cwd=self.folder,
            env=environment(self.dsn, python_path) | {"RAN": str(self.file)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.callback(process.communicate)
        self.started.callback(process.kill)
        return process

    def stop(self, processes: list[subprocess.Popen[str]]) -> list[str]:
        """Let processes end in good order; return what they printed."""
        for process in processes:
            process.send_signal(signal.SIGTERM)
        outputs = [process.communicate(timeout=20) for process in processes]
        assert [process.returncode for process in processes] == [0] * len(processes), outputs
        assert [error for _, error in outputs] == [""] * len(processes)
        return [output for output, _ in outputs]


def environment(dsn: str, python_path: Path | None) -> dict[str, str]:
    """Return what a process of this package needs, or of the one in that folder."""
    path = {"PYTHONPATH": str(python_path)} if python_path else {}
    return {**os.environ, "PROCRASTINATE_DSN": dsn, **path}


@pytest.fixture
def load(database: Database, role: str, tmp_path: Path) -> Iterator[Load]:
    """Nothing yet; killed at the end."""
    (tmp_path / "jobs.py").write_text(TASKS)
    (tmp_path / "ran").touch()
    dsn = make_conninfo(database.dsn, user=role, password=role)
    with ExitStack() as started:
        yield Load(dsn, tmp_path, started)


class Watch:
    """How long the table of jobs was locked against everybody, and how often that was tried."""

    WAITING_OR_HELD = b"""
        select granted from pg_locks
        where relation = 'procrastinate_jobs'::regclass and mode = 'AccessExclusiveLock'
    """

    def __init__(self, database: Database) -> None:
        self.longest = {False: 0.0, True: 0.0}
        self.tries = 0
        self._connection = database.connect()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()
        self._connection.close()

    def _watch(self) -> None:
        state: bool | None = None
        since = time.monotonic()
        while not self._stopped.is_set():
            row = self._connection.execute(self.WAITING_OR_HELD).fetchone()
            now = time.monotonic()
            if state is not None:
                self.longest[state] = max(self.longest[state], now - since)
            granted = row[0] if row else None
            if granted != state:
                self.tries += state is None
                state, since = granted, now
            time.sleep(0.002)


@contextmanager
def reading(database: Database) -> Iterator[None]:
    """A long transaction that has read the jobs."""
    with closing(database.connect()) as reader, reader.transaction():
        reader.execute("select from procrastinate_jobs limit 1")
        yield


CLI = (sys.executable, "-m", "procrastinate_sql.cli")


def cli(dsn: str, new: NextVersion, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command of the new release."""
    return subprocess.run(
        [*CLI, *arguments],
        env=environment(dsn, new.python_path),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def upgrade_with_psql(
    database: Database, new: NextVersion, watch: Watch, wait_until: Callable[..., Any]
) -> None:
    """It fails while the reader reads, says so, and changes nothing; then it is run again."""
    with reading(database):
        output = database.psql("-v", "VERBOSITY=verbose", "-f", new.upgrade)
        assert output.returncode != 0
        assert "55P03: another transaction kept procrastinate_jobs" in output.stderr
        assert "Run it again" in output.stderr
        assert database.execute("select procrastinate_schema_version()") == [(SCHEMA_VERSION,)]
    # Somebody else may have held it for long, on a machine that is busy.
    wait_until(lambda: database.psql("-f", new.upgrade).returncode == 0, timeout=30)


def upgrade_with_binding(
    database: Database, new: NextVersion, watch: Watch, wait_until: Callable[..., Any]
) -> None:
    """It tries again by itself until the reader has gone."""
    with ThreadPoolExecutor(1) as thread:
        with reading(database):
            command = ("schema", "upgrade", "--wait", "30")
            upgraded = thread.submit(cli, database.dsn, new, *command)
            wait_until(lambda: watch.tries >= 2 or upgraded.done(), timeout=20)
            assert not upgraded.done(), upgraded
        output = upgraded.result()
    assert (output.returncode, output.stdout) == (0, f"applied {MIGRATION}.sql\n"), output


@pytest.mark.parametrize("upgrade", [upgrade_with_psql, upgrade_with_binding])
def test_producers_and_workers_go_on_through_an_upgrade(
    database: Database,
    load: Load,
    new: NextVersion,
    wait_until: Callable[..., Any],
    upgrade: Callable[..., None],
):
    """No error reaches anybody, nothing is lost or run twice, nothing is locked for a second."""

    def more_run(name: str, number: int = 60) -> None:
        before = len(load.ran())
        wait_until(
            lambda: sum(key.startswith(name) for key in load.ran()[before:]) >= number, timeout=30
        )

    load.start("producer", "old")
    load.start("runner", "old")
    load.start_worker()
    more_run("old")
    with Watch(database) as watch:
        upgrade(database, new, watch, wait_until)
        load.start("producer", "new", new.python_path)
        load.start("runner", "new", new.python_path)
        load.start_worker(new.python_path)
        more_run("new")
        more_run("old")

    reports = [json.loads(output) for output in load.stop(load.reporting[::2])]
    deferred = [key for report in reports for key in report["deferred"]]
    wait_until(lambda: len(load.ran()) >= len(deferred), timeout=30)
    reports += [json.loads(output) for output in load.stop(load.reporting[1::2])]
    load.stop(load.workers)

    longest = max(report["longest"] for report in reports)
    print(
        f"\n{len(deferred)} jobs; longest call {longest:.3f} s; {watch.tries} tries, waited up to"
        f" {watch.longest[False]:.3f} s, locked for {watch.longest[True]:.3f} s"
    )
    assert [report["errors"] for report in reports] == [[]] * len(reports)
    assert Counter(report["version"] for report in reports) == {SCHEMA_VERSION: 2, NEXT: 2}
    assert Counter(load.ran()) == Counter(deferred)
    assert database.execute(
        "select status::text, attempts, lost + failures + handed_back, count(*)"
        " from procrastinate_jobs group by 1, 2, 3"
    ) == [("succeeded", 1, 0, len(deferred))]
    assert database.execute("select distinct note from procrastinate_jobs order by note") == [
        ("new",),
        (None,),
    ]
    assert watch.longest[False] < 1
    assert watch.longest[True] < 1


# --- Calls under way ---------------------------------------------------------------

CALLS: dict[str, Callable[[JobStore, int], Any]] = {
    "defer_job": lambda store, _: store.defer_job("run"),
    "defer_job with a lock": lambda store, _: store.defer_job("run", lock="a"),
    "defer_job with a queueing lock": lambda store, _: store.defer_job(
        "run", queueing_lock="a", on_conflict="replace"
    ),
    "defer_jobs": lambda store, _: store.defer_jobs([{"task_name": "run"}] * 2),
    "fetch_jobs": lambda store, worker: store.fetch_jobs(worker, max_jobs=2),
    "fetch_jobs of a queue": lambda store, worker: store.fetch_jobs(worker, ["default"]),
    "finish_jobs": lambda store, worker: store.finish_jobs(
        [{"job_id": 1, "attempt": 1, "worker_id": worker, "status": "succeeded"}]
    ),
    "succeed_jobs": lambda store, worker: store.succeed_jobs(worker, [1], [1]),
    "release_jobs": lambda store, worker: store.release_jobs(worker, [1], [1]),
    "heartbeat": lambda store, worker: store.heartbeat(worker, [1], [1]),
    "rescue_jobs": lambda store, worker: store.rescue_jobs(worker),
    "next_due": lambda store, _: store.next_due(),
    "cancel_job": lambda store, _: store.cancel_job(1),
    "get_job": lambda store, _: store.get_job(1),
    "purge_jobs": lambda store, _: store.purge_jobs(3600),
    "repair": lambda store, _: store.repair(),
}

ALL_WAIT = "select bool_and(pg_blocking_pids(pid) <> '{}') from unnest(%s::integer[]) as pid"


@pytest.mark.parametrize("warm", [False, True], ids=["first calls", "prepared"])
def test_calls_under_way_outlive_the_upgrade(
    database: Database, new: NextVersion, wait_until: Callable[..., Any], warm: bool
):
    """They began in the old version, wait for its lock, and end in the new one."""
    with ExitStack() as opened:

        def connect() -> psycopg.Connection[Any]:
            return opened.enter_context(closing(database.connect()))

        observer, upgrading = connect(), connect()
        observer.execute("select procrastinate_defer_job('run') from generate_series(1, 100)")
        connections = [connect() for _ in CALLS]
        stores = {name: JobStore(conn) for name, conn in zip(CALLS, connections, strict=True)}
        workers = {name: store.register_worker() for name, store in stores.items()}
        for name, store in stores.items():
            for _ in range(8 if warm else 0):
                CALLS[name](store, workers[name])

        pids = [conn.info.backend_pid for conn in connections]
        with ThreadPoolExecutor(len(CALLS)) as threads:
            with upgrading.transaction():
                upgrading.execute(calls.PIN_SCHEMA)
                upgrading.execute(new.migration.read_bytes())
                under_way = {
                    name: threads.submit(CALLS[name], store, workers[name])
                    for name, store in stores.items()
                }
                wait_until(lambda: value(observer, ALL_WAIT, pids))
            errors = {name: call.exception(10) for name, call in under_way.items()}
        assert errors == dict.fromkeys(CALLS)
        for name, store in stores.items():
            CALLS[name](store, workers[name])


def test_a_statement_of_many_calls_outlives_the_upgrade(
    database: Database, new: NextVersion, wait_until: Callable[..., Any]
):
    """The function whose old signature it calls is still there under another name."""
    insert = "select procrastinate_defer_job('run') from generate_series(1, 3)"
    with (
        closing(database.connect()) as producer,
        closing(database.connect()) as upgrading,
        closing(database.connect()) as observer,
        ThreadPoolExecutor(1) as thread,
    ):
        with upgrading.transaction():
            upgrading.execute(calls.PIN_SCHEMA)
            upgrading.execute(new.migration.read_bytes())
            under_way = thread.submit(producer.execute, insert)
            wait_until(lambda: value(observer, ALL_WAIT, [producer.info.backend_pid]))
        assert len(under_way.result(10).fetchall()) == 3
        assert value(observer, f"select count(*) from pg_proc where proname = '{LEFT_BEHIND}'") == 1


# --- What does not end well --------------------------------------------------------


def test_the_new_release_says_what_it_needs_of_an_old_schema(database: Database, new: NextVersion):
    """Which version is there, which it needs, and what to run."""
    for command in (
        ("schema", "check"),
        ("defer", "run"),
        ("worker", "--app", "procrastinate_sql", "--no-wait"),
    ):
        refused = cli(database.dsn, new, *command)
        assert refused.returncode == 1
        assert f"the schema has version {SCHEMA_VERSION}" in refused.stderr
        assert f"needs {NEXT}" in refused.stderr
        assert "schema upgrade" in refused.stderr


ON_A_CONNECTION_OF_ITS_OWN = """
import os, psycopg
from procrastinate_sql import JobStore, SchemaVersionError
with psycopg.connect(os.environ["PROCRASTINATE_DSN"]) as connection:
    try:
        JobStore(connection).defer_job("run", note="new")
    except SchemaVersionError as error:
        print(error, error.hint)
"""


def test_the_new_release_says_it_on_connections_of_the_caller_too(
    database: Database, new: NextVersion
):
    """Nobody has asked there for the version: the call that needs what is missing finds it out."""
    output = subprocess.run(
        [sys.executable, "-c", ON_A_CONNECTION_OF_ITS_OWN],
        env=environment(database.dsn, new.python_path),
        capture_output=True,
        text=True,
        check=True,
    )
    assert output.stdout.startswith("this package needs another schema")
    assert "note => text" in output.stdout
    assert "schema check" in output.stdout


def test_a_reader_that_stays_is_told_of(
    database: Database, new: NextVersion, monkeypatch: pytest.MonkeyPatch
):
    """After the time that was given; another try goes on from there."""
    monkeypatch.setattr(schema, "files", lambda _: new.package)
    monkeypatch.setattr(schema, "SCHEMA_VERSION", NEXT)
    with closing(database.connect()) as owner:
        with reading(database), pytest.raises(schema.SchemaBusy, match=MIGRATION) as raised:
            schema.upgrade(owner, wait=0)
        assert "xact_start" in (raised.value.hint or "")
        assert schema.check(owner) == (SCHEMA_VERSION, NEXT)
        assert schema.upgrade(owner) == [f"{MIGRATION}.sql"]


@pytest.mark.parametrize("client", ["psql", "binding"])
def test_an_upgrade_that_is_killed_can_be_run_again(
    database: Database, new: NextVersion, wait_until: Callable[..., Any], client: str
):
    """kill -9 of the client: its server process goes on to the end, where nobody commits."""
    waiting = "select pid from pg_stat_activity where usename = user and wait_event_type = 'Lock'"
    alive = "select count(*) from pg_stat_activity where pid = %s"
    with closing(database.connect()) as other, closing(database.connect()) as observer:
        with other.transaction():
            other.execute("lock table procrastinate_jobs in share update exclusive mode")
            process = (
                database.start_psql("-f", new.upgrade)
                if client == "psql"
                else subprocess.Popen(
                    [*CLI, "schema", "upgrade"], env=environment(database.dsn, new.python_path)
                )
            )
            pid = wait_until(lambda: value(observer, waiting))
            process.kill()
            process.wait()
        wait_until(lambda: value(observer, alive, pid) == 0)
        assert value(observer, "select procrastinate_schema_version()") == SCHEMA_VERSION
        output = cli(database.dsn, new, "schema", "upgrade")
        assert output.stdout == f"applied {MIGRATION}.sql\n"
        assert value(observer, "select procrastinate_schema_version()") == NEXT
