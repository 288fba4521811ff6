"""The figures: what is measured, each in a module of its own."""

from bench.figures import (
    commits,
    connections,
    defer,
    drain,
    flat,
    held_snapshot,
    idle,
    latency,
    locks,
    memory,
    rescue,
    wal,
)
from bench.figures.base import Figure

FIGURES: dict[str, Figure] = {
    figure.name: figure
    for figure in (
        commits.FIGURE,
        drain.FIGURE,
        latency.FIGURE,
        defer.FIGURE,
        locks.FIGURE,
        wal.FIGURE,
        held_snapshot.FIGURE,
        held_snapshot.LOCKS_FIGURE,
        flat.FIGURE,
        connections.FIGURE,
        idle.FIGURE,
        rescue.FIGURE,
        memory.FIGURE,
    )
}

__all__ = ["FIGURES", "Figure"]
