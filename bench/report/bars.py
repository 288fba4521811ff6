"""The bars: what this queue is to reach, as ratios within each run, by their median."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

from bench.figures.drain import WHOLE
from bench.figures.drain import metric as drain
from bench.report.data import Data, Values, best, ratios


@dataclass(frozen=True)
class Bar:
    """A bar, and how high it was jumped.

    Attributes:
        text: What is compared.
        limit: The bar.
        at_least: It is to be passed above; otherwise below.
        values: What was reached in each run; empty if it was not measured.
    """

    text: str
    limit: float
    at_least: bool
    values: list[float]

    @property
    def value(self) -> float | None:
        return median(self.values) if self.values else None

    @property
    def is_met(self) -> bool | None:
        if self.value is None:
            return None
        return self.value >= self.limit if self.at_least else self.value <= self.limit


def bars(data: Data) -> Iterator[Bar]:
    """Yield all bars, in the order of the figures."""
    for part in (_drains, _latencies, _defers, _wal, _snapshots, _flat, _locks, _workers):
        yield from part(data)


def _versus(
    data: Data, text: str, limit: float, ours: tuple[str, str], peer: str, theirs: tuple[str, str]
) -> Bar:
    return Bar(text, limit, True, ratios(data.values(*ours), data.values(*theirs, peer)))


def _drains(data: Data) -> Iterator[Bar]:
    one = ("drain", drain("async", 1))
    two = ("drain", drain("async", 2))
    sync = ("drain", drain("sync", 1))
    batch = ("drain", drain("batch", 1))
    for peer, limit in (("graphile", 1.5), ("pgqueuer", 3.0), ("procrastinate", 80.0)):
        yield _versus(data, f"drain, async, 1 process ÷ {peer}", limit, one, peer, one)
        whole = ("drain", f"{one[1]}, {WHOLE}")
        yield _versus(data, f"the same, {WHOLE} ÷ {peer}", limit, whole, peer, whole)
    yield _versus(data, "drain, sync ÷ graphile's async", 0.7, sync, "graphile", one)
    yield _versus(data, "drain, async, 2 processes ÷ graphile's two", 1.3, two, "graphile", two)
    yield _versus(data, "drain, batch task ÷ bare SQL loop", 0.7, batch, "floor", batch)


def _latencies(data: Data) -> Iterator[Bar]:
    for percentile in ("p50", "p99"):
        peers = [peer for peer in data.peers("latency", percentile) if peer != "ours"]
        others = best([data.values("latency", percentile, p) for p in peers], highest=False)
        found = ratios(data.values("latency", percentile), others)
        yield Bar(f"latency {percentile} ÷ the best peer's", 0.8, False, found)


def _defers(data: Data) -> Iterator[Bar]:
    bulk = ("defer", "bulk, best batch")
    yield _versus(data, "bulk defer ÷ graphile", 1.3, bulk, "graphile", bulk)
    yield _versus(data, "COPY ÷ graphile's bulk", 2.0, ("defer", "COPY"), "graphile", bulk)
    for peer in ("graphile", "pgqueuer"):
        single = ("defer", "single")
        yield _versus(data, f"single defer ÷ {peer}", 1.0, single, peer, single)


def _wal(data: Data) -> Iterator[Bar]:
    for what, limit in (("deleting", 1000), ("keeping", 1300)):
        metric = f"WAL, {what} finished jobs"
        yield _own(data, f"{metric}, bytes/job", limit, False, "wal", metric)


def _snapshots(data: Data) -> Iterator[Bar]:
    for holder in ("a reader", "a writer"):
        metric = f"{holder}, last round of first"
        text = f"held snapshot of {holder}, last round ÷ first"
        yield _own(data, text, 0.85, True, "snapshot", metric)
        last = max(
            (
                str(sample.details["round"])
                for sample in data.metrics("snapshot").values()
                if "round" in sample.details
            ),
            default="5",
        )
        yield Bar(
            f"held snapshot of {holder}, last round ÷ the same without",
            0.85,
            True,
            ratios(
                data.values("snapshot", f"{holder}, round {last}"),
                data.values("snapshot", f"nobody, round {last}"),
            ),
        )


def _flat(data: Data) -> Iterator[Bar]:
    for ending, limit, text in (
        ("time of baseline", 2.0, "flat cost, worst shape and call, time ÷ baseline"),
        ("more buffers per job", 3.0, "flat cost, worst shape and call, more buffers per job"),
    ):
        metrics = [name for name in data.metrics("flat") if name.endswith(ending)]
        worst = max(metrics, key=lambda name: data.middle("flat", name) or 0, default="")
        found = list(data.values("flat", worst).values())
        where = f" ({worst.removesuffix(', ' + ending)})" if worst else ""
        yield Bar(text + where, limit, False, found)


def _locks(data: Data) -> Iterator[Bar]:
    for what in ("1,000 locks", "a lock for each job"):
        found = ratios(data.values("locks", what), data.values("locks", "no locks"))
        yield Bar(f"{what} ÷ no locks", 0.6, True, found)
    for what in ("50 locks", "1 lock"):
        metric = f"{what}, last round of first"
        text = f"shape 10, {what}, last round ÷ first"
        yield _own(data, text, 0.5, True, "locksnapshot", metric)


def _workers(data: Data) -> Iterator[Bar]:
    for batch in (20, 100):
        metric = f"batches of {batch}, most of peak"
        text = f"most connections, batches of {batch} ÷ its own peak"
        yield _own(data, text, 0.6, True, "connections", metric)
        peers = [peer for peer in data.peers("connections", metric) if peer != "ours"]
        others: Values = best([data.values("connections", metric, p) for p in peers], highest=True)
        found = ratios(data.values("connections", metric), others)
        yield Bar(f"{text}, ÷ the best peer's", 1.0, True, found)
    name = "statements of a worker"
    yield _own(data, "idle worker, statements per second", 1.0, False, "idle", name)
    rescue = "killed to running again"
    yield _own(data, "killed worker's job runs again, s", 5.0, False, "rescue", rescue)
    yield _own(data, "memory, growth from 10,000 jobs, MB", 10.0, False, "memory", "growth")


def _own(data: Data, text: str, limit: float, at_least: bool, figure: str, metric: str) -> Bar:
    return Bar(text, limit, at_least, list(data.values(figure, metric).values()))
