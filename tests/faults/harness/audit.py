"""What must be true when a scenario is over. Each check returns a line for everything wrong.

They go by what was committed (the history that triggers wrote), by what producers were told, and by
what tasks did (their files, their rows): never by what the queue or a worker thinks of itself.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise

from harness.evidence import Claim, Evidence, Run

Check = Callable[[Evidence], list[str]]

PRECISION = 0.001  # seconds: clocks are read before and after what they time
# A run may start so long after the crash that took its claim back: the worker has yet to notice.
NOTICED = 30.0


def left_over(evidence: Evidence) -> list[str]:
    """Every job has ended."""
    return [f"{job}" for job in evidence.jobs if job.status in ("todo", "doing")]


def lost(evidence: Evidence) -> list[str]:
    """Every job of a committed transaction is there, ended as it should, and did run."""
    wrong = []
    jobs = {job.ref: job for job in evidence.jobs}
    ran = {run.ref for run in evidence.runs}
    reached_end = {run.ref for run in evidence.runs if run.reached_end}
    for ref in {*evidence.ledger.committed, *evidence.ledger.unknown}:
        job = jobs.get(ref)
        if job is None:
            if ref in evidence.ledger.committed:
                wrong.append(f"{ref} was committed and is gone")
        elif job.task == "doomed":
            if job.status != "failed" or job.failures != 2 or ref not in ran:
                wrong.append(f"it was to fail twice: {job}")
        elif job.status != "succeeded":
            wrong.append(f"it did not succeed: {job}")
        elif ref not in reached_end:
            wrong.append(f"it did not run to its end: {job}")
    return wrong


def ghosts(evidence: Evidence) -> list[str]:
    """No job of a transaction that was rolled back exists or ran, nor one that nobody deferred."""
    ledger = evidence.ledger
    known = {*ledger.committed, *ledger.unknown}
    wrong = [
        f"rolled back, or never deferred: {job}" for job in evidence.jobs if job.ref not in known
    ]
    wrong += [f"ran though rolled back: {run}" for run in evidence.runs if run.ref not in known]
    exists = {job.ref for job in evidence.jobs}
    wrong += [
        f"ran, and does not exist: {run}"
        for run in evidence.runs
        if run.ref in known and run.ref not in exists
    ]
    return wrong


def illegal_changes(evidence: Evidence) -> list[str]:
    """States follow each other; each end counts one attempt; what has ended stays ended."""
    wrong = []
    last: dict[int, tuple[str | None, int]] = {}
    for change in evidence.history:
        status, attempts = last.get(change.job_id, (None, 0))
        last[change.job_id] = (change.status, change.attempts)
        if change.was != status:
            wrong.append(f"it was {status}: {change}")
        if change.attempts != attempts + (change.is_end and change.status is not None):
            wrong.append(f"it had {attempts} attempts: {change}")
        if status is not None and status not in ("todo", "doing"):
            wrong.append(f"it had ended: {change}")
    return wrong


def beside_each_other(evidence: Evidence) -> list[str]:
    """Never are two jobs of a lock `doing`."""
    wrong = []
    holder: dict[str, int] = {}
    for change in evidence.history:
        if change.lock is None:
            continue
        if change.is_claim:
            if change.lock in holder:
                wrong.append(f"claimed while job {holder[change.lock]} runs: {change}")
            holder[change.lock] = change.job_id
        elif change.is_end and holder.get(change.lock) == change.job_id:
            del holder[change.lock]
    return wrong


def out_of_order(evidence: Evidence) -> list[str]:
    """Within a lock, a job is claimed when all before it have ended."""
    wrong = []
    unfinished: dict[str, set[int]] = defaultdict(set)
    for change in evidence.history:
        if change.lock is None:
            continue
        jobs = unfinished[change.lock]
        if change.was is None:
            jobs.add(change.job_id)
        elif change.is_final:
            jobs.discard(change.job_id)
        elif change.is_claim and min(jobs) < change.job_id:
            wrong.append(f"job {min(jobs)} of the lock was before: {change}")
    return wrong


def too_early(evidence: Evidence) -> list[str]:
    """No scheduled job and no retry was claimed before its time, by the server's clock."""
    return [
        f"claimed before its time: {change}"
        for change in evidence.history
        if change.is_claim and change.due is not None and change.at < change.due - PRECISION
    ]


