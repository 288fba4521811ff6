"""What is measured, and the file of JSON lines that it is written to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


class WrongResult(Exception):
    """A job was lost, run twice, or run out of order."""


@dataclass(frozen=True)
class Sample:
    """One measured value.

    Attributes:
        metric: What was measured, the same text for all peers.
        value: The value.
        unit: Its unit.
        higher_is_better: Or lower, or (None) neither: it only informs.
        details: Sizes and whatever else explains it.
    """

    metric: str
    value: float
    unit: str
    higher_is_better: bool | None = True
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """A line of the file: a sample, an error, or what the run was made with (figure "setup").

    Attributes:
        run: Number of the run, from 1; 0 for the set-up.
        figure: Name of the figure.
        peer: Name of the peer.
        sample: What was measured.
        error: Why it could not be measured.
        wrong: That the result was wrong.
        setup: Versions, settings, machine.
    """

    run: int
    figure: str
    peer: str = ""
    sample: Sample | None = None
    error: str | None = None
    wrong: bool = False
    setup: dict[str, Any] | None = None


class ResultFile:
    """Appends records to a file of JSON lines, each at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")

    def write(self, record: Record) -> None:
        line = {key: value for key, value in asdict(record).items() if value not in (None, "")}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def read(path: Path) -> Iterator[Record]:
    """Read a file of JSON lines."""
    for line in path.read_text().splitlines():
        values = json.loads(line)
        if sample := values.pop("sample", None):
            values["sample"] = Sample(**sample)
        yield Record(**values)
