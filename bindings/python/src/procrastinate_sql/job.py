"""Jobs as Python sees them: one as it is stored, and one as a worker gets it to run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NoReturn

from procrastinate_sql.errors import InvalidArgument


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


class UnreadableArgs(Mapping[str, Any]):
    """Stands for the args of a job that cannot be decoded here.

    Whoever looks into them gets the reason, as an `InvalidArgument`: so the run of that job fails.

    Attributes:
        reason: What an error says of it.
    """

    def __init__(self, error: Exception) -> None:
        self._error = error
        self.reason = f"args: cannot be decoded: {str(error) or type(error).__name__}"

    def _refuse(self) -> NoReturn:
        raise InvalidArgument(self.reason) from self._error

    def __getitem__(self, name: str) -> Any:
        self._refuse()

    def __iter__(self) -> Iterator[str]:
        self._refuse()

    def __len__(self) -> int:
        self._refuse()

    def __reduce__(self) -> NoReturn:
        # On the way to another process.
        self._refuse()
