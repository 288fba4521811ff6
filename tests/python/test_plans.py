"""What the hot calls read: named indexes, a bounded number of entries, and no more on a full queue.

Nothing is timed. PostgreSQL itself counts, inside the transaction, what was asked of each index and
table of ours: scans, entries and blocks. Each call is made on a small queue and on the same queue
with LARGE jobs more of one shape, whatever the statistics say.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, LiteralString

import pytest
from concurrency import Connect, Connection, WaitUntil, begin, value

SMALL = 1_000
LARGE = 30_000

# What a queue holds beside SMALL ready jobs in the queue `mail`; %s is how many.
SHAPES: dict[str, LiteralString] = {
    "ready": "(task_name, queue_name) select 't', 'mail' from generate_series(1, %s)",
    "scheduled": "(task_name, queue_name, scheduled_at)"
    " select 't', 'mail', now() + interval '1 day' from generate_series(1, %s)",
    "behind one lock": "(task_name, queue_name, lock)"
    " select 't', 'mail', 'running' from generate_series(1, %s)",
    "behind many locks": "(task_name, queue_name, lock)"
    " select 't', 'mail', 'running ' || number %% 100 from generate_series(1, %s) as number",
    "behind two locks": "(task_name, queue_name, lock)"
    " select 't', 'mail', case number when 1 then 'short' else 'long' end"
    " from generate_series(1, %s) as number",
    "free locks": "(task_name, queue_name, lock)"
    " select 't', 'mail', 'free ' || number %% 100 from generate_series(1, %s) as number",
    "in another queue": "(task_name, queue_name) select 't', 'other' from generate_series(1, %s)",
    "in a paused queue": "(task_name, queue_name) select 't', 'paused' from generate_series(1, %s)",
    "in many queues": "(task_name, queue_name)"
    " select 't', 'queue ' || number from generate_series(1, %s) as number",
    "finished": "(task_name, queue_name, status, finished_at, purge_at)"
    " select 't', 'mail', 'succeeded', now(), now() + interval '1 day' from generate_series(1, %s)",
}
STATISTICS = ("never analysed", "analysed empty", "analysed")

# Each call, and the indexes of the jobs that it reads; no call reads the table from end to end.
CALLS: dict[LiteralString, set[str]] = {
    "fetch_jobs(%(worker)s, null, 1)": {"ready_any_queue_idx", "ready_idx", "due_idx", "pkey"},
    "fetch_jobs(%(worker)s, null, 100)": {"ready_any_queue_idx", "ready_idx", "due_idx", "pkey"},
    "fetch_jobs(%(worker)s, '{mail}', 1)": {"ready_idx", "due_idx", "pkey"},
    "fetch_jobs(%(worker)s, '{mail}', 100)": {"ready_idx", "due_idx", "pkey"},
    "fetch_jobs(%(worker)s, '{mail,urgent}', 1)": {"ready_idx", "due_idx", "pkey"},
    "fetch_jobs(%(worker)s, '{mail,urgent}', 100)": {"ready_idx", "due_idx", "pkey"},
    "finish_job(%(running)s, 1, worker_id => %(worker)s)": {"pkey"},
    "finish_jobs(%(outcomes)s)": {"pkey"},
    "fail_job(%(running)s, 1, 'error')": {"pkey"},
    "retry_job(%(running)s, 1, '1 hour')": {"pkey"},
    "release_jobs(%(worker)s, array[%(running)s])": {"pkey"},
    "cancel_job(%(running)s, abort => true)": {"pkey"},
    "cancel_job(%(waiting)s)": {"pkey"},
    "defer_job('t', queue_name => 'mail')": set(),
    "defer_job('t', lock => 'running', queueing_lock => 'q')": {"queueing_lock_idx"},
    "heartbeat(%(worker)s, array[%(running)s], '{1}')": {
        "pkey",
        "due_idx",
        "abort_idx",
        "purge_idx",
    },
    "heartbeat(%(worker)s, '{}', '{}', '{mail}')": {
        "due_idx",
        "due_queue_idx",
        "abort_idx",
        "purge_idx",
    },
    "next_due()": {"due_idx"},
    "next_due('{mail}')": {"due_queue_idx"},
    "rescue_jobs()": set(),
    "purge_jobs('1 day')": {"finished_idx"},
    "unregister_worker(%(worker)s)": {"worker_idx", "pkey"},
}
# How many jobs a call is about, where it is more than one.
JOBS = {"100": 100, "outcomes": 100, "unregister": 100}
RUNNING = 100  # jobs that the worker holds when a call is made
LEVELS = 3  # by which the indexes of a full queue may be deeper

COUNTED: LiteralString = """
    select
        relation.relname,
        pg_stat_get_xact_numscans(relation.oid),
        pg_stat_get_xact_tuples_returned(relation.oid),
        pg_stat_get_xact_blocks_fetched(relation.oid)
    from pg_class as relation
    where relation.relname like 'procrastinate%%' and relation.relkind in ('r', 'i')
