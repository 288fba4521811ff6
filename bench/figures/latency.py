"""Latency: from the call that defers a job to its start on an idle worker."""

from __future__ import annotations

from collections.abc import Iterator
from random import uniform
from statistics import quantiles
from time import sleep

from bench.context import Bench
from bench.figures.base import Figure
from bench.peers import Peer
from bench.process import Failed, Program
from bench.samples import Sample, WrongResult

WARM_UP = 20  # jobs
PAUSE = (0.005, 0.025)  # seconds between a start and the next job
POLLED_SHARE = 0.2


def measure(bench: Bench, peer: Peer) -> Iterator[Sample]:
    """Defer jobs one at a time; of ours, also with the worker's faster, weaker claims."""
    yield from _percentiles(bench, peer)
    if peer.name == "ours":
        yield from _percentiles(bench, peer, ", claims not durable", durable_claims=False)


def _percentiles(bench: Bench, peer: Peer, suffix: str = "", **options: object) -> Iterator[Sample]:
    """Defer jobs one at a time, each after the one before has started."""
    samples = bench.sizes.samples
    if peer.is_polled:
        samples = max(10, int(samples * POLLED_SHARE))
    total = samples + WARM_UP
    with (
        bench.database(peer) as database,
        bench.program(peer, database, total, "latency", **options) as worker,
        bench.program(peer, database, total, "send") as client,
    ):
        for program in (worker, client):
            program.expect("ready")
            program.tell("go")
        sleep(1.5)  # until the worker waits for jobs
        delays = [_one(client, worker, n) for n in range(total)][WARM_UP:]
        worker.tell("stop")
        worker.expect("done")
    percentiles = quantiles(delays, n=100, method="inclusive")
    for percent in (50, 95, 99):
        yield Sample(
            f"p{percent}{suffix}",
            percentiles[percent - 1] * 1000,
            "ms",
            higher_is_better=False,
            details={"samples": samples},
        )


def _one(client: Program, worker: Program, n: int) -> float:
    sleep(uniform(*PAUSE))
    client.tell("next")
    sent = client.expect("sent")
    try:
        started = worker.expect("start", 30.0)
    except Failed as error:
        raise WrongResult(f"job {n} did not start: {error}") from error
    if started["start"] != n:
        raise WrongResult(f"job {started['start']} was run in place of {n}")
    return float(started["at"] - sent["at"])


FIGURE = Figure(
    name="latency",
    title="Latency",
    text="From the call that defers a job to its start, one job at a time, on a worker that waits. "
    "Beside the default, ours with `durable_claims=False`, where a crash of the server may take "
    "the claim of a running job back: not compared, as the claims of the peers are durable.",
    peers=("ours", "graphile", "pgqueuer", "pgboss", "absurd", "procrastinate"),
    measure=measure,
)
