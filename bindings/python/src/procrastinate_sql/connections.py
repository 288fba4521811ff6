"""Connections of our own: how they are opened, checked, kept for the next call, and healed.

A pool here is no more than a stack of idle connections: a call takes one or opens one. A connection
that broke is dropped, so that whoever calls again gets a fresh one.
"""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
    nullcontext,
)
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import TransactionStatus

from procrastinate_sql import calls, errors

SCHEMA_VERSION = 1

# A half-open connection is noticed within seconds, where the system's defaults take hours.
DEFAULTS = {
    "fallback_application_name": "procrastinate-sql",
    "connect_timeout": 10,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}

Dsn: TypeAlias = "str | Callable[[], str] | None"
SyncConnection: TypeAlias = "psycopg.Connection[Any]"
AsyncConnection: TypeAlias = "psycopg.AsyncConnection[Any]"
C = TypeVar("C", bound="psycopg.Connection[Any] | psycopg.AsyncConnection[Any]")


@dataclass(frozen=True)
class Address:
    """Where the database is, and how to talk to it.

    Attributes:
        dsn: A connection string or URL, or a function that returns one each time a connection is
            opened (for passwords that expire). None: $PROCRASTINATE_DSN, else libpq's environment.
        schema: Where the functions are, if not in the search_path of the connection.
        prepared_statements: None: unless a pooler is found in between.
    """

    dsn: Dsn = None
    schema: str | None = None
    prepared_statements: bool | None = None

    def options(self) -> dict[str, Any]:
        """Return the keyword arguments for psycopg; what the DSN says wins over our defaults."""
        dsn = self.dsn() if callable(self.dsn) else self.dsn
        given = conninfo_to_dict(dsn or os.environ.get("PROCRASTINATE_DSN", ""))
        threshold = None if self.prepared_statements is False else 5
        return {**DEFAULTS, **given, "autocommit": True, "prepare_threshold": threshold}

    def listen_dsn(self) -> Dsn:
        """Return $PROCRASTINATE_LISTEN_DSN, else the DSN."""
        return os.environ.get("PROCRASTINATE_LISTEN_DSN") or self.dsn

    def version_query(self) -> bytes:
        return calls.schema_version().statement(self.schema)

    def mind_pooler(
        self, connection: SyncConnection | AsyncConnection, row: tuple[Any, ...] | None
    ) -> None:
        """Do without prepared statements if a pooler is in between; row answers BACKEND_PID."""
        if self.prepared_statements is None and is_pooled(connection, row):
            connection.prepare_threshold = None


def is_pooled(connection: SyncConnection | AsyncConnection, row: tuple[Any, ...] | None) -> bool:
    """Is a pooler in between? It makes up the process id that it tells its clients."""
    return row is not None and connection.info.backend_pid != row[0]


class Source(Protocol):
    """Whatever lends a connection for one call."""

    def lend(self) -> AbstractContextManager[SyncConnection]: ...


class AsyncSource(Protocol):
    """Whatever lends an async connection for one call."""

    def lend(self) -> AbstractAsyncContextManager[AsyncConnection]: ...


class Borrowed:
    """A caller's own connection, which stays the caller's: nothing is committed or closed here."""

    def __init__(self, connection: SyncConnection) -> None:
        self._connection = connection

    def lend(self) -> AbstractContextManager[SyncConnection]:
        return nullcontext(self._connection)


class AsyncBorrowed:
    """The same for an async connection."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    def lend(self) -> AbstractAsyncContextManager[AsyncConnection]:
        return nullcontext(self._connection)


class Pool:
    """Sync connections for any number of threads."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._idle: _Idle[SyncConnection] = _Idle()
        self._checked = False

    @contextmanager
    def lend(self) -> Iterator[SyncConnection]:
        connection = self._idle.take() or self.open()
        try:
            yield connection
        finally:
            if not self._idle.put(connection):
                connection.close()

    def open(self) -> SyncConnection:
        """Open a connection; the first one checks the version of the schema."""
        connection = psycopg.connect(**self._address.options())
        try:
            row = connection.execute(calls.BACKEND_PID).fetchone()
            self._address.mind_pooler(connection, row)
            if not self._checked:
                with _missing_schema():
                    version = connection.execute(self._address.version_query()).fetchone()
                _check_version(version)
                self._checked = True
        except BaseException:
            connection.close()
            raise
        return connection

    def close(self) -> None:
        while connection := self._idle.take():
            connection.close()


