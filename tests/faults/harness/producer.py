"""A process that defers jobs in transactions, through the binding, and says what it was told.

    python -m harness.producer NAME COUNT RATE LEDGER [--locked SHARE] [--locks N]

Its ledger gets a line before each COMMIT or ROLLBACK, with the jobs, and one after it, with what
became of them: `committed`, `rolled back`, or `unknown` if the answer to COMMIT was lost. All jobs
of a lock come from one producer, so that their ids are in the order of their transactions.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from datetime import timedelta
from typing import IO, Any

import psycopg

from harness.clock import pause
from procrastinate_sql import App, ProcrastinateError

# The tasks, and how often each is chosen.
MIX = {"plain": 50, "recorded": 12, "booked": 25, "flaky": 10, "doomed": 3}


class Producer:
    def __init__(self, name: str, ledger: IO[str], locked: float, locks: int) -> None:
        self.app = App()
        self.random = random.Random(name)
        self.name = name
        self.ledger = ledger
        self.locked = locked
        self.locks = locks
        self.connection: psycopg.Connection[Any] | None = None
        self.deferred = 0
        self.committed = 0
        self.transactions = 0

    def write(self, **entry: object) -> None:
        self.ledger.write(json.dumps(entry) + "\n")
        self.ledger.flush()

    def connect(self) -> psycopg.Connection[Any]:
        if self.connection is None or self.connection.closed:
            self.connection = psycopg.connect(
                os.environ["PROCRASTINATE_DSN"], connect_timeout=5, prepare_threshold=None
            )
        return self.connection

    def transact(self) -> None:
        """One transaction with one to three groups of jobs."""
        self.transactions += 1
        try:
            connection = self.connect()
            jobs = [job for _ in range(self.random.randint(1, 3)) for job in self.defer(connection)]
        except (psycopg.Error, ProcrastinateError):
            # Nothing was committed, whatever the server got.
            self.give_up_connection()
            pause(self.random.uniform(0.05, 0.2))
            return
        rolls_back = self.random.random() < 0.08
        self.write(transaction=self.transactions, jobs=jobs)
        try:
            (connection.rollback if rolls_back else connection.commit)()
            state = "rolled back" if rolls_back else "committed"
        except psycopg.Error:
            self.give_up_connection()
            state = "rolled back" if rolls_back else "unknown"
        self.write(transaction=self.transactions, state=state)
        if state == "committed":
            self.committed += len(jobs)

    def defer(self, connection: psycopg.Connection[Any]) -> list[dict[str, Any]]:
        """Defer a few jobs with the same options; return what the ledger says of them."""
        (kind,) = self.random.choices(list(MIX), MIX.values())
        locked = self.random.random() < self.locked
        options: dict[str, Any] = {
            "lock": f"{self.name} {self.random.randrange(self.locks)}" if locked else None,
            # Of one lock all have one priority, so that their order is that of their ids.
            "priority": None if locked else self.random.choice((None, None, 5, -5)),
        }
        if self.random.random() < 0.1:
            seconds = self.random.uniform(0.05, 0.5 if locked else 2)
            options["schedule_in"] = timedelta(seconds=seconds)
        refs = [f"{self.name}-{self.deferred + n}" for n in range(self.random.randint(1, 5))]
        self.deferred += len(refs)
        deferrer = self.app.configure(kind, connection=connection, **options)
        if len(refs) == 1:
            ids = [deferrer.defer(ref=refs[0])]
        else:
            ids = deferrer.defer_many([{"ref": ref} for ref in refs])
        return [
            {"ref": ref, "kind": kind, "id": job_id} for ref, job_id in zip(refs, ids, strict=True)
        ]

    def give_up_connection(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    def run(self, count: int, rate: float) -> None:
        began = time.monotonic()
        while self.committed < count:
            if rate:
                ahead = self.committed / rate - (time.monotonic() - began)
                pause(min(ahead, 1))
            self.transact()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("count", type=int)
    parser.add_argument("rate", type=float, help="jobs a second; 0: as many as it can")
    parser.add_argument("ledger")
    parser.add_argument("--locked", type=float, default=0.4, help="share of jobs with a lock")
    parser.add_argument("--locks", type=int, default=12, help="how many locks")
    options = parser.parse_args()
    with open(options.ledger, "a") as ledger:
        producer = Producer(options.name, ledger, options.locked, options.locks)
        producer.run(options.count, options.rate)


if __name__ == "__main__":
    main()
