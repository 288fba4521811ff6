"""Install, upgrade, check and remove the schema, from the SQL files inside this package."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import psycopg
from psycopg.errors import LockNotAvailable

from procrastinate_sql import calls
from procrastinate_sql.connections import SCHEMA_VERSION
from procrastinate_sql.errors import ProcrastinateError, SchemaVersionError, translated
from procrastinate_sql.job_store import JobStore

PATIENCE = 300  # seconds


class SchemaBusy(ProcrastinateError):
    """A table could not be locked, since another transaction has been using it all the time."""


def install(connection: psycopg.Connection[Any], schema: str | None = None) -> None:
    """Install everything, in one transaction (sql/install.sql).

    Args:
        connection: A connection of the future owner.
        schema: An existing schema; by default the first of the search_path.

    Raises:
        SchemaVersionError: It is installed already; nothing was changed.
    """
    _execute(connection, schema, read("install.sql"))


def uninstall(connection: psycopg.Connection[Any], schema: str | None = None) -> None:
    """Drop everything that `install` made, jobs included (sql/uninstall.sql)."""
    _execute(connection, schema, read("uninstall.sql"))


def upgrade(
    connection: psycopg.Connection[Any], schema: str | None = None, wait: float = PATIENCE
) -> list[str]:
    """Apply the migrations that are missing, each in a transaction of its own.

    A database without the schema is taken through all of them, which gives what `install` gives.
    Producers and workers may go on. A lock that is not free within half a second is given up, so
    that nobody has to wait behind it for longer, and tried again a little later.

    Args:
        connection: A connection of the owner, in no transaction.
        schema: An existing schema; by default the first of the search_path.
        wait: For how long to try, in seconds.

    Returns:
        The names of the migrations applied.

    Raises:
        SchemaVersionError: The version in the database is newer than this package; nothing was
            changed.
        SchemaBusy: Another transaction kept a table for longer than `wait`. The migrations before
            are applied; calling it again goes on from there.
    """
    applied = []
    deadline = time.monotonic() + wait
    for name in migrations():
        for pause in _pauses():
            try:
                if _apply(connection, schema, name):
                    applied.append(name)
                break
            except LockNotAvailable as error:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise SchemaBusy(
                        f"{name} could not get its locks within {wait:g} seconds: "
                        f"{error.diag.message_primary}",
                        "Nothing of it was applied. Look for long transactions "
                        "(pg_stat_activity.xact_start), then run it again.",
                    ) from error
            time.sleep(min(pause, left))
    return applied


def _pauses() -> Iterator[float]:
    """How long to leave the tables to others between two attempts: 1 to 2 s, then up to 10."""
    longest = 2.0
    while True:
        yield random.uniform(longest / 2, longest)
        longest = min(longest * 1.5, 10)


def _apply(connection: psycopg.Connection[Any], schema: str | None, name: str) -> bool:
    """Apply a migration unless it is; return whether it was."""
    with translated(), connection.transaction():
        connection.execute(calls.WAIT_BRIEFLY)
        _enter(connection, schema)
        connection.execute(calls.LOCK_UPGRADES)
        installed = installed_version(connection) or 0
        if installed > SCHEMA_VERSION:
            raise SchemaVersionError(
                f"the schema has version {installed}, and this package knows {SCHEMA_VERSION}",
                "Nothing was changed. Upgrade the package: pip install --upgrade "
                "procrastinate-sql.",
            )
        if installed >= _number(name):
            return False
        connection.execute(calls.PIN_SCHEMA)
        connection.execute(read(f"migrations/{name}").encode())
        return True


def check(connection: psycopg.Connection[Any], schema: str | None = None) -> tuple[int | None, int]:
    """Return the version that is installed (None: none is) and the one that this package needs."""
    with translated(), connection.transaction():
        _enter(connection, schema)
        return installed_version(connection), SCHEMA_VERSION


def installed_version(connection: psycopg.Connection[Any]) -> int | None:
    """Return the version in the current schema, or None."""
    row = connection.execute(calls.IS_INSTALLED).fetchone()
    if not row or not row[0]:
        return None
    return JobStore(connection).schema_version()


def migrations() -> list[str]:
    """Return the names of all migrations, in order."""
    folder = files(__package__) / "sql" / "migrations"
    return sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".sql"))


def read(name: str) -> str:
    """Return a packaged SQL file: install.sql, uninstall.sql, or migrations/NNNN_….sql."""
    return (files(__package__) / "sql" / name).read_text()


def _execute(connection: psycopg.Connection[Any], schema: str | None, script: str) -> None:
    with translated(), connection.transaction():
        _enter(connection, schema)
        connection.execute(script.encode())


def _enter(connection: psycopg.Connection[Any], schema: str | None) -> None:
    if schema is not None:
        connection.execute(calls.use_schema(schema))


def _number(migration: str) -> int:
    return int(migration.partition("_")[0])
