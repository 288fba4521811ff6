"""What design sections 4 and 5 promise, as a model small enough to be seen to be right.

The model keeps the rows that are committed and, for each open transaction, the rows that it has
written. Each method of `Session` answers for one call: which error or rows it must return, what it
writes, and for whose rows it may wait. How the queue gets there (readiness, events, sequences) is
not in it.

    database = Database(connections=2)
    session = database.sessions[0]
    expected = session.finish(job_id=1, attempt=1, worker=7, action="finish")
    ...  # make the call, and compare its error or its rows
    session.apply(expected)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

READ_COMMITTED = "read committed"
REPEATABLE_READ = "repeatable read"
SERIALIZABLE = "serializable"

NOT_RUNNING = "PC001"
QUEUEING_LOCK_TAKEN = "PC002"
NO_SUCH_WORKER = "PC004"
NO_SUCH_JOB = "PC005"
WRONG_ISOLATION = "25001"

# Tasks of the test, and after how many failures their jobs are failed.
MAX_ATTEMPTS = {"plain": 1, "stubborn": 3, "fleeting": 1}
# The one whose finished jobs are not kept.
FLEETING = "fleeting"
MAX_LOST = 5

# Whose row: ("job", id), ("worker", id), ("queue", name), ("note", job id, serial), or no row, but
# what a second writer waits for: ("queueing lock", name).
Key = tuple[Any, ...]


@dataclass(frozen=True)
class Job:
    """A row of procrastinate_jobs, as far as the contract speaks of it."""

    id: int
    task: str
    queue: str
    priority: int
    lock: str | None = None
    queueing_lock: str | None = None
    schedule: str = "none"  # none, ahead or past
    status: str = "todo"
    attempts: int = 0
    failures: int = 0
    handed_back: int = 0
    lost: int = 0
    worker: int | None = None
    abort: bool = False

    @property
    def place(self) -> tuple[int, int]:
        """The order in which the jobs of one lock start."""
        return (-self.priority, self.id)

    @property
    def owns_queueing_lock(self) -> bool:
        return self.queueing_lock is not None and self.status == "todo" and self.attempts == 0


@dataclass
class Expected:
    """What one call must do."""

    error: str | None = None
    rows: list[tuple[Any, ...]] | None = None
    """What it must return, in any order; None: the caller judges that."""
    writes: dict[Key, Any] = field(default_factory=dict)
    """The rows that it locks or writes (None: deletes)."""
    waits_for: set[Key] = field(default_factory=set)
    """The rows for which it waits if another transaction has written them."""
    tidies: bool = False
    """It also settles and promotes: takes rows of waiting jobs that it does not return."""


class View:
    """The rows that one statement sees."""

    def __init__(self, *layers: Mapping[Key, Any]) -> None:
        merged = {key: value for layer in layers for key, value in layer.items()}
        self.rows = {key: value for key, value in merged.items() if value is not None}

    def job(self, job_id: int) -> Job | None:
        return self.rows.get(("job", job_id))

    def jobs(self, *statuses: str) -> list[Job]:
        """The jobs in these states (none: in any), by id."""
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

    def workers(self, *states: str) -> list[int]:
        """Those that are alive, lost (given up), or left (in good order)."""
        return [
            key[1] for key, value in self.rows.items() if key[0] == "worker" and value in states
        ]

    def is_alive(self, worker: int) -> bool:
        return self.rows.get(("worker", worker)) == "alive"

    def is_paused(self, queue: str) -> bool:
        return self.rows.get(("queue", queue)) is True

    def notes(self, *job_ids: int) -> set[Key]:
        """Requests to abort these jobs (none: any) that wait for the job's row."""
        return {key for key in self.rows if key[0] == "note" and (not job_ids or key[1] in job_ids)}

    def runnable(self, queues: Iterable[str] | None = None) -> Iterator[Job]:
        """The jobs that a fetch from these queues (None: all) can claim."""
        taken = {job.lock for job in self.jobs("doing")} - {None}
        for job in sorted(self.jobs("todo"), key=lambda job: job.place):
            if job.lock in taken:
                continue
            # Whatever it waits for, it keeps its place.
            taken |= {job.lock} - {None}
            fetched = queues is None or job.queue in queues
            if fetched and job.schedule != "ahead" and not self.is_paused(job.queue):
                yield job


