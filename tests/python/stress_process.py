"""One process of the stress: random calls until its time is up, then a report as JSON on stdout.

    python stress_process.py DSN ROLE SEED SECONDS LOCKS

ROLE is `worker` (defers, fetches and ends runs, in held-open transactions too), `person` (holds,
edits, cancels, deletes and reruns jobs) or `killer` (terminates the backends of the others).

No transaction here takes rows in an order in which two users could wait for each other: a deadlock
is then the queue's own.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

ISOLATION_LEVELS = {
    "read committed": psycopg.IsolationLevel.READ_COMMITTED,
    "repeatable read": psycopg.IsolationLevel.REPEATABLE_READ,
    "serializable": psycopg.IsolationLevel.SERIALIZABLE,
}
DOCUMENTED = {"PC001", "PC002", "PC004", "PC005"}
SERIALIZATION_FAILURE = "40001"
KILLED = {None, "57P01"}  # None: the connection was found closed

TASKS = ("plain", "stubborn", "fleeting")
QUEUES = ("mail", "bulk")
CONFLICTS = ("raise", "skip", "replace")
APPLICATION = "stress"

# What was committed before a fetch: the audit judges the claim by it.
NOTE_SNAPSHOT = "select set_config('stress.snapshot', pg_current_snapshot()::text, false)"

Run = tuple[int, int, str | None]
"""A job that this process runs, its attempt and its lock."""

Connection = psycopg.Connection[Any]


class NothingToDo(Exception):
    """There is nothing to make this call with."""


class Process:
    """What the roles share: connections that come back, and a count of everything."""

    def __init__(self, dsn: str, seed: int, seconds: float, locks: int) -> None:
        self.dsn = dsn
        self.random = random.Random(seed)
        self.deadline = time.monotonic() + seconds
        self.locks = locks
        self.done: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.unexpected: list[str] = []
        self.deferred: list[int] = []
        self.finished: list[tuple[int, int]] = []
        self.calls: list[tuple[Callable[[], None], int]] = []
        self.isolation = "read committed"
        self.connect()

    def connect(self) -> None:
        """Open both connections: one for single calls, one for transactions that stay open."""
        self.conn, self.held = (
            psycopg.connect(
                self.dsn,
                autocommit=True,
                application_name=APPLICATION,
                options="-c statement_timeout=20s",
            )
            for _ in range(2)
        )

    def run(self) -> None:
        while time.monotonic() < self.deadline:
            calls, weights = zip(*self.calls, strict=True)
            (call,) = self.random.choices(calls, weights)
            self.isolation = "read committed"
            try:
                call()
                self.done[call.__name__] += 1
            except NothingToDo:
                time.sleep(0.001)
            except psycopg.Error as error:
                self.note(error, call.__name__)
            except psycopg.Rollback:  # comes through when the backend was killed just then
                self.note(psycopg.OperationalError(), call.__name__)

    def note(self, error: psycopg.Error, call: str) -> None:
        """Count an error; keep its text unless it is a documented one."""
        code = error.sqlstate
        self.errors[str(code)] += 1
        if code in KILLED and isinstance(error, psycopg.OperationalError):
            self.conn.close()
            self.held.close()
            self.connect()
            return
        may_fail = code == SERIALIZATION_FAILURE and self.isolation != "read committed"
        if code not in DOCUMENTED and not may_fail:
            self.unexpected.append(f"{call}, {self.isolation}: {code} {error}")
        if code == "PC004":
            self.given_up()

    def given_up(self) -> None:
        """The worker was given up: what to do is its own affair."""

    def open_transaction(self) -> AbstractContextManager[psycopg.Transaction]:
        self.isolation = self.random.choice(list(ISOLATION_LEVELS))
        self.held.isolation_level = ISOLATION_LEVELS[self.isolation]
        return self.held.transaction()

    def pause(self, most: float) -> None:
        time.sleep(self.random.random() ** 3 * most)

    def report(self) -> dict[str, Any]:
        return {
            "done": self.done,
            "errors": self.errors,
            "unexpected": self.unexpected,
            "deferred": self.deferred,
            "finished": self.finished,
        }


class Worker(Process):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.backlog = max(60, self.locks * 2)
        self.waiting = 0
        self.running: list[Run] = []
        self.next_heartbeat = 0.0
        self.worker = 0
        self.calls = [
            (self.defer, 8),
            (self.defer_batch, 2),
            (self.defer_once, 2),
            (self.defer_in_transaction, 2),
            (self.fetch, 14),
            (self.finish, 8),
            (self.fail, 2),
            (self.retry, 4),
            (self.finish_batch, 4),
            (self.release, 2),
            (self.finish_in_transaction, 6),
            (self.cancel_own, 1),
            (self.heartbeat, 6),
            (self.leave, 1),
        ]

    def register(self) -> None:
        if self.worker == 0:
            (self.worker,) = self.conn.execute(
                "select procrastinate_register_worker(null, '0.1 seconds', '0.5 seconds')"
            ).fetchone() or (0,)

    def given_up(self) -> None:
        self.running.clear()
        self.worker = 0

    def lock(self) -> str | None:
        number = self.random.randrange(self.locks + 1)
        return f"lock {number}" if number else None

    def new_job(self) -> dict[str, Any]:
        return {
            "task_name": self.random.choice(TASKS),
            "queue_name": self.random.choice(QUEUES),
            "priority": self.random.choice((0, 0, 0, 1, -1)),
            "lock": self.lock(),
        }

    def take_runs(self, most: int) -> list[Run]:
        """Some runs to end, in the order of their ids; forgotten, so that rescue has work too."""
        if not self.running:
            self.fetch()
        if not self.running:
            raise NothingToDo
        self.random.shuffle(self.running)
        taken, self.running = self.running[:most], self.running[most:]
        return sorted(taken, key=lambda run: run[0])

    # --- Producers -----------------------------------------------------------------

    def has_room(self) -> bool:
        if self.random.random() < 0.1:
            (self.waiting,) = self.conn.execute(
                "select count(*) from procrastinate_jobs where status = 'todo'"
            ).fetchone() or (0,)
        return self.waiting < self.backlog

    def defer_on(self, conn: Connection, **changes: Any) -> int:
        job = {**self.new_job(), "delay": None, **changes}
        (job_id,) = conn.execute(
            "select procrastinate_defer_job(%(task_name)s, '{}', %(queue_name)s, %(priority)s, "
            "%(lock)s, scheduled_at => clock_timestamp() + %(delay)s::interval)",
            job,
        ).fetchone() or (0,)
        return int(job_id)

    def defer(self) -> None:
        if self.has_room():
            delay = self.random.choice((None, None, None, "20 milliseconds"))
            self.deferred.append(self.defer_on(self.conn, delay=delay))

    def defer_batch(self) -> None:
        if self.has_room():
            batch = [self.new_job() for _ in range(self.random.randint(2, 6))]
            rows = self.conn.execute(
                "select id from procrastinate_defer_jobs(%s)", (Jsonb(batch),)
            ).fetchall()
            self.deferred += [job_id for (job_id,) in rows]

    def defer_once(self) -> None:
        self.conn.execute(
            "select procrastinate_defer_job('plain', lock => %s, queueing_lock => %s, "
            "on_conflict => %s)",
            (self.lock(), f"q{self.random.randrange(3)}", self.random.choice(CONFLICTS)),
        )

    def defer_in_transaction(self) -> None:
        """An open producer: its earlier jobs appear after later ones were claimed."""
        if self.has_room():
            with self.open_transaction():
                deferred = [self.defer_on(self.held) for _ in range(self.random.randint(1, 3))]
                self.fetch()
                self.pause(0.02)
            self.deferred += deferred

    # --- Runs ----------------------------------------------------------------------

    def fetch(self) -> None:
        if len(self.running) > 10:
            return
        self.register()
        self.conn.execute(NOTE_SNAPSHOT)
        queues = self.random.choice((None, None, ["mail"], ["mail", "bulk"]))
        self.running += self.conn.execute(
            "select job.id, job.attempt, job.lock from procrastinate_fetch_jobs(%s, %s, %s) as job",
            (self.worker, queues, self.random.choice((1, 1, 3, 8))),
        ).fetchall()

    def finish_on(self, conn: Connection, job_id: int, attempt: int) -> None:
        conn.execute(
            "select procrastinate_finish_job(%s, %s, worker_id => %s)",
            (job_id, attempt, self.worker),
        )

    def finish(self) -> None:
        ((job_id, attempt, _),) = self.take_runs(1)
        self.finish_on(self.conn, job_id, attempt)
        self.finished.append((job_id, attempt))

    def fail(self) -> None:
        ((job_id, attempt, _),) = self.take_runs(1)
        self.conn.execute(
            "select procrastinate_fail_job(%s, %s, 'boom', %s)", (job_id, attempt, self.worker)
        )

    def retry_on(self, conn: Connection, job_id: int, attempt: int) -> None:
        conn.execute(
            "select procrastinate_retry_job(%s, %s, %s::interval, worker_id => %s)",
            (job_id, attempt, self.random.choice((None, "10 milliseconds")), self.worker),
        )

    def retry(self) -> None:
        ((job_id, attempt, _),) = self.take_runs(1)
        self.retry_on(self.conn, job_id, attempt)

    def finish_batch(self) -> None:
        outcomes = [
            {
                "job_id": job_id,
                "attempt": attempt,
                "worker_id": self.worker,
                **self.random.choice(({"status": "succeeded"}, {"fail": True}, {"retry_in": None})),
            }
            for job_id, attempt, _ in self.take_runs(4)
        ]
        self.conn.execute("select * from procrastinate_finish_jobs(%s)", (Jsonb(outcomes),))

    def release(self) -> None:
        job_ids = [job_id for job_id, _, _ in self.take_runs(2)]
        self.conn.execute("select procrastinate_release_jobs(%s, %s)", (self.worker, job_ids))

    def finish_in_transaction(self) -> None:
        """Open finishes, while the next job of the lock is committed, met and left alone."""
        runs = self.take_runs(self.random.randint(1, 2))
        finished = []
        deferred = []
        with self.open_transaction() as transaction:
            for job_id, attempt, lock in runs:
                if self.random.random() < 0.7:
                    self.finish_on(self.held, job_id, attempt)
                    finished.append((job_id, attempt))
                else:
                    self.retry_on(self.held, job_id, attempt)
                if self.random.random() < 0.3:
                    deferred.append(self.defer_on(self.held, lock=lock))
                if self.random.random() < 0.5:
                    self.deferred.append(self.defer_on(self.conn, lock=lock))
            self.fetch()
            self.pause(0.02)
            if is_rolled_back := self.random.random() < 0.1:
                raise psycopg.Rollback(transaction)
        if is_rolled_back:
            self.running += runs
        else:
            self.finished += finished
            self.deferred += deferred

    def cancel_own(self) -> None:
        """Ask for the abort of a run that is then failed or retried."""
        if self.running:
            self.conn.execute(
                "select procrastinate_cancel_job(%s, abort => true)", (self.running[-1][0],)
            )

    # --- The worker itself ---------------------------------------------------------

    def heartbeat(self) -> None:
        if time.monotonic() < self.next_heartbeat:
            return
        self.register()
        self.next_heartbeat = time.monotonic() + 0.05
        job_ids, attempts, _ = zip(*self.running, strict=True) if self.running else ((), (), ())
        _, lost = self.conn.execute(
            "select abort_job_ids, lost_job_ids from procrastinate_heartbeat("
            "%s, %s::bigint[], %s::integer[])",
            (self.worker, list(job_ids), list(attempts)),
        ).fetchone() or ((), ())
        self.running = [run for run in self.running if run[0] not in lost]

    def leave(self) -> None:
        if self.random.random() < 0.1:
            worker = self.worker
            self.given_up()
            if self.random.random() < 0.7:  # else it just falls silent
                self.conn.execute("select procrastinate_unregister_worker(%s)", (worker,))


class Person(Process):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.calls = [
            (self.hold, 6),
            (self.edit, 8),
            (self.edit_slowly, 4),
            (self.cancel, 2),
            (self.cancel_two, 2),
            (self.abort, 2),
            (self.delete, 2),
            (self.rerun, 2),
            (self.pause_queue, 1),
        ]

    def job(self, status: str = "todo") -> int:
        """One of the jobs in a state, without queueing lock."""
        (job_id,) = self.conn.execute(
            "select id from procrastinate_jobs where status::text = %s and queueing_lock is null "
            "order by random() limit 1",
            (status,),
        ).fetchone() or (0,)
        return int(job_id)

    def hold(self) -> None:
        with self.open_transaction():
            self.held.execute(
                "select from procrastinate_jobs where id = %s for update", (self.job(),)
            )
            self.pause(0.1)

    def edit_on(self, conn: Connection) -> None:
        assignment, value = self.random.choice(
            (
                ("priority = %s", self.random.randint(-1, 2)),
                ("lock = %s", f"lock {self.random.randint(1, self.locks)}"),
                ("lock = %s", None),
                ("queue_name = %s", self.random.choice(QUEUES)),
                ("scheduled_at = clock_timestamp() + %s::interval", "10 milliseconds"),
            )
        )
        conn.execute(
            f"update procrastinate_jobs set {assignment} where id = %s and status = 'todo'",  # type: ignore[arg-type]
            (value, self.job()),
        )

    def edit(self) -> None:
        self.edit_on(self.conn)

    def edit_slowly(self) -> None:
        with self.open_transaction():
            self.edit_on(self.held)
            self.pause(0.05)

    def cancel(self) -> None:
        self.conn.execute("select procrastinate_cancel_job(%s)", (self.job(),))

    def cancel_two(self) -> None:
        self.held.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
        with self.held.transaction():
            for job_id in sorted((self.job(), self.job())):
                self.held.execute("select procrastinate_cancel_job(%s)", (job_id,))
            self.pause(0.02)

    def abort(self) -> None:
        self.conn.execute(
            "select procrastinate_cancel_job(%s, abort => true)", (self.job("doing"),)
        )

    def delete(self) -> None:
        status = self.random.choice(("todo", "doing"))
        self.conn.execute("delete from procrastinate_jobs where id = %s", (self.job(status),))

    def rerun(self) -> None:
        status = self.random.choice(("succeeded", "failed", "cancelled", "aborted"))
        self.conn.execute("select procrastinate_rerun_job(%s)", (self.job(status),))

    def pause_queue(self) -> None:
        self.conn.execute("select procrastinate_pause_queue('mail')")
        self.pause(0.05)
        self.conn.execute("select procrastinate_resume_queue('mail')")


class Killer(Process):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.calls = [(self.kill, 1), (self.rescue, 1)]

    def connect(self) -> None:
        super().connect()
        for conn in (self.conn, self.held):
            conn.execute("set application_name = 'killer'")

    def kill(self) -> None:
        time.sleep(self.random.uniform(0.1, 0.4))
        self.conn.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity "
            "where application_name = %s and datname = current_database() "
            "order by random() limit 1",
            (APPLICATION,),
        )

    def rescue(self) -> None:
        self.conn.execute("select * from procrastinate_rescue_jobs()")


ROLES = {"worker": Worker, "person": Person, "killer": Killer}


def main() -> None:
    dsn, role, seed, seconds, locks = sys.argv[1:]
    process = ROLES[role](dsn, int(seed), float(seconds), int(locks))
    process.run()
    json.dump(process.report(), sys.stdout)


if __name__ == "__main__":
    main()
