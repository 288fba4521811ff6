"""Each check of the audit can fail: good evidence is doctored, one fact at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from harness import audit
from harness.evidence import Booking, Change, Departure, Evidence, Job, Ledger, Run

Doctor = Callable[[Evidence], Evidence]


def change(seq: int, job_id: int, was: str | None, status: str, **more: object) -> Change:
    values: dict[str, object] = {
        "at": float(seq),
        "lock": "a",
        "ended": None,
        "attempts": 0,
        "due": None,
        "worker_id": 1,
        "worker": "worker-1",
        **more,
    }
    return Change(seq=seq, job_id=job_id, was=was, status=status, **values)  # type: ignore[arg-type]


def run(job_id: int, started: float, ended: float, **more: object) -> Run:
    values: dict[str, object] = {
        "worker": "worker-1",
        "attempt": 1,
        "reached_end": True,
        "returned": True,
        **more,
    }
    return Run(ref=f"p-{job_id}", job_id=job_id, started=started, ended=ended, **values)  # type: ignore[arg-type]


def booking(seq: int, job_id: int, seen: str, **more: object) -> Booking:
    return replace(
        Booking(seq, "", float(seq), 100 + seq, seen, f"p-{job_id}", job_id, 1, "a"), **more
    )


def job(job_id: int, **more: object) -> Job:
    return replace(Job(job_id, "booked", f"p-{job_id}", "a", "succeeded", 1, 0, 0, 0), **more)


@pytest.fixture
def evidence() -> Evidence:
    """Two jobs of one lock, each run once and booked."""
    return Evidence(
        jobs=[job(1), job(2)],
        history=[
            change(1, 1, None, "todo"),
            change(2, 2, None, "todo"),
            change(3, 1, "todo", "doing"),
            change(4, 1, "doing", "succeeded", ended="finish", attempts=1),
            change(5, 2, "todo", "doing"),
            change(6, 2, "doing", "succeeded", ended="finish", attempts=1),
        ],
        ledger=Ledger(committed={"p-1": "booked", "p-2": "booked"}),
        runs=[run(1, 3.1, 3.9), run(2, 5.1, 5.9)],
        bookings=[booking(1, 1, "101:101:"), booking(2, 2, "102:102:")],
        effects=[],
        departures=[],
    )


def history(number: int, **values: object) -> Doctor:
    """Change one line of the history."""

    def doctor(evidence: Evidence) -> Evidence:
        changes = list(evidence.history)
        changes[number - 1] = replace(changes[number - 1], **values)
        return replace(evidence, history=changes)

    return doctor


def lost_and_repeated(evidence: Evidence, ended: str = "lose", overlap: bool = False) -> Evidence:
    """The first job's first run is taken back; its code goes on beside the second, or not."""
    return replace(
        evidence,
        jobs=[job(1, attempts=2), job(2)],
        history=[
            change(1, 1, None, "todo"),
            change(2, 2, None, "todo"),
            change(3, 1, "todo", "doing"),
            change(4, 1, "doing", "todo", ended=ended, attempts=1),
            change(5, 1, "todo", "doing", attempts=1, worker_id=2, worker="worker-2"),
            change(6, 1, "doing", "succeeded", ended="finish", attempts=2),
            change(7, 2, "todo", "doing"),
            change(8, 2, "doing", "succeeded", ended="finish", attempts=1),
        ],
        runs=[
            run(1, 3.1, 5.5 if overlap else 3.9),
            run(1, 5.1, 5.9, attempt=2, worker="worker-2"),
            run(2, 7.1, 7.9),
        ],
        bookings=[booking(1, 1, "101:101:", attempt=2), booking(2, 2, "102:102:")],
    )


def test_good_evidence_passes(evidence: Evidence):
    assert audit.failures(evidence, audit.burned) == {}


@pytest.mark.parametrize("overlap", [False, True])
def test_a_run_that_was_lost_explains_another(evidence: Evidence, overlap: bool):
    assert audit.failures(lost_and_repeated(evidence, overlap=overlap)) == {}


def test_a_crash_explains_a_run_without_a_claim(evidence: Evidence):
    free = replace(
        evidence,
        jobs=[job(1, lock=None), job(2, lock=None)],
        history=[replace(each, lock=None) for each in evidence.history],
        bookings=[replace(each, lock=None) for each in evidence.bookings],
        runs=[run(1, 2.5, 3.5, worker="worker-2"), *evidence.runs],
    )
    assert audit.failures(replace(free, crashes=[2.8])) == {}
    assert set(audit.failures(free)) == {
        "unexplained_runs",
        "unexplained_repetitions",
        "unexplained_overlaps",
    }
    # Claims of jobs with a lock are durable.
    locked = replace(evidence, runs=free.runs, crashes=[2.8])
    assert "unexplained_runs" in audit.failures(locked)