def claim_may_be_taken_back(evidence: Evidence, run: Run) -> bool:
    """Could a crash have taken back the claim of this run? One of a job with a lock is durable."""
    has_lock = evidence.lock_of.get(run.job_id) is not None
    return not has_lock and any(run.started - NOTICED < crash for crash in evidence.crashes)


def end_may_be_taken_back(evidence: Evidence, run: Run) -> bool:
    """Could a crash have taken back that this run has ended?"""
    return evidence.asynchronous and any(run.ended - 1 < crash for crash in evidence.crashes)


def has_twin(evidence: Evidence, run: Run) -> bool:
    """Was the claim of a run of the same attempt, in the same process, taken back by a crash?

    The outcome of either may then end the other: nothing tells them apart.
    """
    return (run.worker, run.job_id, run.attempt) in evidence.without_claim


def unexplained_runs(evidence: Evidence) -> list[str]:
    """Each run of task code had a claim of its own, and what it did not end ran again for a reason.

    Without a claim in the history it ran only if a crash took that back. A claim that ended
    `release` was not to be started: unless a crash took back that it had ended.
    """
    wrong = []
    for run, claim in evidence.claims_of_runs:
        if claim is None:
            if not claim_may_be_taken_back(evidence, run):
                wrong.append(f"there was no claim: {run}")
        elif claim.end is None:
            wrong.append(f"its claim has not ended: {run}")
        elif has_twin(evidence, run):
            continue
        elif claim.end.ended == "release":
            if not end_may_be_taken_back(evidence, run):
                wrong.append(f"it was given back after it had started: {run}")
        elif claim.end.status == "succeeded" and not run.reached_end:
            wrong.append(f"it did not come to its end, and its job succeeded: {run}")
    return wrong


def was_lost_before(earlier: Claim, later: Claim) -> bool:
    """Was one claim taken back as lost, before the other one was made?"""
    first, second = sorted((earlier, later), key=lambda claim: claim.change.seq)
    return first.end is not None and first.end.ended == "lose" and first.end.seq < second.change.seq


def unexplained_repetitions(evidence: Evidence) -> list[str]:
    """Of two runs of a job the first had not returned; or a claim was lost, or its end taken back.

    The code that comes later may be that of the earlier claim: of a worker that was frozen.
    """
    wrong = []
    of_job: dict[int, list[tuple[Run, Claim | None]]] = defaultdict(list)
    for run, claim in evidence.claims_of_runs:
        of_job[run.job_id].append((run, claim))
    for runs in of_job.values():
        runs.sort(key=lambda each: each[0].started)
        for (run, claim), (following, next_claim) in pairwise(runs):
            if not run.returned or end_may_be_taken_back(evidence, run):
                continue
            if claim is None or next_claim is None:
                if claim_may_be_taken_back(evidence, run if claim is None else following):
                    continue
            elif was_lost_before(claim, next_claim) or has_twin(evidence, run):
                continue
            wrong.append(f"it had returned: {run}, and ran again: {following}")
    return wrong


def overlaps(evidence: Evidence) -> Iterator[tuple[tuple[Run, Claim | None], ...]]:
    """Yield each two runs of a job, or of a lock, whose code ran at the same time."""
    groups: dict[object, list[tuple[Run, Claim | None]]] = defaultdict(list)
    for run, claim in evidence.claims_of_runs:
        groups[evidence.lock_of.get(run.job_id) or run.job_id].append((run, claim))
    for runs in groups.values():
        runs.sort(key=lambda each: each[0].started)
        going_on: list[tuple[Run, Claim | None]] = []
        for each in runs:
            going_on = [other for other in going_on if other[0].ended > each[0].started]
            for other in going_on:
                yield other, each
            going_on.append(each)


def unexplained_overlaps(evidence: Evidence) -> list[str]:
    """Code of one lock, or of one job, overlaps only if the claim of the one was lost.

    That is: taken back before the other was claimed; or a crash took it back.
    """
    wrong = []
    for (run, claim), (following, next_claim) in overlaps(evidence):
        if claim is None or next_claim is None:
            if not claim_may_be_taken_back(evidence, run if claim is None else following):
                wrong.append(f"{run} and {following}, one of them without a claim")
        elif not was_lost_before(claim, next_claim) and not has_twin(evidence, run):
            wrong.append(f"{run} had not been lost, and {following} ran beside it")
    return wrong


