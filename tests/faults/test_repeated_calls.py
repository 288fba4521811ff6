"""A call whose answer was lost is made again: it must not hit what has begun since."""

from __future__ import annotations


def test_a_release_that_is_repeated_leaves_the_next_run_alone(start_scene):
    """The worker that gave a job back has it again, and runs it: another would run it beside."""
    scene, _ = start_scene()
    ((worker,),) = scene.execute("select procrastinate_register_worker()")
    ((job,),) = scene.execute("select procrastinate_defer_job('task')")
    fetch = "select attempt from procrastinate_fetch_job(%s)"
    release = "select procrastinate_release_jobs(%s, array[%s::bigint], attempts => array[1])"
    assert scene.execute(fetch, worker) == [(1,)]
    assert scene.execute(release, worker, job) == [(job,)]
    # Of this the worker hears nothing; and while it tries again, its fetch gets the job.
    assert scene.execute(fetch, worker) == [(2,)]
    assert scene.execute(release, worker, job) == []


def test_an_end_that_is_repeated_leaves_the_next_run_alone(start_scene):
    scene, _ = start_scene()
    ((worker,),) = scene.execute("select procrastinate_register_worker()")
    ((job,),) = scene.execute("select procrastinate_defer_job('task')")
    fetch = "select attempt from procrastinate_fetch_job(%s)"
    outcome = (
        "select reason from procrastinate_finish_jobs(jsonb_build_array(jsonb_build_object("
        "'job_id', %s, 'attempt', 1, 'worker_id', %s, 'retry_in', 0)))"
    )
    assert scene.execute(fetch, worker) == [(1,)]
    assert scene.execute(outcome, job, worker) == []
    assert scene.execute(fetch, worker) == [(2,)]
    assert scene.execute(outcome, job, worker) == [("not running",)]