CASES: dict[str, tuple[audit.Check, Doctor]] = {
    "a job is left over": (
        audit.left_over,
        lambda e: replace(e, jobs=[job(1, status="doing"), job(2)]),
    ),
    "a committed job is gone": (audit.lost, lambda e: replace(e, jobs=[job(2)])),
    "a committed job failed": (
        audit.lost,
        lambda e: replace(e, jobs=[job(1, status="failed"), job(2)]),
    ),
    "a job succeeded without having run": (audit.lost, lambda e: replace(e, runs=e.runs[1:])),
    "a job that was to fail failed once": (
        audit.lost,
        lambda e: replace(e, jobs=[job(1, task="doomed", status="failed", failures=1), job(2)]),
    ),
    "a job exists though rolled back": (
        audit.ghosts,
        lambda e: replace(e, ledger=Ledger({"p-1": "booked"}, {"p-2"})),
    ),
    "a job ran though rolled back": (
        audit.ghosts,
        lambda e: replace(e, runs=[*e.runs, run(3, 7.0, 8.0)]),
    ),
    "a job ran that does not exist": (audit.ghosts, lambda e: replace(e, jobs=[job(1)])),
    "a state was skipped": (audit.illegal_changes, history(4, was="todo")),
    "an attempt was not counted": (audit.illegal_changes, history(6, attempts=0)),
    "a job was started after its end": (
        audit.illegal_changes,
        lambda e: replace(e, history=[*e.history, change(7, 1, "succeeded", "doing", attempts=1)]),
    ),
    "two of a lock were doing": (
        audit.beside_each_other,
        lambda e: replace(e, history=[*e.history[:3], *e.history[4:]]),
    ),
    "a lock was taken out of order": (
        audit.out_of_order,
        lambda e: replace(e, history=[*e.history[:2], *e.history[4:], *e.history[2:4]]),
    ),
    "a job was claimed before its time": (audit.too_early, history(3, due=3.5)),
    "a run had no claim": (
        audit.unexplained_runs,
        lambda e: replace(e, runs=[*e.runs, run(1, 4.5, 4.6, worker="worker-2")]),
    ),
    "one claim was run twice": (
        audit.unexplained_runs,
        lambda e: replace(e, runs=[*e.runs, run(1, 3.95, 3.99)]),
    ),
    "a claim has no end": (
        audit.unexplained_runs,
        lambda e: replace(e, history=e.history[:5]),
    ),
    "a job was given back after its start": (
        audit.unexplained_runs,
        lambda e: lost_and_repeated(e, "release"),
    ),
    "a job succeeded whose code broke off": (
        audit.unexplained_runs,
        lambda e: replace(e, runs=[replace(e.runs[0], reached_end=False), e.runs[1]]),
    ),
    "a job ran again after it had returned": (
        audit.unexplained_repetitions,
        lambda e: lost_and_repeated(e, "fail"),
    ),
    "code overlapped without a loss": (
        audit.unexplained_overlaps,
        lambda e: lost_and_repeated(e, "fail", overlap=True),
    ),
    "code of one lock overlapped": (
        audit.unexplained_overlaps,
        lambda e: replace(e, runs=[replace(e.runs[0], ended=5.5), e.runs[1]]),
    ),
    "an effect is missing": (
        audit.not_booked_once,
        lambda e: replace(e, bookings=e.bookings[1:]),
    ),
    "an effect is there twice": (
        audit.not_booked_once,
        lambda e: replace(e, bookings=[*e.bookings, booking(3, 2, "103:103:")]),
    ),
    "an effect is of a run that did not finish": (
        audit.not_booked_once,
        lambda e: replace(e, bookings=[replace(e.bookings[0], attempt=2), e.bookings[1]]),
    ),
    "finishing transactions overlapped": (
        audit.bookings_overlap,
        lambda e: replace(e, bookings=[e.bookings[0], booking(2, 2, "101:103:101")]),
    ),
    "effects came out of order": (
        audit.bookings_overlap,
        lambda e: replace(e, bookings=[booking(1, 2, "101:101:"), booking(2, 1, "102:102:")]),
    ),
    "an effect of its own is missing": (
        audit.effects_missing,
        lambda e: replace(e, jobs=[job(1, task="recorded"), job(2)]),
    ),
    "an effect is of no run": (
        audit.effects_missing,
        lambda e: replace(e, effects=[("end", "p-1", 1, 7)]),
    ),
    "a worker was given up too soon": (
        audit.given_up_without_reason,
        lambda e: replace(e, departures=[Departure("worker-1", 3.0, 2.0, 1.2, 30.0, True)]),
    ),
    "a worker with a connection was given up": (
        audit.given_up_without_reason,
        lambda e: replace(e, departures=[Departure("worker-1", 3.0, 20.0, 1.2, 30.0, False)]),
    ),
    "an attempt was burned": (audit.burned, lambda e: replace(e, jobs=[job(1, lost=1), job(2)])),
}


@pytest.mark.parametrize(("check", "doctor"), CASES.values(), ids=CASES)
def test_each_check_can_fail(evidence: Evidence, check: audit.Check, doctor: Doctor):
    assert check(evidence) == []
    assert check(doctor(evidence))


def test_every_check_is_tested():
    assert {check for check, _ in CASES.values()} == {*audit.ALL, audit.burned}
