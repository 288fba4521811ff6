"""The network between a worker and the server swallows everything for longer than the lease."""

from __future__ import annotations

import time

from harness.scene import wait_until
from harness.servers import network


def test_cut_network(start_scene, size):
    """Nothing is reset, so neither side knows. When the network heals, what was sent arrives."""
    scene, server = start_scene()
    with network(server) as wire:
        cut_off = scene.start_worker(dsn=wire.address(server))
        for _ in range(2):
            scene.start_worker()
        scene.wait_for_workers()
        scene.start_producers(rate=min(size.rate, size.jobs / (size.seconds_of_lease + 12)))
        cuts = 0
        for _ in scene.ticks(2, 3):
            scene.in_mid_work(cut_off, wire.cut, wire.heal)
            wait_until(
                lambda: (
                    not scene.execute(
                        "select 1 from procrastinate_workers where name = %s and gone_at is null",
                        cut_off.name,
                    )
                ),
                size.seconds_of_lease + 15,
                "the worker that is cut off is given up",
            )
            time.sleep(1)
            wire.heal()
            cuts += 1
            wait_until(
                lambda: scene.execute(
                    "select 1 from procrastinate_workers where name = %s and gone_at is null",
                    cut_off.name,
                ),
                30,
                "it registers again",
            )
        scene.drain()
        scene.stop_workers()
        done = scene.audit(cuts=cuts)
    assert cuts
    assert done["claims_lost_with_worker"] > 0
    # What it had finished in the dark, and was run by another.
    assert done["returned_though_lost"] > 0
