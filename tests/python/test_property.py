"""Random transactions on several connections, each call checked against the model of the contract.

One thread drives all connections, so that a run is repeatable: a call that has to wait for another
open transaction is given up after LOCK_TIMEOUT, and must have had a reason to wait by the model.
Few jobs share a lock, so that no later call mends what an earlier one has broken.

    HYPOTHESIS_PROFILE=long pytest tests/python/test_property.py     # some minutes, other seeds
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any, LiteralString

import psycopg
from audit import RUNNABLE, claim_all_runnable, drain
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from model import ISOLATION_LEVELS, READ_COMMITTED, Expected, Job, Model
from psycopg import sql
from psycopg.types.json import Jsonb

LOCK_TIMEOUT = "8ms"
CONNECTIONS = 4
JOBS_PER_LOCK = 2  # on average; those of an edit come on top
QUEUES = ["mail", "bulk", "slow"]
TASKS = ["plain", "stubborn", "fleeting"]
WAITS = {"none": None, "soon": "1 millisecond", "long": "1 day"}

SERIALIZATION_FAILURE = "40001"
LOCK_NOT_AVAILABLE = "55P03"

COMMON: dict[str, Any] = {
    "deadline": None,
    "print_blob": False,
    "database": None,
    "report_multiple_bugs": False,
    "suppress_health_check": list(HealthCheck),
}
PROFILES = {
    # One failing sequence as it came, at once.
    "unshrunk": settings(
        max_examples=150,
        stateful_step_count=120,
        derandomize=True,
        phases=[Phase.generate],
        **COMMON,
    ),
    "default": settings(max_examples=150, stateful_step_count=120, derandomize=True, **COMMON),
    "long": settings(max_examples=500, stateful_step_count=200, derandomize=False, **COMMON),
}

SETUP = """
    select procrastinate_declare_task(
        'stubborn', max_attempts => 3, backoff => 'constant', retry_delay => '0', jitter => 0
    );
    select procrastinate_declare_task('fleeting', keep_finished => '0');
"""

COMMITTED = """
    select
        job.id, job.task_name, job.queue_name, job.priority, job.lock, job.queueing_lock,
        job.status::text, job.attempts, job.failures, job.handed_back, job.lost,
        case when job.status = 'doing' then job.worker_id end, job.abort_requested
    from procrastinate_jobs as job
    order by job.id
