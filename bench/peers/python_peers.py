"""This queue, the peers that are Python packages, and the floor."""

from __future__ import annotations

import sys

from bench.peers.base import Peer, python_version


class PythonPeer(Peer):
    """A peer whose program is a module of bench.programs."""

    package: str

    def version(self) -> str:
        return python_version(self.package)

    def command(self) -> list[str]:
        return [sys.executable, "-m", f"bench.programs.{self.name}"]


class Ours(PythonPeer):
    """This queue."""

    name = "ours"
    title = "procrastinate-sql"
    package = "procrastinate-sql"
    configuration = "concurrency 100, keep_finished=0, batch tasks of 500, defer_many"
    keeps_finished = False
    unfinished = "select count(*) from procrastinate_jobs where status in ('todo', 'doing')"

    @property
    def kinds(self) -> tuple[str, ...]:  # type: ignore[override]
        # Here: peers can be measured without it.
        from bench.programs.ours import has_batch_tasks

        return ("async", "sync", "batch") if has_batch_tasks() else ("async", "sync")


class Floor(PythonPeer):
    """No queue: what the server and a driver do at best."""

    name = "floor"
    title = "bare SQL loop"
    package = "psycopg"
    configuration = "fetch 500, delete 500 over one psycopg connection, narrow table, no dispatch"
    keeps_finished = False
    kinds = ("batch",)
    unfinished = "select count(*) from floor_jobs"

    def version(self) -> str:
        return f"psycopg {super().version()}"


class PgQueuer(PythonPeer):
    """PgQueuer, whose log table takes a row for each change of a job."""

    name = "pgqueuer"
    title = "PgQueuer"
    package = "pgqueuer"
    configuration = "batch_size 100, asyncpg pool of 20, uvloop"
    keeps_finished = False
    kinds = ("async", "sync")
    unfinished = "select count(*) from pgqueuer"
    share = 0.5


class Procrastinate(PythonPeer):
    """The procrastinate package."""

    name = "procrastinate"
    title = "procrastinate"
    package = "procrastinate"
    configuration = "concurrency 10, batch_defer"
    keeps_finished = True
    kinds = ("async", "sync")
    unfinished = "select count(*) from procrastinate_jobs where status in ('todo', 'doing')"
    bulk_sizes = (1000,)
    share = 0.03


class Absurd(PythonPeer):
    """Absurd, a durable workflow system, with tasks of one step."""

    name = "absurd"
    title = "Absurd"
    package = "absurd-sdk"
    configuration = "batch_size 100, concurrency 100 (async), one at a time (sync)"
    keeps_finished = True
    kinds = ("async", "sync")
    unfinished = "select count(*) from absurd.r_default where state not in ('completed', 'failed')"
    bulk_sizes = (1000,)
    has_bulk = False
    share = 0.04
    is_polled = True
