"""What a figure is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bench.context import Bench
from bench.peers import Peer
from bench.samples import Sample


@dataclass(frozen=True)
class Figure:
    """Something to measure.

    Attributes:
        name: What it is called on the command line.
        title: Its heading in the report.
        text: What the report says below that.
        peers: Whom it can be measured for.
        measure: Measures one peer once.
        once: It is long and steady: measured in the first run only.
    """

    name: str
    title: str
    text: str
    peers: tuple[str, ...]
    measure: Callable[[Bench, Peer], Iterator[Sample]]
    once: bool = False
