"""Beats in the place of a worker that is silent and yet runs. A script, one for each worker.

It is started by its path, and imports the package only when it has to beat: until then it takes no
connection, and no more memory than a bare interpreter. What a beat tells the worker to do, the next
one of the worker's own tells it again.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from procrastinate_sql.connections import Pool

PATIENCE = 3  # intervals in which nothing was heard; a lease has three at least
MAX_MESSAGE = 65536


def main(worker_pid: int) -> None:
    """Keep the lease of this process's worker until that is gone."""
    # They may be sent to all processes of a service: the worker will end this one.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    worker = socket.socket(fileno=sys.stdin.fileno())
    word: dict[str, Any] = {}
    pool: Pool | None = None
    # Its end of the socket may live on without it, in a process that a task has forked.
    while os.getppid() == worker_pid:
        try:
            message = worker.recv(MAX_MESSAGE)
        except TimeoutError:
            if word["worker_id"] is not None and not is_stopped(worker_pid):
                pool = beat(pool, word)
                worker.settimeout(word["interval"])
            continue
        if not message:
            return
        word = json.loads(message)
        worker.settimeout(word["interval"] * PATIENCE)
        if pool is not None:
            pool.close()
            pool = None


def is_stopped(pid: int) -> bool:
    """Is a process stopped, or dead? A worker that is frozen is to lose its lease."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            # The name of the program comes before, in parentheses, and may hold anything.
            state = stat.read().rpartition(b")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state in (b"T", b"t", b"Z", b"X")


def beat(pool: Pool | None, word: dict[str, Any]) -> Pool:
    """Renew the lease; return the pool for the next time. Whatever goes wrong is tried again."""
    import logging

    from procrastinate_sql.connections import Address, Pool
    from procrastinate_sql.job_store import Codec, JobStore
    from procrastinate_sql.worker.backoff import reason

    pool = pool or Pool(Address(**word["address"]))
    try:
        with pool.lend() as connection:
            JobStore(connection, Codec(word["address"]["schema"])).heartbeat(
                word["worker_id"], backend_pid=connection.info.backend_pid
            )
    except Exception as error:
        logging.warning("the guard of worker %s cannot beat: %s", word["worker_id"], reason(error))
    return pool


if __name__ == "__main__":
    pid, *sys.path = sys.argv[1:]
    main(int(pid))
