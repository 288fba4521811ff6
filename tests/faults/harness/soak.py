"""A soak: a steady load under lasting faults, what is sampled of it, and what is bounded."""

from __future__ import annotations

import json
import time
from bisect import bisect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from operator import attrgetter
from statistics import median
from typing import Any

import psutil
from postgres import Server

from harness import figures
from harness.scene import Process, Scene, wait_until

FILE = figures.FILE.with_name("soak.jsonl")
MB = 2**20
# Each waits for its commits: there must be enough to keep up, with right clocks all of them.
PRODUCERS: Sequence[Mapping[str, str]] = ({},) * 6

SIZES = """
    select jsonb_object_agg(relname, pg_relation_size(oid)) from pg_class
    where relname ~ '^procrastinate_(jobs|lock_events|lock_floors)_?' and relkind in ('r', 'i')
"""
DEAD_ROWS = "select n_dead_tup from pg_stat_user_tables where relname = 'procrastinate_jobs'"


@dataclass(frozen=True, slots=True)
class Sample:
    """What was measured at one moment.

    Attributes:
        at: Seconds since the load began.
        sizes: Bytes of the jobs, of the lock events and floors, and of each of their indexes.
        dead_rows: Of the jobs, as autovacuum knows them.
        server_cpu: Seconds of processor time that the server has used.
        memory: Resident MB of each worker process, by its name.
    """

    at: float
    sizes: dict[str, int]
    dead_rows: int
    server_cpu: float
    memory: dict[str, float]

    @property
    def size(self) -> int:
        return sum(self.sizes.values())


@dataclass(frozen=True, slots=True)
class Wait:
    """A job that could start at once: when it was deferred, and when its code first started."""

    deferred: float
    started: float

    @property
    def seconds(self) -> float:
        return self.started - self.deferred


@dataclass(frozen=True)
class Bound:
    """Something that must not be more than its limit."""

    text: str
    value: float
    limit: float
    unit: str = ""

    @property
    def holds(self) -> bool:
        return self.value <= self.limit


@dataclass(frozen=True)
class Course:
    """How a soak went. In its third and fourth sixth a snapshot was held.

    Attributes:
        seconds: How long it was.
        rate: Jobs that were to be deferred each second.
        deferred: Jobs that were deferred in that time.
        samples: In order.
        waits: Of all jobs without a lock or a schedule.
    """

    seconds: float
    rate: float
    deferred: int
    samples: list[Sample]
    waits: list[Wait]

    @cached_property
    def _in_order(self) -> list[Wait]:
        return sorted(self.waits, key=attrgetter("deferred"))

    @cached_property
    def _started(self) -> list[float]:
        return sorted(wait.started for wait in self.waits)

    def waiting(self, at: float) -> int:
        """How many jobs that could start waited at that moment?"""
        return self._place(at) - bisect(self._started, at)

    def _place(self, at: float) -> int:
        """How many jobs had been deferred by then?"""
        return bisect(self._in_order, at, key=attrgetter("deferred"))

    def latencies(self, begin: float, end: float) -> list[float]:
        """Return, in order, how long the jobs waited that were deferred in these sixths."""
        low, high = (self._place(sixths * self.seconds / 6) for sixths in (begin, end))
        return sorted(wait.seconds for wait in self._in_order[low:high])

    def sampled(self, begin: float, end: float) -> list[Sample]:
        """Return the samples of these sixths."""
        low, high = begin * self.seconds / 6, end * self.seconds / 6
        return [sample for sample in self.samples if low <= sample.at < high]

    def intervals(self, number: int = 180) -> Iterator[dict[str, float]]:
        """Yield what a plot shows of so many parts."""
        for part in range(number):
            begin, end = part * 6 / number, (part + 1) * 6 / number
            if latencies := self.latencies(begin, end):
                yield {
                    "at": end * self.seconds / 6,
                    "p50": figures.percentile(latencies, 0.5),
                    "p99": figures.percentile(latencies, 0.99),
                    "waiting": self.waiting(end * self.seconds / 6),
                }

    def memory_growth(self) -> float:
        """Return by how much the worker grew that grew most, after a warm-up of one sixth."""
        first: dict[str, Sample] = {}
        warm: dict[str, float] = {}
        most = 0.0
        for sample in self.samples:
            for worker, megabytes in sample.memory.items():
                if sample.at >= first.setdefault(worker, sample).at + self.seconds / 6:
                    most = max(most, megabytes - warm.setdefault(worker, megabytes))
        assert warm, "no worker lived for long enough"
        return most


