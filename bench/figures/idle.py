"""Idle cost: what a hundred workers without work ask of the server, and of the machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from time import monotonic, sleep

import psutil

from bench.context import Bench
from bench.figures.base import Figure
from bench.peers import Peer
from bench.samples import Sample
from bench.server import Database

IN_A_PROCESS = 10
SETTLE = 25.0  # seconds, to start, and then ten until idle backends have reported what they did


def measure(bench: Bench, peer: Peer) -> Iterator[Sample]:
    """Start the workers, several in a process, let them settle, and count for a while."""
    workers = bench.sizes.idle_workers
    with bench.database(peer) as database, ExitStack() as stack:
        programs = [
            stack.enter_context(
                bench.program(peer, database, 0, "idle", workers=IN_A_PROCESS, pool=2, batch=10)
            )
            for _ in range(workers // IN_A_PROCESS)
        ]
        for program in programs:
            program.expect("ready")
            program.tell("go")
        sleep(SETTLE)
        server = psutil.Process(database.server.pid)
        processes = [psutil.Process(program.pid) for program in programs]
        before = _transactions(bench, database)
        cpu_before = _cpu(processes), _cpu([server, *server.children()])
        started = monotonic()
        sleep(bench.sizes.idle_seconds)
        cpu_after = _cpu(processes), _cpu([server, *server.children()])
        seconds = monotonic() - started
        after = _transactions(bench, database)
        for program in programs:
            program.kill()
    details = {"workers": workers, "seconds": seconds}
    rate = (after[1] - before[1]) / (after[0] - before[0]) / workers
    yield Sample("statements of a worker", rate, "per second", False, details)
    for who, index in (("workers", 0), ("server", 1)):
        percent = (cpu_after[index] - cpu_before[index]) / seconds * 100
        yield Sample(f"CPU of the {who}", percent, "% of a core", False, details)


def _transactions(bench: Bench, database: Database) -> tuple[float, int]:
    """Return the time and the transactions that ended; each statement of an idle worker is one."""
    sleep(1.1)  # backends report at most once a second
    row = bench.databases.admin.execute(
        "select xact_commit + xact_rollback from pg_stat_database where datname = %s",
        (database.name,),
    ).fetchone()
    assert row is not None
    return monotonic(), int(row[0])


def _cpu(processes: list[psutil.Process]) -> float:
    total = 0.0
    for process in processes:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


FIGURE = Figure(
    name="idle",
    title="Idle workers",
    text="Workers that wait, ten in a process. A statement is a transaction that ended, heartbeats "
    "and polls included; the CPU is of all their processes, and of all the server's.",
    peers=("ours", "graphile", "pgqueuer"),
    measure=measure,
    once=True,
)
