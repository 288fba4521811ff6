"""How the benchmark speaks with the programs of the peers; node/contract.mjs is the same for Node.

    program DSN JOBS KIND [OPTIONS as JSON]

A program is a worker (`async`, `sync`, `batch`, `locked`, `latency`, `idle`), a client (`bulk`,
`single`, `send`) or the installer (`install`). It is told words on standard input, one a line, and
answers with JSON lines on standard output:

    worker   says {"ready"}; is told `go`; says {"progress"} now and then, for `latency` {"start"};
             is told `stop`; says {"done"} with what it counted
    client   says {"ready"}; is told `go`; says {"done"} with the seconds that it took; `send` is
             told `next` for each job and says {"sent"}
    install  says {"done"}

Times are of the monotonic clock, which all processes of a machine share. Worker start-up is not
timed: the first run starts the clock. Jobs have the argument `n`, 0 to JOBS - 1, and are ticked
off, so that the parent can tell whether each was run, and just once.
"""

from __future__ import annotations

import inspect
import json
import os
import select
import sys
import threading
from collections.abc import Awaitable, Callable, Sequence
from time import monotonic
from typing import Any

TICK = 0.05  # seconds between reports of progress


class Contract:
    """One side of the contract, that of a program.

    Attributes:
        dsn: Where to connect, as a URL.
        jobs: How many jobs there are.
        kind: What to do.
        options: What else was said, by name.
    """

    def __init__(self) -> None:
        self.dsn, jobs, self.kind = sys.argv[1:4]
        self.jobs = int(jobs)
        self.options: dict[str, Any] = json.loads(sys.argv[4]) if len(sys.argv) > 4 else {}
        self._marks = bytearray(self.jobs)
        self._count = 0
        self._first = self._last = 0.0
        self._turns: dict[str, int] = {}
        self._disorder = 0
        self._input = b""
        self._saying = threading.Lock()

    def say(self, **message: Any) -> None:
        """Send a line to the parent."""
        with self._saying:
            sys.stdout.write(json.dumps(message) + "\n")
            sys.stdout.flush()

    def ready(self) -> None:
        """Say that everything is prepared, and wait until told to go."""
        self.say(ready=True)
        if self.hear() != "go":
            sys.exit(0)

    def hear(self, timeout: float | None = None) -> str | None:
        """Return the next word, "stop" at the end of the input, or None if none came in time."""
        while b"\n" not in self._input:
            if not select.select([0], [], [], timeout)[0]:
                return None
            if not (more := os.read(0, 4096)):
                return "stop"
            self._input += more
        word, _, self._input = self._input.partition(b"\n")
        return word.decode()

    # --- Workers ------------------------------------------------------------------

    @property
    def ran(self) -> Callable[[int], None]:
        """What a task is to call with its `n`."""
        return self._tell_start if self.kind == "latency" else self._tick_off

    def _tick_off(self, n: int) -> None:
        if not self._count:
            self._first = monotonic()
        self._marks[n] += 1
        self._count += 1
        self._last = monotonic()

    def _tell_start(self, n: int) -> None:
        self.say(start=n, at=monotonic())
        self._count += 1

    def ran_in_turn(self, n: int, lock: str, turn: int) -> None:
        """As `ran`, for the `turn`th job of a lock, from 0."""
        expected = self._turns.get(lock, 0)
        if turn != expected:
            self._disorder += 1
        self._turns[lock] = turn + 1
        self._tick_off(n)

    def when_stopped(self, stop: Callable[[], object]) -> None:
        """Report progress from now on, and call `stop`, in another thread, when told to stop."""

        def attend() -> None:
            told = 0
            while self.hear(TICK) != "stop":
                if told != self._count:
                    told = self._count
                    self.say(progress=told)
            stop()

        threading.Thread(target=attend, daemon=True).start()

    def report(self) -> None:
        """Say what was counted, once nothing runs any more."""
        self.say(
            done=True,
            runs=self._count,
            first=self._first,
            last=self._last,
            disorder=self._disorder,
            marks=self._marks.hex(),
        )

    # --- Clients ------------------------------------------------------------------

    async def serve_client(
        self,
        send_one: Callable[[int], Awaitable[object] | object],
        send_many: Callable[[Sequence[int]], Awaitable[object] | object],
    ) -> None:
        """Defer jobs as told, with these functions, which may be async."""
        self.ready()
        started = monotonic()
        if self.kind == "bulk":
            batch = int(self.options["batch"])
            for start in range(0, self.jobs, batch):
                await _ended(send_many(range(start, min(start + batch, self.jobs))))
        elif self.kind == "single":
            for n in range(self.jobs):
                await _ended(send_one(n))
        else:
            await self._send_when_told(send_one)
        self.say(done=True, seconds=monotonic() - started)

    async def _send_when_told(self, send_one: Callable[[int], Awaitable[object] | object]) -> None:
        for n in range(self.jobs):
            if self.hear() != "next":
                return
            at = monotonic()
            await _ended(send_one(n))
            self.say(sent=n, at=at)

    @property
    def is_client(self) -> bool:
        """Is this program to defer jobs?"""
        return self.kind in ("bulk", "single", "send")


async def _ended(result: Awaitable[object] | object) -> None:
    if inspect.isawaitable(result):
        await result
