"""Random transactions on several connections, each call checked against the model of the contract.

One thread drives all connections and no step depends on the clock, so that a run can be repeated:
a call that has to wait for another open transaction is given up after LOCK_TIMEOUT, and must have
had a reason to wait by the model. Few jobs share a lock, so that hardly a later call mends what an
earlier one has broken.

    pytest tests/python/test_property.py                            # the same sequences each time
    HYPOTHESIS_PROFILE=shrink pytest tests/python/test_property.py  # the same, a failure made small
    HYPOTHESIS_PROFILE=long pytest --hypothesis-seed=7 tests/python/test_property.py  # minutes
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from audit import Connection, call, drain
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from model import READ_COMMITTED, REPEATABLE_READ, SERIALIZABLE, Database, Expected, Job, Session
from psycopg.types.json import Jsonb

LOCK_TIMEOUT = "8ms"
LOCK_NOT_AVAILABLE = "55P03"
SERIALIZATION_FAILURE = "40001"

IN_TRANSACTIONS = range(4)
ALONE = 4  # the connection that never has a transaction open
JOBS_PER_LOCK = 2  # on average; those of an edit come on top
AHEAD = "2999-01-01"
NO_JOB = 2**62

DEFAULT = settings(
    max_examples=150,
    stateful_step_count=120,
    derandomize=True,
    database=None,
    deadline=None,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],
)
PROFILES = {
    "default": DEFAULT,
    "shrink": settings(DEFAULT, phases=[Phase.generate, Phase.shrink]),
    "long": settings(DEFAULT, max_examples=1000, stateful_step_count=200, derandomize=False),
}

SETUP = """
    select procrastinate_declare_task(
        'stubborn', max_attempts => 3, backoff => 'constant', retry_delay => '0', jitter => 0
    );
    select procrastinate_declare_task('fleeting', keep_finished => '0');

    create function procrastinate_rescue_jobs_of_silent(silent bigint)
    returns table (job_id bigint, worker_id bigint, status text)
    language sql as $$
        update procrastinate_workers
        set last_heartbeat = '2000-01-01', heartbeat_interval = '0.1 s', lease = '0.3 s'
        where id = silent;
        select * from procrastinate_rescue_jobs();
    $$;
"""

ERAS = Path(__file__).with_name("eras_of_locks.sql")

EMPTY = """
    delete from procrastinate_jobs;
    delete from procrastinate_workers;
    delete from procrastinate_queues;
    delete from procrastinate_abort_requests;
"""

COMMITTED = """
    select
        id, task_name, queue_name, priority, lock, queueing_lock, status::text, attempts, failures,
        handed_back, lost, case when status = 'doing' then worker_id end, abort_requested
    from procrastinate_jobs
"""

# Without triggers, since no call of ours or of a person has to do with it.
LET_TIME_PASS = """
    update procrastinate_jobs set scheduled_at = '2000-01-01', due_at = '2000-01-01'
    where id in (
        select id from procrastinate_jobs where due_at > clock_timestamp() for update skip locked
    )
    returning id