def bounds(course: Course) -> list[Bound]:
    """Return what is to be bounded.

    Files of tables and indexes never shrink (`vacuum_truncate` is off), so what a held snapshot
    makes them grow is proportional to the jobs that run meanwhile, and must be used again
    afterwards.
    """

    def p99(begin: float, end: float) -> float:
        return figures.percentile(course.latencies(begin, end), 0.99)

    def size(sixth: int) -> int:
        """The size at the end of a sixth."""
        return course.sampled(0, sixth)[-1].size

    def dead(sixth: int) -> float:
        return median(sample.dead_rows for sample in course.sampled(sixth - 1, sixth))

    # A kill or a deploy is over in a few seconds, so that most of each window is undisturbed.
    windows = [
        median(course.waiting((window + part / 20) * course.seconds / 30) for part in range(1, 21))
        for window in range(30)
    ]
    grown_by_snapshot = (size(4) - size(2)) / (course.deferred / 3)
    planned = course.rate * course.seconds
    return [
        Bound("jobs to be deferred ÷ deferred in time", planned / course.deferred, 1.05),
        Bound("jobs that wait, median of the worst thirtieth", max(windows), course.rate),
        Bound("latency p99, last sixth ÷ first", p99(5, 6) / p99(0, 1), 2),
        Bound("latency p99 while a snapshot is held ÷ first sixth", p99(2, 4) / p99(0, 1), 3),
        Bound("size after two sixths ÷ after the first", size(2) / size(1), 1.25),
        Bound("growth for each job under the snapshot", grown_by_snapshot, 4000, "bytes"),
        Bound("size in the end ÷ one sixth after the snapshot", size(6) / size(5), 1.05),
        Bound("dead rows, last sixth ÷ second", dead(6) / dead(2), 2),
        Bound("growth of a worker's memory", course.memory_growth(), 10, "MB"),
    ]


@dataclass
class Chore:
    """What is done again and again, every so many seconds."""

    do: Callable[[], None]
    seconds: float
    due: float


