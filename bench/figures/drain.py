"""Drain: how many jobs a second one and two worker processes run."""

from __future__ import annotations

from collections.abc import Iterator

from bench.context import Bench
from bench.figures.base import Figure
from bench.peers import Peer
from bench.samples import Sample

SHAPES = (("async", 1), ("async", 2), ("sync", 1), ("batch", 1), ("batch", 2))
NAMES = {"async": "async function", "sync": "sync function", "batch": "list of jobs"}


WHOLE = "first fetch to last finish"


def metric(kind: str, processes: int) -> str:
    return f"{NAMES[kind]}, {processes} process{'es' if processes > 1 else ''}"


def measure(bench: Bench, peer: Peer) -> Iterator[Sample]:
    """Load the queue, then let workers empty it."""
    for kind, processes in SHAPES:
        if kind not in peer.kinds:
            continue
        jobs = peer.jobs(bench.sizes.jobs, 200)
        with bench.database(peer) as database:
            bench.load(peer, database, jobs)
            drained = bench.drain(peer, database, jobs, kind, processes)
        details = {"jobs": jobs, "seconds": drained.seconds}
        name = metric(kind, processes)
        yield Sample(name, drained.rate, "jobs/s", details=details)
        whole = drained.jobs / drained.whole_seconds
        yield Sample(f"{name}, {WHOLE}", whole, "jobs/s", details=details)


FIGURE = Figure(
    name="drain",
    title="Drain",
    text="Jobs that do nothing, from the start of the first to the end of the last; and from the "
    "moment that the workers were let go to the finish of the last in the database. The latter "
    "adds the first fetch, long where batches are large, and the last report, long where outcomes "
    "wait. A call for each job, async or sync (in a thread), or one call for a list of jobs; the "
    "floor has no calls.",
    peers=("ours", "graphile", "pgqueuer", "pgboss", "absurd", "procrastinate", "floor"),
    measure=measure,
)
