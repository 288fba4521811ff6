"""Jobs as Python sees them: one as it is stored, and one as a worker gets it to run."""

from __future__ import annotations

from dataclasses import dataclass, field
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


@dataclass(slots=True)  # not frozen: that would cost several times as much, for every job
class FetchedJob:
    """A job that a worker has claimed.

    Attributes:
        attempt: Number of this run, 1 on the first; to be given back when the run ends.
        timeout: The longest that the run may take, or None.
    """

    id: int
    task_name: str
    args: dict[str, Any] = field(repr=False)  # may be private, and a repr may be logged
    queue_name: str
    priority: int
    lock: str | None
    queueing_lock: str | None
    scheduled_at: datetime | None
    attempt: int
    timeout: timedelta | None
