"""PostgreSQL stops immediately, as in a crash, and is started again, over and over."""

from __future__ import annotations

import time
from itertools import islice

import psycopg
from harness.scene import wait_until
from harness.servers import cut_power, freeze_wal_writer, start_again

# Nothing but a commit that waits for the disk writes what others have left in memory.
LAZY = {
    "wal_writer_delay": "10s",
    "wal_buffers": "64MB",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "1h",
    "autovacuum": "off",
    "bgwriter_lru_maxpages": "0",
    # While a server starts, those who try again and again to connect take many at a time.
    "max_connections": "300",
}


def start_lazy_workers(scene, number: int) -> None:
    """Start workers that do not wait for the disk; none runs anything before all are connected.

    One that waits for the disk declares the tasks.
    """
    scene.execute("select procrastinate_pause_queue('default')")
    scene.start_worker()
    scene.wait_for_workers()
    scene.stop_workers()
    scene.worker_dsn += " options='-c synchronous_commit=off'"
    scene.asynchronous = True
    for _ in range(number):
        scene.start_worker()
    scene.wait_for_workers()
    scene.execute("select procrastinate_resume_queue('default')")


def crash(scene, server) -> None:
    server.stop("immediate")
    scene.crashed()
    server.start()


def test_crashes(start_scene):
    scene, server = start_scene()
    for _ in range(3):
        scene.start_worker()
    scene.wait_for_workers()
    scene.start_producers()
    for _ in scene.ticks(2, 4):
        crash(scene, server)
    scene.drain()
    scene.stop_workers()
    scene.audit(crashes=len(scene.crashes))
    assert len(scene.crashes) >= 3


def test_crashes_that_take_back_all_that_workers_did(start_scene):
    """Where the connection string says so, nothing that a worker commits waits for the disk.

    The fence includes the worker for this: an attempt number is given out twice.
    """
    scene, server = start_scene(LAZY)
    # First the jobs: any commit that waits takes what was committed before it along. So does each
    # claim of a job with a lock.
    scene.start_producers("--locked", "0", rate=0)
    wait_until(scene.are_producers_done, 600, "producers are done")
    start_lazy_workers(scene, 3)
    # Without locks, and without waiting for the disk, all is done within a few seconds. So many
    # crashes, and no more for more jobs: each takes all back.
    for _ in islice(scene.ticks(0.5, 1), 150):
        freeze_wal_writer(server)
        time.sleep(scene.random.uniform(0.05, 0.5))
        cut_power(server)
        scene.crashed()
        start_again(server)
    scene.drain()
    scene.stop_workers()
    done = scene.audit(crashes=len(scene.crashes))
    assert len(scene.crashes) >= 2
    assert done["claims_taken_back_by_crash"] > 0


def test_a_crash_that_takes_claims_back(start_scene):
    """With --no-durable-claims those of jobs without a lock, and nothing else, are not on disk."""
    scene, server = start_scene(LAZY)
    for _ in range(2):
        scene.start_worker("--concurrency", "20", "--no-durable-claims")
    scene.wait_for_workers()
    taken_back = 0
    for _ in range(3):
        freeze_wal_writer(server)
        scene.defer_long(20, seconds=3)
        wait_until(lambda: not scene.count("status = 'todo'"), 10, "all are claimed", pause=0.005)
        cut_power(server)
        scene.crashed()
        start_again(server)
        taken_back += scene.count("status = 'todo' and attempts = 0")
        wait_until(lambda: not scene.count("finished_at is null"), 30, "all have ended")
    scene.stop_workers()

    scene.audit(at_least=60, taken_back=taken_back)
    assert taken_back


def forgotten(scene, server, call: str, query: str) -> list[tuple[object, ...]]:
    """Call a function without waiting for the disk, crash, and ask afterwards."""
    freeze_wal_writer(server)
    address = f"{scene.dsn} options='-c synchronous_commit=off'"
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute(call.encode())
        cut_power(server)
    start_again(server)
    return scene.execute(query)


def test_no_two_workers_get_one_id(start_scene):
    """A worker of which a crash took the registration back lives on, and beats under its id."""
    scene, server = start_scene(LAZY)
    register = "select procrastinate_register_worker()"
    ((second,),) = forgotten(scene, server, register, register)
    assert second != 1


def test_declared_tasks_stay_declared(start_scene):
    """Else their jobs are failed for good at the first failure."""
    scene, server = start_scene(LAZY)
    declare = "select procrastinate_declare_task('stubborn', max_attempts => 5)"
    assert forgotten(scene, server, declare, "select task_name from procrastinate_tasks")


def test_throughput_after_a_restart(start_scene):
    """Back to 90 % of what it was, within ten seconds of the restart."""
    scene, server = start_scene()
    scene.measure_recovery(lambda: crash(scene, server))
