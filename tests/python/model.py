"""What design sections 4 and 5 promise, as a model small enough to be seen to be right.

The model keeps what is committed and, for each open transaction, what it has written and which rows
it holds. Each method answers for one call: which error must come, what must be returned, and for
whose rows the call may wait. How the queue gets there (readiness, events, sequences) is not in it.

    model = Model()
    expected = model.finish(0, job_id=1, attempt=1, worker_id=7, action="finish")
    ...  # make the call on connection 0, compare its error or its result
    model.apply(0, expected)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

READ_COMMITTED = "read committed"
ISOLATION_LEVELS = (READ_COMMITTED, "repeatable read", "serializable")

NOT_RUNNING = "PC001"
QUEUEING_LOCK_TAKEN = "PC002"
NO_SUCH_WORKER = "PC004"
NO_SUCH_JOB = "PC005"
WRONG_ISOLATION = "25001"

MAX_LOST = 5

# Tasks of the test: after how many failed runs their jobs are failed; undeclared: 1.
MAX_ATTEMPTS = {"plain": 1, "stubborn": 3, "fleeting": 1}
# The task whose finished jobs are not kept.
FLEETING = "fleeting"

# ("job", id), ("worker", id), ("queue", name), ("note", job id, serial), ("queueing lock", name)
Key = tuple[Any, ...]


@dataclass(frozen=True)
class Job:
    """A row of procrastinate_jobs, as far as the contract speaks of it."""

    id: int
    task: str
    queue: str
    priority: int
    lock: str | None
    queueing_lock: str | None = None
    wait: str = "none"  # none, soon (may be due at any moment) or long (not during the test)
    status: str = "todo"
    attempts: int = 0
    failures: int = 0
    handed_back: int = 0
    lost: int = 0
    worker: int | None = None
    abort: bool = False
    purge: bool = False

    @property
    def place(self) -> tuple[int, int]:
        """The order in which the jobs of one lock start."""
        return (-self.priority, self.id)

    @property
    def owns_queueing_lock(self) -> bool:
        return self.queueing_lock is not None and self.status == "todo" and self.attempts == 0


@dataclass
class Expected:
    """What one call must do. `waits_for`: rows that it may find held by another transaction."""

    error: str | None = None
    result: Any = None
    writes: dict[Key, Any] = field(default_factory=dict)
    holds: set[Key] = field(default_factory=set)
    waits_for: set[Key] = field(default_factory=set)
    tidies: bool = False
    """The call may also take rows of waiting jobs that it does not return."""


@dataclass
class Transaction:
    """An open transaction: its snapshot (None: each statement its own), and what it did."""

    isolation: str
    snapshot: dict[Key, Any] | None
    writes: dict[Key, Any] = field(default_factory=dict)
    holds: set[Key] = field(default_factory=set)
    tidies: bool = False


class View:
    """The rows that one statement sees."""

    def __init__(self, base: Mapping[Key, Any], writes: Mapping[Key, Any]) -> None:
        merged = {**base, **writes}
        self.rows = {key: value for key, value in merged.items() if value is not None}

    def job(self, job_id: int) -> Job | None:
        found: Job | None = self.rows.get(("job", job_id))
        return found

    def jobs(self, *statuses: str) -> list[Job]:
        jobs = [value for key, value in self.rows.items() if key[0] == "job"]
        jobs.sort(key=lambda job: job.id)
        return [job for job in jobs if not statuses or job.status in statuses]

    def running(self, job_id: int, attempt: int | None, worker: int | None) -> Job | None:
        """The job, if this attempt of this worker (None: whichever) is the running one."""
        job = self.job(job_id)
        if job is None or job.status != "doing":
            return None
        if attempt not in (None, job.attempts + 1) or worker not in (None, job.worker):
            return None
        return job

    def workers(self, alive: bool) -> list[int]:
        return [key[1] for key, value in self.rows.items() if key[0] == "worker" and value is alive]

    def is_alive(self, worker: int) -> bool:
        return self.rows.get(("worker", worker)) is True

    def is_paused(self, queue: str) -> bool:
        return self.rows.get(("queue", queue)) is True

    def notes(self) -> list[Key]:
        """Requests to abort that wait for their job's row."""
        return [key for key in self.rows if key[0] == "note"]

    def is_noted(self, job_id: int) -> bool:
        return any(key[1] == job_id for key in self.notes())

    def heads(self) -> dict[str, Job]:
        """The job that must be next, of each lock of which none is running."""
        running = {job.lock for job in self.jobs("doing")}
        heads: dict[str, Job] = {}
        for job in sorted(self.jobs("todo"), key=lambda job: job.place):
            if job.lock is not None and job.lock not in running:
                heads.setdefault(job.lock, job)
        return heads

    def runnable(self, queues: Iterable[str] | None = None) -> Iterator[Job]:
        """The jobs that a fetch from these queues can claim, or could if their time has come."""
        heads = self.heads()
        for job in self.jobs("todo"):
            is_next = job.lock is None or heads.get(job.lock) == job
            is_fetched = queues is None or job.queue in queues
            if is_next and is_fetched and job.wait != "long" and not self.is_paused(job.queue):
                yield job


