"""Defer: how many jobs a second one client creates."""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic

from bench.context import Bench
from bench.figures.base import Figure
from bench.peers import Peer
from bench.samples import Sample, WrongResult
from bench.server import Database

COPIES = {
    "ours": ("procrastinate_jobs (task_name, args)", 'noop\t{{"n": {n}}}\n'),
    "floor": ("floor_jobs (args)", '{{"n": {n}}}\n'),
}


def measure(bench: Bench, peer: Peer) -> Iterator[Sample]:
    """Defer many at a time, by COPY, and one at a time."""
    jobs = peer.jobs(bench.sizes.bulk_jobs, 500)
    rates = []
    for batch in peer.bulk_sizes:
        if not peer.has_bulk:
            break
        with bench.database(peer) as database:
            rates.append(jobs / bench.client(peer, database, jobs, "bulk", batch=batch))
            _check(peer, database, jobs)
        yield Sample(f"batches of {batch:,}", rates[-1], "jobs/s", details={"jobs": jobs})
    if rates:
        yield Sample("bulk, best batch", max(rates), "jobs/s", details={"jobs": jobs})

    if peer.name in COPIES:
        with bench.database(peer) as database:
            rate = jobs / _copy(peer, database, jobs)
            _check(peer, database, jobs)
        yield Sample("COPY", rate, "jobs/s", details={"jobs": jobs})

    singles = bench.sizes.singles
    with bench.database(peer) as database:
        rate = singles / bench.client(peer, database, singles, "single")
        _check(peer, database, singles)
    yield Sample("single", rate, "jobs/s", details={"jobs": singles})


def _copy(peer: Peer, database: Database, jobs: int) -> float:
    target, line = COPIES[peer.name]
    text = "".join(line.format(n=n) for n in range(jobs))
    with database.connect() as connection:
        started = monotonic()
        with connection.cursor().copy(f"copy {target} from stdin".encode()) as copy:
            copy.write(text)
        return monotonic() - started


def _check(peer: Peer, database: Database, jobs: int) -> None:
    with database.connect() as connection:
        if (found := peer.remaining(connection)) != jobs:
            raise WrongResult(f"{found} jobs wait, of {jobs} deferred")


FIGURE = Figure(
    name="defer",
    title="Defer",
    text="One client on one connection (what a peer's client opens by itself apart); each call is "
    "a transaction. COPY is the time of the statement, not of making its text.",
    peers=("ours", "graphile", "pgqueuer", "pgboss", "absurd", "procrastinate", "floor"),
    measure=measure,
)