"""

EDITS = {
    "priority": "priority = %(priority)s",
    "lock": "lock = %(lock)s",
    "queue": "queue_name = %(queue)s",
    "schedule": "scheduled_at = %(schedule)s",
}

transactions = st.sampled_from(IN_TRANSACTIONS)
mostly_alone = st.sampled_from([ALONE, ALONE, ALONE, *IN_TRANSACTIONS])
isolations = st.sampled_from([READ_COMMITTED, REPEATABLE_READ, SERIALIZABLE])
rarely = st.sampled_from([False, False, False, True])
# Which of the newest candidates a step takes; 0: also what it is not meant for.
picks = st.integers(0, 11)
queues = st.sampled_from(["mail", "bulk", "slow"])
priorities = st.sampled_from([0, 0, 0, 1, -1])
schedules = st.sampled_from(["none", "none", "none", "ahead"])
# Of the two in use at present.
locks = st.sampled_from(["this", "next"])
endings = st.sampled_from(["finish", "finish", "fail", "retry", "retry"])
statuses = st.sampled_from(["succeeded", "succeeded", "failed", "aborted"])
new_jobs = st.builds(
    Job,
    id=st.just(0),
    task=st.sampled_from(["plain", "stubborn", "fleeting"]),
    queue=queues,
    priority=priorities,
    lock=st.none() | locks,
    schedule=schedules,
)


class Contract(RuleBasedStateMachine):
    """Steps are begin, a call, commit and rollback; the model says what each call must do.

    A rule that has two names is taken twice as often.
    """

    auditor: Connection
    connections: list[Connection]
    counts: Counter[str | None]
    failed: list[Any]
    """The journal of the last sequence that failed."""

    def __init__(self) -> None:
        super().__init__()
        self.database = Database(len(self.connections))
        self.deferred = 0
        self.sound = True
        self.journal: list[Any] = []

    @initialize(news=st.lists(new_jobs, min_size=4, max_size=12))
    def start(self, news: list[Job]) -> None:
        self.auditor.execute(EMPTY)
        for _ in range(3):
            self._register()
        self.defer_jobs(ALONE, news, False)

    # --- Transactions --------------------------------------------------------------

    @rule(number=transactions, isolation=isolations)
    def begin(self, number: int, isolation: str) -> None:
        if self._session(number).isolation is None:
            # The query takes the snapshot.
            self._write(number, f"begin isolation level {isolation}; select 1")
            self._session(number).reset(isolation)

    @rule(number=transactions)
    def commit(self, number: int) -> None:
        session = self._session(number)
        if session.isolation is None:
            return
        try:
            self._write(number, "commit")
        except psycopg.errors.SerializationFailure:
            assert session.isolation == SERIALIZABLE
            session.reset()
        else:
            session.commit()

    commit_again = commit_more = commit

    @rule(number=transactions)
    def rollback(self, number: int) -> None:
        if self._session(number).isolation is not None:
            self._write(number, "rollback")
            self._session(number).reset()

    def _session(self, number: int) -> Session:
        return self.database.sessions[number]

    def _write(self, number: int, statement: str) -> None:
        self.journal.append((number, statement))
        self.connections[number].execute(statement)

    def _call(
        self, number: int, expected: Expected, function: str, columns: str = "*", **arguments: Any
    ) -> list[tuple[Any, ...]] | None:
        """Call a function of the protocol; as `_check`."""
        return self._check(
            number,
            expected,
            (function, arguments),
            lambda connection: call(connection, function, columns, **arguments),
        )

    def _execute(
        self, number: int, expected: Expected, query: str, **arguments: Any
    ) -> list[tuple[Any, ...]] | None:
        """Execute a statement of a person's; as `_check`."""
        return self._check(
            number,
            expected,
            (query, arguments),
            lambda connection: connection.execute(query, arguments).fetchall(),
        )

    def _check(
        self,
        number: int,
        expected: Expected,
        step: tuple[Any, ...],
        execute: Callable[[Connection], list[tuple[Any, ...]]],
    ) -> list[tuple[Any, ...]] | None:
        """Return the rows, or None after an error, if either is what the model expects.

        In an open transaction it runs in a savepoint, as frameworks do, so that the transaction
        goes on after an error.
        """
        session, connection = self._session(number), self.connections[number]
        self.sound = False
        self.counts["calls"] += 1
        self.journal.append((number, *step))
        try:
            with connection.transaction():
                rows = execute(connection)
        except psycopg.Error as error:
            self.journal.append(error)
            self.counts[error.sqlstate] += 1
            if error.sqlstate == SERIALIZATION_FAILURE and session.may_fail_to_serialize(expected):
                self.rollback(number)
            elif error.sqlstate == LOCK_NOT_AVAILABLE and session.may_wait(expected):
                pass
            elif error.sqlstate != expected.error:
                raise
            return None
        self.journal.append(rows)
        assert expected.error is None, f"expected {expected.error}, got {rows}"
        if expected.rows is not None:
            assert sorted(rows) == sorted(expected.rows)
        session.apply(expected)
        return rows

    # --- Producers -----------------------------------------------------------------

    def _located(self, new: Job) -> Job:
        """The job with a real lock; with each few jobs another lock comes into use."""
        self.deferred += 1
        return replace(new, lock=self._lock(new.lock))

    def _lock(self, which: str | None) -> str | None:
        number = self.deferred // JOBS_PER_LOCK
        return {None: None, "this": f"lock {number}", "next": f"lock {number + 1}"}.get(
            which, which
        )

    @rule(number=transactions, new=new_jobs, on_conflict=st.just("raise"))
    def defer(self, number: int, new: Job, on_conflict: str) -> None:
        job = self._located(new)
        rows = self._call(
            number,
            expected := self._session(number).defer(job, on_conflict),
            "defer_job",
            task_name=job.task,
            queue_name=job.queue,
            priority=job.priority,
            lock=job.lock,
            queueing_lock=job.queueing_lock,
            scheduled_at=AHEAD if job.schedule == "ahead" else None,
            on_conflict=on_conflict,
        )
        if rows and expected.rows is None:
            self._session(number).create(job, rows[0][0])

    @rule(number=transactions, new=new_jobs, lock=locks)
    def defer_with_lock(self, number: int, new: Job, lock: str) -> None:
        self.defer(number, replace(new, lock=lock), "raise")

    @rule(
        number=transactions,
        new=new_jobs,
        queueing_lock=st.sampled_from(["q1", "q2"]),
        on_conflict=st.sampled_from(["raise", "skip", "replace"]),
    )
    def defer_once(self, number: int, new: Job, queueing_lock: str, on_conflict: str) -> None:
        self.defer(number, replace(new, queueing_lock=queueing_lock), on_conflict)

    @rule(number=transactions, new=new_jobs, pick=picks)
    def defer_ahead(self, number: int, new: Job, pick: int) -> None:
        """Defer a job whose turn is before that of a waiting one."""
        locked = [job.lock for job in self._session(number).view().jobs("todo") if job.lock]
        if locked:
            lock = locked[-1 - pick % len(locked)]
            self.defer(number, replace(new, lock=lock, priority=2), "raise")

    @rule(
        number=transactions,
        news=st.lists(new_jobs, min_size=2, max_size=4),
        same_lock=st.booleans(),
    )
    def defer_jobs(self, number: int, news: list[Job], same_lock: bool) -> None:
        jobs = [self._located(new) for new in news]
        if same_lock:
            jobs = [replace(job, lock=jobs[0].lock) for job in jobs]
        batch = [
            {
                "task_name": job.task,
                "queue_name": job.queue,
                "priority": job.priority,
                "lock": job.lock,
                "scheduled_at": AHEAD if job.schedule == "ahead" else None,
            }
            for job in jobs
        ]
        rows = self._call(number, Expected(), "defer_jobs", jobs=Jsonb(batch))
        for job, (ordinal, job_id, created) in zip(jobs, rows or (), strict=bool(rows)):
            assert created
            assert job is jobs[ordinal - 1]
            self._session(number).create(job, job_id)

    # --- Workers -------------------------------------------------------------------

    def _worker(self, number: int, pick: int) -> int:
        """A worker: most often a living one."""
        view = self._session(number).view()
        workers = (not pick and view.workers("lost", "left")) or view.workers("alive")
        return workers[pick % len(workers)]

    def _register(self) -> None:
        arguments = {"heartbeat_interval": "1 hour", "lease": "1 day"}
        rows = self._call(ALONE, Expected(), "register_worker", **arguments)
        assert rows is not None
        self._session(ALONE).register(rows[0][0])

    @rule(
        number=mostly_alone,
        pick=picks,
        queue_names=st.none() | st.lists(queues, min_size=1, max_size=2),
        max_jobs=st.sampled_from([1, 1, 2, 50]),
        overlap=rarely,
    )
    def fetch(
        self,
        number: int,
        pick: int,
        queue_names: list[str] | None,
        max_jobs: int,
        overlap: bool,
    ) -> None:
        for other in IN_TRANSACTIONS:
            # A fetch waits 0.1 s for one that is open, so that it is not to happen too often.
            if self._session(other).tidies and not overlap:
                self.commit(other)
        if number != ALONE:
            self.begin(number, READ_COMMITTED)
        session, worker = self._session(number), self._worker(number, pick)
        arguments = {"worker_id": worker, "queue_names": queue_names, "max_jobs": max_jobs}
        expected = session.fetch(worker)
        claimed = self._call(number, expected, "fetch_jobs", "id, attempt", **arguments)
        if claimed is not None:
            self.counts["claimed"] += len(claimed)
            session.claim(worker, queue_names, max_jobs, claimed)

    fetch_again = fetch_more = fetch

    @rule(number=mostly_alone, pick=picks, silently=st.booleans())
    def leave(self, number: int, pick: int, silently: bool) -> None:
        """A worker leaves, in good order or found silent; another one comes."""
        session, worker = self._session(number), self._worker(number, pick)
        if silently:
            expected = session.rescue(worker)
            self._call(number, expected, "rescue_jobs_of_silent", silent=worker)
        else:
            expected = session.unregister(worker)
            self._call(number, expected, "unregister_worker", worker_id=worker)
        self._register()

    @rule(number=mostly_alone, pick=picks)
    def heartbeat(self, number: int, pick: int) -> None:
        session, worker = self._session(number), self._worker(number, pick)
        view = session.view()
        if session.others_tidy() and any(view.notes(job.id) for job in view.jobs("todo")):
            return  # whether that job's row is held at present is not for the model to know
        running = list(enumerate(view.jobs("doing")))
        believed = [job for index, job in running if job.worker == worker or index % 3 == 0]
        self._call(
            number,
            session.heartbeat(worker, [job.id for job in believed]),
            "heartbeat",
            "abort_job_ids, lost_job_ids",
            worker_id=worker,
            job_ids=[job.id for job in believed],
            attempts=[job.attempts + 1 for job in believed],
        )

    # --- Ends of runs --------------------------------------------------------------

    def _run(self, number: int, pick: int) -> Job | None:
        """A job to end the run of: most often a running one."""
        view = self._session(number).view()
        jobs = view.jobs("doing") if pick else view.jobs()
        return jobs[-1 - pick % len(jobs)] if jobs else None

    @rule(
        number=transactions,
        pick=picks,
        action=endings,
        status=statuses,
        schedule=schedules,
        fenced=st.booleans(),
    )
    def end_run(
        self, number: int, pick: int, action: str, status: str, schedule: str, fenced: bool
    ) -> None:
        job = self._run(number, pick)
        if job is None:
            return
        # A pick of 1 comes from another worker, or from an earlier attempt.
        attempt = job.attempts + (pick != 1 or fenced)
        worker = (job.worker or 0) + (pick == 1) if fenced else None
        schedule = schedule if action == "retry" else "none"
        expected = self._session(number).finish(job.id, attempt, worker, action, status, schedule)
        arguments = {"job_id": job.id, "attempt": attempt, "worker_id": worker}
        if action == "fail":
            arguments["error"] = "boom"
        else:
            expected.rows = None  # it returns nothing
        if action == "finish":
            arguments["status"] = status
        elif action == "retry":
            arguments["retry_in"] = "1 day" if schedule == "ahead" else None
        self._call(number, expected, f"{action}_job", **arguments)

    end_another_run = end_run

    @rule(
        number=transactions,
        parts=st.lists(st.tuples(picks, endings, statuses, schedules), min_size=2, max_size=6),
    )
    def finish_jobs(self, number: int, parts: list[tuple[int, str, str, str]]) -> None:
        outcomes: list[dict[str, Any]] = []
        sent: list[dict[str, Any]] = []
        for pick, action, status, schedule in parts:
            job = self._run(number, pick)
            if job is None:
                continue
            run = {"job_id": job.id, "attempt": job.attempts + 1}
            worker = job.worker
            schedule = schedule if action == "retry" else "none"
            outcomes.append(
                {**run, "worker": worker, "action": action, "status": status, "schedule": schedule}
            )
            end = {
                "finish": {"status": status},
                "fail": {"fail": True},
                "retry": {"retry_in": "1 day" if schedule == "ahead" else None},
            }
            sent.append({**run, "worker_id": worker, **end[action]})
        expected = self._session(number).finish_jobs(outcomes)
        self._call(number, expected, "finish_jobs", outcomes=Jsonb(sent))

    @rule(number=transactions, pick=picks)
    def release(self, number: int, pick: int) -> None:
        session, worker = self._session(number), self._worker(number, pick)
        jobs = session.view().jobs("doing")[pick % 2 :: 2]
        job_ids, attempts = [job.id for job in jobs], [job.attempts + 1 for job in jobs]
        expected = session.release(worker, job_ids)
        self._call(
            number, expected, "release_jobs", worker_id=worker, job_ids=job_ids, attempts=attempts
        )

    # --- What people do ------------------------------------------------------------

    def _job(self, number: int, pick: int, *statuses: str) -> int:
        """One of the newest jobs, in these states if there is one."""
        view = self._session(number).view()
        jobs = view.jobs(*statuses) or view.jobs()
        return jobs[-1 - pick % len(jobs)].id if pick and jobs else NO_JOB

    @rule(number=transactions, pick=picks, abort=st.booleans())
    def cancel(self, number: int, pick: int, abort: bool) -> None:
        job_id = self._job(number, pick, "todo", "doing")
        expected = self._session(number).cancel(job_id, abort)
        self._call(number, expected, "cancel_job", job_id=job_id, abort=abort)

    @rule(number=transactions, pick=picks)
    def rerun(self, number: int, pick: int) -> None:
        job_id = self._job(number, pick, "succeeded", "failed", "cancelled", "aborted")
        self._call(number, self._session(number).rerun(job_id), "rerun_job", job_id=job_id)

    @rule(number=transactions, pick=picks)
    def delete(self, number: int, pick: int) -> None:
        job_id = self._job(number, pick, "doing" if pick % 2 else "todo")
        query = "delete from procrastinate_jobs where id = %(job_id)s returning id"
        self._execute(number, self._session(number).delete(job_id), query, job_id=job_id)

    @rule(
        number=transactions,
        pick=picks,
        changes=st.fixed_dictionaries(
            {},
            optional={
                "priority": priorities,
                "lock": st.none() | locks,
                "queue": queues,
                "schedule": schedules,
            },
        ).filter(bool),
    )
    def edit(self, number: int, pick: int, changes: dict[str, Any]) -> None:
        job_id = self._job(number, pick, "todo")
        if "lock" in changes:
            changes = {**changes, "lock": self._lock(changes["lock"])}
        expected = self._session(number).edit(job_id, changes)
        if "schedule" in changes:
            changes = {**changes, "schedule": AHEAD if changes["schedule"] == "ahead" else None}
        self._execute(
            number,
            expected,
            f"update procrastinate_jobs set {', '.join(EDITS[name] for name in changes)} "
            "where id = %(job_id)s and status = 'todo' returning id",
            job_id=job_id,
            **changes,
        )

    @rule(number=transactions, pick=picks, status=st.sampled_from(["todo", "todo", "doing"]))
    def hold(self, number: int, pick: int, status: str) -> None:
        self.begin(number, READ_COMMITTED)
        job_id = self._job(number, pick, status)
        query = "select id from procrastinate_jobs where id = %(job_id)s for update"
        self._execute(number, self._session(number).hold(job_id), query, job_id=job_id)

    @rule(number=transactions, queue=queues, paused=rarely)
    def pause(self, number: int, queue: str, paused: bool) -> None:
        session = self._session(number)
        if paused or session.view().is_paused(queue):
            verb = "pause" if paused else "resume"
            self._call(number, session.pause(queue, paused), f"{verb}_queue", queue_name=queue)

    @rule()
    def let_time_pass(self) -> None:
        with self.auditor.transaction():
            self.auditor.execute("set local session_replication_role = replica")
            due = {row[0] for row in self.auditor.execute(LET_TIME_PASS)}
        self.journal.append(("time passes", due))
        held = self._session(ALONE).held()
        waiting = [
            job
            for job in self._session(ALONE).view().jobs("todo")
            if job.schedule == "ahead" and ("job", job.id) not in held
        ]
        assert due == {job.id for job in waiting}
        self.database.commit({("job", job.id): replace(job, schedule="past") for job in waiting})

    # --- What must be true -----------------------------------------------------------

    @invariant()
    def nothing_but_the_expected_is_committed(self) -> None:
        stored = {row[0]: row for row in self.auditor.execute(COMMITTED)}
        jobs = self._session(ALONE).view().jobs()
        expected = {
            job.id: (
                *(job.id, job.task, job.queue, job.priority, job.lock, job.queueing_lock),
                *(job.status, job.attempts, job.failures, job.handed_back, job.lost),
                *(job.worker, job.abort),
            )
            for job in jobs
        }
        assert stored == expected
        running = Counter(job.lock for job in jobs if job.status == "doing" and job.lock)
        assert set(running.values()) <= {1}
        self.sound = True

    def teardown(self) -> None:
        if self.sound:
            self._drain()
        if not self.sound:
            self.failed[:] = self.journal
            for connection in self.connections:
                connection.execute("rollback")

    def _drain(self) -> None:
        for number in IN_TRANSACTIONS:
            (self.commit if number % 2 else self.rollback)(number)
        self.sound = False
        self.counts["examples"] += 1
        self.counts["locks"] += self.deferred // JOBS_PER_LOCK
        assert not (stranded := drain(self.auditor)), f"stranded: {stranded}"
        unfinished = "select from procrastinate_jobs where finished_at is null"
        assert not self.auditor.execute(unfinished).rowcount
        self.sound = True


