"""Memory: what a worker occupies while it runs a million jobs."""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic

from bench.context import STALL, Bench, check_runs
from bench.figures.base import Figure
from bench.peers import Peer
from bench.process import Failed
from bench.queue import load_plain
from bench.samples import Sample

MB = 2**20


def measure(bench: Bench, peer: Peer) -> Iterator[Sample]:
    """Sample the resident memory of one worker process with its progress."""
    jobs = bench.sizes.memory_jobs
    early = min(10_000, jobs // 2)
    curve: list[tuple[int, float]] = []
    with bench.database(peer) as database:
        load_plain(database, jobs)
        with bench.program(peer, database, jobs, "async") as worker:
            worker.expect("ready")
            worker.tell("go")
            done, heard = 0, monotonic()
            while done < jobs:
                if message := worker.next(1.0):
                    done, heard = message["progress"], monotonic()
                    curve.append((done, worker.rss() / MB))
                elif monotonic() - heard > STALL:
                    raise Failed(f"stalled at {done} of {jobs} jobs")
            worker.tell("stop")
            report = worker.expect("done")
        check_runs([report], jobs)
    at_early = next(rss for done, rss in curve if done >= early)
    details = {"jobs": jobs, "curve": curve[:: max(1, len(curve) // 100)]}
    yield Sample(f"at {early:,} jobs", at_early, "MB", None)
    yield Sample(f"at {jobs:,} jobs", curve[-1][1], "MB", None, details)
    yield Sample("growth", curve[-1][1] - at_early, "MB", False)


FIGURE = Figure(
    name="memory",
    title="Memory of a worker",
    text="Resident memory of one worker process, sampled as it runs through the jobs.",
    peers=("ours",),
    measure=measure,
    once=True,
)
