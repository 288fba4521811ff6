"""Compares what the database says of the jobs with the same work done here, directly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import psycopg
from demo_tasks import hash_file, read_report, words_in
from psycopg.rows import args_row
from text_files import TextFile

JOBS = """
    select
        job.task_name,
        job.queue_name,
        job.args ->> 'path',
        job.status::text,
        job.failures,
        job.result #>> '{}'
    from procrastinate_jobs as job
    order by job.id
"""

REPORTS = """
    select job.args ->> 'kind', count(*), sum(job.result::bigint)::bigint
    from procrastinate_jobs as job
    where job.task_name = 'count_words' and job.status = 'succeeded'
    group by job.args ->> 'kind'
"""

# From the claim to the recorded end, and so all the more from the first to the last line of a task.
OVERTAKEN = """
    with run as (
        select
            job.id,
            job.lock,
            job.started_at,
            lag(job.finished_at) over (partition by job.lock order by job.id) as other_finished_at
        from procrastinate_jobs as job
        where job.lock is not null
    )
    select run.id, run.lock from run where run.started_at < run.other_finished_at
"""

EARLY = "select job.id from procrastinate_jobs as job where job.started_at < job.scheduled_at"


class Job(NamedTuple):
    """What is compared of a job."""

    task: str
    queue: str
    path: str | None
    status: str
    failures: int
    result: str | None


def find_problems(connection: psycopg.Connection[Any], files: Sequence[TextFile]) -> list[str]:
    """Return, in words, whatever is not as it must be after a run over these files."""
    paths = [file.path for file in files if not file.has_changed()]
    if len(paths) < len(files):
        print(f"Changed meanwhile, and not compared: {len(files) - len(paths)} files.", flush=True)
    with connection.cursor(row_factory=args_row(Job)) as cursor:
        jobs = cursor.execute(JOBS).fetchall()
    return [
        *differences(
            expected_jobs(paths, again=files[0].path),
            [job for job in jobs if job.path is None or job.path in paths],
        ),
        *wrong_reports(connection),
        *wrong_times(connection),
    ]


def expected_jobs(paths: Sequence[str], again: str) -> Iterator[Job]:
    """Do the work of the jobs here, and yield how they must have ended.

    Args:
        paths: The files to work on.
        again: The file that was hashed a second time, later.
    """
    yield Job("ask_service", "services", None, "succeeded", 2, "attempt 3: the service is up")
    yield Job("wait_for_ever", "services", None, "aborted", 0, None)
    yield Job("wait_for_ever", "later", None, "cancelled", 0, None)
    for path in paths:
        # To call a task is to call its function.
        yield Job("hash_file", "hashing", path, "succeeded", 0, hash_file(path))
        yield Job("count_words", "words", path, "succeeded", 0, str(words_in(path)))
        if path == again:
            yield Job("hash_file", "later", path, "succeeded", 0, hash_file(path))


def differences(expected: Iterable[Job], found: Iterable[Job]) -> list[str]:
    """Return, in words, which jobs are on one side only."""
    left, right = Counter(expected), Counter(found)
    return [
        *(f"it should be {job}" for job in (left - right).elements()),
        *(f"in the database is {job}" for job in (right - left).elements()),
    ]


def wrong_reports(connection: psycopg.Connection[Any]) -> list[str]:
    """Return, in words, which reports do not add up to the results of the jobs behind them."""
    sums = {kind: [files, words] for kind, files, words in connection.execute(REPORTS)}
    return [
        f"the report on {kind} files is {read_report(kind)}, but its jobs add up to {expected}"
        for kind, expected in sums.items()
        if list(read_report(kind).values()) != expected
    ]


def wrong_times(connection: psycopg.Connection[Any]) -> list[str]:
    """Return, in words, which jobs were started too early."""
    overtaken = connection.execute(OVERTAKEN).fetchall()
    early = connection.execute(EARLY).fetchall()
    return [
        *(
            f"job {job} began before an earlier one with lock {lock} ended"
            for job, lock in overtaken
        ),
        *(f"job {job} began before its time" for (job,) in early),
    ]
