"""A producer, or a runner of jobs, of one release of the binding, for test_upgrade.py.

    python upgrade_process.py producer|runner DSN NAME FILE

Works until SIGTERM, then prints what it did as JSON: errors that reached it, the longest that one
call took, the jobs that it deferred. A runner writes a line to FILE for each job that it ran.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import procrastinate_sql
from procrastinate_sql import App, JobStore
from procrastinate_sql.connections import SCHEMA_VERSION


class Process:
    """Calls that are timed, and whose errors are kept."""

    def __init__(self, dsn: str, name: str) -> None:
        self.store: JobStore = App(dsn).job_store
        self.name = name
        self.stopped = False
        self.deferred: list[str] = []
        self.errors: list[str] = []
        self.longest = 0.0
        signal.signal(signal.SIGTERM, self.stop)

    def stop(self, *_: object) -> None:
        self.stopped = True

    def call(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        started = time.monotonic()
        try:
            return function(*args, **options)
        except Exception as error:
            self.errors.append(f"{function.__name__}: {type(error).__name__}: {error}")
            return None
        finally:
            self.longest = max(self.longest, time.monotonic() - started)

    def produce(self) -> None:
        """Defer jobs in each of the ways, with what this release knows of."""
        # What a release after this one brings; see next_version.py.
        note = {"note": self.name} if "note" in JobStore.defer_job.__annotations__ else {}
        for number in count():
            if self.stopped:
                break
            key = f"{self.name} {number}"
            args = {"key": key}
            match number % 4:
                case 0:
                    job = {"task_name": "run", "args": args}
                    done = self.call(self.store.defer_jobs, [job])
                case 1:
                    done = self.call(self.store.defer_job, "run", args, lock=f"l{number % 3}")
                case 2:
                    done = self.call(
                        self.store.defer_job, "run", args, scheduled_in=0.05, queueing_lock=key
                    )
                case _:
                    done = self.call(self.store.defer_job, "run", args, **note)
            if done is not None:
                self.deferred.append(key)
            time.sleep(0.004)

    def run_jobs(self, file: Path) -> None:
        """Fetch and finish jobs by hand, which hides no error as a worker would."""
        worker = self.call(self.store.register_worker, self.name)
        next_heartbeat = 0.0
        with file.open("a", buffering=1) as ran:
            while not self.stopped:
                if time.monotonic() > next_heartbeat:
                    next_heartbeat = time.monotonic() + 0.5
                    self.call(self.store.heartbeat, worker)
                for job in self.call(self.store.fetch_jobs, worker, max_jobs=3) or ():
                    ran.write(f"{job.args['key']}\n")
                    self.call(self.store.finish_job, job.id, job.attempt, worker_id=worker)
                time.sleep(0.004)
        self.call(self.store.unregister_worker, worker)


def main() -> None:
    role, dsn, name, file = sys.argv[1:]
    process = Process(dsn, name)
    if role == "producer":
        process.produce()
    else:
        process.run_jobs(Path(file))
    report = {
        "package": procrastinate_sql.__file__,
        "version": SCHEMA_VERSION,
        "deferred": process.deferred,
        "errors": process.errors,
        "longest": process.longest,
    }
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main()
