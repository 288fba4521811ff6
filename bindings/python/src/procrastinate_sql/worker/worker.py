"""Starts the parts of a worker, obeys what it is told, and ends it in good order."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from threading import current_thread, main_thread
from typing import TYPE_CHECKING, Any

from procrastinate_sql.calls import Beat
from procrastinate_sql.connections import AsyncPool
from procrastinate_sql.errors import InvalidArgument
from procrastinate_sql.job_store import AsyncJobStore
from procrastinate_sql.worker.backoff import RETRIABLE, reason
from procrastinate_sql.worker.fetching import Fetcher
from procrastinate_sql.worker.finishing import Finisher
from procrastinate_sql.worker.heartbeat import Heartbeat
from procrastinate_sql.worker.listener import listen
from procrastinate_sql.worker.run import Run
from procrastinate_sql.worker.running import Running

if TYPE_CHECKING:
    from procrastinate_sql.app import App

logger = logging.getLogger("procrastinate_sql.worker")

LAST_WORDS = 2.0  # seconds for cancelled tasks to clean up, and again for reporting outcomes


class Worker:
    """Takes jobs and runs them, until it is told to stop.

    Args:
        app: The app whose tasks it runs.
        queues: Take jobs from these queues only (None: all).
        concurrency: How many jobs run at a time.
        name: What it calls itself in procrastinate_workers.
        shutdown_timeout: Seconds that running jobs have to finish when it is told to stop. What
            still runs then is stopped and given back, without burning an attempt. (A thread that
            looks at nothing goes on; the command then ends without it.)
        listen: Be notified of jobs. Without, it polls.
        listen_dsn: A direct connection for that, where `dsn` leads to a pooler.
        poll_interval: Seconds after which to look for jobs without any reason.
        wait: False: return when there is nothing to run.
        durable_claims: False: do not wait for the disk before a job starts. A crash of the server
            may then forget who ran a job, which is run again while its first run is stopped.
            Claims of jobs with a lock are durable in any case.
        health_file: Touched with every heartbeat, for `procrastinate-sql healthcheck`.
        log_args: Log arguments of jobs and texts of errors too.

    Raises:
        InvalidArgument: A number is out of range, or `queues` is empty.
    """

    def __init__(
        self,
        app: App,
        queues: Iterable[str] | None = None,
        *,
        concurrency: int = 10,
        name: str | None = None,
        shutdown_timeout: float = 10.0,
        listen: bool = True,
        listen_dsn: str | None = None,
        poll_interval: float = 5.0,
        wait: bool = True,
        durable_claims: bool = True,
        health_file: str | None = None,
        log_args: bool = False,
    ) -> None:
        if isinstance(queues, str):
            raise InvalidArgument("queues: must be a list of names", f"Pass [{queues!r}].")
        self.app = app
        self.queue_names = None if queues is None else list(queues)
        if self.queue_names == []:
            raise InvalidArgument("queues: must name at least one", "None means all queues.")
        if concurrency < 1:
            raise InvalidArgument("concurrency: must be at least 1")
        if poll_interval <= 0:
            raise InvalidArgument("poll_interval: must be more than zero")
        self.concurrency = concurrency
        self.name = name
        self.shutdown_timeout = shutdown_timeout
        self.listen = listen
        self.listen_address = replace(app.address, dsn=listen_dsn or app.address.listen_dsn())
        self.poll_interval = poll_interval
        self.wait = wait
        self.durable_claims = durable_claims
        self.health_file = health_file
        self.log_args = log_args
        self._active: _Active | None = None

    def run(self) -> None:
        """Run until told to stop. In the main thread, SIGTERM and SIGINT tell it.

        Raises:
            SchemaVersionError: The schema is missing, too old or too new.
            psycopg.OperationalError: The server cannot be reached at the start; later it is waited
                for, as long as that takes.
        """
        asyncio.run(self.run_async())

    async def run_async(self) -> None:
        """As `run`, inside a running event loop."""
        active = self._active = _Active(self)
        try:
            with _signals(self.stop):
                await active.run()
        finally:
            self._active = None

    def stop(self) -> None:
        """Stop in good order; when called again, at once. To be called on the event loop."""
        if self._active is not None:
            self._active.stop()


class _Active:
    """What exists while a worker runs."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        app, queue_names = worker.app, worker.queue_names
        self._pool = AsyncPool(app.address)
        self._store = AsyncJobStore(self._pool, app.codec)
        self._claims = self._pool
        if not worker.durable_claims:
            self._claims = AsyncPool(replace(app.address, synchronous_commit=False))
        self._finisher = Finisher(self._store, self._on_room, self._on_lock_freed, self._on_trouble)
        self._running = Running(
            app, worker.concurrency, self._finisher, self._on_room, worker.log_args
        )
        self._fetcher = Fetcher(
            AsyncJobStore(self._claims, app.codec),
            self._running,
            self._finisher,
            queue_names,
            worker.poll_interval,
            self._on_trouble,
        )
        self._heartbeat = Heartbeat(
            app.address,
            app.codec,
            worker.name,
            queue_names,
            self._running.held,
            self._on_registered,
            self._on_beat,
            worker.health_file,
        )
        self._stopping = False
        self._stop_now = asyncio.Event()

    async def run(self) -> None:
        # Whatever is wrong with the address or the schema is told here, before anything runs.
        await self._store.schema_version()
        for task in self._worker.app.tasks.values():
            await self._store.send(task.declaration)
        self._heartbeat.start()
        with self._beside(self._finisher.run()), self._beside(self._listen()):
            try:
                await self._unless_told_again(self._fetcher.run(wait=self._worker.wait))
            finally:
                try:
                    await self._leave()
                finally:
                    # In any case: idle threads would keep the process from ending.
                    self._running.close()

    def stop(self) -> None:
        if self._stopping:
            self._stop_now.set()
        self._stopping = True
        self._fetcher.stop()
        self._running.start_no_more()

    @contextmanager
    def _beside(self, coroutine: Coroutine[Any, Any, None]) -> Iterator[None]:
        """Run a coroutine beside the block; if it fails, the worker stops and raises its error."""

        def ended(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and task.exception() is not None:
                logger.critical("a part of the worker failed", exc_info=task.exception())
                self.stop()

        task = asyncio.ensure_future(coroutine)
        task.add_done_callback(ended)
        try:
            yield
        finally:
            if not task.cancel():
                task.result()

    async def _unless_told_again(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Wait for a coroutine, but no longer when told to stop for the second time."""
        told = asyncio.ensure_future(self._stop_now.wait())
        task = asyncio.ensure_future(coroutine)
        try:
            await asyncio.wait((task, told), return_when=asyncio.FIRST_COMPLETED)
        finally:
            told.cancel()
            if not task.cancel():
                task.result()

    async def _listen(self) -> None:
        worker = self._worker
        if worker.listen:
            codec = worker.app.codec
            await listen(worker.listen_address, codec, worker.queue_names, self._fetcher.news)

    async def _leave(self) -> None:
        """Let run what runs, within the time for that; report, give back, and unregister."""
        logger.info("worker %s stops", self._fetcher.worker_id)
        self._running.start_no_more()
        with suppress(asyncio.TimeoutError):
            ended = self._unless_told_again(self._running.ended())
            await asyncio.wait_for(ended, self._worker.shutdown_timeout)
        self._running.hand_back()
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._running.ended(), LAST_WORDS)
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._finisher.all_sent(), LAST_WORDS)
        self._heartbeat.stop()
        try:
            # It also gives back whatever is still held.
            if (worker_id := self._fetcher.worker_id) is not None:
                await asyncio.wait_for(self._store.unregister_worker(worker_id), LAST_WORDS)
        except (asyncio.TimeoutError, *RETRIABLE) as error:
            logger.warning("could not unregister: %s", reason(error))
        await self._pool.close()
        await self._claims.close()

    # Called by the parts.

    def _on_room(self) -> None:
        self._fetcher.room()

    def _on_lock_freed(self) -> None:
        self._fetcher.news()

    def _on_trouble(self) -> None:
        self._heartbeat.nudge()

    def _on_registered(self, worker_id: int) -> None:
        logger.info("registered as worker %s", worker_id)
        self._running.drop_all_but(worker_id)
        self._fetcher.register(worker_id)

    def _on_beat(self, beat: Beat, held: dict[int, Run]) -> None:
        self._running.obey(beat, held)
        self._fetcher.due_in(beat.next_due)
        if beat.stop_requested and not self._stopping:
            self.stop()


@contextmanager
def _signals(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` for SIGTERM and SIGINT, where signals can be handled."""
    if current_thread() is not main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            # None: it was not Python that set it.
            signal.signal(number, handler or signal.SIG_DFL)
