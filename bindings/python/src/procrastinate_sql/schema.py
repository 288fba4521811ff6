"""Install, upgrade, check and remove the schema, from the SQL files inside this package."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import psycopg

from procrastinate_sql import calls
from procrastinate_sql.connections import SCHEMA_VERSION
from procrastinate_sql.errors import SchemaVersionError, translated


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


def upgrade(connection: psycopg.Connection[Any], schema: str | None = None) -> list[str]:
    """Apply the migrations that are missing, each in a transaction of its own.

    A database without the schema is taken through all of them, which gives what `install` gives.

    Returns:
        The names of the migrations applied.

    Raises:
        SchemaVersionError: The version in the database is newer than this package; nothing was
            changed.
    """
    applied = []
    for name in migrations():
        with translated(), connection.transaction():
            _enter(connection, schema)
            connection.execute(calls.LOCK_UPGRADES)
            installed = installed_version(connection) or 0
            if installed > SCHEMA_VERSION:
                raise SchemaVersionError(
                    f"the schema has version {installed}, and this package knows {SCHEMA_VERSION}",
                    "Nothing was changed. Upgrade the package: pip install --upgrade "
                    "procrastinate-sql.",
                )
            if installed < _number(name):
                connection.execute(calls.PIN_SCHEMA)
                connection.execute(read(f"migrations/{name}").encode())
                applied.append(name)
    return applied


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
    version = calls.schema_version()
    return version.answer.read(connection.execute(version.statement(None)).fetchall())


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
