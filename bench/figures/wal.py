"""WAL: what a job costs in its whole life, in bytes written and in transactions."""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic, sleep

from bench.context import Bench
from bench.figures.base import Figure
from bench.peers import Peer
from bench.samples import Sample
from bench.server import Database


def measure(bench: Bench, peer: Peer) -> Iterator[Sample]:
    """Defer and drain, after a first few jobs that fill caches and first pages."""
    kind = "async" if "async" in peer.kinds else "batch"
    jobs = peer.jobs(bench.sizes.jobs, 200)
    for keep in (False, True) if peer.name == "ours" else (peer.keeps_finished,):
        options = {"keep": keep} if peer.name == "ours" else {}
        with bench.database(peer) as database:
            few = min(500, jobs)
            bench.load(peer, database, few)
            bench.drain(peer, database, few, kind, **options)
            before = _written(database)
            bench.load(peer, database, jobs)
            bench.drain(peer, database, jobs, kind, **options)
            after = _written(database)
        what = "keeping finished jobs" if keep else "deleting finished jobs"
        details = {"jobs": jobs}
        yield Sample(f"WAL, {what}", (after[0] - before[0]) / jobs, "bytes/job", False, details)
        yield Sample(
            f"commits, {what}", (after[1] - before[1]) / jobs, "commits/job", False, details
        )


def _written(database: Database) -> tuple[int, int]:
    """Return the position in the WAL, and the commits in this database."""
    with database.connect() as connection:
        # A backend reports its counters when it ends.
        deadline = monotonic() + 10
        others = "select count(*) from pg_stat_activity where datname = current_database()"
        while _number(connection.execute(others).fetchone()) > 1 and monotonic() < deadline:
            sleep(0.05)
        sleep(0.2)
        wal = connection.execute("select pg_current_wal_insert_lsn() - '0/0'::pg_lsn").fetchone()
        commits = connection.execute(
            "select xact_commit from pg_stat_database where datname = current_database()"
        ).fetchone()
        return _number(wal), _number(commits)


def _number(row: tuple[object, ...] | None) -> int:
    assert row is not None
    return int(str(row[0]))


FIGURE = Figure(
    name="wal",
    title="WAL and commits for each job",
    text="Deferred in bulk, run by one worker process, finished: the server's log from before the "
    "first to after the last. (Autovacuum's part is in it.)",
    peers=("ours", "graphile", "pgqueuer", "pgboss", "absurd", "procrastinate", "floor"),
    measure=measure,
)
