"""What one fetch and one finish cost, in time and in buffers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import psycopg

from bench.queue import register_worker
from bench.server import Database

BATCH = 100

FETCH = (
    "explain (analyze, buffers, format json) "
    "select * from procrastinate_fetch_jobs(%s, %s::text[], %s)"
)
FINISH = (
    "explain (analyze, buffers, format json) "
    "select procrastinate_finish_job(%s, %s, worker_id => %s)"
)
FINISH_MANY = (
    "explain (analyze, buffers, format json) select * from procrastinate_finish_jobs(%s::jsonb)"
)
HELD = (
    "select job.id, job.attempts + 1 from procrastinate_jobs as job "
    "where job.worker_id = %s and job.status = 'doing'"
)
TOP_UP = (
    "insert into procrastinate_jobs (task_name, queue_name) "
    "select 'noop', coalesce((%s::text[])[1], 'default') from generate_series(1, %s)"
)


@dataclass(frozen=True)
class Cost:
    """The cost of a call for so many jobs."""

    milliseconds: float
    buffers: float
    jobs: int


Costs = dict[str, Cost]


def probe(database: Database, queue_names: Sequence[str] | None, calls: int) -> Costs:
    """Return the cost of each call, on a queue where at least 1,000 jobs are ready throughout.

    Args:
        database: Where the queue is.
        queue_names: From which queues is fetched (None: all).
        calls: How many later calls are made, of which the median is taken.
    """
    costs = {}
    # The session is new for each first call, as a worker's is.
    for jobs in (1, BATCH):
        with database.connect() as connection:
            prober = _Prober(connection, queue_names)
            costs[f"first fetch of {jobs}"] = prober.fetch(jobs)
            costs[f"first finish of {jobs}"] = prober.finish(jobs)
            prober.settle()
    with database.connect() as connection:
        prober = _Prober(connection, queue_names)
        for jobs in (1, BATCH):
            fetches, finishes = [], []
            for _ in range(calls):
                fetches.append(prober.fetch(jobs))
                finishes.append(prober.finish(jobs))
            costs[f"fetch of {jobs}"] = _median(fetches)
            costs[f"finish of {jobs}"] = _median(finishes)
    return costs


class _Prober:
    def __init__(
        self, connection: psycopg.Connection[Any], queue_names: Sequence[str] | None
    ) -> None:
        self._connection = connection
        self._queue_names = queue_names
        self._worker_id = register_worker(connection)

    def fetch(self, jobs: int) -> Cost:
        cost = self._explained(FETCH, (self._worker_id, self._queue_names, jobs), jobs)
        self._connection.execute(TOP_UP, (self._queue_names, jobs))
        return cost

    def finish(self, jobs: int) -> Cost:
        held = self._held()
        assert len(held) == jobs, f"a fetch of {jobs} gave {len(held)} jobs"
        if jobs == 1:
            job_id, attempt = held[0]
            return self._explained(FINISH, (job_id, attempt, self._worker_id), 1)
        outcomes = [
            {
                "job_id": job_id,
                "attempt": attempt,
                "worker_id": self._worker_id,
                "status": "succeeded",
            }
            for job_id, attempt in held
        ]
        return self._explained(FINISH_MANY, (json.dumps(outcomes),), jobs)

    def settle(self) -> None:
        """Leave nothing running."""
        assert not self._held()

    def _held(self) -> list[tuple[int, int]]:
        return self._connection.execute(HELD, (self._worker_id,)).fetchall()

    def _explained(self, query: str, parameters: Sequence[object], jobs: int) -> Cost:
        row = self._connection.execute(query.encode(), parameters, prepare=False).fetchone()
        assert row is not None
        plan = row[0][0]
        # Not "Planning": that is of the call alone, and the catalog's pages it reads are cached.
        buffers = plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"]
        return Cost(plan["Execution Time"], buffers, jobs)


def _median(costs: Sequence[Cost]) -> Cost:
    def middle(read: Callable[[Cost], float]) -> float:
        return median(map(read, costs))

    return Cost(middle(lambda c: c.milliseconds), middle(lambda c: c.buffers), costs[0].jobs)
