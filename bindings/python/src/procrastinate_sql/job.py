"""Jobs as Python sees them: one as it is stored, and one as a worker gets it to run."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any


@dataclass(frozen=True, slots=True)
class Job:
    """A row of procrastinate_jobs; the columns are described there (`\\d+ procrastinate_jobs`)."""

    id: int
    task_name: str
    queue_name: str
    priority: int
    lock: str | None
    queueing_lock: str | None
    args: dict[str, Any]
    status: str
    scheduled_at: datetime | None
    attempts: int
    failures: int
    handed_back: int
    lost: int
    abort_requested: bool
    worker_id: int | None
    created_at: datetime
    created_by: str
    started_at: datetime | None
    finished_at: datetime | None
    purge_at: datetime | None
    result: Any
    error: str | None


class FetchedJob:
    """A job that a worker has claimed.

    Attributes:
        attempt: Number of this run, 1 on the first; to be given back when the run ends.
        timeout: The longest that the run may take, or None.
    """

    # No dataclass: a frozen one costs several times as much to make, and one is made for every job.
    __slots__ = (
        "args",
        "attempt",
        "id",
        "lock",
        "priority",
        "queue_name",
        "queueing_lock",
        "scheduled_at",
        "task_name",
        "timeout",
    )

    def __init__(
        self,
        id: int,  # noqa: A002  # the name of the column
        task_name: str,
        args: dict[str, Any],
        queue_name: str,
        priority: int,
        lock: str | None,
        queueing_lock: str | None,
        scheduled_at: datetime | None,
        attempt: int,
        timeout: timedelta | None,
    ) -> None:
        self.id = id
        self.task_name = task_name
        self.args = args
        self.queue_name = queue_name
        self.priority = priority
        self.lock = lock
        self.queueing_lock = queueing_lock
        self.scheduled_at = scheduled_at
        self.attempt = attempt
        self.timeout = timeout

    def __repr__(self) -> str:
        return f"<FetchedJob {self.id} {self.task_name} attempt {self.attempt}>"
