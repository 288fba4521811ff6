"""The worker: takes jobs, runs them, reports how they ended.

    worker      starts and stops the parts below
    fetching    when to fetch, and how many
    pace        how many jobs can be held in advance
    running     the jobs that this process holds
    waiting     those that have not started
    slots       calls on the event loop
    threads     calls in threads
    calling     how a task is called
    run         one run of one job, and what became of it
    finishing   reports outcomes in batches
    heartbeat   a thread that keeps the lease and hears what to do
    guard       has a process keep the lease while a task holds the interpreter
    listener    hears that fetching is worth while
    processes   child processes for tasks that compute
    backoff     how long to wait before trying again

What happens to a job (retry, rescue, locks, schedules) is decided in the database, not here.
"""

from procrastinate_sql.worker.worker import Worker

__all__ = ["Worker"]
