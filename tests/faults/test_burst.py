"""A million jobs are deferred in a minute, while workers run them."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any

import psycopg
from harness import figures
from harness.evidence import read_runs
from harness.scene import Scene, wait_until
from harness.servers import durable_server

from bench.figures.flat_probe import FETCH
from bench.queue import register_worker
from procrastinate_sql import App

BATCH = 1000
Connection = psycopg.Connection[Any]


def by_binding(connection: Connection, refs: Sequence[str]) -> None:
    App().configure("instant", connection=connection).defer_many([{"ref": ref} for ref in refs])


def by_function(connection: Connection, refs: Sequence[str]) -> None:
    connection.execute(
        "select count(*) from procrastinate_defer_jobs((select jsonb_agg(jsonb_build_object("
        "'task_name', 'instant', 'args', jsonb_build_object('ref', ref)))"
        " from unnest(%s::text[]) as ref))",
        (list(refs),),
    )


def by_copy(connection: Connection, refs: Sequence[str]) -> None:
    with connection.cursor().copy("copy procrastinate_jobs (task_name, args) from stdin") as copy:
        for ref in refs:
            copy.write_row(("instant", json.dumps({"ref": ref})))


WAYS = (by_binding, by_function, by_copy)


def defer_all(
    dsn: str, way: Callable[[Connection, Sequence[str]], None], refs: Sequence[str]
) -> float:
    """Defer jobs in batches, each a transaction; return when that was done."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        for first in range(0, len(refs), BATCH):
            way(connection, refs[first : first + BATCH])
    return time.monotonic()


def buffers_of_a_fetch(connection: Connection) -> float | None:
    """Fetch a hundred jobs and give them back; return the buffers for each, if so many came."""
    # A new one each time: it has no heartbeat.
    worker = register_worker(connection)
    row = connection.execute(FETCH, (worker, None, 100)).fetchone()
    assert row is not None
    plan = row[0][0]["Plan"]
    connection.execute("select procrastinate_unregister_worker(%s)", (worker,))
    if plan["Actual Rows"] < 100:
        return None
    return float(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]) / 100


def test_burst(start_scene, size):
    with durable_server() as server:
        scene, _ = start_scene(server=server)
        # What writes down each change would be most of what is measured: the runs and rows will do.
        scene.execute("drop function fault_note_change() cascade")
        # Nobody is killed here: the default lease, in any size.
        scene.execute("drop function if exists fault_shorten_lease() cascade")
        refs = [f"burst-{number}" for number in range(size.burst)]
        with psycopg.connect(scene.dsn, autocommit=True) as connection:
            by_function(connection, refs[:1000])
            few = [buffers_of_a_fetch(connection) for _ in range(5)]
            for _ in range(2):
                scene.start_worker("--concurrency", "100")
            scene.wait_for_workers()
            seconds, urgent, many = burst(scene, connection, refs[1000:])
        wait_until(
            lambda: not scene.count("finished_at is null"),
            90 + size.burst / 500,
            "all jobs have ended",
            pause=2,
        )
        drained = time.monotonic()
        scene.stop_workers()
        runs = [
            run
            for process in scene.workers
            for run in read_runs(scene.folder / f"{process.name}.runs", process.name, drained)
        ]
        ends = scene.execute(
            "select status::text, attempts - handed_back, lost, count(*)"
            " from procrastinate_jobs group by 1, 2, 3"
        )
    latencies = [run.started - urgent[run.ref] for run in runs if run.ref in urgent]
    figures.note(
        scene.name,
        jobs=size.burst,
        seconds_to_defer=round(seconds, 1),
        seconds_to_run=round(max(run.ended for run in runs) - min(run.started for run in runs), 1),
        seconds_until_urgent_jobs_start=figures.spread(latencies),
        buffers_for_each_job_fetched={"1,000 jobs": median(few), "amid": figures.spread(many)},
    )
    expected = [*refs, *urgent]
    assert ends == [("succeeded", 1, 0, len(expected))]
    assert Counter(run.ref for run in runs) == Counter(expected)
    assert seconds <= 60
    assert max(latencies) < 10
    # Half as much again was measured, for claims that vacuum has yet to come to; a look at all of a
    # million of them would be some fifty for each job more.
    assert median(many) <= 2.5 * median(few)


def burst(
    scene: Scene, connection: Connection, refs: Sequence[str]
) -> tuple[float, dict[str, float], list[float]]:
    """Defer jobs in three ways at once, and amid them urgent ones, looking at fetches.

    Returns the seconds it took, when each urgent job was deferred, and the buffers that fetches
    read for each job.
    """
    urgent: dict[str, float] = {}
    many = []
    began = time.monotonic()
    with ThreadPoolExecutor(len(WAYS)) as pool:
        futures = [
            pool.submit(defer_all, scene.dsn, way, refs[number :: len(WAYS)])
            for number, way in enumerate(WAYS)
        ]
        while not urgent or not all(future.done() for future in futures):
            ref = f"urgent-{len(urgent)}"
            urgent[ref] = time.monotonic()
            connection.execute(
                "select procrastinate_defer_job('instant', jsonb_build_object('ref', %s::text),"
                " priority => 100)",
                (ref,),
            )
            if buffers := buffers_of_a_fetch(connection):
                many.append(buffers)
            time.sleep(0.05)
        return max(future.result() for future in futures) - began, urgent, many
