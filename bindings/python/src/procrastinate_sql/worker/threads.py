"""Calls in threads: each makes one after the other, and the event loop hears of them in batches."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context, copy_context
from queue import SimpleQueue
from threading import Thread
from time import perf_counter
from typing import Any

from procrastinate_sql.worker.calling import THREAD_NAME, Caller
from procrastinate_sql.worker.processes import end_if_forked
from procrastinate_sql.worker.run import Work, is_stopped
from procrastinate_sql.worker.slots import OnEnded
from procrastinate_sql.worker.waiting import Waiting


class _Desk:
    """The place of one thread.

    Attributes:
        work: What it runs now.
        inbox: What it is to begin with, when it has nothing to do; None is the end of it.
    """

    def __init__(self) -> None:
        self.work: Work | None = None
        self.inbox: SimpleQueue[Work | None] = SimpleQueue()


class Threads:
    """The threads of a worker, started as they are needed.

    A thread that was given work goes on with what waits, until the next work is not for threads or
    there is none. The callbacks are called on the event loop.

    Args:
        waiting: Where threads take work from.
        caller: Calls the tasks.
        on_begun: Called when a thread that was given work has begun with it.
        on_ended: Called with each call.
        on_free: Called when threads have ended calls, and may have nothing left to do.
    """

    def __init__(
        self,
        waiting: Waiting,
        caller: Caller,
        on_begun: Callable[[], None],
        on_ended: OnEnded,
        on_free: Callable[[], None],
    ) -> None:
        self._waiting = waiting
        self._caller = caller
        self._on_begun = on_begun
        self._on_ended = on_ended
        self._on_free = on_free
        self._loop = asyncio.get_running_loop()
        self._process_id = os.getpid()
        self._context = copy_context()
        self._desks: list[_Desk] = []
        self._idle: list[_Desk] = []
        self._timers: dict[Work, asyncio.TimerHandle] = {}
        # From the threads to the loop.
        self._ended: deque[tuple[Work, Any, BaseException | None, float]] = deque()
        self._free: deque[_Desk] = deque()
        self._is_loop_woken = False

    def __len__(self) -> int:
        return len(self._desks) - len(self._idle)

    def works(self) -> list[Work]:
        """Return what runs. May be called from any thread."""
        return [work for desk in self._desks.copy() if (work := desk.work)]

    def unheard(self) -> list[Work]:
        """Return what has ended and is still to be heard of."""
        return [ended[0] for ended in self._ended.copy()]

    def open(self) -> bool:
        """Let another thread begin with the work that waits first, unless it is gone already."""
        desk = self._idle.pop() if self._idle else self._hire()
        work = self._waiting.take(desk, on_loop=False)
        if work is None:
            self._idle.append(desk)
            return False
        desk.inbox.put(work)
        return True

    def _hire(self) -> _Desk:
        desk = _Desk()
        self._desks.append(desk)
        name = f"{THREAD_NAME}-{len(self._desks)}"
        Thread(target=self._serve, args=(desk,), name=name).start()
        return desk

    def close(self) -> None:
        """Let the threads end, without waiting for any."""
        for desk in self._desks:
            desk.inbox.put(None)

    # In the threads.

    def _serve(self, desk: _Desk) -> None:
        while work := desk.inbox.get():
            self._tell(self._on_begun)
            while work:
                self._ended.append(self._run(work, self._context.copy()))
                self._wake_loop()
                work = self._waiting.take(desk, on_loop=False)
            self._free.append(desk)
            self._wake_loop()

    def _run(self, work: Work, context: Context) -> tuple[Work, Any, BaseException | None, float]:
        if work.job.timeout is not None:
            self._tell(self._start_timer, work)
        started = perf_counter()
        result, raised = None, None
        try:
            if is_stopped(work):
                raise asyncio.CancelledError
            result = context.run(self._caller.call_in_thread, work)
        except BaseException as error:
            raised = error
        end_if_forked(self._process_id)
        return work, result, raised, perf_counter() - started

    def _wake_loop(self) -> None:
        if not self._is_loop_woken:
            self._is_loop_woken = True
            self._tell(self._hear)

    def _tell(self, callback: Callable[..., None], *args: Any) -> None:
        with suppress(RuntimeError):  # the loop was closed meanwhile
            self._loop.call_soon_threadsafe(callback, *args, context=self._context)

    # On the event loop.

    def _hear(self) -> None:
        self._is_loop_woken = False
        while self._ended:
            work, result, error, seconds = self._ended.popleft()
            if self._timers and (timer := self._timers.pop(work, None)):
                timer.cancel()
            self._on_ended(work, result, error, seconds)
        while self._free:
            self._idle.append(self._free.popleft())
        self._on_free()

    def _start_timer(self, work: Work) -> None:
        if work.job.timeout is not None and work in self.works():
            seconds = work.job.timeout.total_seconds()
            self._timers[work] = self._loop.call_later(seconds, self._time_is_up, work)

    def _time_is_up(self, work: Work) -> None:
        for run in work.runs:
            run.stop("timeout")