@pytest.mark.parametrize("has_eras", [False, True], ids=["no floors of locks", "floors of locks"])
def test_any_sequence_of_transactions_keeps_the_contract(
    connect: Callable[..., Connection], has_eras: bool
) -> None:
    """Whatever is called, committed or rolled back, in whatever order: the model holds."""
    auditor = connect(autocommit=True)
    auditor.execute(SETUP)
    profile = PROFILES[os.environ.get("HYPOTHESIS_PROFILE", "default")]
    if has_eras:
        profile = settings(profile, max_examples=profile.max_examples // 2)
        auditor.execute(ERAS.read_bytes())
    connections = [connect(autocommit=True) for _ in (*IN_TRANSACTIONS, ALONE)]
    for connection in connections:
        connection.execute(f"set lock_timeout = '{LOCK_TIMEOUT}'; set statement_timeout = '20s'")
    counts: Counter[str | None] = Counter()
    failed: list[Any] = []

    members = {
        "auditor": auditor,
        "connections": connections,
        "counts": counts,
        "failed": failed,
    }
    machine = type("Contract", (Contract,), members)
    try:
        run_state_machine_as_test(machine, settings=profile)
    finally:
        print("The failed sequence, as it went:" if failed else "", *failed, sep="\n    ")
        print(dict(counts))

    # A run that met nothing proves nothing.
    ((eras,),) = auditor.execute("select last_value from procrastinate_lock_era").fetchall()
    assert (eras > 100) == has_eras
    assert counts["locks"] > 300
    assert counts["claimed"] > 300
    for code in ("PC001", "PC002", "PC004", "PC005", "25001", "40001", "55P03"):
        assert counts[code], f"the run never met {code}"
