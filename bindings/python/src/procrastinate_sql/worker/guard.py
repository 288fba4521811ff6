"""Has the lease kept by another process for as long as a task holds the interpreter of this one.

While a task is in a call that keeps the interpreter lock (the GIL), no other thread runs: not that
of the heartbeat either. So each worker has a guard, which is told of each of its beats, and beats
in its place when it hears nothing though the worker runs: see guard_process.py. Only on Linux:
whether a process runs or is stopped is read from /proc.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
from dataclasses import asdict, replace
from multiprocessing.spawn import get_executable
from pathlib import Path

from procrastinate_sql.connections import Address

logger = logging.getLogger("procrastinate_sql.worker")

SCRIPT = Path(__file__).with_name("guard_process.py")


class Guard:
    """The guard of one worker. It ends with `stop`, or when this process ends in whatever way.

    Args:
        address: Where it is to connect, if need be. Where a function returns the DSN, the guard has
            what that returned at its start: with a password that has expired it is of no use.
    """

    def __init__(self, address: Address) -> None:
        self._address = address
        # An application that was frozen into one program has no interpreter to start.
        self._is_possible = sys.platform == "linux" and not getattr(sys, "frozen", False)
        self._started: tuple[subprocess.Popen[bytes], socket.socket, Address] | None = None

    def tell(self, worker_id: int | None, interval: float) -> None:
        """Say that this process is not held now.

        Args:
            worker_id: As whom the guard is to beat; None: not at all.
            interval: Seconds until it will be told again.
        """
        if not self._is_possible:
            return
        try:
            _, wire, address = self._started = self._started or self._start()
            word = {"worker_id": worker_id, "interval": interval, "address": asdict(address)}
            wire.send(json.dumps(word).encode())
        except BlockingIOError:
            pass  # it is busy, and has enough to read
        except OSError as error:
            logger.warning("the guard of the heartbeat died, starting another: %s", error)
            self.stop()

    def _start(self) -> tuple[subprocess.Popen[bytes], socket.socket, Address]:
        dsn = self._address.dsn() if callable(self._address.dsn) else self._address.dsn
        # Each message comes as a whole, and that the other end is gone is seen at once.
        wire, remote = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # A guard that hangs must not hold up the heartbeat.
        wire.setblocking(False)
        with remote:
            process = subprocess.Popen(
                [get_executable(), SCRIPT, str(os.getpid()), *sys.path],
                stdin=remote.fileno(),
                stdout=subprocess.DEVNULL,
                # Whoever interrupts or stops the worker from a terminal means that alone.
                start_new_session=True,
            )
        return process, wire, replace(self._address, dsn=dsn)

    def stop(self) -> None:
        """End the guard."""
        if self._started:
            process, wire, _ = self._started
            self._started = None
            wire.close()
            process.kill()
            process.wait()
