"""What was measured: one JSON line each, appended to .build/faults/figures.jsonl and printed."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

FILE = Path(__file__).resolve().parents[3] / ".build" / "faults" / "figures.jsonl"


def note(scenario: str, **figures: object) -> None:
    """Keep and print a measurement."""
    line = json.dumps(
        {
            "scenario": scenario,
            "size": os.environ.get("FAULTS_SIZE", "full"),
            "at": time.strftime("%Y-%m-%dT%H:%M:%S"),
            **figures,
        },
        default=str,
    )
    FILE.parent.mkdir(parents=True, exist_ok=True)
    with FILE.open("a") as file:
        file.write(line + "\n")
    print(f"\n{line}")


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the value below which so large a share lies of values that are in order."""
    return ordered[int((len(ordered) - 1) * share)]


def spread(values: Sequence[float]) -> dict[str, float | int]:
    """Return the number, median, 99th percentile and maximum of some seconds."""
    if not values:
        return {"count": 0}
    ordered = sorted(values)
    return {
        "count": len(ordered),
        "median": round(statistics.median(ordered), 2),
        "p99": round(percentile(ordered, 0.99), 2),
        "max": round(ordered[-1], 2),
    }


def seconds_until_recovered(
    ends: Sequence[float], before: float, again: float, share: float = 0.9, window: float = 2
) -> tuple[float, float | None]:
    """Return the rate before a stop, and how long after the restart it was reached again.

    Args:
        ends: When jobs ended, in seconds of some clock.
        before: When the server was stopped.
        again: When it accepted connections again.
        share: Of the rate before.
        window: Seconds over which a rate is measured; that it was reached is known at its end.
    """
    rate = sum(before - 4 <= end < before for end in ends) / 4
    start = again
    while start < again + 60:
        if sum(start <= end < start + window for end in ends) >= rate * share * window:
            return round(rate, 1), round(start + window - again, 2)
        start += 0.1
    return round(rate, 1), None
