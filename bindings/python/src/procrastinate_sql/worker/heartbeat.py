"""Keeps the worker's lease, from a thread of its own and with a guard: no task can hold it up."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence

from procrastinate_sql import health
from procrastinate_sql.calls import Beat
from procrastinate_sql.connections import Address, Pool
from procrastinate_sql.errors import WorkerNotRegistered
from procrastinate_sql.job_store import Codec, JobStore
from procrastinate_sql.worker.backoff import delays, reason
from procrastinate_sql.worker.guard import Guard
from procrastinate_sql.worker.run import Run

logger = logging.getLogger("procrastinate_sql.worker")


class Heartbeat:
    """Registers the worker, beats, and registers it again if it was given up.

    The callbacks are called on the event loop.

    Args:
        address: Where to connect: the thread has a connection of its own.
        codec: How calls become statements.
        name: What the worker calls itself.
        queue_names: Its queues.
        held: Returns what it believes to hold; called in the thread.
        on_registered: Called with each new id; what was held under the one before is lost.
        on_beat: Called with what to do, and with what the worker held when it asked.
        health_file: Touched from the event loop as long as both that and the thread live.
    """

    def __init__(
        self,
        address: Address,
        codec: Codec,
        name: str | None,
        queue_names: Sequence[str] | None,
        held: Callable[[], dict[int, Run]],
        on_registered: Callable[[int], None],
        on_beat: Callable[[Beat, dict[int, Run]], None],
        health_file: str | None,
    ) -> None:
        self._pool = Pool(address)
        self._guard = Guard(address)
        self._codec = codec
        self._name = name
        self._queue_names = queue_names
        self._held = held
        self._on_registered = on_registered
        self._on_beat = on_beat
        self._health_file = health_file
        self._loop = asyncio.get_running_loop()
        self._wake = threading.Event()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="procrastinate-beat", daemon=True)
        self._worker_id: int | None = None
        self._interval = 1.0

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def nudge(self) -> None:
        """Beat now: after trouble, to learn what the worker still holds."""
        self._wake.set()

    def stop(self) -> None:
        """Beat no more."""
        self._stopped = True
        self._wake.set()

    def _run(self) -> None:
        backoff = delays()
        while not self._stopped:
            self._wake.clear()
            try:
                pause = self._interval = self._beat()
                backoff = delays()
            except WorkerNotRegistered:
                logger.warning("worker %s was given up, registering again", self._worker_id)
                self._worker_id = None
                continue
            # Whatever it is: a worker without a heartbeat would lose its jobs and take new ones.
            except Exception as error:
                logger.warning("no heartbeat, trying again: %s", reason(error))
                pause = next(backoff)
            self._guard.tell(self._worker_id, self._interval)
            self._call(self._touch)
            self._wake.wait(pause)
        self._guard.stop()
        self._pool.close()

    def _beat(self) -> float:
        """Beat once and return how many seconds to wait."""
        with self._pool.lend() as connection:
            store = JobStore(connection, self._codec)
            if self._worker_id is None:
                self._worker_id = store.register_worker(self._name)
                self._call(self._on_registered, self._worker_id)
            held = {
                job_id: run
                for job_id, run in self._held().items()
                if run.worker_id == self._worker_id
            }
            attempts = [run.job.attempt for run in held.values()]
            pid = connection.info.backend_pid
            beat = store.heartbeat(self._worker_id, list(held), attempts, self._queue_names, pid)
        self._call(self._on_beat, beat, held)
        return beat.next_heartbeat.total_seconds()

    def _call(self, callback: Callable[..., None], *args: object) -> None:
        if not self._stopped:
            try:
                self._loop.call_soon_threadsafe(callback, *args)
            except RuntimeError:  # the loop was closed meanwhile
                self._stopped = True

    def _touch(self) -> None:
        if self._health_file is not None:
            try:
                health.touch(self._health_file)
            except OSError as error:
                logger.warning("cannot write the health file: %s", error)
                self._health_file = None
