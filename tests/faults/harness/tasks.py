"""The tasks of the load. Each run notes its start and its end in a file of its worker process.

The file is written with one system call a line, so that it tells what ran even if the process is
killed, and even while the server is away. Times are of the monotonic clock, which all processes of
a machine share, and which stays right where the wall clock is wrong.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from harness.clock import pause
from procrastinate_sql import App, JobContext

app = App()

_runs = os.open(os.environ["FAULTS_RUNS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
_local = threading.local()

# The ceiling of lost runs is not what is tested here, and with a death each second it would count.
PATIENT: dict[str, Any] = {"max_lost": 1000, "pass_context": True}
# Whatever needs the server fails while that is away, and is to be tried until it is back.
STUBBORN: dict[str, Any] = {
    **PATIENT,
    "max_attempts": None,
    "backoff": "constant",
    "retry_delay": 0.2,
}


def note(event: str, context: JobContext, ref: str) -> None:
    """Write one line about this run."""
    line = json.dumps([event, ref, context.job.id, context.job.attempt, time.monotonic()])
    os.write(_runs, f"{line}\n".encode())


@contextmanager
def noted(context: JobContext, ref: str) -> Iterator[None]:
    """Note the start and the end of a run."""
    note("start", context, ref)
    try:
        yield
    except BaseException:
        note("raise", context, ref)
        raise
    note("end", context, ref)


def connection() -> psycopg.Connection[Any]:
    """The connection of this thread's tasks, in autocommit mode."""
    existing: psycopg.Connection[Any] | None = getattr(_local, "connection", None)
    if existing is None or existing.closed:
        existing = psycopg.connect(
            os.environ["PROCRASTINATE_DSN"],
            autocommit=True,
            prepare_threshold=None,
            connect_timeout=5,
        )
        _local.connection = existing
    return existing


@app.task(**PATIENT)
async def plain(context: JobContext, ref: str) -> None:
    with noted(context, ref):
        await asyncio.sleep(random.uniform(0, 0.02))


@app.task(**STUBBORN)
def recorded(context: JobContext, ref: str) -> None:
    """Effects that are committed at once: they may repeat, with the run."""
    with noted(context, ref):
        for event in ("start", "end"):
            connection().execute(
                "insert into fault_effects (event, ref, job_id, attempt) values (%s, %s, %s, %s)",
                (event, ref, context.job.id, context.job.attempt),
            )


@app.task(**STUBBORN)
def booked(context: JobContext, ref: str) -> None:
    """Effects in the finishing transaction: exactly once."""
    with noted(context, ref):
        opened = connection()
        with opened.transaction():
            opened.execute(
                "insert into fault_bookings (ref, job_id, attempt, lock) values (%s, %s, %s, %s)",
                (ref, context.job.id, context.job.attempt, context.job.lock),
            )
            pause(random.uniform(0, 0.01))
            context.finish(opened)
            # Once it is committed the next of its lock may start, before we are told.
            note("end", context, ref)


@app.task(**{**PATIENT, "max_attempts": 5, "backoff": "constant", "retry_delay": 0.1})
async def flaky(context: JobContext, ref: str) -> None:
    """Fails at first."""
    with noted(context, ref):
        await asyncio.sleep(0.001)
        if context.job.attempt == 1:
            raise ValueError("the first attempt fails")


@app.task(**{**PATIENT, "max_attempts": 2, "backoff": "constant", "retry_delay": 0.1})
async def doomed(context: JobContext, ref: str) -> None:
    """Fails always."""
    with noted(context, ref):
        await asyncio.sleep(0.001)
        raise ValueError("this fails always")


@app.task(**PATIENT)
async def steady(context: JobContext, ref: str) -> None:
    """Always takes the same time, so that throughput says how many run."""
    with noted(context, ref):
        await asyncio.sleep(0.02)


@app.task(**PATIENT)
async def instant(context: JobContext, ref: str) -> None:
    with noted(context, ref):
        pass


@app.task(**PATIENT)
async def long(context: JobContext, ref: str, seconds: float) -> None:
    with noted(context, ref):
        await asyncio.sleep(seconds)


@app.task(**PATIENT)
def holds_interpreter(context: JobContext, ref: str, seconds: int) -> None:
    """A call into C that keeps the interpreter lock: no other thread runs meanwhile."""
    with noted(context, ref):
        ctypes.PyDLL(None).sleep(seconds)


@app.task(**{**PATIENT, "pass_context": False, "run_in": "process"})
def holds_interpreter_of_its_process(seconds: int) -> None:
    ctypes.PyDLL(None).sleep(seconds)
