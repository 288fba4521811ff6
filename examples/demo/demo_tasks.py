"""The tasks of the demo. Workers import this module: procrastinate-sql worker --app demo_tasks"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from pathlib import Path

from procrastinate_sql import JobContext, bindings


@bindings.task(queue="hashing")
def hash_file(path: str) -> str:
    """Return the SHA-256 of a file; it becomes the job's result."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


@bindings.task(queue="words")
def count_words(path: str, kind: str) -> int:
    """Return the number of words in a file, and add it to the report on files of its kind.

    The report is read, changed and written back: two that did so at once would lose a file. Nothing
    here prevents that. The jobs carry the kind as their lock, so that they run one at a time.
    """
    report = read_report(kind)
    words = words_in(path)
    changed = {"files": report["files"] + 1, "words": report["words"] + words}
    report_path(kind).write_text(json.dumps(changed))
    return words


@bindings.task(
    queue="services", max_attempts=5, backoff="constant", retry_delay=0.5, pass_context=True
)
def ask_service(context: JobContext) -> str:
    """Ask a service that is down at first. The database decides about another attempt."""
    if context.job.attempt < 3:
        raise ConnectionError(f"attempt {context.job.attempt}: the service is down")
    return f"attempt {context.job.attempt}: the service is up"


@bindings.task(queue="services")
async def wait_for_ever() -> None:
    """Wait for something that never comes: only an abort ends this job."""
    await asyncio.Event().wait()


def words_in(path: str) -> int:
    """Return the number of words in a file."""
    return len(Path(path).read_bytes().split())


def read_report(kind: str) -> dict[str, int]:
    """Return the number of files of a kind so far, and of the words in them."""
    path = report_path(kind)
    if not path.exists():
        return {"files": 0, "words": 0}
    report: dict[str, int] = json.loads(path.read_text())
    return report


def report_path(kind: str) -> Path:
    """Return where the report on files of a kind is."""
    return Path(os.environ["DEMO_REPORTS"], f"{kind}.json")
