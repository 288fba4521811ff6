"""The clock of a worker's machine is wrong by hours: the database's clock alone counts."""

from __future__ import annotations

from pathlib import Path

import pytest


def wrong_clock(offset: str) -> dict[str, str]:
    """The environment of a process whose wall clock is off. Its monotonic clock is right."""
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    if not found:
        pytest.fail("libfaketime is missing: sh tools/setup.sh faults")
    return {
        "LD_PRELOAD": str(found[0]),
        "FAKETIME": offset,
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }


def forget(pid: int) -> None:
    """Remove what libfaketime leaves behind of a process that was killed."""
    for name in (f"faketime_shm_{pid}", f"sem.faketime_sem_{pid}"):
        (Path("/dev/shm") / name).unlink(missing_ok=True)


def test_wrong_clock(start_scene):
    scene, _ = start_scene()
    offsets = ["-7h", "+5h", "+0"]
    for offset in offsets:
        scene.start_worker(environment=wrong_clock(offset))
    scene.wait_for_workers()
    scene.start_producers(clocks=[wrong_clock("+11h"), wrong_clock("-26h")])
    killed = 0
    for number in scene.ticks(1, 2):
        if number % 3 == 1:
            victim = scene.random.choice(scene.living())
            victim.kill()
            killed += 1
            scene.start_worker(environment=wrong_clock(scene.random.choice(offsets)))
    scene.drain()
    scene.stop_workers()
    for process in (*scene.workers, *scene.producers):
        forget(process.popen.pid)
    scene.audit(killed=killed, clocks=offsets)
    assert killed
