"""Server processes of workers and producers are terminated at random."""

from __future__ import annotations

from harness.servers import TERMINATE


def test_terminated_backends(start_scene):
    scene, _ = start_scene()
    for _ in range(3):
        scene.start_worker()
    scene.wait_for_workers()
    scene.start_producers()
    terminated = 0
    for _ in scene.ticks(0.05, 0.25):
        ((number,),) = scene.execute(TERMINATE)
        terminated += number
    scene.drain()
    scene.stop_workers()
    scene.audit(terminated=terminated)
    assert terminated > 20
