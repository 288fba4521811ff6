"""Eight processes at once, killed and held up; then the database is asked what happened.

Triggers write each change of a job's state to `history`, with the transaction that made it, and
for a claim with two snapshots: one from before the fetch and one from after its claim. Whatever was
true in both was true when the claim decided, so that order and exclusion are audited by what was
committed, not by the queue's own checks.

    make stress
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from audit import claim_all, drain
from concurrency import Worker, begin, defer
from stress_process import NOTE_SNAPSHOT

SECONDS = float(os.environ.get("PROCRASTINATE_STRESS_SECONDS", "10"))
ROLES = ["worker"] * 6 + ["person", "killer"]
LOCKS = [2, 4, 300]

SETUP = """
    select procrastinate_declare_task(
        'stubborn', max_attempts => 3, backoff => 'constant', retry_delay => '0'
    );
    select procrastinate_declare_task('fleeting', keep_finished => '0');

    create table history (
        seq bigint generated always as identity,
        xid xid8 not null default pg_current_xact_id(),
        job_id bigint not null,
        lock text,
        priority integer,
        was text,
        status text,
        attempts integer,
        before_fetch text,
        after_claim text
    );

    create function note_history() returns trigger language plpgsql as $$
    declare
        job procrastinate_jobs := case when tg_op = 'DELETE' then old else new end;
        was text := case when tg_op <> 'INSERT' then old.status end;
        is_claim boolean := tg_op = 'UPDATE' and was = 'todo' and new.status = 'doing';
    begin
        insert into history (
            job_id, lock, priority, was, status, attempts, before_fetch, after_claim
        )
        values (
            job.id, job.lock, job.priority, was,
            case when tg_op <> 'DELETE' then new.status end, job.attempts,
            case when is_claim then nullif(current_setting('stress.snapshot', true), '') end,
            case when is_claim then pg_current_snapshot()::text end
        );
        return null;
    end;
    $$;

    create trigger note_history after insert or update or delete on procrastinate_jobs
    for each row execute function note_history();
