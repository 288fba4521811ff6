"""Starts the programs of the peers and speaks the contract with them."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress
from time import monotonic
from types import TracebackType
from typing import Any

import psutil

from bench.paths import BUILD, ROOT


class Failed(Exception):
    """A program ended or stalled before it had done its work."""


class Program:
    """A running program; to be used in a `with`, which ends it.

    Args:
        command: How it is started.
        name: Names the file of its errors.
    """

    def __init__(self, command: Sequence[str], name: str) -> None:
        self.name = name
        (BUILD / "logs").mkdir(parents=True, exist_ok=True)
        self._errors = BUILD / "logs" / f"{name}.log"
        with self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                start_new_session=True,
                text=True,
            )
        self._messages: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
        self.kill()

    @property
    def pid(self) -> int:
        return self._process.pid

    def rss(self) -> int:
        """Return the bytes of memory that it occupies."""
        return int(psutil.Process(self.pid).memory_info().rss)

    def kill(self) -> None:
        """End it at once, as a crash would."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def tell(self, word: str) -> None:
        """Tell it a word."""
        assert self._process.stdin
        with suppress(BrokenPipeError):
            self._process.stdin.write(word + "\n")
            self._process.stdin.flush()

    def expect(self, key: str, timeout: float = 120.0) -> dict[str, Any]:
        """Return the next message with this key; others are passed over."""
        deadline = monotonic() + timeout
        while True:
            message = self.next(deadline - monotonic())
            if message is None:
                raise Failed(f"{self.name} did not say `{key}` in {timeout:.0f} s{self._tail()}")
            if key in message:
                return message

    def next(self, timeout: float) -> dict[str, Any] | None:
        """Return the next message, or None if none comes in time."""
        try:
            message = self._messages.get(timeout=max(0.0, timeout))
        except queue.Empty:
            return None
        if message is None:
            self._process.wait()
            raise Failed(f"{self.name} ended with {self._process.returncode}{self._tail()}")
        return message

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            try:
                message = json.loads(line)
            except ValueError:
                continue  # a library that prints
            if isinstance(message, dict):
                self._messages.put(message)
        self._messages.put(None)

    def _tail(self) -> str:
        text = self._errors.read_text(errors="replace").strip()
        return f": {text[-400:]}" if text else ""
