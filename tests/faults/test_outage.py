"""The server is away for longer than the lease: no worker that comes back is given up."""

from __future__ import annotations

import time


def test_outage(start_scene, size):
    scene, server = start_scene()
    for _ in range(3):
        scene.start_worker()
    scene.wait_for_workers()
    scene.start_producers()
    time.sleep(size.jobs / size.rate / 3)
    server.stop("immediate")
    scene.crashed()
    time.sleep(size.seconds_of_lease + 5)
    server.start()
    scene.drain()
    assert all(worker.is_alive() for worker in scene.workers)
    ((given_up,),) = scene.execute("select count(*) from fault_departures")
    scene.stop_workers()
    done = scene.audit(seconds_away=size.seconds_of_lease + 5, given_up=given_up)
    assert given_up == 0
    assert done["claims_lost_with_worker"] == 0
