"""What the benchmark asks of a peer."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from importlib.metadata import PackageNotFoundError, version
from typing import ClassVar

import psycopg

Connection = psycopg.Connection[tuple[object, ...]]


class Unavailable(Exception):
    """The peer cannot be had here; the message says why."""


class Peer(ABC):
    """A queue, and the program that speaks for it.

    Attributes:
        name: What it is called on the command line and in results.
        title: What it is called in the report.
        configuration: Its settings, for the report.
        keeps_finished: Its finished jobs stay in a table; otherwise they are deleted.
        kinds: Which workers it has: a call for each job, async or sync, or one for many.
        bulk_sizes: How many jobs its client defers at a time.
        has_bulk: It has a call for many.
        share: Part of the usual number of jobs that it is given, as it is slower.
        is_polled: An idle worker is not woken by a job, so each one takes its time.
        unfinished: SQL that counts the jobs that are not finished.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    configuration: ClassVar[str]
    keeps_finished: ClassVar[bool]
    kinds: ClassVar[tuple[str, ...]]
    unfinished: ClassVar[str]
    bulk_sizes: ClassVar[tuple[int, ...]] = (1000, 5000)
    has_bulk: ClassVar[bool] = True
    share: ClassVar[float] = 1.0
    is_polled: ClassVar[bool] = False

    @abstractmethod
    def version(self) -> str:
        """Return its version; raise Unavailable if it is not installed."""

    @abstractmethod
    def command(self) -> list[str]:
        """Return the command that starts its program."""

    def program(self, dsn: str, jobs: int, kind: str, options: dict[str, object]) -> list[str]:
        """Return the command for one part of the contract (bench/programs/contract.py)."""
        return [*self.command(), dsn, str(jobs), kind, json.dumps(options)]

    def prepare(self) -> None:
        """Fetch what is missing; raise Unavailable if that cannot be had."""
        self.version()

    def jobs(self, usual: int, least: int = 10) -> int:
        """Return how many jobs it is given where others are given so many."""
        return max(least, int(usual * self.share))

    def remaining(self, connection: Connection) -> int:
        """Return how many jobs are not finished."""
        row = connection.execute(self.unfinished.encode()).fetchone()
        assert row is not None
        return int(str(row[0]))


def python_version(package: str) -> str:
    """Return the version of an installed Python package."""
    try:
        return version(package)
    except PackageNotFoundError:
        raise Unavailable(f"{package} is not installed") from None
