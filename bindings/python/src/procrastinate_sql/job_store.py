"""The SQL functions as methods, sync and async from one definition each."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import psycopg
from psycopg.rows import tuple_row

from procrastinate_sql import calls, errors
from procrastinate_sql.calls import Call, Rows
from procrastinate_sql.connections import AsyncConnection, AsyncPool, Pool, SyncConnection

P = ParamSpec("P")
T = TypeVar("T")

# NaN and Infinity are Python's own addition to JSON: PostgreSQL refuses them.
_encode = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode
_decoder = json.JSONDecoder()


def _decode(text: str) -> Any:
    # PostgreSQL puts no space around it that was to be skipped: json.loads takes thrice as long.
    return _decoder.raw_decode(text)[0]


@dataclass(frozen=True)
class Codec:
    """How calls become statements.

    Attributes:
        schema: Where the functions are; None: in the search_path.
        dumps: Turns args and results into JSON text.
        loads: The reverse.
        encode: Turns the args of a job, or a result, into what is stored of it (None: as it is).
        decode: The reverse.
    """

    schema: str | None = None
    dumps: Callable[[Any], str] = _encode
    loads: Callable[[str], Any] = _decode
    encode: Callable[[Any], Any] | None = None
    decode: Callable[[Any], Any] | None = None

    def values(self, call: Call[Any]) -> dict[str, Any]:
        """Return what goes into the placeholders of a call.

        Raises:
            InvalidArgument: Something in it is no JSON.
        """
        values = call.arguments.copy()
        for name in calls.JSON_ARGUMENTS.intersection(values):
            try:
                if self.encode is not None:
                    values[name] = calls.encoded(name, values[name], self.encode)
                if values[name] is not None:
                    values[name] = self.dumps(values[name])
            except Exception as error:  # the app's own encoder may raise anything
                raise errors.InvalidArgument(f"{name}: {error}") from error
        return values

    @property
    def reads(self) -> Callable[[str], Any]:
        """What turns the JSON text of args, or of a result, into its value."""
        return self.loads if self.decode is None else self._loads_and_decodes

    def _loads_and_decodes(self, text: str) -> Any:
        assert self.decode is not None
        return self.decode(self.loads(text))


def _sync(build: Callable[P, Call[T]]) -> Callable[Concatenate[JobStore, P], T]:
    @wraps(build)
    def method(self: JobStore, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.send(build(*args, **kwargs))

    return method


def _async(build: Callable[P, Call[T]]) -> Callable[Concatenate[AsyncJobStore, P], Awaitable[T]]:
    @wraps(build)
    def method(self: AsyncJobStore, /, *args: P.args, **kwargs: P.kwargs) -> Awaitable[T]:
        return self.send(build(*args, **kwargs))

    return method


def _parts(call: Call[T]) -> list[Call[T]]:
    """Return the parts of a call that are sent one behind the other, without waiting in between.

    Only on a connection of our own: what fails here, on the way to a later part, is then rolled
    back with the parts before it, and nobody else's transaction with them.
    """
    return call.parts() if psycopg.Pipeline.is_supported() else [call]


class JobStore:
    """The functions of the queue; arguments, results and errors are described in `calls`.

    Args:
        connection: A psycopg connection, which stays the caller's: each call is part of its
            transaction, and nothing is committed or closed here. Or a pool.
        codec: How calls become statements.
    """

    def __init__(self, connection: SyncConnection | Pool, codec: Codec | None = None) -> None:
        self._connection = connection
        self._codec = codec or Codec()

    def _lend(self) -> AbstractContextManager[SyncConnection]:
        own = self._connection
        return own.lend() if isinstance(own, Pool) else nullcontext(own)

    def send(self, call: Call[T]) -> T:
        """Send a call and return its value."""
        if isinstance(self._connection, Pool) and len(parts := _parts(call)) > 1:
            return call.answer.read(self._send_parts(parts), self._codec.reads)
        values = self._codec.values(call)
        with errors.translated(), self._lend() as connection:
            cursor = self._execute(connection, call, values)
            return call.answer.read(cursor.fetchall(), self._codec.reads)

    def _send_parts(self, parts: Sequence[Call[Any]]) -> Rows:
        cursors = []
        with errors.translated(), self._lend() as connection:
            with connection.pipeline(), connection.transaction():
                for part in parts:
                    values = self._codec.values(part)
                    cursors.append(self._execute(connection, part, values))
            return [row for cursor in cursors for row in cursor.fetchall()]

    def _execute(
        self, connection: SyncConnection, call: Call[Any], values: dict[str, Any]
    ) -> psycopg.Cursor[tuple[Any, ...]]:
        # Not connection.cursor(): the caller's may be set up to return anything.
        cursor = psycopg.Cursor(connection, row_factory=tuple_row)
        cursor.execute(call.statement(self._codec.schema), values, binary=True)
        return cursor

    defer_job = _sync(calls.defer_job)
    defer_jobs = _sync(calls.defer_jobs)
    declare_task = _sync(calls.declare_task)
    register_worker = _sync(calls.register_worker)
    heartbeat = _sync(calls.heartbeat)
    unregister_worker = _sync(calls.unregister_worker)
    fetch_jobs = _sync(calls.fetch_jobs)
    listen_channels = _sync(calls.listen_channels)
    next_due = _sync(calls.next_due)
    rescue_jobs = _sync(calls.rescue_jobs)
    finish_job = _sync(calls.finish_job)
    fail_job = _sync(calls.fail_job)
    retry_job = _sync(calls.retry_job)
    finish_jobs = _sync(calls.finish_jobs)
    succeed_jobs = _sync(calls.succeed_jobs)
    release_jobs = _sync(calls.release_jobs)
    release_unknown_jobs = _sync(calls.release_unknown_jobs)
    cancel_job = _sync(calls.cancel_job)
    rerun_job = _sync(calls.rerun_job)
    get_job = _sync(calls.get_job)
    pause_queue = _sync(calls.pause_queue)
    resume_queue = _sync(calls.resume_queue)
    purge_jobs = _sync(calls.purge_jobs)
    repair = _sync(calls.repair)
    schema_version = _sync(calls.schema_version)


class AsyncJobStore:
    """`JobStore` for async code."""

    def __init__(self, connection: AsyncConnection | AsyncPool, codec: Codec | None = None) -> None:
        self._connection = connection
        self._codec = codec or Codec()

    def _lend(self) -> AbstractAsyncContextManager[AsyncConnection]:
        own = self._connection
        return own.lend() if isinstance(own, AsyncPool) else nullcontext(own)

    async def send(self, call: Call[T]) -> T:
        """Send a call and return its value."""
        if isinstance(self._connection, AsyncPool) and len(parts := _parts(call)) > 1:
            return call.answer.read(await self._send_parts(parts), self._codec.reads)
        values = self._codec.values(call)
        with errors.translated():
            async with self._lend() as connection:
                cursor = await self._execute(connection, call, values)
                return call.answer.read(await cursor.fetchall(), self._codec.reads)

    async def _send_parts(self, parts: Sequence[Call[Any]]) -> Rows:
        cursors = []
        with errors.translated():
            async with self._lend() as connection:
                async with connection.pipeline(), connection.transaction():
                    for part in parts:
                        values = self._codec.values(part)
                        cursors.append(await self._execute(connection, part, values))
                return [row for cursor in cursors for row in await cursor.fetchall()]

    async def _execute(
        self, connection: AsyncConnection, call: Call[Any], values: dict[str, Any]
    ) -> psycopg.AsyncCursor[tuple[Any, ...]]:
        cursor = psycopg.AsyncCursor(connection, row_factory=tuple_row)
        await cursor.execute(call.statement(self._codec.schema), values, binary=True)
        return cursor

    defer_job = _async(calls.defer_job)
    defer_jobs = _async(calls.defer_jobs)
    declare_task = _async(calls.declare_task)
    register_worker = _async(calls.register_worker)
    heartbeat = _async(calls.heartbeat)
    unregister_worker = _async(calls.unregister_worker)
    fetch_jobs = _async(calls.fetch_jobs)
    listen_channels = _async(calls.listen_channels)
    next_due = _async(calls.next_due)
    rescue_jobs = _async(calls.rescue_jobs)
    finish_job = _async(calls.finish_job)
    fail_job = _async(calls.fail_job)
    retry_job = _async(calls.retry_job)
    finish_jobs = _async(calls.finish_jobs)
    succeed_jobs = _async(calls.succeed_jobs)
    release_jobs = _async(calls.release_jobs)
    release_unknown_jobs = _async(calls.release_unknown_jobs)
    cancel_job = _async(calls.cancel_job)
    rerun_job = _async(calls.rerun_job)
    get_job = _async(calls.get_job)
    pause_queue = _async(calls.pause_queue)
    resume_queue = _async(calls.resume_queue)
    purge_jobs = _async(calls.purge_jobs)
    repair = _async(calls.repair)
    schema_version = _async(calls.schema_version)
