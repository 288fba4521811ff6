"""Flat cost: one fetch and one finish beside a million jobs of each shape that hurts peers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

from bench.context import Bench
from bench.figures.base import Figure
from bench.figures.flat_probe import Costs, probe
from bench.figures.flat_shapes import BASELINES, SHAPES, Shape
from bench.peers import Peer
from bench.queue import heartbeats, held_snapshot
from bench.samples import Sample


def measure(bench: Bench, peer: Peer) -> Iterator[Sample]:
    """Probe the baselines, then each shape, and compare."""
    jobs = bench.sizes.flat_jobs
    baselines = {}
    for shape in (*BASELINES, *SHAPES):
        costs = _costs(bench, peer, shape, jobs)
        if shape in BASELINES:
            baselines[shape.queue_names] = costs
        baseline = baselines[shape.queue_names]
        for call, cost in costs.items():
            details = {"shape": shape.name, "call": call, "jobs": jobs}
            name = f"{shape.name}: {call}"
            yield Sample(f"{name}, time", cost.milliseconds, "ms", False, details)
            yield Sample(f"{name}, buffers", cost.buffers, "buffers", False, details)
            if shape in BASELINES:
                continue
            base = baseline[call]
            ratio = cost.milliseconds / base.milliseconds
            more = (cost.buffers - base.buffers) / cost.jobs
            yield Sample(f"{name}, time of baseline", ratio, "ratio", False, details)
            yield Sample(f"{name}, more buffers per job", more, "buffers", False, details)


def _costs(bench: Bench, peer: Peer, shape: Shape, jobs: int) -> Costs:
    with bench.database(peer) as database, ExitStack() as stack:
        if shape.holder != "none":
            stack.enter_context(held_snapshot(database, shape.holder))
        stack.enter_context(heartbeats(database))
        with database.connect() as connection:
            shape.load(connection, jobs)
        queue_names = list(shape.queue_names) if shape.queue_names else None
        return probe(database, queue_names, bench.sizes.flat_calls)


FIGURE = Figure(
    name="flat",
    title="Flat cost (shapes 1 to 9)",
    text="Server time and shared buffers of one call, by `explain (analyze, buffers)`, which "
    "counts what the functions read: the first fetch after the load, in a new session, and the "
    "median of later calls. Compared with the same call on a queue of 1,000 ready jobs.",
    peers=("ours",),
    measure=measure,
)