def not_booked_once(evidence: Evidence) -> list[str]:
    """Effects in the finishing transaction are there exactly once, of the run that finished."""
    wrong = []
    counts = Counter(booking.ref for booking in evidence.bookings)
    for job in evidence.jobs:
        expected = job.task == "booked" and job.status == "succeeded"
        if counts.pop(job.ref, 0) != expected:
            wrong.append(f"not booked once: {job}")
    wrong += [f"booked, and no job: {ref}" for ref in counts]
    finished = {
        (claim.change.job_id, claim.attempt)
        for claim in evidence.claims
        if claim.end is not None and claim.end.ended == "finish"
    }
    wrong += [
        f"booked by a run that did not finish the job: {booking}"
        for booking in evidence.bookings
        if (booking.job_id, booking.attempt) not in finished
    ]
    return wrong


def bookings_overlap(evidence: Evidence) -> list[str]:
    """Of one lock, each booking began when the one before was committed; in the order of jobs."""
    wrong = []
    of_lock = defaultdict(list)
    for booking in evidence.bookings:
        if booking.lock is not None:
            of_lock[booking.lock].append(booking)
    for bookings in of_lock.values():
        bookings.sort(key=lambda booking: booking.job_id)
        wrong += [
            f"{later} did not see {earlier}"
            for earlier, later in pairwise(bookings)
            if not later.sees(earlier)
        ]
    return wrong


def effects_missing(evidence: Evidence) -> list[str]:
    """What a task committed on its own is there, and nothing that no run did."""
    runs = {(run.ref, run.job_id, run.attempt): run for run in evidence.runs}
    written = set(evidence.effects)
    wrong = [f"written by no run: {effect}" for effect in written if effect[1:] not in runs]
    recorded = {job.ref for job in evidence.jobs if job.task == "recorded"}
    for key, run in runs.items():
        is_written = ("end", *key) in written or end_may_be_taken_back(evidence, run)
        if run.ref in recorded and run.returned and not is_written:
            wrong.append(f"it wrote, and nothing is there: {run}")
    return wrong


def given_up_without_reason(evidence: Evidence) -> list[str]:
    """Who did not leave by itself was silent for its lease, or a while without connection."""
    wrong = []
    for departure in evidence.departures:
        beats = departure.silence / departure.heartbeat_interval
        is_lawful = departure.silence >= departure.lease or (
            departure.connection_gone and beats >= 2.5
        )
        if departure.worker not in evidence.obedient and not is_lawful:
            wrong.append(f"{departure}")
    return wrong


def burned(evidence: Evidence) -> list[str]:
    """No run was lost, and none failed but those that were to fail. (Not in ALL.)"""
    failing = {"doomed": 2, "flaky": 1}
    return [
        f"{job}" for job in evidence.jobs if job.lost or job.failures > failing.get(job.task, 0)
    ]


ALL: list[Check] = [
    left_over,
    lost,
    ghosts,
    illegal_changes,
    beside_each_other,
    out_of_order,
    too_early,
    unexplained_runs,
    unexplained_repetitions,
    unexplained_overlaps,
    not_booked_once,
    bookings_overlap,
    effects_missing,
    given_up_without_reason,
]


def failures(evidence: Evidence, *more: Check) -> dict[str, tuple[int, list[str]]]:
    """Run all checks; return, of those that failed, how much is wrong and the first examples."""
    found = {check.__name__: check(evidence) for check in (*ALL, *more)}
    return {name: (len(wrong), wrong[:5]) for name, wrong in found.items() if wrong}


def summary(evidence: Evidence) -> dict[str, int]:
    """Count what a scenario did, to show that it was one."""
    claims = evidence.claims
    by_end = Counter(claim.end.ended for claim in claims if claim.end is not None)
    matched = evidence.claims_of_runs
    return {
        "jobs": len(evidence.jobs),
        "rolled_back": len(evidence.ledger.rolled_back),
        "unknown": len(evidence.ledger.unknown),
        "runs": len(evidence.runs),
        "claims_lost_with_worker": by_end["lose"],
        "claims_given_back": by_end["release"],
        "claims_taken_back_by_crash": sum(claim is None for _, claim in matched),
        "returned_though_lost": sum(
            run.returned
            and claim is not None
            and claim.end is not None
            and claim.end.ended == "lose"
            for run, claim in matched
        ),
        "overlaps": sum(1 for _ in overlaps(evidence)),
        "bookings": len(evidence.bookings),
    }
