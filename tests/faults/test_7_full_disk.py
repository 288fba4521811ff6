"""The disk is full for a while, then there is room again: that of the data, and that of the WAL.

The disks are small file systems in memory, which takes root to mount.
"""

from __future__ import annotations

import time

from harness.servers import disk, server_on, start_again


def test_full_disk(start_scene, size):
    megabytes = 160 + size.jobs // 250
    with disk(megabytes) as data, disk(160) as log, server_on(data, log) as server:
        scene, _ = start_scene(server=server)
        for _ in range(3):
            scene.start_worker()
        scene.wait_for_workers()
        scene.start_producers()
        filled = {"data": 0, "WAL": 0}
        refused = down = 0
        for number in scene.ticks(1, 2):
            name, full = (("data", data), ("WAL", log))[number % 2]
            said = complaints(server)
            full.fill()
            filled[name] += 1
            # Until it is felt, and a while longer.
            deadline = time.monotonic() + 8
            while time.monotonic() < deadline and complaints(server) == said:
                time.sleep(0.1)
            time.sleep(1)
            refused += complaints(server) - said
            full.free()
            if not server.is_running():
                # Without room for its log it stops, and is not to be started.
                down += 1
                scene.crashed()
                start_again(server)
        scene.drain()
        scene.stop_workers()
        scene.audit(filled=filled, refused=refused, server_down=down)
    assert all(filled.values())
    assert refused
    assert down


def complaints(server) -> int:
    """How often the server has said that there is no room."""
    return server.log.read_text(errors="replace").count("No space left on device")
