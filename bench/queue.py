"""This queue as seen from SQL: what only our own figures need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any

import psycopg

from bench.server import Database

LOAD = """
insert into procrastinate_jobs (task_name, args, lock)
select
    'noop',
    jsonb_build_object(
        'n', n, 'lock', coalesce(n %% locks, 0)::text, 'turn', coalesce(n / locks, n)
    ),
    (n %% locks)::text
from
    nullif(%(locks)s, 0) as locks,
    generate_series(0, %(jobs)s - 1) as n
"""

LOAD_PLAIN = """
insert into procrastinate_jobs (task_name, args)
select 'noop', jsonb_build_object('n', n) from generate_series(0, %s - 1) as n
"""


def load_locked(database: Database, jobs: int, locks: int) -> None:
    """Create jobs in one statement, dealt to so many locks in turn (0: none)."""
    with database.connect() as connection:
        connection.execute(LOAD, {"locks": locks, "jobs": jobs})


def load_plain(database: Database, jobs: int) -> None:
    """Create jobs without locks in one statement."""
    with database.connect() as connection:
        connection.execute(LOAD_PLAIN, (jobs,))


def register_worker(connection: psycopg.Connection[Any], name: str = "bench") -> int:
    """Register a worker that is not given up before the measurement ends."""
    row = connection.execute(
        "select procrastinate_register_worker(%s, lease => '1 day')", (name,)
    ).fetchone()
    assert row is not None
    return int(row[0])


@contextmanager
def heartbeats(database: Database) -> Iterator[None]:
    """Have a worker without jobs send its heartbeats meanwhile, as each worker does."""
    over = Event()

    def beat() -> None:
        with database.connect() as connection:
            worker_id = register_worker(connection, "heart")
            while not over.wait(1):
                connection.execute("select procrastinate_heartbeat(%s)", (worker_id,))

    thread = Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def held_snapshot(database: Database, holder: str) -> Iterator[None]:
    """Hold a snapshot meanwhile: that of a `reader`, of a `writer` with a transaction id, or none.

    The reader's is what pg_dump or a report holds; the writer's, a forgotten `begin; update …`.
    """
    if holder == "none":
        yield
        return
    with database.connect() as connection:
        if holder == "reader":
            connection.execute("begin isolation level repeatable read, read only")
            connection.execute("select count(*) from pg_class")
        else:
            connection.execute("begin")
            connection.execute("select pg_current_xact_id()")
        try:
            yield
        finally:
            connection.execute("rollback")
