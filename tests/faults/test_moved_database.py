"""The queue moves to another server, half done: by a dump, and by logical replication."""

from __future__ import annotations

import subprocess

from harness.scene import INSTALL, wait_until
from harness.servers import cut_power
from postgres import cluster

EVIDENCE_TABLES = ("fault_history", "fault_departures", "fault_effects", "fault_bookings")
PAUSE_ALL = """
    select procrastinate_pause_queue(queue.queue_name)
    from (select distinct queue_name from procrastinate_jobs) as queue
"""


def half_done(scene, size) -> None:
    """Let workers do some of what there is, and die with jobs in their hands."""
    scene.start_producers(rate=0)
    wait_until(scene.are_producers_done, 600, "producers are done")
    for _ in range(2):
        scene.start_worker()
    wait_until(lambda: scene.count("status = 'succeeded'") > size.jobs / 8, 300, "some are done")
    wait_until(lambda: scene.count("status = 'doing'") > 3, 30, "some run", pause=0.01)
    for worker in scene.living():
        worker.kill()
    assert scene.count("status = 'doing'")
    assert scene.count("status = 'todo'")


def repair(scene) -> dict[str, int]:
    """Mend what is there, without the workers of the other server."""
    is_beating = "select 1 from procrastinate_workers where last_heartbeat > now() - interval '4 s'"
    wait_until(lambda: not scene.execute(is_beating), 30, "the workers of before are silent")
    mended = dict(scene.execute("select * from procrastinate_repair(give_up_silent => true)"))
    assert mended["jobs of workers that are gone taken back"] > 3
    assert not scene.count("status = 'doing'")
    return mended


def finish_on(scene, server) -> None:
    """Let new workers do the rest there."""
    scene.dsn = scene.worker_dsn = scene.producer_dsn = server.conninfo(host="127.0.0.1")
    for _ in range(2):
        scene.start_worker()
    scene.wait_for_workers()
    scene.drain()
    scene.stop_workers()


def test_restored_dump(start_scene, size, tmp_path):
    scene, server = start_scene({"cluster_name": "original"})
    half_done(scene, size)
    with cluster(settings={"cluster_name": "restored"}) as copy:
        dump = tmp_path / "dump"
        tools = server.programs.client
        subprocess.run(
            [tools / "pg_dump", "--format=custom", "--file", dump, "--dbname", scene.dsn],
            check=True,
        )
        target = copy.conninfo(host="127.0.0.1")
        subprocess.run([tools / "pg_restore", "--dbname", target, dump], check=True)
        scene.dsn = target
        scene.execute(PAUSE_ALL)
        mended = repair(scene)
        scene.execute("select procrastinate_resume_queue(queue_name) from procrastinate_queues")
        finish_on(scene, copy)
        scene.audit(mended=mended)


def test_switch_over_by_logical_replication(start_scene, size):
    scene, server = start_scene({"wal_level": "logical", "cluster_name": "publisher"})
    with cluster(settings={"wal_level": "logical", "cluster_name": "subscriber"}) as copy:
        copy.psql("-f", INSTALL)
        source, target = scene.dsn, copy.conninfo(host="127.0.0.1")
        scene.dsn = target
        scene.set_up()
        scene.dsn = source
        scene.execute("create publication moves for all tables")
        scene.dsn = target
        scene.execute(f"create subscription moves connection '{source}' publication moves")
        scene.dsn = source
        half_done(scene, size)

        # Nobody writes any more: what is there must arrive.
        ((position,),) = scene.execute("select pg_current_wal_lsn()::text")
        wait_until(
            lambda: scene.execute(
                "select 1 from pg_stat_replication where replay_lsn >= %s::pg_lsn", position
            ),
            60,
            "the subscriber has everything",
        )
        cut_power(server)
        scene.dsn = target
        scene.execute("alter subscription moves disable")
        scene.execute("alter subscription moves set (slot_name = none)")
        scene.execute("drop subscription moves")
        for table in EVIDENCE_TABLES:
            scene.execute(
                f"select setval('{table}_seq_seq', coalesce(max(seq), 0) + 1) from {table}"
            )
        mended = repair(scene)
        finish_on(scene, copy)
        scene.audit(mended=mended)
        assert mended["procrastinate_jobs_id_seq set forward"] > 0
        assert scene.execute("""select procrastinate_defer_job('plain', '{"ref": "after"}')""")
