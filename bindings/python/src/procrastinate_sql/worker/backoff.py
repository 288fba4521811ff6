"""Whether to try again, and after how long."""

from __future__ import annotations

import random
from collections.abc import Iterator

import psycopg

from procrastinate_sql.errors import InvalidArgument, ProcrastinateError, SchemaVersionError

# What a server that is gone, full, starting, or not the primary can cause, or a schema that is just
# being replaced. OSError: a name that cannot be resolved.
RETRIABLE = (psycopg.Error, ProcrastinateError, OSError)


def delays() -> Iterator[float]:
    """Yield seconds to wait, with jitter so that workers do not come back all at once."""
    ceiling = 0.05
    while True:
        yield random.uniform(ceiling / 2, ceiling)
        ceiling = min(ceiling * 2, 1.0)


# Bad data, a constraint or a trigger of the user's, a limit: it is the content that is refused.
_REFUSED = ("22", "23", "54", "P0")


def is_refusal(error: BaseException) -> bool:
    """Will the same call fail for ever, because of what is in it?"""
    if isinstance(error, psycopg.Error):
        return (error.sqlstate or "").startswith(_REFUSED)
    return isinstance(error, InvalidArgument)


def reason(error: BaseException) -> str:
    """Return what a log may say of an error: many texts repeat arguments or results of jobs."""
    name = type(error).__name__
    if isinstance(error, (psycopg.OperationalError, SchemaVersionError, OSError)):
        return f"{name}: {str(error).partition(chr(10))[0]}"
    return name
