"""A steady load for a long time, with kills, deploys, purges and a held snapshot: all is bounded.

make soak                       # 30 minutes at 70 % of what this machine defers and drains
make soak MINUTES=2 RATE=0.5
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import date

import pytest
from harness import figures
from harness.servers import durable_server
from harness.soak import Course, Sample, Soak, Wait, bounds

from bench.machine import machine
from bench.queue import held_snapshot
from bench.server import Database

# Of a shorter one the parts are seconds long: a vacuum, or one kill, would be all there is to see.
LONG_ENOUGH = 10


def test_soak(start_scene, size):
    minutes = float(os.environ.get("SOAK_MINUTES") or size.soak)
    share = float(os.environ.get("SOAK_SHARE") or 0.7)
    with durable_server() as server:
        scene, _ = start_scene(server=server)
        soak = Soak(scene, server, minutes * 60)
        deferred, drained = soak.calibrate()
        # The producers of the load share the machine with those who drain it.
        sustained = 1 / (1 / deferred + 1 / drained)
        soak.write(
            "setup",
            date=date.today().isoformat(),
            minutes=minutes,
            share=share,
            deferred=deferred,
            drained=drained,
            sustained=sustained,
            PostgreSQL=server.version,
            machine=machine(server.folder),
        )
        soak.start(rate=sustained * share)
        soak.go_on(until=1 / 3)
        with held_snapshot(Database(server, "postgres"), "reader"):
            soak.go_on(until=2 / 3)
        soak.go_on(until=1)
        soak.finish()
        course = soak.course()
        for interval in course.intervals():
            soak.write("interval", **interval)
        judged = bounds(course)
        for bound in judged:
            soak.write("bound", **asdict(bound), holds=bound.holds)
        done = scene.audit(
            minutes=minutes,
            jobs_per_second=round(sustained * share),
            waited=figures.spread([wait.seconds for wait in course.waits]),
            **soak.done,
        )
        soak.write("end", **done, **soak.done)
    assert all(soak.done.values())
    if minutes >= LONG_ENOUGH:
        assert [bound for bound in judged if not bound.holds] == []


Doctor = Callable[[Course], Course]


@pytest.fixture
def course() -> Course:
    """Ten minutes of ten jobs a second that start after 5 ms; a snapshot is held for 200 s."""
    samples = [
        Sample(
            at=float(at),
            sizes={"procrastinate_jobs": 1_000_000 + 1000 * 10 * min(200, max(0, at - 200))},
            dead_rows=100,
            server_cpu=at * 0.1,
            memory={"worker-1": 40.0, f"worker-{2 + at // 60}": 38.0},
        )
        for at in range(600)
    ]
    return Course(600, 10, 6000, samples, [Wait(n / 10, n / 10 + 0.005) for n in range(6000)])


def sampled(**values: Callable[[Sample], object]) -> Doctor:
    """Change every sample."""

    def doctor(course: Course) -> Course:
        changed = [
            replace(sample, **{name: value(sample) for name, value in values.items()})
            for sample in course.samples
        ]
        return replace(course, samples=changed)

    return doctor


def waited(seconds: Callable[[float], float]) -> Doctor:
    """Change how long jobs wait, by when they were deferred."""

    def doctor(course: Course) -> Course:
        changed = [Wait(w.deferred, w.deferred + seconds(w.deferred)) for w in course.waits]
        return replace(course, waits=changed)

    return doctor


def grown(begin: float, rate: int) -> Doctor:
    """Let files grow from some moment on, by so many bytes a second."""
    return sampled(
        sizes=lambda sample: {
            **sample.sizes,
            "procrastinate_jobs_pkey": int(max(0.0, sample.at - begin) * rate),
        }
    )


CASES: dict[str, Doctor] = {
    "jobs to be deferred ÷ deferred in time": lambda course: replace(course, deferred=5000),
    "jobs that wait, median of the worst thirtieth": waited(lambda at: 2 + at % 0.1),
    "latency p99, last sixth ÷ first": waited(lambda at: 0.02 if at > 500 else 0.005),
    "latency p99 while a snapshot is held ÷ first sixth": waited(
        lambda at: 0.02 if 200 < at < 400 else 0.005
    ),
    "size after two sixths ÷ after the first": grown(0, 10_000),
    "growth for each job under the snapshot": grown(200, 40_000),
    "size in the end ÷ one sixth after the snapshot": grown(500, 10_000),
    "dead rows, last sixth ÷ second": sampled(dead_rows=lambda sample: int(sample.at)),
    "growth of a worker's memory": sampled(memory=lambda sample: {"worker-1": sample.at}),
}


def test_a_good_course_is_bounded(course: Course):
    assert [bound for bound in bounds(course) if not bound.holds] == []


@pytest.mark.parametrize(("text", "doctor"), CASES.items(), ids=CASES)
def test_each_bound_can_fail(course: Course, text: str, doctor: Doctor):
    assert text in [bound.text for bound in bounds(doctor(course)) if not bound.holds]


def test_every_bound_is_tested(course: Course):
    assert [bound.text for bound in bounds(course)] == list(CASES)
