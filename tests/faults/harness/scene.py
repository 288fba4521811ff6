"""A database under load: worker and producer processes, to be killed, frozen and audited."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psycopg

from harness import audit, clock, figures
from harness.evidence import SETUP, SHORT_LEASE, Evidence, read_database, read_ledger, read_runs

FOLDER = Path(__file__).resolve().parents[1]
INSTALL = FOLDER.parents[1] / "sql" / "install.sql"
T = TypeVar("T")


@dataclass(frozen=True)
class Size:
    """How much of everything.

    Attributes:
        jobs: Jobs that producers commit in a scenario.
        rate: Jobs a second, of all producers.
        lease: Seconds, in place of the default lease of 30; None: that.
        soak: Minutes of the soak.
        burst: Jobs of the burst.
    """

    jobs: int
    rate: float
    lease: float | None
    soak: float
    burst: int

    @classmethod
    def read(cls, text: str) -> Size:
        """Read $FAULTS_SIZE: small, full, or a number of jobs."""
        if text == "small":
            return cls(2000, 250, 6.0, soak=0.75, burst=100_000)
        if text == "full":
            return cls(100_000, 500, None, soak=30, burst=1_000_000)
        return cls(int(text), 500, None, soak=5, burst=int(text) * 10)

    @property
    def seconds_of_lease(self) -> float:
        return self.lease or 30.0


@dataclass
class Process:
    """A worker or a producer.

    Attributes:
        name: Its name, also in procrastinate_workers.
        popen: The process.
        started, died: By the monotonic clock; `died` when it was found or made dead.
        told_to_stop: It was sent SIGTERM.
    """

    name: str
    popen: subprocess.Popen[bytes]
    started: float
    died: float | None = None
    told_to_stop: bool = False

    def is_alive(self) -> bool:
        return self.popen.poll() is None

    def kill(self) -> None:
        """End it at once, as kill -9 does."""
        self.popen.kill()
        self.popen.wait()
        self.died = time.monotonic()

    def terminate(self) -> None:
        """Ask it to stop in good order."""
        self.told_to_stop = True
        self.popen.terminate()

    def wait(self, seconds: float = 30) -> int:
        code = self.popen.wait(seconds)
        self.died = time.monotonic()
        return code

    def freeze(self) -> None:
        self.popen.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.popen.send_signal(signal.SIGCONT)


def wait_until(condition: Callable[[], T], seconds: float, what: str, pause: float = 0.1) -> T:
    """Poll a condition; return its first true value. The server may be away meanwhile."""
    deadline = time.monotonic() + seconds
    trouble: Exception | None = None
    while True:
        try:
            if value := condition():
                return value
        except psycopg.Error as error:
            trouble = error
        assert time.monotonic() < deadline, f"still not after {seconds} s: {what} ({trouble})"
        time.sleep(pause)


class Scene:
    """One scenario.

    Args:
        name: Its name, for figures.
        folder: Where processes leave their files.
        dsn: Where the database is for the audit; also for workers and producers unless told else.
        size: How much of everything.
    """

    def __init__(self, name: str, folder: Path, dsn: str, size: Size) -> None:
        self.name = name
        self.folder = folder
        self.dsn = dsn
        self.size = size
        self.worker_dsn = dsn
        self.producer_dsn = dsn
        self.random = random.Random(name)
        self.workers: list[Process] = []
        self.producers: list[Process] = []
        self.crashes: list[float] = []
        self.asynchronous = False
        self.began = time.monotonic()

    # --- The database --------------------------------------------------------------

    def install(self) -> None:
        """Install the queue, as a user does, and what writes down what happens to it."""
        psql = ["psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", self.dsn, "-f", str(INSTALL)]
        subprocess.run(psql, check=True, stdout=subprocess.DEVNULL)
        self.set_up()

    def set_up(self) -> None:
        """Add what writes down what happens, and shorten leases in the small size."""
        self.execute(SETUP)
        if self.size.lease is not None:
            self.execute(SHORT_LEASE.format(lease=f"interval '{self.size.lease} seconds'"))

    def execute(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Execute a query on a connection of its own; return its rows."""
        with psycopg.connect(self.dsn, autocommit=True, connect_timeout=5) as connection:
            cursor = connection.execute(query.encode(), values or None)
            return cursor.fetchall() if cursor.description else []

    def count(self, condition: str) -> int:
        """How many jobs are there of which this is true?"""
        ((number,),) = self.execute(f"select count(*) from procrastinate_jobs where {condition}")
        return int(number)

    def accepts(self) -> bool:
        """Does the server accept connections?"""
        try:
            self.execute("select")
        except psycopg.Error:
            return False
        return True

    # --- Processes -----------------------------------------------------------------

    def start_worker(
        self, *options: str, dsn: str | None = None, environment: Mapping[str, str] | None = None
    ) -> Process:
        """Start a worker process with the command that users start."""
        name = f"worker-{len(self.workers) + 1}"
        command = [sys.executable, "-m", "procrastinate_sql.cli", "worker", "--name", name]
        command += ["--app", "harness.tasks:app", "--poll-interval", "1", *options]
        variables = {
            "PROCRASTINATE_DSN": dsn or self.worker_dsn,
            "FAULTS_RUNS": str(self.folder / f"{name}.runs"),
            "PROCRASTINATE_HEALTH_FILE": str(self.folder / f"{name}.health"),
            **(environment or {}),
        }
        process = self._start(name, command, variables)
        self.workers.append(process)
        return process

    def start_producers(
        self,
        *options: str,
        rate: float | None = None,
        clocks: Sequence[Mapping[str, str]] = ({}, {}),
    ) -> None:
        """Start a producer for each clock; they share the jobs, so many a second (0: at once)."""
        for environment in clocks:
            name = f"producer-{len(self.producers) + 1}"
            command = [sys.executable, "-m", "harness.producer", name]
            command += [str(self.size.jobs // len(clocks))]
            command += [str((self.size.rate if rate is None else rate) / len(clocks))]
            command += [str(self.folder / f"{name}.ledger"), *options]
            variables = {"PROCRASTINATE_DSN": self.producer_dsn, **environment}
            self.producers.append(self._start(name, command, variables))

    def _start(self, name: str, command: list[str], variables: Mapping[str, str]) -> Process:
        with (self.folder / f"{name}.log").open("wb") as log:
            popen = subprocess.Popen(
                command,
                cwd=FOLDER,
                env={**os.environ, **variables},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        return Process(name, popen, time.monotonic())

    def living(self) -> list[Process]:
        return [worker for worker in self.workers if worker.is_alive()]

    def wait_for_workers(self, seconds: float = 30) -> None:
        """Wait until every living worker has registered."""

        def all_registered() -> bool:
            names = self.execute("select name from procrastinate_workers where gone_at is null")
            return {worker.name for worker in self.living()} <= {name for (name,) in names}

        wait_until(all_registered, seconds, "all workers are registered")

    def are_producers_done(self) -> bool:
        """Have all producers ended, and well?"""
        codes = [producer.popen.poll() for producer in self.producers]
        assert not any(codes), f"a producer failed: see {self.folder}"
        return None not in codes

    def drain(self, seconds: float | None = None) -> None:
        """Wait until producers have ended and no job is left."""
        patience = seconds or 90 + self.size.jobs / 100

        def is_drained() -> bool:
            assert self.living(), f"no worker lives: see {self.folder}"
            return self.are_producers_done() and not self.count("finished_at is null")

        wait_until(is_drained, patience, "all jobs have ended", pause=0.25)

    def stop_workers(self) -> None:
        """Let all workers leave in good order."""
        # One that still starts does not yet heed signals.
        self.wait_for_workers()
        living = self.living()
        for worker in living:
            worker.terminate()
        for worker in living:
            code = worker.wait()
            assert code == 0, f"{worker.name} ended with {code}: see {self.folder}"

    def close(self) -> None:
        for process in (*self.workers, *self.producers):
            if process.is_alive():
                process.popen.kill()
                process.popen.wait()

    # --- Faults --------------------------------------------------------------------

    def ticks(self, shortest: float, longest: float) -> Iterator[int]:
        """Yield at random intervals for as long as producers work and jobs are left."""
        number = 0
        while True:
            time.sleep(self.random.uniform(shortest, longest))
            try:
                if self.are_producers_done() and not self.count("finished_at is null"):
                    return
            except psycopg.Error:
                pass  # it may be away: that is what is being done here
            yield number
            number += 1

    def defer_long(self, number: int, seconds: float) -> None:
        """Defer jobs that take this long, and enter them in a ledger as a producer does.

        They start before the others that wait.
        """
        refs = [f"long-{time.monotonic()}-{n}" for n in range(number)]
        self.execute(
            "select procrastinate_defer_job("
            "'long', jsonb_build_object('ref', ref, 'seconds', %s), priority => 100)"
            " from unnest(%s::text[]) as ref",
            seconds,
            refs,
        )
        with (self.folder / "scene.ledger").open("a") as ledger:
            jobs = [{"ref": ref, "kind": "long"} for ref in refs]
            for entry in ({"jobs": jobs}, {"state": "committed"}):
                ledger.write(json.dumps({"transaction": refs[0], **entry}) + "\n")

    def holding(self, worker: Process) -> int:
        """How many jobs does a worker hold, by the database?"""
        return self.count(
            "status = 'doing' and worker_id in"
            f" (select id from procrastinate_workers where name = '{worker.name}')"
        )

    def running(self, worker: Process) -> int:
        """How many jobs does a worker hold, by the database, and run, by its file?"""
        held = self.execute(
            "select job.id from procrastinate_jobs as job join procrastinate_workers as worker"
            " on worker.id = job.worker_id where job.status = 'doing' and worker.name = %s",
            worker.name,
        )
        runs = read_runs(self.folder / f"{worker.name}.runs", worker.name, math.inf)
        return len({job for (job,) in held} & {run.job_id for run in runs if run.ended == math.inf})

    def in_mid_work(
        self,
        worker: Process,
        interrupt: Callable[[], None],
        resume: Callable[[], None],
        at_least: int = 2,
    ) -> None:
        """Interrupt a worker at a moment at which it runs some jobs; defer jobs until it does."""
        deadline = time.monotonic() + 60
        while True:
            # Enough for all workers, with ten slots each.
            if not self.count("task_name = 'long' and finished_at is null"):
                self.defer_long(15 * len(self.living()), seconds=2)
            if self.running(worker) >= at_least:
                interrupt()
                # What was sent before has arrived by then.
                time.sleep(0.05)
                if self.running(worker) >= at_least:
                    return
                resume()
            assert time.monotonic() < deadline, f"{worker.name} runs nothing: see {self.folder}"
            time.sleep(self.random.uniform(0.01, 0.1))

    def crashed(self) -> None:
        """Note that the server has crashed now."""
        self.crashes.append(time.monotonic())

    def measure_recovery(self, interrupt: Callable[[], None]) -> None:
        """Interrupt a server on which jobs are always ready; note when they end as fast again."""
        # Jobs that take long enough for the workers, not the machine, to be what limits.
        self.execute(
            "select count(*) from procrastinate_defer_jobs((select jsonb_agg(jsonb_build_object("
            "'task_name', 'steady', 'args', jsonb_build_object('ref', 'steady-' || n)))"
            " from generate_series(1, 20000) as n))"
        )
        for _ in range(2):
            self.start_worker("--concurrency", "4")
        self.wait_for_workers()
        time.sleep(5)
        before = time.time()
        interrupt()
        again = time.time()
        time.sleep(12)
        ends = [change.at for change in self.evidence().history if change.is_end]
        rate, seconds = figures.seconds_until_recovered(ends, before, again)
        figures.note(
            self.name,
            jobs_per_second_before=rate,
            seconds_down=round(again - before, 2),
            seconds_until_90_percent=seconds,
        )
        assert rate > 20
        # The promise is ten seconds; a machine that is busy with other things gets some more.
        assert seconds is not None
        assert seconds < 20

    # --- The end -------------------------------------------------------------------

    def evidence(self) -> Evidence:
        """Read all that there is to judge by."""
        now = time.monotonic()
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            found = read_database(connection)
        runs = []
        for worker in self.workers:
            path = self.folder / f"{worker.name}.runs"
            runs += read_runs(path, worker.name, worker.died or now)
        return Evidence(
            **found,
            ledger=read_ledger(sorted(self.folder.glob("*.ledger"))),
            runs=runs,
            crashes=self.crashes,
            asynchronous=self.asynchronous,
            clock=clock.offset(),
            obedient={worker.name for worker in self.workers if worker.told_to_stop},
        )

    def audit(
        self, *more: audit.Check, at_least: int | None = None, **measured: object
    ) -> dict[str, int]:
        """Print what the scenario did, and fail unless all is as it must be."""
        evidence = self.evidence()
        done = audit.summary(evidence)
        figures.note(self.name, seconds=round(time.monotonic() - self.began, 1), **done, **measured)
        wrong = audit.failures(evidence, *more)
        if wrong:
            lines = "".join(f"{change}\n" for change in evidence.history)
            (self.folder / "history").write_text(lines)
        assert not wrong, f"{wrong}; files in {self.folder}"
        assert done["jobs"] >= (at_least or self.size.jobs * 0.9), done
        return done


def wall(moment: float) -> float:
    """Turn the monotonic clock's time into that of the server, which is on the same machine."""
    return moment + clock.offset()


@contextmanager
def scene(name: str, folder: Path, dsn: str, size: Size) -> Iterator[Scene]:
    """Yield a scene in which the queue is installed; no process survives it."""
    made = Scene(name, folder, dsn, size)
    try:
        yield made
    finally:
        made.close()
