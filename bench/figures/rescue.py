"""Rescue: how soon a killed worker's job runs again."""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic, sleep

from bench.context import Bench
from bench.figures.base import Figure
from bench.peers import Peer
from bench.samples import Sample, WrongResult


def measure(bench: Bench, peer: Peer) -> Iterator[Sample]:
    """Kill a worker that runs a job, with another one idle, at the default settings."""
    delays = []
    for _ in range(bench.sizes.kills):
        with (
            bench.database(peer) as database,
            bench.program(peer, database, 0, "hold") as victim,
        ):
            victim.expect("ready")
            victim.tell("go")
            bench.client(peer, database, 1, "single", task="hold")
            victim.expect("start", 30.0)
            with bench.program(peer, database, 0, "hold") as heir:
                heir.expect("ready")
                heir.tell("go")
                sleep(4.0)  # it has beaten a few times
                victim.kill()
                killed = monotonic()
                if heir.expect("start", 60.0)["attempt"] != 2:
                    raise WrongResult("the second run is not attempt 2")
                delays.append(monotonic() - killed)
                heir.kill()
    yield Sample("killed to running again", max(delays), "s", False, {"kills": len(delays)})


FIGURE = Figure(
    name="rescue",
    title="A killed worker's job",
    text="From kill -9 to the next start of its job on another worker; the slowest of a few.",
    peers=("ours",),
    measure=measure,
    once=True,
)
