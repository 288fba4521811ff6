"""A worker is frozen beyond its lease and thawed; another's interpreter is held as long."""

from __future__ import annotations

import time

from harness.scene import wait_until
from psycopg.types.json import Jsonb


def test_frozen_workers(start_scene, size):
    scene, _ = start_scene()
    for _ in range(3):
        scene.start_worker()
    scene.wait_for_workers()
    # For as long as the freeze lasts, and some.
    pace = min(size.rate, size.jobs / (size.seconds_of_lease + 10))
    scene.start_producers(rate=pace)
    frozen = 0
    for _ in scene.ticks(1, 2):
        victim = scene.random.choice(scene.living())
        scene.in_mid_work(victim, victim.freeze, victim.thaw)
        wait_until(
            lambda name=victim.name: scene.execute(
                "select 1 from procrastinate_workers where name = %s and gone_at is not null", name
            ),
            size.seconds_of_lease + 15,
            "the frozen worker is given up",
        )
        # Others run its jobs meanwhile.
        time.sleep(1)
        victim.thaw()
        frozen += 1
        wait_until(
            lambda name=victim.name: scene.execute(
                "select 1 from procrastinate_workers where name = %s and gone_at is null", name
            ),
            15,
            "it registers again",
        )
    scene.drain()
    scene.stop_workers()
    done = scene.audit(frozen=frozen)
    assert frozen
    assert done["claims_lost_with_worker"] > 0
    assert done["overlaps"] > 0


def hold_interpreter(scene, task: str, **args: object) -> tuple[int, int]:
    """Let one of two workers run a task that holds its interpreter for longer than its lease.

    Returns how often the job was lost, and how many workers were given up.
    """
    # Ready when the lease has run out, and then some: the other worker looks each second.
    seconds = int(scene.size.seconds_of_lease) + 5
    for _ in range(2):
        scene.start_worker("--concurrency", "2")
    scene.wait_for_workers()
    with_args = {**args, "seconds": seconds}
    scene.execute("select procrastinate_defer_job(%s, %s)", task, Jsonb(with_args))
    wait_until(lambda: scene.count("finished_at is not null"), seconds * 3, "the job has ended")
    ((lost,),) = scene.execute("select lost from procrastinate_jobs")
    ((given_up,),) = scene.execute("select count(*) from fault_departures")
    return lost, given_up


def test_a_task_that_holds_the_interpreter_is_not_rescued(start_scene):
    scene, _ = start_scene()
    assert hold_interpreter(scene, "holds_interpreter", ref="held") == (0, 0)


def test_a_task_that_holds_the_interpreter_of_its_own_process_is_not_rescued(start_scene):
    scene, _ = start_scene()
    assert hold_interpreter(scene, "holds_interpreter_of_its_process") == (0, 0)
