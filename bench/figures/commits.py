"""Commits: what the server itself can do, on this machine and on this day."""

from __future__ import annotations

from collections.abc import Iterator

from bench.context import Bench
from bench.figures.base import Figure
from bench.peers import Peer
from bench.pgbench import pgbench
from bench.samples import Sample

SCRIPTS = {
    "commits (insert of a row)": "insert into floor_jobs (args) values ('{\"n\": 1}');",
    "select 1": "select 1;",
}


def measure(bench: Bench, peer: Peer) -> Iterator[Sample]:
    """Let pgbench repeat one statement, over one and over eight connections."""
    for name, script in SCRIPTS.items():
        for clients in (1, 8):
            with bench.database(peer) as database:
                rate = pgbench(database, script, clients, seconds=bench.sizes.commit_seconds)
            plural = "s" if clients > 1 else ""
            yield Sample(f"{name}, {clients} connection{plural}", rate, "per second")


FIGURE = Figure(
    name="commits",
    title="The server itself",
    text="pgbench, prepared statements: the ceiling for whoever commits each job by itself.",
    peers=("floor",),
    measure=measure,
)
