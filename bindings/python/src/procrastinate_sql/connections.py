"""Connections of our own: how they are opened, checked, kept for the next call, and healed.

A pool here is no more than a short stack of idle connections: a call takes one or opens one. One
that broke is dropped, so that whoever calls again gets a fresh one.
"""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.errors import InvalidSchemaName, ReadOnlySqlTransaction, UndefinedFunction
from psycopg.pq import TransactionStatus

from procrastinate_sql import calls, errors

SCHEMA_VERSION = 1

# A half-open connection is noticed within seconds, where the system's defaults take hours. A
# database without an encoding (SQL_ASCII) would have us read bytes in place of text.
DEFAULTS = {
    "fallback_application_name": "procrastinate-sql",
    "client_encoding": "utf8",
    "connect_timeout": 10,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}

Dsn: TypeAlias = "str | Callable[[], str] | None"
SyncConnection: TypeAlias = "psycopg.Connection[Any]"
AsyncConnection: TypeAlias = "psycopg.AsyncConnection[Any]"
MAX_IDLE = 10  # connections of a pool; more were opened while the server was away, say

C = TypeVar("C", bound="psycopg.Connection[Any] | psycopg.AsyncConnection[Any]")


@dataclass(frozen=True)
class Address:
    """Where the database is, and how to talk to it.

    Attributes:
        dsn: A connection string or URL, or a function that returns one each time a connection is
            opened (for passwords that expire). None: $PROCRASTINATE_DSN, else libpq's environment.
        schema: Where the functions are, if not in the search_path of the connection.
        prepared_statements: None: unless a pooler is found in between.
        synchronous_commit: False: a commit need not survive a crash of the server. A session of a
            pooler, which others use too, is left as it is.
    """

    dsn: Dsn = None
    schema: str | None = None
    prepared_statements: bool | None = None
    synchronous_commit: bool = True

    def options(self) -> dict[str, Any]:
        """Return the keyword arguments for psycopg; what the DSN says wins over our defaults.

        Raises:
            InvalidArgument: The DSN cannot be read.
        """
        dsn = self.dsn() if callable(self.dsn) else self.dsn
        try:
            given = conninfo_to_dict(dsn or os.environ.get("PROCRASTINATE_DSN", ""))
        except psycopg.ProgrammingError:
            # Not `from` it: its text repeats the DSN, password and all.
            raise errors.InvalidArgument(
                "dsn: is no connection string", "Write postgresql://user@host/database, say."
            ) from None
        threshold = None if self.prepared_statements is False else 5
        return {**DEFAULTS, **given, "autocommit": True, "prepare_threshold": threshold}

    def listen_dsn(self) -> Dsn:
        """Return $PROCRASTINATE_LISTEN_DSN, else the DSN."""
        return os.environ.get("PROCRASTINATE_LISTEN_DSN") or self.dsn

    def open(self, *, check_version: bool = False) -> tuple[SyncConnection, bool]:
        """Open a connection; return it, and whether a pooler is in between.

        Raises:
            SchemaVersionError: There is no schema or, if that is to be checked, an older one than
                this package needs.
        """
        connection = psycopg.connect(**self.options())
        with _or_closed(connection):
            answer = connection.execute(self._greeting(), _values(connection))
            return connection, self._take_in(connection, answer.fetchall(), check_version)

    async def open_async(self, *, check_version: bool = False) -> tuple[AsyncConnection, bool]:
        """As `open`."""
        connection = await psycopg.AsyncConnection.connect(**self.options())
        with _or_closed(connection):
            answer = await connection.execute(self._greeting(), _values(connection))
            return connection, self._take_in(connection, await answer.fetchall(), check_version)

    def _greeting(self) -> bytes:
        return calls.greeting(self.schema, self.synchronous_commit)

    def _take_in(
        self,
        connection: SyncConnection | AsyncConnection,
        rows: Sequence[tuple[Any, ...]],
        check_version: bool,
    ) -> bool:
        ((pooled, installed, _),) = rows
        if pooled and self.prepared_statements is None:
            connection.prepare_threshold = None
        if check_version:
            _check_version(installed)
        return bool(pooled)


def _values(connection: SyncConnection | AsyncConnection) -> dict[str, int]:
    return {"backend_pid": connection.info.backend_pid}


@contextmanager
def _or_closed(connection: SyncConnection | AsyncConnection) -> Iterator[None]:
    """Close a connection that cannot be used after all."""
    try:
        yield
    except (UndefinedFunction, InvalidSchemaName) as error:
        connection.pgconn.finish()
        raise errors.SchemaVersionError(
            "procrastinate-sql is not installed in this database, or not in its search_path",
            "Install it: procrastinate-sql schema install, or psql -f sql/install.sql.",
        ) from error
    except BaseException:
        connection.pgconn.finish()
        raise


def _check_version(installed: int) -> None:
    # A newer one does: functions only grow, by arguments and columns that nobody has to know.
    if installed < SCHEMA_VERSION:
        raise errors.SchemaVersionError(
            f"the schema has version {installed}, and this package needs {SCHEMA_VERSION}",
            "Upgrade it: procrastinate-sql schema upgrade, or psql -f migrations/upgrade.sql.",
        )


class Pool:
    """Sync connections for any number of threads."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._idle: _Idle[SyncConnection] = _Idle()
        self._checked = False

    @contextmanager
    def lend(self) -> Iterator[SyncConnection]:
        """Lend a connection for one call; the first one checks the version of the schema."""
        connection = self._idle.take()
        if connection is None:
            connection, _ = self._address.open(check_version=not self._checked)
            self._checked = True
        with self._idle.keeping(connection):
            yield connection

    def close(self) -> None:
        """Close the idle connections."""
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
        """As `Pool.lend`."""
        idle = self._idle.setdefault(asyncio.get_running_loop(), _Idle())
        connection = idle.take()
        if connection is None:
            connection, _ = await self._address.open_async(check_version=not self._checked)
            self._checked = True
        with idle.keeping(connection):
            yield connection

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

    @contextmanager
    def keeping(self, connection: C) -> Iterator[None]:
        """Keep a connection for the next call after the block, unless it is of no more use."""
        try:
            yield
        except ReadOnlySqlTransaction:
            # It leads to what is not, or no longer, the primary server.
            connection.pgconn.finish()
            raise
        finally:
            is_usable = connection.info.transaction_status is TransactionStatus.IDLE
            if is_usable and len(self._connections) < MAX_IDLE:
                self._connections.append(connection)
            else:
                connection.pgconn.finish()


def _is_quiet(connection: SyncConnection | AsyncConnection) -> bool:
    """Is it open, with nothing to read? A server that went away leaves its farewell there."""
    if connection.closed:
        return False
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return not poll.poll(0)


def driver_connection(connection: Any) -> SyncConnection | AsyncConnection:
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
            return inner
        inner = getattr(inner, name, inner)
    if isinstance(inner, (psycopg.Connection, psycopg.AsyncConnection)):
        return inner
    raise errors.InvalidArgument(
        f"connection: {type(connection).__name__} is no psycopg connection and holds none",
        "Pass a psycopg 3 connection, SQLAlchemy's Connection, or Django's connection.",
    )
