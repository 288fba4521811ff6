"""PgBouncer in transaction mode stands between everything and the server; workers are killed."""

from __future__ import annotations

from harness.scene import wait_until
from harness.servers import TERMINATE, pooler


def test_pooler(start_scene, size):
    """The lease alone tells whether a worker lives: jobs of a killed one wait for it."""
    scene, server = start_scene()
    with pooler(server) as address:
        scene.worker_dsn = scene.producer_dsn = address
        for _ in range(3):
            scene.start_worker()
        scene.wait_for_workers()
        scene.start_producers()
        killed = terminated = 0
        for number in scene.ticks(0.5, 1):
            if number % 4 == 0 and killed < size.jobs / 1000:
                victim = scene.random.choice(scene.living())
                wait_until(lambda name=victim: scene.holding(name), 20, "it runs jobs", pause=0.01)
                victim.kill()
                killed += 1
                scene.start_worker()
            else:
                ((ended,),) = scene.execute(TERMINATE)
                terminated += ended
        scene.drain(size.seconds_of_lease * 2 + 90 + size.jobs / 100)
        scene.stop_workers()
        scene.audit(killed=killed, terminated=terminated)
    assert killed
    assert terminated


def test_a_frozen_worker_behind_a_pooler_has_its_lease(start_scene):
    """Whatever becomes of the session that the pooler lent it for its last heartbeat."""
    scene, server = start_scene()
    with pooler(server) as address:
        scene.start_worker()
        frozen = scene.start_worker(dsn=address)
        scene.wait_for_workers()
        frozen.freeze()
        scene.execute(TERMINATE.replace("limit 2", "limit 100"))
        silent = "clock_timestamp() - last_heartbeat > interval '5 seconds'"
        wait_until(
            lambda: scene.execute(
                f"select 1 from procrastinate_workers where name = %s and {silent}", frozen.name
            ),
            15,
            "it has been silent for a while",
        )
        given_up = scene.execute("select 1 from fault_departures where worker = %s", frozen.name)
        assert not given_up
