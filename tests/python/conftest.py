"""A real PostgreSQL: one server per session, and per test a fresh database, copied from a template.

The server is a throwaway cluster of version $PROCRASTINATE_PG (14 to 18), or one that is running
(`pytest --postgresql-host=… --postgresql-port=…`). Tests never sleep until something is true: they
wait for it with `wait_until`.

$PROCRASTINATE_OVERLAY names an SQL file to apply on top of the schema: another algorithm, to see
which tests notice.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import pytest
from concurrency import Connect, Connection, Worker
from pytest_postgresql import factories

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

from postgres import Server, cluster, default_version, installation  # noqa: E402  # tools/ is no package

INSTALL = ROOT / "sql" / "install.sql"
OVERLAY = os.environ.get("PROCRASTINATE_OVERLAY")
T = TypeVar("T")


@pytest.fixture(scope="session", autouse=True)
def server(request: pytest.FixtureRequest) -> Iterator[Server | None]:
    """The server of this session; None when pytest-postgresql's options name a running one."""
    options = request.config.option
    if options.postgresql_host:
        yield None
        return
    with cluster() as running:
        options.postgresql_host = running.host
        options.postgresql_port = running.port
        options.postgresql_user = running.user
        yield running


def install_schema(**address: Any) -> None:
    """Install as a user does, with psql: it is what the template database holds."""
    variables = {
        "PGHOST": address["host"],
        "PGPORT": str(address["port"]),
        "PGUSER": address["user"],
        "PGPASSWORD": address.get("password") or "",
        "PGDATABASE": address["dbname"],
    }
    psql = str(installation(default_version()).client / "psql")
    command = [psql, "-X", "-q", "-v", "ON_ERROR_STOP=1", "-f", str(INSTALL)]
    if OVERLAY:
        command += ["-f", OVERLAY]
    subprocess.run(command, env={**os.environ, **variables}, check=True)


postgresql_noproc = factories.postgresql_noproc(load=[install_schema])
postgresql = factories.postgresql("postgresql_noproc")


@pytest.fixture
def dsn(postgresql: psycopg.Connection[Any]) -> str:
    """The address of this test's own database, in which the schema is installed."""
    password = postgresql.info.password or None
    return psycopg.conninfo.make_conninfo(postgresql.info.dsn, password=password)


@pytest.fixture
def connect(dsn: str) -> Iterator[Callable[..., psycopg.Connection[Any]]]:
    """Open another connection to this test's database; keywords as for `psycopg.connect`."""
    with ExitStack() as opened:

        def open_connection(**options: Any) -> psycopg.Connection[Any]:
            connection = psycopg.connect(dsn, **options)
            opened.callback(connection.close)
            return connection

        yield open_connection


@pytest.fixture
def conn(connect: Callable[..., psycopg.Connection[Any]]) -> psycopg.Connection[Any]:
    """A connection in autocommit mode."""
    return connect(autocommit=True)


@pytest.fixture
def worker(connect: Connect) -> Worker:
    """A worker, registered, that makes its calls one by one."""
    return Worker(connect(autocommit=True))


@pytest.fixture
def other(connect: Connect) -> Worker:
    """Another worker."""
    return Worker(connect(autocommit=True))


@pytest.fixture
def caller(connect: Connect) -> Connection:
    """Whoever has a transaction of their own open."""
    return connect(autocommit=True)


@pytest.fixture
def person(connect: Connect) -> Connection:
    """Whoever edits jobs in psql."""
    return connect(autocommit=True)


@pytest.fixture
def wait_until() -> Callable[..., Any]:
    """Poll a condition; return its first true value, or fail after `timeout` seconds."""

    def poll(condition: Callable[[], T], timeout: float = 10, interval: float = 0.01) -> T:
        deadline = time.monotonic() + timeout
        while not (value := condition()):
            if time.monotonic() > deadline:
                pytest.fail(f"still false after {timeout} s: {condition}")
            time.sleep(interval)
        return value

    return poll


@pytest.fixture
def restartable_server() -> Iterator[Server]:
    """A cluster of the test's own to stop and start, the schema in its database `postgres`."""
    with cluster() as running:
        running.psql("-f", INSTALL)
        yield running
