"""Locks: what it costs that jobs of the same lock run one at a time, in order."""

from __future__ import annotations

from collections.abc import Iterator

from bench.context import Bench
from bench.figures.base import Figure
from bench.peers import Peer
from bench.queue import load_locked
from bench.samples import Sample, WrongResult

# Locks, and the part of the jobs that is enough to measure them.
SHAPES = (
    ("no locks", 0, 1.0),
    ("1,000 locks", 1_000, 1.0),
    ("50 locks", 50, 0.4),
    ("1 lock", 1, 0.04),
    ("a lock for each job", None, 1.0),
)


def measure(bench: Bench, peer: Peer) -> Iterator[Sample]:
    """Load jobs over some locks, and check that each lock's jobs run in order."""
    for name, locks, share in SHAPES:
        jobs = max(200, int(bench.sizes.locked_jobs * share))
        with bench.database(peer) as database:
            load_locked(database, jobs, jobs if locks is None else locks)
            drained = bench.drain(peer, database, jobs, "locked")
        if drained.disorder:
            raise WrongResult(f"{name}: {drained.disorder} of {jobs} jobs ran out of order")
        yield Sample(name, drained.rate, "jobs/s", details={"jobs": jobs})


FIGURE = Figure(
    name="locks",
    title="Locks",
    text="One worker process, async functions, the jobs dealt to the locks in turn.",
    peers=("ours",),
    measure=measure,
)