"""


@dataclass(frozen=True)
class Reading:
    """What one call read of our tables and indexes, by name."""

    scanned: set[str]
    entries: int
    blocks: int

    def of_jobs(self) -> set[str]:
        """The indexes of the jobs that were read, by short names; `table` if all of it was."""
        return {
            name.removeprefix("procrastinate_jobs_") if name != "procrastinate_jobs" else "table"
            for name in self.scanned
            if name.startswith("procrastinate_jobs")
        }


class Queue:
    """SMALL ready jobs in `mail` beside `size` of a shape, and a worker that holds RUNNING."""

    def __init__(self, conn: Connection, shape: str, size: int, statistics: str) -> None:
        self.conn = conn
        conn.execute("truncate procrastinate_jobs, procrastinate_lock_events, procrastinate_queues")
        # The statistics are to stay as they are.
        conn.execute("alter table procrastinate_jobs set (autovacuum_enabled = off)")
        if statistics == "analysed empty":
            conn.execute("analyze procrastinate_jobs")
        self.worker = int(value(conn, "select procrastinate_register_worker()"))
        self.load(shape, size)
        if "lock" in shape:
            self._claim(100)
        if "paused" in shape:
            conn.execute("select procrastinate_pause_queue('paused')")
        self.load("ready", SMALL)
        self._claim(RUNNING)
        if statistics == "analysed":
            conn.execute("analyze procrastinate_jobs")

        running = conn.execute(
            "select id from procrastinate_jobs where status = 'doing' order by id desc limit %s",
            (RUNNING,),
        ).fetchall()
        self.values: dict[str, Any] = {
            "worker": self.worker,
            "running": running[0][0],
            "waiting": value(conn, "select max(id) from procrastinate_jobs where status = 'todo'"),
            "outcomes": json.dumps(
                [{"job_id": id_, "attempt": 1, "status": "succeeded"} for (id_,) in running]
            ),
        }

    def load(self, shape: str, size: int) -> None:
        """Add jobs of a shape."""
        self.conn.execute("insert into procrastinate_jobs " + SHAPES[shape], (size,))

    def _claim(self, jobs: int) -> None:
        fetch = "select procrastinate_fetch_jobs(%s, max_jobs => %s)"
        self.conn.execute(fetch, (self.worker, jobs))

    def read(self, call: LiteralString) -> Reading:
        """Make a call in a transaction that is rolled back, and say what it read."""
        with self.conn.transaction(force_rollback=True):
            before = self._counts()
            self.conn.execute("select * from procrastinate_" + call, self.values)
            after = self._counts()
        change = {
            name: [now - then for now, then in zip(after[name], before[name], strict=True)]
            for name in after
        }
        return Reading(
            scanned={name for name, (scans, _, _) in change.items() if scans},
            entries=sum(entries for _, entries, _ in change.values()),
            blocks=sum(blocks for _, _, blocks in change.values()),
        )

    def _counts(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(counts) for name, *counts in self.conn.execute(COUNTED).fetchall()}


@pytest.mark.parametrize("statistics", STATISTICS)
@pytest.mark.parametrize("shape", sorted(SHAPES.keys() - {"free locks"}))
def test_no_call_reads_more_of_a_full_queue(conn: Connection, shape: str, statistics: str) -> None:
    queue = Queue(conn, shape, RUNNING, statistics)
    small = {call: queue.read(call) for call in CALLS}
    queue = Queue(conn, shape, LARGE, statistics)
    full = {call: queue.read(call) for call in CALLS}

    for call, indexes in CALLS.items():
        jobs = next((jobs for word, jobs in JOBS.items() if word in call), 1)
        assert full[call].of_jobs() <= indexes, call
        assert full[call].entries <= small[call].entries + 2 * (RUNNING + jobs), call
        assert full[call].blocks <= small[call].blocks + LEVELS * (jobs + 10), call


@pytest.mark.parametrize("statistics", STATISTICS)
def test_settling_a_lock_reads_its_head_only(conn: Connection, statistics: str) -> None:
    fetch: LiteralString = "fetch_jobs(%(worker)s, null, 100)"
    readings = []
    for size in (SMALL, LARGE):
        queue = Queue(conn, "ready", 0, statistics)
        conn.execute("delete from procrastinate_jobs")
        queue.load("free locks", size)
        readings.append(queue.read(fetch))

    small, full = readings
    of_locks = {"lock_running_idx", "lock_ready_idx", "lock_waiting_idx"}
    assert full.of_jobs() <= CALLS[fetch] | of_locks
    assert full.entries <= small.entries + 2 * RUNNING
    assert full.blocks <= small.blocks + LEVELS * 4 * 100


@pytest.mark.parametrize("statistics", STATISTICS)
def test_the_last_job_of_a_lock_does_not_look_through_those_of_others(
    conn: Connection, statistics: str
) -> None:
    finish: LiteralString = "succeed_jobs(%(worker)s, array[%(last)s]::bigint[], '{1}')"
    readings = []
    for size in (SMALL, LARGE):
        queue = Queue(conn, "behind two locks", size, statistics)
        last = value(conn, "select id from procrastinate_jobs where lock = 'short'")
        queue.values["last"] = last
        readings.append(queue.read(finish))

    small, full = readings
    assert full.of_jobs() <= {"pkey", "lock_waiting_idx"}
    assert full.entries <= small.entries + 10
    assert full.blocks <= small.blocks + 3 * LEVELS


# Under a held snapshot: the dead entries of what has been run through since.

RUN_THROUGH = 20_000
HELD: dict[str, LiteralString] = {
    "of one queue": "'mail', 0, null",
    "of two queues": "case number %% 2 when 0 then 'mail' else 'urgent' end, 0, null",
    "of two priorities": "'mail', number %% 2, null",
    "that were scheduled": "'mail', 0, clock_timestamp() + interval '1 millisecond'",
}
WATCHED: tuple[LiteralString, ...] = (
    "fetch_jobs(%(worker)s, null, 1)",
    "fetch_jobs(%(worker)s, null, 100)",
    "fetch_jobs(%(worker)s, '{mail}', 1)",
    "fetch_jobs(%(worker)s, '{mail,urgent}', 100)",
    "succeed_jobs(%(worker)s, array[%(running)s], '{1}')",
    "next_due()",
)


def run_through(queue: Queue, jobs: LiteralString) -> None:
    """Defer jobs, fetch and finish them, as the worker of the queue."""
    queue.conn.execute("select procrastinate_declare_task('t', keep_finished => '0')")
    queue.conn.execute(
        "insert into procrastinate_jobs (task_name, queue_name, priority, scheduled_at)"
        f" select 't', {jobs} from generate_series(1, %s) as number",
        (RUN_THROUGH,),
    )
    left = RUN_THROUGH
    while left:
        rows = queue.conn.execute(
            "select id, attempt from procrastinate_fetch_jobs(%s, null, 500)", (queue.worker,)
        ).fetchall()
        queue.conn.execute(
            "select procrastinate_succeed_jobs(%s, %s::bigint[], %s::integer[])",
            (queue.worker, [row[0] for row in rows], [row[1] for row in rows]),
        )
        left -= len(rows)


@pytest.mark.parametrize("jobs", HELD.values(), ids=HELD.keys())
@pytest.mark.parametrize("holder", ["reader", "writer"])
def test_a_held_snapshot_makes_no_call_read_more(
    conn: Connection, connect: Connect, wait_until: WaitUntil, jobs: LiteralString, holder: str
) -> None:
    queue = Queue(conn, "ready", RUNNING, "never analysed")
    small = {call: queue.read(call) for call in WATCHED}
    queue = Queue(conn, "ready", 0, "never analysed")
    conn.execute(
        "update procrastinate_jobs set status = 'cancelled', finished_at = now(), "
        "ready_seq = null where status = 'todo'"
    )
    other = connect()
    begin(other, "repeatable read")
    if holder == "writer":
        other.execute("create temporary table written (number integer)")

    run_through(queue, jobs)
    # Floors are used from the look on after the one that has noted, and committed, the levels.
    for names in 2 * (None, ["mail"], ["urgent"]):
        conn.execute("select procrastinate_fetch_jobs(%s, %s)", (queue.worker, names))
    queue.load("ready", SMALL)

    for call in WATCHED:
        # Fetches sweep only if heartbeats have not done so.
        for names in (None, ["mail", "urgent"]):
            beat = "select procrastinate_heartbeat(%s, queue_names => %s)"
            conn.execute(beat, (queue.worker, names))
        full = queue.read(call)
        jobs_of_call = 100 if "100" in call else 1
        assert full.entries <= small[call].entries + 10 * (RUNNING + jobs_of_call), call
        assert full.blocks <= small[call].blocks + LEVELS * (jobs_of_call + 60), call
