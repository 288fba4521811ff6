"""Workers are told to stop under full load, again and again, as deploys do."""

from __future__ import annotations

from harness import audit, figures
from harness.evidence import Evidence


def seconds_until_claimed_again(evidence: Evidence) -> list[float]:
    """How long jobs without a lock that were given back waited for their next claim."""
    seconds = []
    given_back: dict[int, float] = {}
    for change in evidence.history:
        if change.ended == "release" and change.lock is None:
            given_back[change.job_id] = change.at
        elif change.is_claim and change.job_id in given_back:
            seconds.append(change.at - given_back.pop(change.job_id))
    return seconds


def test_orderly_stops(start_scene):
    scene, _ = start_scene()
    for _ in range(3):
        scene.start_worker()
    scene.wait_for_workers()
    # All at once, so that there is work for every worker whenever one is told to stop.
    scene.start_producers(rate=0)
    stopped = []
    for _ in scene.ticks(0.5, 1):
        scene.start_worker()
        scene.wait_for_workers()
        (leaving, *_) = [worker for worker in scene.living() if not worker.told_to_stop]
        leaving.terminate()
        stopped.append(leaving)
    scene.drain()
    scene.stop_workers()
    assert [worker.wait() for worker in stopped] == [0] * len(stopped)

    evidence = scene.evidence()
    scene.audit(
        audit.burned,
        stopped=len(stopped),
        seconds_until_claimed_again=figures.spread(seconds_until_claimed_again(evidence)),
    )
    assert len(stopped) >= 2
    # Nobody was given up, so no job has waited for that.
    assert all(departure.silence < 3 for departure in evidence.departures)
