"""The results in the order in which a report asks for them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

from bench.samples import Record, Sample

Values = dict[int, float]  # by run


class Data:
    """What was measured, by figure, metric, peer and run.

    Attributes:
        setup: Versions, settings, machine.
        errors: What could not be measured: figure, peer, text, and whether a result was wrong.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        self.setup: dict[str, Any] = {}
        self.errors: list[Record] = []
        self._values: dict[tuple[str, str, str], Values] = defaultdict(dict)
        self._metrics: dict[str, dict[str, Sample]] = defaultdict(dict)
        self._details: dict[tuple[str, str, str], dict[str, Any]] = {}
        for record in records:
            if record.setup is not None:
                self.setup = record.setup
            elif record.error is not None:
                self.errors.append(record)
            elif sample := record.sample:
                key = (record.figure, sample.metric, record.peer)
                self._values[key][record.run] = sample.value
                self._metrics[record.figure].setdefault(sample.metric, sample)
                self._details[key] = sample.details

    def metrics(self, figure: str) -> dict[str, Sample]:
        """Return the metrics of a figure, each with one of its samples, in order."""
        return self._metrics.get(figure, {})

    def peers(self, figure: str, metric: str) -> list[str]:
        """Return the peers that have a metric, in the order of the setup."""
        return [name for name in self.setup["peers"] if (figure, metric, name) in self._values]

    def title(self, peer: str) -> str:
        return str(self.setup["peers"][peer]["title"])

    def values(self, figure: str, metric: str, peer: str = "ours") -> Values:
        return self._values.get((figure, metric, peer), {})

    def middle(self, figure: str, metric: str, peer: str = "ours") -> float | None:
        """Return the median over the runs."""
        values = self.values(figure, metric, peer)
        return median(values.values()) if values else None

    def details(self, figure: str, metric: str, peer: str = "ours") -> dict[str, Any]:
        return self._details.get((figure, metric, peer), {})


def ratios(ours: Values, theirs: Values) -> list[float]:
    """Return ours as a multiple of theirs, in each run that has both."""
    return [ours[run] / theirs[run] for run in ours if theirs.get(run)]


def best(values: Sequence[Values], *, highest: bool) -> Values:
    """Return, for each run that all have, the best of several."""
    runs = set.intersection(*(set(each) for each in values)) if values else set()
    pick = max if highest else min
    return {run: pick(each[run] for each in values) for run in runs}