class Database:
    """What is committed, and what each session did."""

    def __init__(self, connections: int) -> None:
        self.committed: dict[Key, Any] = {}
        self.sessions = [Session(self) for _ in range(connections)]
        self.disturbed: set[str | None] = set()
        """Locks of which a job was held when somebody settled: they are looked at again later."""

    def commit(self, writes: Mapping[Key, Any], tidies: bool = False) -> None:
        before = View(self.committed)
        changed = set(writes) | (
            {("job", job.id) for job in before.jobs("todo")} if tidies else set()
        )
        self.committed = View(self.committed, writes).rows
        for session in self.sessions:
            session.changed_since |= changed


class Session:
    """A connection: its open transaction, if any, and what a call on it must do now."""

    serial = count()

    def __init__(self, database: Database) -> None:
        self.database = database
        self.reset()

    # --- Transactions --------------------------------------------------------------

    def reset(self, isolation: str | None = None) -> None:
        """Forget the open transaction; begin one if an isolation level is given."""
        self.isolation = isolation
        self.snapshot = dict(self.database.committed)
        self.changed_since: set[Key] = set()
        self.writes: dict[Key, Any] = {}
        self.tidies = False

    def commit(self) -> None:
        writes, tidies = self.writes, self.tidies
        self.reset()
        self.database.commit(writes, tidies)

    def apply(self, expected: Expected) -> None:
        """Note that the call succeeded."""
        before = self.newest()
        if expected.tidies:
            self.database.disturbed |= {
                job.lock for job in before.jobs("todo") if ("job", job.id) in self.held()
            }
        self.writes |= expected.writes
        for key in expected.writes:
            for job in (before.rows.get(key), expected.writes[key]):
                if isinstance(job, Job) and job.queueing_lock:
                    self.writes["queueing lock", job.queueing_lock] = None
        self.tidies |= expected.tidies
        if self.isolation is None:
            self.commit()

    def view(self) -> View:
        """What the next statement sees."""
        sees_commits = self.isolation in (None, READ_COMMITTED)
        return View(self.database.committed if sees_commits else self.snapshot, self.writes)

    def newest(self) -> View:
        """What a unique index judges by."""
        return View(self.database.committed, self.writes)

    def others(self) -> list[Session]:
        return [session for session in self.database.sessions if session is not self]

    def others_tidy(self) -> bool:
        return any(session.tidies for session in self.others())

    def held(self) -> set[Key]:
        """The rows that other open transactions are known to hold."""
        return {key for session in self.others() for key in session.writes}

    def may_wait(self, expected: Expected) -> bool:
        """Has the call a reason to wait for another open transaction?"""
        waiting = {
            ("job", job.id) for view in (self.view(), self.newest()) for job in view.jobs("todo")
        }
        tidied = waiting if self.others_tidy() else set()
        return bool(expected.waits_for & (self.held() | tidied))

    def may_fail_to_serialize(self, expected: Expected) -> bool:
        """Does the call write what was changed since its snapshot?"""
        if self.isolation == REPEATABLE_READ:
            return bool((expected.waits_for | set(expected.writes)) & self.changed_since)
        return self.isolation == SERIALIZABLE

    # --- Producers -----------------------------------------------------------------

    def defer(self, new: Job, on_conflict: str) -> Expected:
        """The rows are None if a job is to be created: see `create`."""
        if new.queueing_lock is None:
            return Expected()
        expected = Expected(waits_for={("queueing lock", new.queueing_lock)})
        for owner in self.newest().jobs("todo"):
            if not owner.owns_queueing_lock or owner.queueing_lock != new.queueing_lock:
                continue
            expected.waits_for.add(("job", owner.id))
            expected.rows = [(owner.id,)]
            if on_conflict == "raise":
                expected.error = QUEUEING_LOCK_TAKEN
            elif on_conflict == "replace":
                expected.writes["job", owner.id] = replace(new, id=owner.id)
        return expected

    def create(self, new: Job, job_id: int) -> None:
        assert self.newest().job(job_id) is None
        self.apply(Expected(writes={("job", job_id): replace(new, id=job_id)}))

    # --- Fetch ---------------------------------------------------------------------

    def fetch(self, worker: int) -> Expected:
        """The error of a fetch; the jobs that it returns are judged by `claim`."""
        if self.isolation not in (None, READ_COMMITTED):
            return Expected(error=WRONG_ISOLATION)
        if not self.view().is_alive(worker):
            return Expected(error=NO_SUCH_WORKER)
        return Expected(tidies=True)

    def claim(
        self, worker: int, queues: list[str] | None, max_jobs: int, claimed: list[tuple[int, int]]
    ) -> None:
        """Judge the claimed jobs (id and attempt) by what was committed when the fetch began."""
        view = self.view()
        runnable = {job.id: job for job in view.runnable(queues)}
        expected = Expected()
        for job_id, attempt in claimed:
            assert job_id in runnable, f"claimed out of turn: {view.job(job_id)}, not {runnable}"
            assert attempt == runnable[job_id].attempts + 1
            expected.writes["job", job_id] = replace(
                runnable.pop(job_id), status="doing", worker=worker
            )

        priorities = [job.priority for job in expected.writes.values()]
        assert len(claimed) <= max_jobs
        assert priorities == sorted(priorities, reverse=True)
        for job in runnable.values():
            if self._is_free(job):
                assert len(claimed) == max_jobs, f"runnable and not claimed: {job}"
                assert job.priority <= priorities[-1], f"more urgent and not claimed: {job}"
        self.apply(expected)

    def _is_free(self, job: Job) -> bool:
        """Does no other transaction keep a fetch from this runnable job?"""
        if ("job", job.id) in self.held():
            return False
        if job.lock is None and job.schedule == "none":
            return True
        return not self.others_tidy() and job.lock not in self.database.disturbed - {None}

    # --- Ends of runs --------------------------------------------------------------

    def finish(
        self,
        job_id: int,
        attempt: int,
        worker: int | None,
        action: str,
        status: str = "succeeded",
        schedule: str = "none",
    ) -> Expected:
        """finish_job, fail_job and retry_job; the row is the new status."""
        job = self.view().running(job_id, attempt, worker)
        if job is None:
            return Expected(error=NOT_RUNNING)
        ended = self._ended(job, action, status, schedule)
        key = ("job", job_id)
        return Expected(rows=[(ended.status,)], writes={key: _kept(ended)}, waits_for={key})

    def finish_jobs(self, outcomes: list[dict[str, Any]]) -> Expected:
        """The rows are the outcomes that must be refused."""
        expected = Expected(rows=[])
        for ordinal, outcome in enumerate(outcomes, start=1):
            one = self.finish(**outcome)
            if one.error or one.waits_for & expected.waits_for:
                reason = "not running" if one.error else "duplicate"
                expected.rows.append((ordinal, outcome["job_id"], reason))
            else:
                expected.writes |= one.writes
                expected.waits_for |= one.waits_for
        return expected

    def release(self, worker: int, job_ids: list[int]) -> Expected:
        """The rows are the jobs that were given back."""
        view = self.view()
        jobs = [job for job_id in job_ids if (job := view.running(job_id, None, worker))]
        writes = {("job", job.id): _kept(self._ended(job, "release")) for job in jobs}
        return Expected(rows=[(job.id,) for job in jobs], writes=writes, waits_for=set(writes))

    def _ended(
        self, job: Job, action: str, status: str = "succeeded", schedule: str = "none"
    ) -> Job:
        ended = replace(
            job,
            attempts=job.attempts + 1,
            failures=job.failures + (action in ("fail", "retry")),
            handed_back=job.handed_back + (action == "release"),
            lost=job.lost + (action == "lose"),
            worker=None,
            schedule=schedule,
        )
        if action == "finish" and status != "failed":
            return replace(ended, status=status)
        if job.abort or self.view().notes(job.id):
            return replace(ended, status="aborted")
        is_failed = {
            "finish": True,
            "fail": ended.failures >= MAX_ATTEMPTS[job.task],
            "lose": ended.lost > MAX_LOST,
        }
        return replace(ended, status="failed" if is_failed.get(action) else "todo")

    # --- Workers -------------------------------------------------------------------

    def register(self, worker: int) -> None:
        self.apply(Expected(writes={("worker", worker): "alive"}))

    def unregister(self, worker: int) -> Expected:
        key = ("worker", worker)
        if not self.view().is_alive(worker):
            return Expected(error=NO_SUCH_WORKER, waits_for={key})
        expected = Expected(writes={key: "left"}, waits_for={key})
        self._take_back("release", [worker], expected)
        return expected

    def rescue(self, silent: int) -> Expected:
        """A rescue when this worker has fallen silent; the rows are the jobs taken back."""
        key = ("worker", silent)
        state = "left" if silent in self.view().workers("left") else "lost"
        expected = Expected(writes={key: state}, waits_for={key})
        expected.rows = self._take_back_of_gone(expected)
        return expected

    def _take_back_of_gone(self, expected: Expected) -> list[tuple[int, int | None, str]]:
        view = View(self.view().rows, expected.writes)
        return [
            *self._take_back("lose", view.workers("lost"), expected),
            *self._take_back("release", view.workers("left"), expected),
        ]

    def _take_back(
        self, action: str, workers: list[int], expected: Expected
    ) -> list[tuple[int, int | None, str]]:
        taken = []
        for job in self.view().jobs("doing"):
            if job.worker in workers and ("job", job.id) not in self.held():
                ended = self._ended(job, action)
                expected.writes["job", job.id] = _kept(ended)
                taken.append((job.id, job.worker, ended.status))
        return taken

    def heartbeat(self, worker: int, believed: list[int]) -> Expected:
        """The row: the worker's jobs that are to be aborted, and those that it no longer holds."""
        view = self.view()
        if self.isolation not in (None, READ_COMMITTED):
            return Expected(error=WRONG_ISOLATION)
        if not view.is_alive(worker):
            return Expected(error=NO_SUCH_WORKER, waits_for={("worker", worker)})

        expected = Expected(
            tidies=True,
            writes={("worker", worker): "alive"},
            waits_for={("worker", worker), *view.notes()},
        )
        self._take_back_of_gone(expected)
        self._carry_over_notes(expected)
        after = View(view.rows, expected.writes)
        for job in after.jobs("cancelled"):
            if job.task == FLEETING and ("job", job.id) not in self.held():
                expected.writes["job", job.id] = None
        mine = {job.id: job for job in after.jobs("doing") if job.worker == worker}
        abort = [job.id for job in mine.values() if job.abort]
        expected.rows = [(abort, sorted(set(believed) - set(mine)))]
        return expected

    def _carry_over_notes(self, expected: Expected) -> None:
        view = self.view()
        for note in view.notes():
            job = View(view.rows, expected.writes).job(note[1])
            if job is not None and job.status in ("todo", "doing") and not job.abort:
                if ("job", job.id) in self.held():
                    continue
                status = "cancelled" if job.status == "todo" else "doing"
                expected.writes["job", job.id] = replace(job, abort=True, status=status)
            expected.writes[note] = None

    # --- What people do ------------------------------------------------------------

    def cancel(self, job_id: int, abort: bool) -> Expected:
        """The row is the status that the job then has."""
        job, key = self.view().job(job_id), ("job", job_id)
        if job is None:
            return Expected(error=NO_SUCH_JOB)
        if job.status == "todo":
            writes: dict[Key, Any] = {key: replace(job, status="cancelled")}
            return Expected(rows=[("cancelled",)], writes=writes, waits_for={key})
        expected = Expected(rows=[(job.status,)])
        if job.status == "doing" and abort:
            # Never waits for a finish: what it cannot write it notes.
            is_held = key in self.held()
            note = ("note", job_id, next(self.serial))
            expected.writes = {note: True} if is_held else {key: replace(job, abort=True)}
        return expected

    def rerun(self, job_id: int) -> Expected:
        view, key = self.view(), ("job", job_id)
        job = view.job(job_id)
        if job is None:
            return Expected(error=NO_SUCH_JOB)
        if job.status in ("todo", "doing"):
            return Expected(error=NOT_RUNNING, waits_for={key})
        again = replace(job, status="todo", failures=0, lost=0, abort=False, schedule="none")
        # It starts afresh: what was asked of its earlier runs is over.
        writes = {key: again, **dict.fromkeys(view.notes(job_id))}
        rival = self.defer(again, "raise") if again.owns_queueing_lock else Expected()
        return Expected(error=rival.error, writes=writes, waits_for=set(writes) | rival.waits_for)

    def delete(self, job_id: int) -> Expected:
        return self._write(job_id, lambda job: None)

    def hold(self, job_id: int) -> Expected:
        """SELECT … FOR UPDATE, of any job."""
        return self._write(job_id, lambda job: job)

    def edit(self, job_id: int, changes: dict[str, Any]) -> Expected:
        """A plain UPDATE, of a waiting job."""
        return self._write(job_id, lambda job: replace(job, **changes), "todo")

    def _write(self, job_id: int, change: Any, *statuses: str) -> Expected:
        job, key = self.view().job(job_id), ("job", job_id)
        if job is None or (statuses and job.status not in statuses):
            return Expected(rows=[])
        return Expected(rows=[(job_id,)], writes={key: change(job)}, waits_for={key})

    def pause(self, queue: str, paused: bool) -> Expected:
        key = ("queue", queue)
        return Expected(writes={key: paused}, waits_for={key})


def _kept(job: Job) -> Job | None:
    """The row after the end of a run: none, if it is final and not to be kept."""
    return None if job.task == FLEETING and job.status != "todo" else job
