"""The primary is killed, its synchronous standby promoted; everybody goes on with that one."""

from __future__ import annotations

from contextlib import ExitStack

from harness.servers import cut_power, standby
from postgres import Server

SETTINGS = {"wal_level": "replica", "max_wal_senders": 5, "wal_keep_size": "256MB"}


def either(first: Server, second: Server) -> str:
    """The address of whichever of two servers can be written to."""
    return (
        f"host=127.0.0.1,127.0.0.1 port={first.port},{second.port} user={first.user}"
        " dbname=postgres target_session_attrs=read-write connect_timeout=3"
    )


def fail_over(scene, primary: Server, follower: Server) -> None:
    cut_power(primary)
    scene.crashed()
    follower.psql("-c", "select pg_promote()")


def test_failover(start_scene):
    scene, primary = start_scene(SETTINGS)
    with ExitStack() as stack:
        follower = stack.enter_context(standby(primary))
        scene.dsn = scene.worker_dsn = scene.producer_dsn = either(primary, follower)
        for _ in range(3):
            scene.start_worker()
        scene.wait_for_workers()
        scene.start_producers()
        for number in scene.ticks(2, 4):
            if number == 0:
                fail_over(scene, primary, follower)
        scene.drain()
        scene.stop_workers()
        scene.audit(failovers=1)
    assert scene.crashes


def test_throughput_after_a_failover(start_scene):
    """Back to 90 % of what it was, within ten seconds of the promotion."""
    scene, primary = start_scene(SETTINGS)
    with standby(primary) as follower:
        scene.dsn = scene.worker_dsn = either(primary, follower)
        scene.measure_recovery(lambda: fail_over(scene, primary, follower))
        scene.close()
