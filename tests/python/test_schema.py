"""Install, upgrade, check and uninstall through the binding."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from procrastinate_sql import SchemaVersionError, calls, schema
from procrastinate_sql.connections import SCHEMA_VERSION

NAMES = """
    select 'relation', relname::text from pg_class
    where relnamespace = current_schema()::regnamespace
    union all
    select 'function', oid::regprocedure::text from pg_proc
    where pronamespace = current_schema()::regnamespace
    union all
    select 'type', typname::text from pg_type where typnamespace = current_schema()::regnamespace
    order by 1, 2
"""


@pytest.fixture
def empty(conn: psycopg.Connection[Any]) -> psycopg.Connection[Any]:
    """A connection whose current schema is new and empty."""
    conn.execute("create schema fresh")
    conn.execute("set search_path = fresh")
    return conn


def names(connection: psycopg.Connection[Any]) -> list[Any]:
    return connection.execute(NAMES).fetchall()


def test_installing_makes_what_psql_makes(empty: psycopg.Connection[Any]):
    schema.install(empty)
    installed = names(empty)
    empty.execute("set search_path = public")
    assert installed == names(empty)


def test_installing_twice_is_refused_and_changes_nothing(empty: psycopg.Connection[Any]):
    schema.install(empty)
    before = names(empty)
    with pytest.raises(SchemaVersionError, match="already installed") as raised:
        schema.install(empty)
    assert "upgrade" in (raised.value.hint or "")
    assert names(empty) == before


def test_the_schema_may_be_named(empty: psycopg.Connection[Any]):
    empty.execute("create schema named")
    schema.install(empty, "named")
    assert schema.check(empty, "named") == (SCHEMA_VERSION, SCHEMA_VERSION)
    assert schema.check(empty) == (None, SCHEMA_VERSION)
    assert empty.execute("show search_path").fetchone() == ("fresh",)


def test_uninstalling_leaves_nothing(empty: psycopg.Connection[Any]):
    schema.install(empty)
    schema.uninstall(empty)
    assert names(empty) == []


def test_upgrading_nothing_installs(empty: psycopg.Connection[Any]):
    assert schema.upgrade(empty) == schema.migrations()
    assert schema.check(empty) == (SCHEMA_VERSION, SCHEMA_VERSION)
    upgraded = names(empty)
    empty.execute("set search_path = public")
    assert upgraded == names(empty)


def test_upgrading_twice_does_nothing(empty: psycopg.Connection[Any]):
    schema.upgrade(empty)
    assert schema.upgrade(empty) == []


def test_an_upgrade_waits_for_another(
    empty: psycopg.Connection[Any],
    connect: Callable[..., psycopg.Connection[Any]],
    wait_until: Callable[..., Any],
):
    holder = connect()
    holder.execute(calls.LOCK_UPGRADES)
    applied: list[str] = []
    thread = threading.Thread(target=lambda: applied.extend(schema.upgrade(empty)))
    thread.start()
    watcher = connect(autocommit=True)
    wait_until(
        lambda: watcher.execute(
            "select 1 from pg_stat_activity where pid = %s and wait_event_type = 'Lock'",
            (empty.info.backend_pid,),
        ).fetchone()
    )
    holder.rollback()
    thread.join()
    assert applied == schema.migrations()


def test_the_package_needs_its_newest_migration():
    assert int(schema.migrations()[-1].partition("_")[0]) == SCHEMA_VERSION
