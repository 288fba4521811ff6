"""What a call of ours can raise: the class is for programs, message and hint are for people.

    ProcrastinateError
    ├── InvalidArgument       a bad argument (22023, other data errors); also a ValueError
    ├── JobNotRunning         PC001: the job is not in the state or attempt named
    ├── QueueingLockTaken     PC002: a job with this queueing lock already waits
    ├── SchemaVersionError    PC003: the schema is missing, too old or too new
    ├── WorkerNotRegistered   PC004: the worker left, or was given up
    └── JobNotFound           PC005: there is no such job

Each is raised from the driver's own error, if there is one. What is no answer of the queue (a lost
connection, a missing privilege) passes through as the driver's error.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg.errors import UndefinedFunction


class ProcrastinateError(Exception):
    """Base of all errors of this package.

    Attributes:
        hint: What to do about it, or None.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class InvalidArgument(ProcrastinateError, ValueError):
    """An argument is wrong; its name begins the message. Nothing was changed."""


class JobNotRunning(ProcrastinateError):
    """The job is not in the state, or the attempt not the running one, that the call named."""


class QueueingLockTaken(ProcrastinateError):
    """A job with this queueing lock waits already, and on_conflict is "raise"."""


class SchemaVersionError(ProcrastinateError):
    """The schema in the database is not the one that this package calls."""


class WorkerNotRegistered(ProcrastinateError):
    """The worker left or was given up; it must register again and drop the jobs that it runs."""


class JobNotFound(ProcrastinateError):
    """There is no such job."""


_BY_SQLSTATE: dict[str, type[ProcrastinateError]] = {
    "PC001": JobNotRunning,
    "PC002": QueueingLockTaken,
    "PC003": SchemaVersionError,
    "PC004": WorkerNotRegistered,
    "PC005": JobNotFound,
}


@contextmanager
def translated() -> Iterator[None]:
    """Raise the errors of the queue that happen inside as the classes above."""
    try:
        yield
    except psycopg.Error as error:
        sqlstate = error.sqlstate or ""
        message = error.diag.message_primary or str(error)
        if isinstance(error, UndefinedFunction) and "procrastinate_" in message:
            # On a connection of the caller's, whose schema nobody has looked at before.
            raise SchemaVersionError(
                f"this package needs another schema, or another search_path: {message}",
                "procrastinate-sql schema check tells which version is there and which is needed.",
            ) from error
        # All of class 22: a number out of range or a NUL in a text is a bad argument as well.
        kind = InvalidArgument if sqlstate.startswith("22") else _BY_SQLSTATE.get(sqlstate)
        if kind is None:
            raise
        raise kind(message, error.diag.message_hint) from error