class AsyncPool:
    """Async connections for any number of event loops; each keeps to its own."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._idle: WeakKeyDictionary[asyncio.AbstractEventLoop, _Idle[AsyncConnection]] = (
            WeakKeyDictionary()
        )
        self._checked = False

    @asynccontextmanager
    async def lend(self) -> AsyncIterator[AsyncConnection]:
        idle = self._idle.setdefault(asyncio.get_running_loop(), _Idle())
        connection = idle.take() or await self.open()
        try:
            yield connection
        finally:
            if not idle.put(connection):
                await connection.close()

    async def open(self) -> AsyncConnection:
        """Open a connection; the first one checks the version of the schema."""
        connection = await psycopg.AsyncConnection.connect(**self._address.options())
        try:
            row = await (await connection.execute(calls.BACKEND_PID)).fetchone()
            self._address.mind_pooler(connection, row)
            if not self._checked:
                with _missing_schema():
                    answer = await connection.execute(self._address.version_query())
                _check_version(await answer.fetchone())
                self._checked = True
        except BaseException:
            await connection.close()
            raise
        return connection

    async def close(self) -> None:
        """Close the idle connections of the running loop."""
        if idle := self._idle.pop(asyncio.get_running_loop(), None):
            while connection := idle.take():
                await connection.close()


class _Idle(Generic[C]):
    """A stack of connections that nobody uses right now."""

    def __init__(self) -> None:
        self._connections: list[C] = []
        self._owner = os.getpid()
        self._inherited: list[C] = []

    def take(self) -> C | None:
        """Return one that looks alive, or None."""
        if self._owner != os.getpid():
            # After a fork they belong to the parent: even closing one would end the parent's.
            self._inherited, self._connections, self._owner = self._connections, [], os.getpid()
        while self._connections:
            connection = self._connections.pop()
            if _is_quiet(connection):
                return connection
            connection.pgconn.finish()
        return None

    def put(self, connection: C) -> bool:
        """Keep a connection for the next call; False if it is of no more use."""
        usable = connection.info.transaction_status is TransactionStatus.IDLE
        if usable:
            self._connections.append(connection)
        return usable


def _is_quiet(connection: SyncConnection | AsyncConnection) -> bool:
    """Is it open, with nothing to read? A server that went away leaves its farewell there."""
    if connection.closed:
        return False
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return not poll.poll(0)


def _check_version(row: tuple[Any, ...] | None) -> None:
    installed = row[0] if row else 0
    if installed < SCHEMA_VERSION:
        raise errors.SchemaVersionError(
            f"the schema has version {installed}, and this package needs {SCHEMA_VERSION}",
            "Upgrade it: procrastinate-sql schema upgrade.",
        )
    if installed > SCHEMA_VERSION:
        raise errors.SchemaVersionError(
            f"the schema has version {installed}, and this package knows {SCHEMA_VERSION}",
            "Upgrade the package: pip install --upgrade procrastinate-sql.",
        )


@contextmanager
def _missing_schema() -> Iterator[None]:
    try:
        yield
    except (psycopg.errors.UndefinedFunction, psycopg.errors.InvalidSchemaName) as error:
        raise errors.SchemaVersionError(
            "procrastinate-sql is not installed in this database, or not in its search_path",
            "Install it: procrastinate-sql schema install, or psql -f sql/install.sql.",
        ) from error


def driver_connection(connection: Any) -> Any:
    """Return the psycopg connection, sync or async, inside whatever the caller's library has.

    Taken are psycopg's own, SQLAlchemy's `Connection` and `AsyncConnection`, and Django's
    `django.db.connection`.

    Raises:
        InvalidArgument: It has no psycopg connection inside, or it is one of SQLAlchemy's that has
            not begun a transaction: its commit() would then commit nothing.
    """
    inner = connection
    if getattr(inner, "in_transaction", None) and not inner.in_transaction():
        raise errors.InvalidArgument(
            "connection: it has not begun a transaction, so its commit would commit nothing",
            "Begin one: with engine.begin() as connection, or session.connection().",
        )
    if hasattr(inner, "ensure_connection"):
        inner.ensure_connection()
    for name in ("sync_connection", "connection", "driver_connection"):
        if isinstance(inner, (psycopg.Connection, psycopg.AsyncConnection)):
            break
        inner = getattr(inner, name, inner)
    if not isinstance(inner, (psycopg.Connection, psycopg.AsyncConnection)):
        raise errors.InvalidArgument(
            f"connection: {type(connection).__name__} is no psycopg connection and holds none",
            "Pass a psycopg 3 connection, SQLAlchemy's Connection, or Django's connection.",
        )
    return inner