class Soak:
    """Lets producers defer at a steady rate, while a worker is killed, another one deployed, and a
    third one left alone; purges and samples.

    Args:
        scene: In which all of it takes place.
        server: Its server.
        seconds: How long the load lasts.
    """

    def __init__(self, scene: Scene, server: Server, seconds: float) -> None:
        self.scene = scene
        self.server = server
        self.seconds = seconds
        self.rate = 0.0
        self.samples: list[Sample] = []
        self.done = {"killed": 0, "deployed": 0, "purged": 0}
        self.leaving: list[Process] = []
        self.kept = min(60.0, seconds / 15)  # seconds after which what has ended is purged
        self.chores = [
            Chore(self.sample, min(5.0, seconds / 60), 0),
            Chore(self.purge, min(5.0, seconds / 15), 0),
            Chore(self.kill, 15, 10),
            Chore(self.deploy, 25, 15),
        ]
        FILE.parent.mkdir(parents=True, exist_ok=True)
        FILE.write_text("")

    def write(self, kind: str, **values: Any) -> None:
        """Append a line to the file of results."""
        with FILE.open("a") as file:
            file.write(json.dumps({"kind": kind, **values}) + "\n")

    def calibrate(self) -> tuple[float, float]:
        """Start the workers. Return how many jobs a second this machine defers, and drains.

        First one, then the other: both take all of it.
        """
        scene = self.scene
        scene.size = replace(scene.size, jobs=min(10 * scene.size.jobs, 30_000))
        scene.execute("select procrastinate_pause_queue('default')")
        scene.start_producers("--locks", "33", rate=0, clocks=PRODUCERS)
        wait_until(lambda: scene.count("true"), 60, "producers have begun")
        began = time.monotonic()
        wait_until(scene.are_producers_done, 300, "producers are done")
        deferred = scene.count("true") / (time.monotonic() - began)
        # The one that is left alone, the one to be killed, and the one to be deployed.
        _, self.mortal, self.deployed = (scene.start_worker() for _ in range(3))
        scene.wait_for_workers()
        began = time.monotonic()
        scene.execute("select procrastinate_resume_queue('default')")
        # Not to the last job: those wait for each other, or for their time.
        ended = wait_until(
            lambda: (
                (count := scene.count("finished_at is not null")) > 0.9 * scene.size.jobs and count
            ),
            600,
            "most are drained",
        )
        drained = ended / (time.monotonic() - began)
        scene.drain()
        return deferred, drained

    def start(self, rate: float) -> None:
        """Begin the load."""
        self.rate = rate
        self.scene.size = replace(self.scene.size, jobs=int(rate * self.seconds))
        self.scene.start_producers("--locks", "33", rate=rate, clocks=PRODUCERS)
        self.began = time.monotonic()

    def go_on(self, until: float) -> None:
        """Do the chores until so large a part of the time is over."""
        while (now := time.monotonic() - self.began) < until * self.seconds:
            for chore in self.chores:
                if chore.due <= now:
                    chore.do()
                    chore.due = now + chore.seconds
            time.sleep(0.05)

    def finish(self) -> None:
        """Drain, and let all workers leave."""
        self.scene.drain()
        self.scene.stop_workers()
        assert all(worker.wait() == 0 for worker in self.leaving)

    def course(self) -> Course:
        """Say how it went, by when jobs were committed and their code started."""
        evidence = self.scene.evidence()
        began = self.began + evidence.clock
        deferred = [change for change in evidence.history if change.was is None]
        started: dict[int, float] = {}
        for run in evidence.runs:
            started[run.job_id] = min(started.get(run.job_id, run.started), run.started)
        return Course(
            self.seconds,
            self.rate,
            sum(0 <= change.at - began < self.seconds for change in deferred),
            self.samples,
            [
                Wait(change.at - began, started[change.job_id] - self.began)
                for change in deferred
                if change.at >= began
                and change.lock is None
                and change.due is None
                and change.job_id in started
            ],
        )

    # --- Chores --------------------------------------------------------------------

    def sample(self) -> None:
        ((sizes,),) = self.scene.execute(SIZES)
        ((dead_rows,),) = self.scene.execute(DEAD_ROWS)
        sample = Sample(
            at=round(time.monotonic() - self.began, 2),
            sizes=sizes,
            dead_rows=dead_rows,
            server_cpu=round(cpu_seconds(self.server.pid), 2),
            memory={worker.name: resident(worker) for worker in self.scene.living()},
        )
        self.samples.append(sample)
        self.write("sample", **asdict(sample))

    def purge(self) -> None:
        ((purged,),) = self.scene.execute(
            "select procrastinate_purge_jobs(make_interval(secs => %s))", self.kept
        )
        self.done["purged"] += purged

    def kill(self) -> None:
        self.mortal.kill()
        self.mortal = self.scene.start_worker()
        self.done["killed"] += 1

    def deploy(self) -> None:
        self.deployed.terminate()
        self.leaving.append(self.deployed)
        self.deployed = self.scene.start_worker()
        self.done["deployed"] += 1


def resident(worker: Process) -> float:
    """Return the MB of memory that a worker occupies."""
    return round(psutil.Process(worker.popen.pid).memory_info().rss / MB, 2)


def cpu_seconds(postmaster: int) -> float:
    """Return the processor time of a server, with that of its processes that have ended."""
    server = psutil.Process(postmaster)
    total = sum(server.cpu_times()[:4])
    for process in server.children():
        try:
            total += sum(process.cpu_times()[:2])
        except psutil.NoSuchProcess:
            continue
    return total