"""


@dataclass(frozen=True)
class Snapshot:
    """What was committed at some moment, as PostgreSQL writes it: xmin:xmax:xip,…"""

    xmin: int
    xmax: int
    running: frozenset[int]

    @classmethod
    def read(cls, text: str | None) -> Snapshot | None:
        if text is None:
            return None
        xmin, xmax, running = text.split(":")
        return cls(int(xmin), int(xmax), frozenset(map(int, running.split(",") if running else ())))

    def sees(self, event: Event) -> bool:
        xid = event.xid
        return xid < self.xmin or (xid < self.xmax and xid not in self.running)


@dataclass(frozen=True)
class Event:
    """A committed change of a job. `status` is None when it was deleted."""

    seq: int
    xid: int
    job_id: int
    lock: str | None
    priority: int
    was: str | None
    status: str | None
    attempts: int
    before: Snapshot | None
    after: Snapshot | None

    @property
    def is_claim(self) -> bool:
        return self.was == "todo" and self.status == "doing"

    @property
    def is_end_of_run(self) -> bool:
        return self.was == "doing" and self.status != "doing"

    @property
    def place(self) -> tuple[int, int]:
        return (-self.priority, self.job_id)


def read_history(conn: psycopg.Connection[Any]) -> list[Event]:
    rows = conn.execute(
        "select seq, xid::text, job_id, lock, priority, was, status, attempts, "
        "before_fetch, after_claim from history order by seq"
    )
    return [
        Event(
            seq=seq,
            xid=int(xid),
            job_id=job_id,
            lock=lock,
            priority=priority,
            was=was,
            status=status,
            attempts=attempts,
            before=Snapshot.read(before),
            after=Snapshot.read(after),
        )
        for seq, xid, job_id, lock, priority, was, status, attempts, before, after in rows
    ]


def audit_runs(history: Iterable[Event]) -> list[str]:
    """Attempts only go up, by one at each end of a run; a run ends once."""
    wrong = []
    attempts: dict[int, int] = {}
    for event in history:
        before = attempts.get(event.job_id, 0)
        attempts[event.job_id] = event.attempts
        # A row that its end deletes keeps the number of the runs before.
        ends = event.is_end_of_run and event.status is not None
        if event.attempts != before + ends:
            wrong.append(f"attempts went from {before} to {event.attempts}: {event}")
    return wrong


def audit_exclusion(history: Iterable[Event]) -> list[str]:
    """When a job was claimed, the run before it in its lock had ended and was committed."""
    wrong = []
    of_lock: dict[str, Event] = {}
    of_job: dict[int, Event] = {}
    ends: dict[Event, Event] = {}
    for event in history:
        # A job may run again, in another lock or none: an end belongs to its last claim.
        if event.is_end_of_run:
            ends[of_job[event.job_id]] = event
        if not event.is_claim:
            continue
        of_job[event.job_id] = event
        last = of_lock.get(event.lock) if event.lock else None
        if event.lock:
            of_lock[event.lock] = event
        if last is None:
            continue
        end = ends.get(last)
        if end is None:
            wrong.append(f"claimed while {last} ran: {event}")
        elif event.after is not None and not event.after.sees(end):
            wrong.append(f"claimed before {end} was committed: {event}")
    return wrong


def audit_order(history: list[Event]) -> tuple[list[str], int]:
    """No claim went ahead of a waiting job whose turn was before it; also: how many were judged."""
    wrong = []
    judged = 0
    events: dict[int, list[Event]] = defaultdict(list)
    members: dict[str | None, dict[int, list[Event]]] = defaultdict(dict)
    for event in history:
        events[event.job_id].append(event)
        members[event.lock][event.job_id] = events[event.job_id]

    for claim in history:
        if not claim.is_claim or claim.lock is None or not claim.before or not claim.after:
            continue
        judged += 1
        over = []
        for job_id, changes in members[claim.lock].items():
            if changes[0].seq > claim.seq or job_id == claim.job_id:
                continue
            seen = [change for change in changes if claim.before.sees(change)]
            if len(seen) == len(changes) and changes[-1].status not in ("todo", "doing"):
                if changes[-1].xid < claim.before.xmin:
                    over.append(job_id)
                continue
            if not seen or len(seen) < sum(claim.after.sees(change) for change in changes):
                continue  # not yet there, or changed in between
            waits = seen[-1].status == "todo" and seen[-1].lock == claim.lock
            if waits and seen[-1].place < claim.place:
                wrong.append(f"{claim} went ahead of {seen[-1]}")
        for job_id in over:
            del members[claim.lock][job_id]
    return wrong, judged


def audit_reports(reports: list[dict[str, Any]], history: list[Event]) -> list[str]:
    """What was said to the processes is what happened."""
    created = {event.job_id for event in history if event.was is None}
    ends = Counter(
        (event.job_id, event.attempts + (event.status is None))
        for event in history
        if event.is_end_of_run and event.status in ("succeeded", None)
    )
    wrong = []
    for report in reports:
        wrong += [f"job {job_id} was lost" for job_id in set(report["deferred"]) - created]
        for job_id, attempt in report["finished"]:
            if ends[job_id, attempt] != 1:
                wrong.append(f"attempt {attempt} of job {job_id} did not end as reported")
    return wrong


def run_processes(dsn: str, seconds: float, locks: int) -> list[dict[str, Any]]:
    """Run all roles at once; return their reports."""
    program = Path(__file__).with_name("stress_process.py")
    processes = [
        subprocess.Popen(
            [sys.executable, program, dsn, role, str(seed), str(seconds), str(locks)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed, role in enumerate(ROLES)
    ]
    try:
        outputs = [process.communicate(timeout=seconds + 60)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * len(processes)
    return [json.loads(output) for output in outputs]


@pytest.mark.parametrize("locks", LOCKS)
def test_nothing_breaks_under_eight_processes(
    dsn: str, connect: Callable[..., psycopg.Connection[Any]], locks: int
) -> None:
    """No undocumented error, no deadlock, one run per lock, in order, and everything drains."""
    conn = connect(autocommit=True)
    conn.execute(SETUP)
    reports = run_processes(dsn, SECONDS / len(LOCKS), locks)

    done = sum((Counter(report["done"]) for report in reports), Counter())
    errors = sum((Counter(report["errors"]) for report in reports), Counter())

    # First before anything is finished, since that could mend a lock that was left behind.
    stranded = claim_all(conn) or drain(conn)
    history = read_history(conn)
    overtaken, judged = audit_order(history)
    found = {
        "undocumented errors": [line for report in reports for line in report["unexpected"]],
        "stranded": stranded,
        "attempts": audit_runs(history),
        "beside another": audit_exclusion(history),
        "overtaken": overtaken,
        "not as reported": audit_reports(reports, history),
    }
    print(f"\n{locks} locks, {len(history)} changes, order of {judged} claims judged:")
    print("  found", {what: len(wrong) for what, wrong in found.items()})
    print("  calls", dict(done), "errors", dict(errors))
    wrong = {what: (len(each), each[:5]) for what, each in found.items() if each}
    assert not wrong, wrong

    unfinished = "select count(*) from procrastinate_jobs where finished_at is null"
    assert conn.execute(unfinished).fetchall() == [(0,)]
    survivors = {job_id for (job_id,) in conn.execute("select id from procrastinate_jobs")}
    last = {event.job_id: event.status for event in history}
    assert survivors == {job_id for job_id, status in last.items() if status is not None}

    # A stress that did nothing proves nothing.
    assert judged > 20
    for call in ("finish_in_transaction", "retry", "release", "hold", "edit", "kill", "heartbeat"):
        assert done[call], f"no {call} succeeded"


def test_each_audit_can_fail(conn: psycopg.Connection[Any]) -> None:
    """What no call of the queue does, done by hand with its guards taken away, is found."""
    conn.execute(SETUP)
    conn.execute(
        "drop index procrastinate_jobs_lock_running_idx;"
        "alter table procrastinate_jobs disable trigger procrastinate_a_check_edit"
    )
    first, second, stranded = defer(conn, "a"), defer(conn, "a"), defer(conn, "b")
    conn.execute(NOTE_SNAPSHOT)
    for job_id in (second, first):
        conn.execute(
            "update procrastinate_jobs set status = 'doing', ready_seq = null, worker_id = 1,"
            " started_at = now() where id = %s",
            (job_id,),
        )
    conn.execute(
        "update procrastinate_jobs set status = 'succeeded', attempts = 2, finished_at = now()"
        " where id = %s",
        (first,),
    )
    conn.execute("update procrastinate_jobs set ready_seq = null where id = %s", (stranded,))
    conn.execute("delete from procrastinate_lock_events")

    history = read_history(conn)
    ((overtaken,), judged) = audit_order(history)
    assert f"job_id={second}, " in overtaken.split(" went ahead of ")[0]
    assert judged == 2
    assert len(audit_exclusion(history)) == 1
    assert len(audit_runs(history)) == 1
    reports = [{"deferred": [first, 999], "finished": [(first, 2), (second, 1)]}]
    assert len(audit_reports(reports, history)) == 2
    assert [job_id for job_id, *_ in claim_all(conn, patience=0)] == [stranded]


def test_the_run_that_left_its_lock_counts_for_it_no_more(
    conn: psycopg.Connection[Any], connect: Callable[..., psycopg.Connection[Any]]
) -> None:
    """A job that ran with the lock, was moved out of it and runs again is no run of the lock."""
    conn.execute(SETUP)
    worker, caller = Worker(connect(autocommit=True)), connect(autocommit=True)
    moved = defer(conn, "a")
    assert worker.fetch() == [moved]
    worker.end("retry", moved)
    conn.execute("update procrastinate_jobs set lock = null where id = %s", (moved,))
    assert worker.fetch() == [moved]
    begin(caller)
    worker.finish(moved, attempt=2, conn=caller)
    following = defer(conn, "a")
    assert worker.fetch() == [following]
    caller.execute("commit")
    assert audit_exclusion(read_history(conn)) == []