"""

connections = st.integers(0, CONNECTIONS - 1)
isolations = st.sampled_from(ISOLATION_LEVELS)
picks = st.integers(0, 11)
"""Which of the newest candidates a step takes."""
priorities = st.sampled_from([0, 0, 0, 1, -1])
waits = st.sampled_from(["none", "none", "none", "soon", "long"])
queues = st.sampled_from(QUEUES)
near = st.integers(0, 1)
"""Which of the locks in use at present."""
queueing_locks = st.sampled_from([None, None, None, "q1", "q2"])
conflicts = st.sampled_from(["raise", "skip", "replace"])
rarely = st.sampled_from([True, True, True, False])
"""Most often true: a step with drastic effects then does less."""
endings = st.sampled_from(["finish", "finish", "fail", "retry", "retry"])

new_jobs = st.fixed_dictionaries(
    {
        "task": st.sampled_from(TASKS),
        "queue": queues,
        "priority": priorities,
        "near": st.none() | near,
        "wait": waits,
    }
)


class Contract(RuleBasedStateMachine):
    """Steps are begin, a call, commit and rollback; the model says what each call must do."""

    auditor: psycopg.Connection[Any]
    sessions: list[psycopg.Connection[Any]]
    counts: Counter[str]

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.deferred = 0
        self.sound = True
        self.journal: list[tuple[Any, ...]] = []
        self.counts["examples"] += 1

    @initialize()
    def start(self) -> None:
        self.auditor.execute("delete from procrastinate_jobs")
        self.auditor.execute("delete from procrastinate_workers")
        self.auditor.execute("delete from procrastinate_queues")
        self.auditor.execute("delete from procrastinate_abort_requests")
        for _ in range(3):
            self.register(0)

    # --- Transactions --------------------------------------------------------------

    @rule(number=connections, isolation=isolations)
    def begin(self, number: int, isolation: str) -> None:
        if number not in self.model.open:
            # The query takes the snapshot.
            self.journal.append((number, f"begin isolation level {isolation}"))
            self.sessions[number].execute(f"begin isolation level {isolation}; select 1")  # type: ignore[arg-type]
            self.model.begin(number, isolation)

    @rule(number=connections)
    def commit(self, number: int) -> None:
        if number not in self.model.open:
            return
        isolation = self.model.isolation(number)
        self.journal.append((number, "commit"))
        try:
            self.sessions[number].execute("commit")
        except psycopg.Error as error:
            self._must_be_serialization_failure(error, isolation)
            self.model.rollback(number)
        else:
            self.model.commit(number)

    commit_again = commit_more = commit

    @rule(number=connections)
    def rollback(self, number: int) -> None:
        if number not in self.model.open:
            return
        self.journal.append((number, "rollback"))
        self.sessions[number].execute("rollback")
        self.model.rollback(number)

    def _call(
        self,
        number: int,
        expected: Expected,
        statement: LiteralString | sql.Composed,
        *arguments: Any,
        before: tuple[LiteralString, Any] | None = None,
    ) -> list[tuple[Any, ...]] | None:
        """Make a call; return its rows, or None after an error, which must be the expected one.

        In an open transaction it runs in a savepoint, as frameworks do, so that the transaction
        goes on after an error. `before` is a statement to be executed in the same transaction.
        """
        self.sound = False
        self.counts["calls"] += 1
        self.journal.append((number, statement, arguments))
        session = self.sessions[number]
        isolation = self.model.isolation(number)
        try:
            with session.transaction():
                if before is not None:
                    session.execute(*before)
                rows = session.execute(statement, arguments).fetchall()
        except psycopg.Error as error:
            self.journal.append((number, error))
            self.counts[str(error.sqlstate)] += 1
            if error.sqlstate == SERIALIZATION_FAILURE:
                self._must_be_serialization_failure(error, isolation)
                self.rollback(number)
            elif error.sqlstate == LOCK_NOT_AVAILABLE:
                if not self.model.may_wait(number, expected):
                    raise
            elif error.sqlstate != expected.error:
                raise
            return None
        self.journal.append((number, rows))
        assert expected.error is None, f"expected {expected.error}, got {rows}"
        # What was scheduled for soon is due by the next step: steps do not depend on their speed.
        time.sleep(0.001 if WAITS["soon"] in arguments else 0)
        return rows

    @staticmethod
    def _must_be_serialization_failure(error: psycopg.Error, isolation: str) -> None:
        if error.sqlstate != SERIALIZATION_FAILURE or isolation == READ_COMMITTED:
            raise error

    def _call_for_value(self, number: int, expected: Expected, *call: Any, **options: Any) -> None:
        """Make a call of one value, which must be the expected one."""
        rows = self._call(number, expected, *call, **options)
        if rows is not None:
            assert expected.result in (None, rows[0][0]), f"{rows}, expected {expected.result}"
            self.model.apply(number, expected)

    # --- Producers -----------------------------------------------------------------

    def _lock(self, offset: int) -> str:
        """A lock of those in use at present; with each few jobs another comes into use."""
        return f"lock {self.deferred // JOBS_PER_LOCK + offset}"

    def _new_job(
        self, new: dict[str, Any], queueing_lock: str | None = None, lock: str | None = None
    ) -> Job:
        if lock is None and new["near"] is not None:
            lock = self._lock(new["near"])
        self.deferred += 1
        return Job(0, new["task"], new["queue"], new["priority"], lock, queueing_lock, new["wait"])

    def _defer(
        self,
        number: int,
        new: dict[str, Any],
        queueing_lock: str | None = None,
        on_conflict: str = "raise",
        lock: str | None = None,
    ) -> None:
        job = self._new_job(new, queueing_lock, lock)
        expected = self.model.defer(number, job, on_conflict)
        rows = self._call(
            number,
            expected,
            "select procrastinate_defer_job("
            "%s, '{}', %s, %s, %s, %s, clock_timestamp() + %s::interval, on_conflict => %s)",
            *(job.task, job.queue, job.priority, job.lock, job.queueing_lock),
            *(WAITS[job.wait], on_conflict),
        )
        if rows is None:
            return
        ((job_id,),) = rows
        if expected.result is None:
            assert self.model.newest(number).job(job_id) is None
            expected = self.model.deferred(job, job_id)
        else:
            assert job_id == expected.result
        self.model.apply(number, expected)

    @rule(number=connections, new=new_jobs)
    def defer(self, number: int, new: dict[str, Any]) -> None:
        self._defer(number, new)

    @rule(number=connections, new=new_jobs, near=near)
    def defer_with_lock(self, number: int, new: dict[str, Any], near: int) -> None:
        self._defer(number, {**new, "near": near})

    @rule(
        number=connections,
        new=new_jobs,
        queueing_lock=st.sampled_from(["q1", "q2"]),
        on_conflict=conflicts,
    )
    def defer_once(
        self, number: int, new: dict[str, Any], queueing_lock: str, on_conflict: str
    ) -> None:
        self._defer(number, new, queueing_lock, on_conflict)

    @rule(number=connections, news=st.lists(new_jobs, min_size=2, max_size=4), same=st.booleans())
    def defer_jobs(self, number: int, news: list[dict[str, Any]], same: bool) -> None:
        jobs = [self._new_job(new) for new in news]
        if same:
            jobs = [replace(job, lock=jobs[-1].lock) for job in jobs]
        batch = [
            {
                "task_name": job.task,
                "queue_name": job.queue,
                "priority": job.priority,
                "lock": job.lock,
                "scheduled_at": "2999-01-01" if job.wait == "long" else None,
            }
            for job in jobs
        ]
        rows = self._call(
            number, Expected(), "select * from procrastinate_defer_jobs(%s)", Jsonb(batch)
        )
        if rows is None:
            return
        assert [row[0] for row in rows] == list(range(1, len(jobs) + 1))
        for job, (_, job_id, created) in zip(jobs, rows, strict=True):
            assert created
            self.model.apply(number, self.model.deferred(job, job_id))

    defer_another_with_lock = defer_with_lock

    @rule(number=connections, new=new_jobs, pick=picks)
    def defer_ahead(self, number: int, new: dict[str, Any], pick: int) -> None:
        """Defer a job whose turn is before that of a waiting one."""
        locked = [job for job in self.model.view(number).jobs("todo") if job.lock]
        if locked:
            lock = locked[-1 - pick % len(locked)].lock
            self._defer(number, {**new, "priority": 2}, lock=lock)

    # --- Workers -------------------------------------------------------------------

    def _worker(self, number: int, pick: int) -> int:
        """A worker: most often a living one."""
        view = self.model.view(number)
        workers = view.workers(alive=pick > 0) or view.workers(alive=False) or [0]
        return workers[pick % len(workers)]

    @rule(
        number=connections,
        pick=picks,
        named=st.none() | st.lists(queues, min_size=1, max_size=2),
        max_jobs=st.sampled_from([1, 1, 2, 50]),
        close=rarely,
    )
    def fetch(
        self, number: int, pick: int, named: list[str] | None, max_jobs: int, close: bool
    ) -> None:
        if not close:
            self.begin(number, READ_COMMITTED)
        worker = self._worker(number, pick)
        expected = self.model.fetch(number, worker)
        rows = self._call(
            number,
            expected,
            "select job.id, job.attempt, job.scheduled_at, clock_timestamp() "
            "from procrastinate_fetch_jobs(%s, %s, %s) as job",
            *(worker, named, max_jobs),
        )
        if rows is None:
            return
        for job_id, _, scheduled_at, now in rows:
            assert scheduled_at is None or scheduled_at <= now, f"job {job_id} is not due"
        claimed = {row[0]: row[1] for row in rows}
        assert len(claimed) == len(rows)
        self.counts["claimed"] += len(claimed)
        expected = self.model.audit_fetch(number, claimed, worker, named, max_jobs)
        self.model.apply(number, expected)

    fetch_again = fetch_more = fetch

    @rule(number=connections)
    def register_if_few(self, number: int) -> None:
        if len(self.model.view(number).workers(alive=True)) < 3:
            self.register(number)

    def register(self, number: int) -> None:
        rows = self._call(
            number,
            Expected(),
            "select procrastinate_register_worker(null, '1 hour', '1 day')",
        )
        if rows is not None:
            self.model.apply(number, Expected(writes={("worker", rows[0][0]): True}))

    @rule(number=connections, pick=picks, often=rarely)
    def unregister(self, number: int, pick: int, often: bool) -> None:
        if often:
            return
        worker = self._worker(number, pick)
        expected = self.model.unregister(number, worker)
        self._call_for_value(number, expected, "select procrastinate_unregister_worker(%s)", worker)

    @rule(number=connections, pick=picks, often=rarely)
    def rescue(self, number: int, pick: int, often: bool) -> None:
        silent = None if often else self._worker(number, pick)
        expected = self.model.rescue(number, silent)
        rows = self._call(
            number,
            expected,
            "select * from procrastinate_rescue_jobs()",
            before=(
                "update procrastinate_workers set last_heartbeat = '2000-01-01', "
                "lease = '0.1 seconds' where id = %s",
                (silent,),
            ),
        )
        if rows is not None:
            assert set(rows) == expected.result
            self.model.apply(number, expected)

    @rule(number=connections, pick=picks)
    def heartbeat(self, number: int, pick: int) -> None:
        view = self.model.view(number)
        if self.model.others_tidy(number) and any(
            job.status == "todo" and view.is_noted(job.id) for job in view.jobs()
        ):
            return  # whether that job's row is held at present is not for the model to know
        worker = self._worker(number, pick)
        believed = [job for job in view.jobs("doing") if job.worker == worker or job.id % 3 == 0]
        expected = self.model.heartbeat(number, worker)
        rows = self._call(
            number,
            expected,
            "select abort_job_ids, lost_job_ids from procrastinate_heartbeat(%s, %s, %s)",
            worker,
            [job.id for job in believed],
            [job.attempts + 1 for job in believed],
        )
        if rows is not None:
            abort, mine = expected.result
            assert set(rows[0][0]) == abort
            assert set(rows[0][1]) == {job.id for job in believed} - mine
            self.model.apply(number, expected)

    # --- Ends of runs --------------------------------------------------------------

    def _run(self, number: int, pick: int) -> Job | None:
        """A job to end the run of: mostly a running one, sometimes one that is not."""
        view = self.model.view(number)
        jobs = view.jobs("doing") if pick else view.jobs()
        return jobs[-1 - pick % len(jobs)] if jobs else None

    @rule(number=connections, pick=picks, action=endings, wait=waits, fence=st.booleans())
    def end_run(self, number: int, pick: int, action: str, wait: str, fence: bool) -> None:
        job = self._run(number, pick)
        if job is None:
            return
        # A pick of 1 comes from an earlier attempt, or from another worker.
        attempt = job.attempts + (pick != 1 or fence)
        worker = (job.worker or 0) + (pick == 1) if fence else None
        wait = wait if action == "retry" else "none"
        expected = self.model.finish(number, job.id, attempt, worker, action, "succeeded", wait)
        if action == "finish":
            expected.result = None
            statement: LiteralString = (
                "select nullif(procrastinate_finish_job(%s, %s, worker_id => %s)::text, '')"
            )
            arguments: list[Any] = [job.id, attempt, worker]
        elif action == "fail":
            statement = "select procrastinate_fail_job(%s, %s, 'boom', %s)"
            arguments = [job.id, attempt, worker]
        else:
            expected.result = None
            statement = (
                "select nullif("
                "procrastinate_retry_job(%s, %s, %s::interval, worker_id => %s)::text, '')"
            )
            arguments = [job.id, attempt, WAITS[wait], worker]
        self._call_for_value(number, expected, statement, *arguments)

    end_another_run = end_run

    @rule(
        number=connections,
        parts=st.lists(st.tuples(picks, endings, waits), min_size=2, max_size=6),
    )
    def finish_jobs(self, number: int, parts: list[tuple[int, str, str]]) -> None:
        outcomes: list[dict[str, Any]] = []
        for pick, action, wait in parts:
            job = self._run(number, pick)
            if job is not None:
                outcomes.append(
                    {
                        "job_id": job.id,
                        "attempt": job.attempts + 1,
                        "worker": job.worker,
                        "action": action,
                        "status": "failed",
                        "wait": wait if action == "retry" else "none",
                    }
                )
        keys: dict[str, Callable[[str], dict[str, Any]]] = {
            "finish": lambda wait: {"status": "failed", "error": "boom"},
            "fail": lambda wait: {"fail": True, "error": "boom"},
            "retry": lambda wait: {"retry_in": WAITS[wait]},
        }
        sent = [
            {"job_id": part["job_id"], "attempt": part["attempt"], "worker_id": part["worker"]}
            | keys[part["action"]](part["wait"])
            for part in outcomes
        ]
        expected = self.model.finish_jobs(number, outcomes)
        rows = self._call(
            number, expected, "select * from procrastinate_finish_jobs(%s)", Jsonb(sent)
        )
        if rows is not None:
            assert [row[0] for row in rows] == expected.result
            self.model.apply(number, expected)

    @rule(number=connections, pick=picks)
    def release(self, number: int, pick: int) -> None:
        worker = self._worker(number, pick)
        held = [job.id for job in self.model.view(number).jobs("doing") if job.id % 2 == pick % 2]
        expected = self.model.release(number, worker, held)
        rows = self._call(
            number, expected, "select procrastinate_release_jobs(%s, %s)", worker, held
        )
        if rows is not None:
            assert {row[0] for row in rows} == expected.result
            self.model.apply(number, expected)

    # --- What people do ------------------------------------------------------------

    def _job(self, number: int, pick: int, *statuses: str) -> int:
        """One of the newest jobs in these states (none: any), or one that does not exist."""
        jobs = self.model.view(number).jobs(*statuses)
        return jobs[-1 - pick // 3 % len(jobs)].id if jobs else 2**62

    @rule(number=connections, pick=picks, abort=st.booleans())
    def cancel(self, number: int, pick: int, abort: bool) -> None:
        job_id = self._job(number, pick, *(("doing", "todo") if pick % 3 else ()))
        expected = self.model.cancel(number, job_id, abort)
        self._call_for_value(
            number, expected, "select procrastinate_cancel_job(%s, %s)", job_id, abort
        )

    @rule(number=connections, pick=picks)
    def rerun(self, number: int, pick: int) -> None:
        finished = ("succeeded", "failed", "cancelled", "aborted") if pick else ()
        job_id = self._job(number, pick, *finished)
        expected = self.model.rerun(number, job_id)
        self._call_for_value(number, expected, "select procrastinate_rerun_job(%s)", job_id)

    @rule(number=connections, pick=picks, often=rarely)
    def delete(self, number: int, pick: int, often: bool) -> None:
        if often:
            return
        job_id = self._job(number, pick, *(("doing", "todo") if pick % 2 else ()))
        expected = self.model.delete(number, job_id)
        self._call_for_value(
            number,
            expected,
            "with gone as (delete from procrastinate_jobs where id = %s returning 1) "
            "select count(*) from gone",
            job_id,
        )

    @rule(
        number=connections,
        pick=picks,
        changes=st.one_of(
            st.fixed_dictionaries({"priority": priorities}),
            st.fixed_dictionaries({"lock": st.none() | near}),
            st.fixed_dictionaries({"queue": queues}),
            st.fixed_dictionaries({"wait": waits}),
            st.fixed_dictionaries({"lock": near, "priority": priorities, "queue": queues}),
        ),
    )
    def edit(self, number: int, pick: int, changes: dict[str, Any]) -> None:
        if changes.get("lock") is not None:
            changes = {**changes, "lock": self._lock(changes["lock"])}
        assignments = {
            "priority": "priority = %s",
            "lock": "lock = %s",
            "queue": "queue_name = %s",
            "wait": "scheduled_at = clock_timestamp() + %s::interval",
        }
        job_id = self._job(number, pick, "todo")
        expected = self.model.edit(number, job_id, **changes)
        self._call_for_value(
            number,
            expected,
            sql.SQL(
                "with edited as (update procrastinate_jobs set {} "
                "where id = %s and status = 'todo' returning 1) select count(*) from edited"
            ).format(sql.SQL(", ").join([sql.SQL(assignments[key]) for key in changes])),  # type: ignore[arg-type]
            *(WAITS[value] if key == "wait" else value for key, value in changes.items()),
            job_id,
        )

    @rule(number=connections, pick=picks, status=st.sampled_from(["todo", "todo", "doing"]))
    def hold(self, number: int, pick: int, status: str) -> None:
        self.begin(number, READ_COMMITTED)
        job_id = self._job(number, pick, status)
        expected = self.model.edit(number, job_id)
        self._call_for_value(
            number,
            expected,
            "with held as (select from procrastinate_jobs where id = %s for update) "
            "select count(*) from held",
            job_id,
        )

    @rule(number=connections, queue=queues, paused=st.sampled_from([True, False, False]))
    def pause(self, number: int, queue: str, paused: bool) -> None:
        if not paused and not self.model.view(number).is_paused(queue):
            return
        statement: LiteralString = (
            "select nullif(procrastinate_pause_queue(%s)::text, '')"
            if paused
            else "select nullif(procrastinate_resume_queue(%s)::text, '')"
        )
        self._call_for_value(number, self.model.pause(queue, paused), statement, queue)

    # --- What must be true -----------------------------------------------------------

    @invariant()
    def nothing_but_the_expected_is_committed(self) -> None:
        stored = {row[0]: row for row in self.auditor.execute(COMMITTED)}
        jobs = {key[1]: job for key, job in self.model.committed.items() if key[0] == "job"}
        expected = {
            job.id: (
                *(job.id, job.task, job.queue, job.priority, job.lock, job.queueing_lock),
                *(job.status, job.attempts, job.failures, job.handed_back, job.lost),
                *(job.worker if job.status == "doing" else None, job.abort),
            )
            for job in jobs.values()
        }
        assert stored == expected
        running = Counter(job.lock for job in jobs.values() if job.status == "doing" and job.lock)
        assert set(running.values()) <= {1}
        self.sound = True

    def teardown(self) -> None:
        if self.sound:
            self._drain()
        if not self.sound:
            print("The failed sequence as it went:", *self.journal, sep="\n    ", flush=True)
            for session in self.sessions:
                session.execute("rollback")

    def _drain(self) -> None:
        for number in range(CONNECTIONS):
            (self.commit if number % 2 else self.rollback)(number)
        self.sound = False
        self.counts["locks"] += self.deferred // JOBS_PER_LOCK
        self.counts["left"] += len(self.auditor.execute(RUNNABLE).fetchall())
        # Once before anything is finished, since that would mend a lock that was left behind.
        claim_all_runnable(self.auditor)
        drain(self.auditor)
        unfinished = "select from procrastinate_jobs where finished_at is null"
        assert not self.auditor.execute(unfinished).fetchall()
        self.sound = True


def test_any_sequence_of_transactions_keeps_the_contract(
    connect: Callable[..., psycopg.Connection[Any]],
) -> None:
    """Whatever is called, committed or rolled back, in whatever order: the model holds."""
    counts: Counter[str] = Counter()
    auditor = connect(autocommit=True)
    auditor.execute(SETUP)
    sessions = [connect(autocommit=True) for _ in range(CONNECTIONS)]
    for session in sessions:
        session.execute(f"set lock_timeout = '{LOCK_TIMEOUT}'; set statement_timeout = '20s'")  # type: ignore[arg-type]

    members = {"counts": counts, "auditor": auditor, "sessions": sessions}
    machine = type("Contract", (Contract,), members)
    profile = PROFILES[os.environ.get("HYPOTHESIS_PROFILE", "default")]
    run_state_machine_as_test(machine, settings=profile)

    print(dict(counts))
    assert counts["locks"] > 300
    assert counts["claimed"] > 300
    for code in ("PC001", "PC002", "PC004", "25001", SERIALIZATION_FAILURE, LOCK_NOT_AVAILABLE):
        assert counts[code], f"the run never met {code}"
