"""From any version to the newest, by plain psql or by the binding: numbered, frozen, repeatable."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import next_version as next_release
import pytest
from concurrency import Worker, defer, value
from databases import INSTALL, ROOT, UPGRADE, Database, owned_database, succeed
from flatten import initial
from next_version import MIGRATION, NEXT, NextVersion

from procrastinate_sql import calls, schema
from procrastinate_sql.connections import SCHEMA_VERSION

MIGRATIONS = ROOT / "migrations"
NUMBERED = sorted(MIGRATIONS.glob("[0-9]*.sql"))

Upgrade = Callable[[Database], "Outcome"]


@dataclass(frozen=True)
class Outcome:
    """What came of an upgrade: the names of the migrations applied, or an error."""

    applied: list[str]
    error: str = ""


def upgrade_with_psql(database: Database, script: Path = UPGRADE) -> Outcome:
    """Upgrade with psql and no other flag than one that shows SQLSTATEs."""
    output = database.psql("-v", "VERBOSITY=verbose", "-f", script)
    applied = [
        line.removeprefix("applied ") + ".sql"
        for line in output.stdout.splitlines()
        if line.startswith("applied ")
    ]
    assert bool(output.returncode) == bool(output.stderr), output
    return Outcome(applied, output.stderr)


def upgrade_with_binding(database: Database) -> Outcome:
    """Upgrade with the binding, which has the migrations in its package."""
    with closing(database.connect()) as connection:
        try:
            return Outcome(schema.upgrade(connection))
        except Exception as error:
            sqlstate = getattr(error.__cause__ or error, "sqlstate", None)
            hint = getattr(error, "hint", None)
            return Outcome([], f"{type(error).__name__} {sqlstate} {error}\n{hint}")


UPGRADES: dict[str, Upgrade] = {"psql": upgrade_with_psql, "binding": upgrade_with_binding}


@pytest.fixture
def database(dsn: str) -> Iterator[Database]:
    """An empty database, and the ordinary role that owns it."""
    with owned_database(dsn) as made:
        yield made


@pytest.fixture(params=UPGRADES)
def upgrade(request: pytest.FixtureRequest) -> Upgrade:
    """Upgrade a database to the newest version, in one way or the other."""
    return UPGRADES[request.param]


@pytest.fixture
def next_version(tmp_path: Path) -> NextVersion:
    """The version after the newest, made as migrations/README.md says."""
    return next_release.make(tmp_path)


@pytest.fixture(params=UPGRADES)
def upgrade_to_next(
    request: pytest.FixtureRequest, next_version: NextVersion, monkeypatch: pytest.MonkeyPatch
) -> Upgrade:
    """Upgrade a database to that version."""
    if request.param == "binding":
        monkeypatch.setattr(schema, "files", lambda _: next_version.package)
        monkeypatch.setattr(schema, "SCHEMA_VERSION", NEXT)
        return upgrade_with_binding
    return lambda database: upgrade_with_psql(database, next_version.upgrade)


def migrate(database: Database, version: int) -> None:
    """Bring an empty database to a version, each of its migrations in one transaction."""
    for migration in NUMBERED[:version]:
        with closing(database.connect()) as connection, connection.transaction():
            connection.execute(calls.PIN_SCHEMA)
            connection.execute(migration.read_bytes())


def installed_dump(dsn: str, install: Path = INSTALL) -> str:
    """Return the dump of what sql/install.sql makes."""
    with owned_database(dsn) as database:
        succeed(database.psql("-f", install))
        return database.dump()


# --- The files ---------------------------------------------------------------------


def test_migrations_are_numbered_from_one_to_the_version_of_the_schema():
    """There is no gap, and none is missing."""
    assert [int(file.name[:4]) for file in NUMBERED] == list(range(1, SCHEMA_VERSION + 1))


def test_frozen_migrations_never_change():
    """Each is what its checksum says."""
    lines = (MIGRATIONS / "checksums.sha256").read_text().splitlines()
    frozen = {file: checksum for checksum, file in (line.split("  ") for line in lines)}
    assert set(frozen) <= {file.name for file in NUMBERED}
    assert frozen == {
        name: hashlib.sha256((MIGRATIONS / name).read_bytes()).hexdigest() for name in frozen
    }


@pytest.mark.skipif(SCHEMA_VERSION > 1, reason="it is frozen")
def test_the_first_migration_is_the_installation_of_version_1():
    """If it is not: python tools/flatten.py --initial > migrations/0001_initial.sql."""
    # Not compared by `==` alone: nobody wants to read 3,000 lines.
    is_the_installation = (MIGRATIONS / "0001_initial.sql").read_text() == initial()
    assert is_the_installation, "see migrations/README.md"


# --- Upgrading ---------------------------------------------------------------------


@pytest.mark.parametrize("version", range(SCHEMA_VERSION + 1))
def test_upgrading_from_any_version_gives_what_installing_gives(
    dsn: str, database: Database, upgrade: Upgrade, version: int
):
    """The same dump, comments and privileges included; version 0 is an empty schema."""
    migrate(database, version)
    assert upgrade(database) == Outcome([file.name for file in NUMBERED[version:]])
    dump = database.dump()
    assert "COMMENT ON FUNCTION public.procrastinate_defer_job(" in dump
    assert "REVOKE ALL ON FUNCTION public.procrastinate_defer_job(" in dump
    assert dump == installed_dump(dsn)


def test_the_made_up_version_keeps_the_rule_too(
    dsn: str, database: Database, next_version: NextVersion, upgrade_to_next: Upgrade
):
    """The rules of migrations/README.md, which it follows, give equal dumps."""
    succeed(database.psql("-f", INSTALL))
    assert upgrade_to_next(database) == Outcome([f"{MIGRATION}.sql"])
    assert database.dump() == installed_dump(dsn, next_version.install)


def test_upgrading_the_newest_version_changes_nothing(database: Database, upgrade: Upgrade):
    """Neither the schema nor the jobs in it."""
    succeed(database.psql("-f", INSTALL))
    database.execute("select procrastinate_defer_job('task', lock => 'lock')")
    before = database.dump()
    assert upgrade(database) == Outcome([])
    assert database.dump() == before


REFUSALS = {
    upgrade_with_psql: f"""
        ERROR:  PC003: schema public holds version {NEXT} of procrastinate-sql, and this release
        knows {SCHEMA_VERSION} HINT:  Nothing was changed. Use the files of the release that has
        that version.
    """,
    upgrade_with_binding: f"""
        SchemaVersionError None the schema has version {NEXT}, and this package knows
        {SCHEMA_VERSION} Nothing was changed. Upgrade the package: pip install --upgrade
        procrastinate-sql.
    """,
}


def test_a_newer_version_is_refused(database: Database, upgrade: Upgrade):
    """Old migrations never touch it; the error says so, and what to do."""
    succeed(database.psql("-f", INSTALL))
    database.execute(
        "create or replace function procrastinate_schema_version() returns integer"
        f" language sql immutable as 'select {NEXT}'"
    )
    before = database.dump()
    error = " ".join(upgrade(database).error.split())
    assert " ".join(REFUSALS[upgrade].split()) in error
    assert database.dump() == before


def test_the_jobs_outlive_an_upgrade(database: Database, upgrade_to_next: Upgrade):
    """They wait and run on in the next version."""
    succeed(database.psql("-f", INSTALL))
    with closing(database.connect()) as conn:
        worker = Worker(conn)
        running, waiting = defer(conn, "lock"), defer(conn, "lock")
        assert worker.fetch() == [running]
        assert upgrade_to_next(database) == Outcome([f"{MIGRATION}.sql"])
        assert value(conn, "select procrastinate_schema_version()") == NEXT
        worker.finish(running)
        assert worker.fetch() == [waiting]


# What another transaction holds, the version before, and the one that is left.
KILLED_WHERE_IT_WAITS_FOR = {
    "a table of the first": ("create table procrastinate_queues ()", 0, 0),
    "a table of the last": ("create table procrastinate_notes ()", 0, SCHEMA_VERSION),
    "a lock that workers do not notice": (
        "lock table procrastinate_jobs in share update exclusive mode",
        SCHEMA_VERSION,
        SCHEMA_VERSION,
    ),
    "a lock of all": (
        "lock table procrastinate_jobs in access share mode",
        SCHEMA_VERSION,
        SCHEMA_VERSION,
    ),
    "its last statement": (
        "create table procrastinate_notes ()",
        SCHEMA_VERSION,
        SCHEMA_VERSION,
    ),
}


@pytest.mark.parametrize(
    ("held", "version", "left"),
    KILLED_WHERE_IT_WAITS_FOR.values(),
    ids=KILLED_WHERE_IT_WAITS_FOR.keys(),
)
def test_a_killed_upgrade_leaves_a_version_and_goes_on_from_there(
    dsn: str,
    database: Database,
    upgrade_to_next: Upgrade,
    wait_until: Callable[..., Any],
    held: str,
    version: int,
    left: int,
):
    """Its backend is terminated half-way, where it waits for what another transaction holds."""
    migrate(database, version)
    waits = "select pid from pg_stat_activity where wait_event_type = 'Lock' and usename = user"
    with (
        closing(database.connect()) as other,
        closing(database.connect()) as observer,
        ThreadPoolExecutor(1) as thread,
    ):
        other.execute("begin")
        other.execute(held.encode())
        killed = thread.submit(upgrade_to_next, database)
        pid = wait_until(lambda: value(observer, waits))
        observer.execute("select pg_terminate_backend(%s, 5000)", (pid,))
        assert "57P01" in killed.result().error
        other.execute("rollback")

    with owned_database(dsn) as before:
        migrate(before, left)
        assert database.dump() == before.dump()
    missing = [*(file.name for file in NUMBERED), f"{MIGRATION}.sql"][left:]
    assert upgrade_to_next(database) == Outcome(missing)
    assert database.execute("select procrastinate_schema_version()") == [(NEXT,)]
