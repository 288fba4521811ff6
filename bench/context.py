"""What a figure has to measure with: the server, the sizes, the usual steps of a measurement."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from bench.paths import ROOT
from bench.peers import Peer
from bench.process import Failed, Program
from bench.samples import WrongResult
from bench.server import Database, Databases
from bench.sizes import Sizes

STALL = 60.0  # seconds without progress after which a worker is given up


@dataclass(frozen=True)
class Drain:
    """How a drain went.

    Attributes:
        jobs: How many there were.
        seconds: From the start of the first run to the end of the last.
        whole_seconds: From the moment that the workers were let go until no job was left to finish:
            with the first fetch, which is long where batches are large, with the last report, which
            is long where outcomes wait, and with connecting, where that is lazy.
        disorder: Runs that were out of the order of their lock.
    """

    jobs: int
    seconds: float
    whole_seconds: float
    disorder: int

    @property
    def rate(self) -> float:
        """Jobs per second."""
        return self.jobs / self.seconds


@dataclass(frozen=True)
class Bench:
    """The means of a measurement.

    Attributes:
        databases: Where.
        sizes: How much.
        install: The install.sql of this queue.
    """

    databases: Databases
    sizes: Sizes
    install: Path = ROOT / "sql/install.sql"

    @contextmanager
    def database(self, peer: Peer) -> Iterator[Database]:
        """Yield a fresh database with the schema of a peer; drop it at the end."""
        template = f"template_{peer.name}"
        if not self.databases.has_template(template):
            self._install(peer, self.databases.new_template(template))
        with self.databases.database(template) as database:
            yield database

    def _install(self, peer: Peer, database: Database) -> None:
        if peer.name == "ours":
            database.server.psql("-f", self.install, database=database.name)
            return
        with self.program(peer, database, 0, "install") as program:
            program.expect("done")

    def program(
        self, peer: Peer, database: Database, jobs: int, kind: str, **options: object
    ) -> Program:
        """Start one part of the contract."""
        command = peer.program(database.dsn, jobs, kind, options)
        return Program(command, f"{peer.name}-{kind}")

    def client(
        self, peer: Peer, database: Database, jobs: int, kind: str, **options: object
    ) -> float:
        """Defer jobs with the client of a peer, `bulk` or `single`; return the seconds it took."""
        with self.program(peer, database, jobs, kind, **options) as program:
            program.expect("ready")
            program.tell("go")
            return float(program.expect("done", 600.0)["seconds"])

    def load(self, peer: Peer, database: Database, jobs: int) -> None:
        """Defer jobs in the fastest way that a peer documents."""
        self.client(peer, database, jobs, "bulk", batch=peer.bulk_sizes[0])

    def drain(
        self,
        peer: Peer,
        database: Database,
        jobs: int,
        kind: str = "async",
        processes: int = 1,
        **options: object,
    ) -> Drain:
        """Let worker processes run all the jobs that wait.

        Raises:
            WrongResult: A job was not run just once, or is not finished.
        """
        with ExitStack() as stack:
            programs = [
                stack.enter_context(self.program(peer, database, jobs, kind, **options))
                for _ in range(processes)
            ]
            for program in programs:
                program.expect("ready")
            let_go = monotonic()
            for program in programs:
                program.tell("go")
            _wait_for_progress(programs, jobs)
            finished = _wait_until_finished(peer, database)
            for program in programs:
                program.tell("stop")
            reports = [program.expect("done") for program in programs]
        check_runs(reports, jobs)
        with database.connect() as connection:
            if remaining := peer.remaining(connection):
                raise WrongResult(f"{remaining} of {jobs} jobs were run and are not finished")
        ran = [report for report in reports if report["runs"]]
        last = max(report["last"] for report in ran)
        seconds = last - min(report["first"] for report in ran)
        disorder = sum(report["disorder"] for report in reports)
        return Drain(jobs, seconds, max(last, finished) - let_go, disorder)


def _wait_for_progress(programs: Sequence[Program], jobs: int) -> None:
    counts = dict.fromkeys(programs, 0)
    heard = monotonic()
    while sum(counts.values()) < jobs:
        for program in programs:
            while message := program.next(0.02 if len(programs) > 1 else 0.2):
                if "progress" in message:
                    counts[program] = message["progress"]
                    heard = monotonic()
        if monotonic() - heard > STALL:
            raise Failed(f"{programs[0].name} stalled at {sum(counts.values())} of {jobs} jobs")


def _wait_until_finished(peer: Peer, database: Database) -> float:
    """Return when the last job was finished; 0 if that was before the first look.

    The look comes a tick of the programs after the last run, so what is missed is less than that.
    """
    finished = 0.0
    deadline = monotonic() + STALL
    with database.connect() as connection:
        while peer.remaining(connection) and monotonic() < deadline:
            sleep(0.005)
            finished = monotonic()
    return finished


def check_runs(reports: Sequence[dict[str, Any]], jobs: int) -> None:
    """Raise WrongResult unless each job was run just once, by whichever process."""
    marks = [bytes.fromhex(report["marks"]) for report in reports]
    totals = bytes(map(sum, zip(*marks, strict=True))) if len(marks) > 1 else marks[0]
    lost = totals.count(0)
    if lost or len(totals) != jobs:
        raise WrongResult(f"{lost} of {jobs} jobs were lost")
    if repeated := jobs - totals.count(1):
        raise WrongResult(f"{repeated} of {jobs} jobs were run more than once")
