"""Connections: what happens to the rate as more workers fetch and finish at once."""

from __future__ import annotations

from collections.abc import Iterator

from bench.context import Bench
from bench.figures.base import Figure
from bench.peers import Peer
from bench.pgbench import pgbench
from bench.queue import load_plain, register_worker
from bench.samples import Sample, WrongResult
from bench.server import Database

BATCHES = (20, 100)

# A worker without a language: it fetches, and finishes what it got.
FETCH_AND_FINISH = """
\\set worker :client_id + :first
select
    coalesce(array_agg(job.id), '{}') as ids, coalesce(array_agg(job.attempt), '{}') as attempts
from procrastinate_fetch_jobs(:worker::bigint, null, :batch::integer) as job \\gset
select count(*) from procrastinate_succeed_jobs(
    :worker::bigint, :ids::bigint[], :attempts::integer[]
);
"""


def measure(bench: Bench, peer: Peer) -> Iterator[Sample]:
    """Drain over more and more connections; the floor stands for `select 1`."""
    if peer.name == "floor":
        yield from _reference(bench, peer)
        return
    for batch in BATCHES:
        rates = {}
        for connections in bench.sizes.connections:
            with bench.database(peer) as database:
                if peer.name == "ours":
                    rate = _drain_by_sql(bench, peer, database, connections, batch)
                else:
                    rate = _drain_by_workers(bench, peer, database, connections, batch)
            rates[connections] = rate
            yield _sample(batch, connections, rate)
        yield _kept(f"batches of {batch}", rates)


def _reference(bench: Bench, peer: Peer) -> Iterator[Sample]:
    rates = {}
    for connections in bench.sizes.connections:
        with bench.database(peer) as database:
            seconds = bench.sizes.commit_seconds
            rates[connections] = pgbench(database, "select 1;", connections, seconds=seconds)
        details = {"connections": connections}
        yield Sample(f"select 1, {connections}", rates[connections], "per second", details=details)
    yield _kept("select 1", rates)


def _drain_by_sql(
    bench: Bench, peer: Peer, database: Database, connections: int, batch: int
) -> float:
    fetches = max(1, bench.sizes.connection_jobs // connections // batch)
    jobs = fetches * connections * batch
    load_plain(database, jobs)
    with database.connect() as connection:
        connection.execute(
            "select procrastinate_declare_task('noop', keep_finished => interval '0')"
        )
        first = min(register_worker(connection) for _ in range(connections))
        variables = {"first": first, "batch": batch}
        rate = pgbench(
            database,
            FETCH_AND_FINISH,
            connections,
            transactions=fetches,
            variables=variables,
        )
        if remaining := peer.remaining(connection):
            raise WrongResult(f"{remaining} of {jobs} jobs are left after as many fetches")
    return rate * batch


def _drain_by_workers(
    bench: Bench, peer: Peer, database: Database, connections: int, batch: int
) -> float:
    jobs = peer.jobs(bench.sizes.connection_jobs, 500)
    bench.load(peer, database, jobs)
    # Each worker has its pool; all are in one process.
    options = {"workers": connections, "size": batch, "batch": batch, "pool": 2}
    return bench.drain(peer, database, jobs, "async", **options).rate


def _sample(batch: int, connections: int, rate: float) -> Sample:
    details = {"connections": connections, "batch": batch}
    return Sample(f"batches of {batch}, {connections}", rate, "jobs/s", details=details)


def _kept(what: str, rates: dict[int, float]) -> Sample:
    return Sample(f"{what}, most of peak", rates[max(rates)] / max(rates.values()), "ratio")


FIGURE = Figure(
    name="connections",
    title="Worker connections",
    text="Ours: pgbench fetches and finishes in SQL over so many connections. Peers fetch in their "
    "own language: so many workers, each with its pool of two, in one process (whose own limit it "
    "meets). The floor is `select 1`. `most of peak` is the rate at the most connections, by its "
    "own peak.",
    peers=("ours", "graphile", "pgqueuer", "floor"),
    measure=measure,
)