class Model:
    """What is committed, and what each open transaction did."""

    def __init__(self) -> None:
        self.committed: dict[Key, Any] = {}
        self.open: dict[int, Transaction] = {}
        self.serial = count()

    # --- Transactions --------------------------------------------------------------

    def begin(self, connection: int, isolation: str) -> None:
        snapshot = None if isolation == READ_COMMITTED else dict(self.committed)
        self.open[connection] = Transaction(isolation, snapshot)

    def rollback(self, connection: int) -> None:
        self.open.pop(connection, None)

    def commit(self, connection: int) -> None:
        self._commit(self.open.pop(connection).writes)

    def _commit(self, writes: Mapping[Key, Any]) -> None:
        self.committed.update(writes)
        for key in [key for key, value in self.committed.items() if value is None]:
            del self.committed[key]

    def isolation(self, connection: int) -> str:
        opened = self.open.get(connection)
        return opened.isolation if opened else READ_COMMITTED

    def view(self, connection: int) -> View:
        """What the next statement of this connection sees."""
        opened = self.open.get(connection)
        if opened is None:
            return View(self.committed, {})
        base = self.committed if opened.snapshot is None else opened.snapshot
        return View(base, opened.writes)

    def newest(self, connection: int) -> View:
        """What a unique index judges by: the newest committed rows, and one's own."""
        opened = self.open.get(connection)
        return View(self.committed, opened.writes if opened else {})

    def others(self, connection: int) -> list[Transaction]:
        return [opened for number, opened in self.open.items() if number != connection]

    def held(self, connection: int) -> set[Key]:
        """The rows that other open transactions are known to hold."""
        return {key for other in self.others(connection) for key in other.holds}

    def may_wait(self, connection: int, expected: Expected) -> bool:
        """Does the call have a reason to wait for another open transaction?"""
        if expected.waits_for & self.held(connection):
            return True
        waiting = {
            ("job", job.id)
            for view in (self.view(connection), self.newest(connection))
            for job in view.jobs("todo")
        }
        return self.others_tidy(connection) and bool(expected.waits_for & waiting)

    def others_tidy(self, connection: int) -> bool:
        return any(other.tidies for other in self.others(connection))

    def apply(self, connection: int, expected: Expected) -> None:
        """Note that the call succeeded."""
        opened = self.open.get(connection)
        if opened is None:
            self._commit(expected.writes)
            return
        # Whoever defers with the queueing lock of a row that was written waits for its writer.
        for job in [
            versions.get(key)
            for key in expected.writes
            for versions in (self.committed, opened.writes, expected.writes)
        ]:
            if isinstance(job, Job) and job.queueing_lock:
                opened.holds.add(("queueing lock", job.queueing_lock))
        opened.writes.update(expected.writes)
        opened.holds |= expected.holds | set(expected.writes)
        opened.tidies |= expected.tidies

    # --- Producers -----------------------------------------------------------------

    def defer(self, connection: int, new: Job, on_conflict: str) -> Expected:
        """One job; its id (0 in `new`) is known only afterwards: see `deferred`."""
        if new.queueing_lock is None:
            return Expected()
        waits_for: set[Key] = {("queueing lock", new.queueing_lock)}
        owners = [
            job
            for job in self.newest(connection).jobs("todo")
            if job.owns_queueing_lock and job.queueing_lock == new.queueing_lock
        ]
        if not owners:
            return Expected(waits_for=waits_for)
        (owner,) = owners
        waits_for.add(("job", owner.id))
        if on_conflict == "raise":
            return Expected(error=QUEUEING_LOCK_TAKEN, waits_for=waits_for)
        if on_conflict == "skip":
            return Expected(result=owner.id, waits_for=waits_for)
        # A retry kept the counters of a job that was never started at nothing.
        replaced = replace(
            owner,
            task=new.task,
            queue=new.queue,
            lock=new.lock,
            priority=new.priority,
            wait=new.wait,
        )
        writes = {("job", owner.id): replaced}
        return Expected(result=owner.id, waits_for=waits_for, writes=writes)

    @staticmethod
    def deferred(new: Job, job_id: int) -> Expected:
        return Expected(writes={("job", job_id): replace(new, id=job_id)})

    # --- Fetch ---------------------------------------------------------------------

    def fetch(self, connection: int, worker: int) -> Expected:
        """The error of a fetch; what it returns is judged by `audit_fetch`."""
        if self.isolation(connection) != READ_COMMITTED:
            return Expected(error=WRONG_ISOLATION)
        if not self.view(connection).is_alive(worker):
            return Expected(error=NO_SUCH_WORKER)
        return Expected(tidies=True)

    def audit_fetch(
        self,
        connection: int,
        claimed: Mapping[int, int],
        worker: int,
        queues: list[str] | None,
        max_jobs: int,
    ) -> Expected:
        """Judge the claimed jobs (id to attempt) by what was committed when the fetch began."""
        view, held = self.view(connection), self.held(connection)
        runnable = {job.id: job for job in view.runnable(queues)}
        writes: dict[Key, Any] = {}
        for job_id, attempt in claimed.items():
            job = view.job(job_id)
            assert job is not None, f"job {job_id} was claimed and does not exist"
            assert job_id in runnable, f"claimed out of turn: {job}, of {view.heads()}"
            assert ("job", job_id) not in held, f"claimed from under another transaction: {job}"
            assert attempt == job.attempts + 1, f"attempt {attempt} of {job}"
            writes["job", job_id] = replace(job, status="doing", worker=worker)

        assert len(claimed) <= max_jobs
        if len(claimed) < max_jobs:
            for job in runnable.values():
                is_free = job.lock is None and job.wait == "none" and ("job", job.id) not in held
                assert not is_free or job.id in claimed, f"runnable and not claimed: {job}"
        return Expected(writes=writes, tidies=True)

    # --- Ends of runs --------------------------------------------------------------

    def finish(
        self,
        connection: int,
        job_id: int,
        attempt: int,
        worker: int | None,
        action: str,
        status: str = "succeeded",
        wait: str = "none",
    ) -> Expected:
        """finish_job, fail_job and retry_job; the result is the new status."""
        view = self.view(connection)
        job = view.running(job_id, attempt, worker)
        if job is None:
            return Expected(error=NOT_RUNNING)
        ended = self._ended(view, job, action, status, wait)
        return Expected(
            result=ended.status,
            writes={("job", job_id): _kept(ended)},
            waits_for={("job", job_id)},
        )

    def finish_jobs(self, connection: int, outcomes: list[dict[str, Any]]) -> Expected:
        """Many outcomes; the result is the ordinals of those that must be refused."""
        expected = Expected(result=[])
        for ordinal, outcome in enumerate(outcomes, start=1):
            arguments = {key: value for key, value in outcome.items() if key != "sent"}
            one = self.finish(connection, **arguments)
            if one.error or one.waits_for & expected.waits_for:
                expected.result.append(ordinal)
                continue
            expected.writes |= one.writes
            expected.waits_for |= one.waits_for
        return expected

    def release(self, connection: int, worker: int, job_ids: list[int]) -> Expected:
        """The result is the jobs that were given back."""
        view = self.view(connection)
        expected = Expected(result=set())
        for job_id in job_ids:
            job = view.running(job_id, None, worker)
            if job is not None:
                expected.result.add(job_id)
                expected.writes["job", job_id] = _kept(self._ended(view, job, "release"))
                expected.waits_for.add(("job", job_id))
        return expected

    @staticmethod
    def _ended(
        view: View, job: Job, action: str, status: str = "succeeded", wait: str = "none"
    ) -> Job:
        ended = replace(
            job,
            attempts=job.attempts + 1,
            failures=job.failures + (action in ("fail", "retry")),
            handed_back=job.handed_back + (action == "release"),
            lost=job.lost + (action == "lose"),
            worker=None,
        )
        if action == "finish":
            return replace(ended, status=status)
        if job.abort or view.is_noted(job.id):
            return replace(ended, status="aborted")
        if action == "fail" and ended.failures >= MAX_ATTEMPTS[job.task]:
            return replace(ended, status="failed")
        if action == "lose" and ended.lost > MAX_LOST:
            return replace(ended, status="failed")
        # What a job waited for before its run is over, but for a retry with a delay.
        return replace(ended, status="todo", wait=wait)

    # --- Workers -------------------------------------------------------------------

    def unregister(self, connection: int, worker: int) -> Expected:
        view = self.view(connection)
        if not view.is_alive(worker):
            return Expected(error=NO_SUCH_WORKER, waits_for={("worker", worker)})
        expected = Expected(writes={("worker", worker): False}, waits_for={("worker", worker)})
        self._take_back(connection, view, [worker], "release", expected)
        return expected

    def rescue(self, connection: int, silent: int | None) -> Expected:
        """Rescue, `silent` having been made so; the result is job, worker and new status."""
        view = self.view(connection)
        expected = Expected()
        gone = view.workers(alive=False)
        if silent is not None:
            expected.waits_for.add(("worker", silent))
            if view.is_alive(silent):
                expected.writes["worker", silent] = False
                gone.append(silent)
        expected.result = self._take_back(connection, view, gone, "lose", expected)
        return expected

    def _take_back(
        self, connection: int, view: View, workers: list[int], action: str, expected: Expected
    ) -> set[tuple[int, int | None, str]]:
        held = self.held(connection)
        taken: set[tuple[int, int | None, str]] = set()
        for job in view.jobs("doing"):
            if job.worker in workers and ("job", job.id) not in held:
                ended = self._ended(view, job, action)
                expected.writes["job", job.id] = _kept(ended)
                taken.add((job.id, job.worker, ended.status))
        return taken

    def heartbeat(self, connection: int, worker: int) -> Expected:
        """The result is the worker's jobs: those to abort, and all that it still runs."""
        if self.isolation(connection) != READ_COMMITTED:
            return Expected(error=WRONG_ISOLATION)
        before = self.view(connection)
        if not before.is_alive(worker):
            return Expected(error=NO_SUCH_WORKER, waits_for={("worker", worker)})

        expected = Expected(tidies=True, holds={("worker", worker)})
        self._take_back(connection, before, before.workers(alive=False), "lose", expected)
        self._carry_over_notes(connection, before, expected)

        after = View(before.rows, expected.writes)
        for job in after.jobs():
            if job.purge and ("job", job.id) not in self.held(connection):
                expected.writes["job", job.id] = None
        mine = [job for job in after.jobs("doing") if job.worker == worker]
        expected.result = ({job.id for job in mine if job.abort}, {job.id for job in mine})
        expected.waits_for = {("worker", worker), *before.notes()}
        return expected

    def _carry_over_notes(self, connection: int, before: View, expected: Expected) -> None:
        held = self.held(connection)
        for note in before.notes():
            job = View(before.rows, expected.writes).job(note[1])
            if job is not None and job.status in ("todo", "doing") and not job.abort:
                if ("job", job.id) in held:
                    continue
                waits = job.status == "todo"
                expected.writes["job", job.id] = replace(
                    job,
                    abort=True,
                    status="cancelled" if waits else "doing",
                    purge=waits and job.task == FLEETING,
                )
            expected.writes[note] = None

    # --- What people do ------------------------------------------------------------

    def cancel(self, connection: int, job_id: int, abort: bool) -> Expected:
        """The result is the status that the job then has."""
        job = self.view(connection).job(job_id)
        if job is None:
            return Expected(error=NO_SUCH_JOB)
        key = ("job", job_id)
        if job.status == "todo":
            cancelled = replace(job, status="cancelled", purge=job.task == FLEETING)
            return Expected(result="cancelled", writes={key: cancelled}, waits_for={key})
        if job.status != "doing" or not abort:
            return Expected(result=job.status)
        if key in self.held(connection):
            return Expected(result="doing", writes={("note", job_id, next(self.serial)): True})
        return Expected(result="doing", writes={key: replace(job, abort=True)})

    def rerun(self, connection: int, job_id: int) -> Expected:
        view, key = self.view(connection), ("job", job_id)
        job = view.job(job_id)
        if job is None:
            return Expected(error=NO_SUCH_JOB)
        if job.status in ("todo", "doing"):
            return Expected(error=NOT_RUNNING, waits_for={key})
        again = replace(
            job, status="todo", failures=0, lost=0, abort=False, wait="none", purge=False
        )
        # It starts afresh: what was asked of its earlier runs is over.
        writes: dict[Key, Any] = {note: None for note in view.notes() if note[1] == job_id}
        writes[key] = again
        expected = Expected(writes=writes, waits_for=set(writes))
        if again.owns_queueing_lock:
            rival = self.defer(connection, again, "raise")
            expected.waits_for |= rival.waits_for
            expected.error = rival.error
        return expected

    def delete(self, connection: int, job_id: int) -> Expected:
        """The result is how many rows were deleted."""
        if self.view(connection).job(job_id) is None:
            return Expected(result=0)
        key = ("job", job_id)
        return Expected(result=1, writes={key: None}, waits_for={key})

    def edit(self, connection: int, job_id: int, **changes: Any) -> Expected:
        """A plain UPDATE of a waiting job (no changes: SELECT … FOR UPDATE of any job)."""
        job = self.view(connection).job(job_id)
        if job is None or (changes and job.status != "todo"):
            return Expected(result=0)
        key = ("job", job_id)
        return Expected(result=1, writes={key: replace(job, **changes)}, waits_for={key})

    @staticmethod
    def pause(queue: str, paused: bool) -> Expected:
        key = ("queue", queue)
        return Expected(writes={key: paused}, waits_for={key})


def _kept(job: Job) -> Job | None:
    """The row after the end of a run: none, if it is final and not to be kept."""
    return None if job.task == FLEETING and job.status != "todo" else job
