"""Calls on the event loop: a coroutine makes one after the other, as long as nothing forbids it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from contextvars import copy_context
from time import perf_counter
from typing import Any, TypeAlias

from procrastinate_sql.worker.calling import Caller
from procrastinate_sql.worker.processes import end_if_forked
from procrastinate_sql.worker.run import Run, Work, is_stopped
from procrastinate_sql.worker.waiting import Waiting

TURN = 0.003  # seconds after which the event loop is to look at what else there is

# Called with a call, what it returned, what it raised, and how many seconds it took.
OnEnded: TypeAlias = "Callable[[Work, Any, BaseException | None, float], None]"


class Slot:
    """A coroutine that makes calls; a new task for each would cost more than most jobs.

    Attributes:
        work: What it runs now.
        coroutine: The task that it is, which its jobs see as the current one.
        is_spoilt: It was cancelled, and is not to run anything else.
    """

    coroutine: asyncio.Task[None]

    def __init__(self) -> None:
        self.work: Work | None = None
        self.is_spoilt = False


class Slots:
    """The slots of a worker. One is opened when there is work, and closes itself

    - when the next work is not for the loop, or there is none;
    - when it was cancelled, or its job has changed context variables: neither is for the next job;
    - when the loop has not turned for a while, so that jobs that never wait do not hold it up.

    Args:
        waiting: Where to take work from.
        caller: Calls the tasks.
        on_ended: Called with each call.
        on_closed: Called when a slot has closed.
        on_turn: Called in the turn of the loop after calls have ended.
    """

    def __init__(
        self,
        waiting: Waiting,
        caller: Caller,
        on_ended: OnEnded,
        on_closed: Callable[[], None],
        on_turn: Callable[[], None],
    ) -> None:
        self._waiting = waiting
        self._caller = caller
        self._on_ended = on_ended
        self._on_closed = on_closed
        self._on_turn = on_turn
        self._loop = asyncio.get_running_loop()
        self._process_id = os.getpid()
        self._turn_ends: float | None = None
        self._open: set[Slot] = set()

    def __len__(self) -> int:
        return len(self._open)

    def works(self) -> list[Work]:
        """Return what runs. May be called from any thread."""
        return [work for slot in self._open.copy() if (work := slot.work)]

    def open(self) -> None:
        """Open another slot."""
        slot = Slot()
        self._open.add(slot)
        slot.coroutine = self._loop.create_task(self._serve(slot))

    def stop(self, run: Run, reason: str) -> None:
        """Stop a run; its call is cancelled if all its jobs are to stop."""
        run.stop(reason)
        for slot in self._open:
            work = slot.work
            if work and run in work.runs and work.task.is_async and is_stopped(work):
                slot.is_spoilt = True
                slot.coroutine.cancel()

    async def _serve(self, slot: Slot) -> None:
        try:
            context = copy_context()
            started = perf_counter()
            while work := self._waiting.take(slot, on_loop=True):
                timer = self._start_timer(work) if work.job.timeout is not None else None
                try:
                    result = await self._caller.call_on_loop(work)
                except BaseException as error:
                    end_if_forked(self._process_id)
                    if isinstance(error, GeneratorExit) and not self._loop.is_running():
                        raise  # nobody raised it: this coroutine is being thrown away
                    slot.is_spoilt |= isinstance(error, asyncio.CancelledError)
                    ended = perf_counter()
                    self._on_ended(work, None, error, ended - started)
                else:
                    end_if_forked(self._process_id)
                    ended = perf_counter()
                    self._on_ended(work, result, None, ended - started)
                if timer is not None:
                    timer.cancel()
                # Equal contexts are the same one: nothing is compared but two pointers.
                if (
                    slot.is_spoilt
                    or self._must_turn(ended)
                    or copy_context() != context
                    or _is_cancelled(slot.coroutine)
                ):
                    return
                started = ended
        finally:
            slot.work = None
            self._open.discard(slot)
            self._on_closed()

    def _start_timer(self, work: Work) -> asyncio.TimerHandle:
        assert work.job.timeout is not None
        return self._loop.call_later(work.job.timeout.total_seconds(), self._time_is_up, work)

    def _time_is_up(self, work: Work) -> None:
        for run in work.runs:
            self.stop(run, "timeout")

    def _must_turn(self, now: float) -> bool:
        """Has the event loop been kept from other things for too long?"""
        if self._turn_ends is None:
            self._turn_ends = now + TURN
            self._loop.call_soon(self._turned)
        return now >= self._turn_ends

    def _turned(self) -> None:
        self._turn_ends = None
        self._on_turn()


def _is_cancelled(task: asyncio.Task[None]) -> bool:
    """Did a job cancel the task in which it ran, which would hit the next?"""
    if sys.version_info >= (3, 11):
        return task.cancelling() > 0
    return bool(getattr(task, "_must_cancel", False))
