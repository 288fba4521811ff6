"""A PostgreSQL job queue whose whole protocol is PL/pgSQL; this package only calls it.

from procrastinate_sql import bindings

@bindings.task(queue="mail", max_attempts=5)
def send_email(to): ...

bindings.defer("send_email", to="ann@example.org")
bindings.run_worker(queues=["mail"], concurrency=10)
"""

from procrastinate_sql.app import App
from procrastinate_sql.context import JobAborted, JobContext, Retry
from procrastinate_sql.errors import (
    InvalidArgument,
    JobNotFound,
    JobNotRunning,
    ProcrastinateError,
    QueueingLockTaken,
    SchemaVersionError,
    WorkerNotRegistered,
)
from procrastinate_sql.job import FetchedJob, Job
from procrastinate_sql.job_store import AsyncJobStore, JobStore
from procrastinate_sql.task import Task
from procrastinate_sql.worker import Worker

bindings = App()

__all__ = [
    "App",
    "AsyncJobStore",
    "FetchedJob",
    "InvalidArgument",
    "Job",
    "JobAborted",
    "JobContext",
    "JobNotFound",
    "JobNotRunning",
    "JobStore",
    "ProcrastinateError",
    "QueueingLockTaken",
    "Retry",
    "SchemaVersionError",
    "Task",
    "Worker",
    "WorkerNotRegistered",
    "bindings",
]
