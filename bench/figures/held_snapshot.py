"""Held snapshot: what happens while dead rows cannot be removed."""

from __future__ import annotations

from collections.abc import Iterator

from bench.context import Bench
from bench.figures.base import Figure
from bench.peers import Peer
from bench.queue import held_snapshot, load_locked, load_plain
from bench.samples import Sample, WrongResult

HOLDERS = {"none": "nobody", "reader": "a reader", "writer": "a writer"}
LOCKED_SHARE = 0.02  # of the jobs, over one lock: they run one after the other


def measure(bench: Bench, peer: Peer) -> Iterator[Sample]:
    """Load and drain, round after round in one database, while a snapshot is held or not."""
    kind = "async" if "async" in peer.kinds else "batch"
    large = peer.name == "ours"
    jobs = bench.sizes.round_jobs if large else bench.sizes.peer_round_jobs
    for holder in HOLDERS:
        with bench.database(peer) as database, held_snapshot(database, holder):
            first = 0.0
            for number in range(1, bench.sizes.rounds + 1):
                if large:
                    load_plain(database, jobs)
                else:
                    bench.load(peer, database, jobs)
                rate = bench.drain(peer, database, jobs, kind).rate
                first = first or rate
                yield _round(HOLDERS[holder], number, rate, jobs)
            yield _last_of_first(HOLDERS[holder], rate / first, jobs)


def measure_locks(bench: Bench, peer: Peer) -> Iterator[Sample]:
    """The same for jobs over fifty locks, and over one (shape 10)."""
    for locks in (50, 1):
        # In all rounds together as many as without locks in one.
        jobs = bench.sizes.round_jobs // bench.sizes.rounds
        if locks == 1:
            jobs = max(200, int(jobs * LOCKED_SHARE))
        name = "50 locks" if locks == 50 else "1 lock"
        with bench.database(peer) as database, held_snapshot(database, "reader"):
            first = 0.0
            for number in range(1, bench.sizes.rounds + 1):
                load_locked(database, jobs, locks)
                drained = bench.drain(peer, database, jobs, "locked")
                if drained.disorder:
                    raise WrongResult(f"{name}: {drained.disorder} jobs ran out of order")
                first = first or drained.rate
                yield _round(name, number, drained.rate, jobs)
            yield _last_of_first(name, drained.rate / first, jobs)


def _round(what: str, number: int, rate: float, jobs: int) -> Sample:
    details = {"jobs": jobs, "holder": what, "round": number}
    return Sample(f"{what}, round {number}", rate, "jobs/s", details=details)


def _last_of_first(what: str, ratio: float, jobs: int) -> Sample:
    return Sample(f"{what}, last round of first", ratio, "ratio", details={"jobs": jobs})


FIGURE = Figure(
    name="snapshot",
    title="Drain under a held snapshot",
    text="Rounds of jobs in one database while nobody holds a snapshot, while a reader holds one "
    "(repeatable read), and while a writer's transaction stays open. Peers have smaller rounds.",
    peers=("ours", "graphile", "pgqueuer", "floor"),
    measure=measure,
)

LOCKS_FIGURE = Figure(
    name="locksnapshot",
    title="Locks under a held snapshot (shape 10)",
    text="Rounds of jobs over fifty locks, and (fewer, since they run one by one) over one, while "
    "a reader holds a snapshot.",
    peers=("ours",),
    measure=measure_locks,
    once=True,
)
