"""The queue at work on your own files; `make demo` runs this on a PostgreSQL of its own.

    make demo                          # over this project
    make demo ARGS="~/Documents"       # over a folder of yours; it is only read
    make demo ARGS=--keep              # and leave the server running, to look around

It installs the schema with psql, defers jobs from psql and from Python, runs them in worker
processes, and compares what the database then says with the same work done here. To run it on a
server of yours, give it an empty database by PROCRASTINATE_DSN or libpq's PGHOST, PGDATABASE …
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
from checks import find_problems
from demo_tasks import ask_service, hash_file, wait_for_ever
from progress import Progress
from text_files import TextFile, find_text_files
from worker_processes import WorkerEnded, WorkerProcesses

from procrastinate_sql import ProcrastinateError, bindings

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parents[1]
STALLED_AFTER = 20  # seconds in which no job moved
SHOWN = 20  # problems
OFFER = 20  # seconds for somebody at a terminal to answer

COUNTS = """
    select
        count(*),
        count(*) filter (where job.finished_at is not null),
        count(*) filter (where job.status = 'doing')
    from procrastinate_jobs as job
"""

ABORT = """
    select procrastinate_cancel_job(job.id, abort => true)
    from procrastinate_jobs as job
    where job.task_name = 'wait_for_ever' and job.status = 'doing' and not job.abort_requested
"""


class DemoFailed(Exception):
    """The demo cannot go on; the message says why."""


def main() -> int:
    """Run the demo; return 0 if everything was as it must be, else 1."""
    options = parse_options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        return demonstrate(options.folder, options.keep)
    except (DemoFailed, WorkerEnded, ProcrastinateError, psycopg.Error) as problem:
        print(f"\ndemo: {str(problem).strip()}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def parse_options() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(description="Watch the queue at work on your files.")
    parser.add_argument("folder", nargs="?", type=Path, default=PROJECT, help="is only read")
    parser.add_argument("--keep", action="store_true", help="wait for Enter at the end")
    options = parser.parse_args()
    options.folder = options.folder.expanduser()
    if not options.folder.is_dir():
        parser.error(f"there is no folder {options.folder}")
    return options


def demonstrate(folder: Path, keep: bool) -> int:
    """Show everything, in order."""
    finds = find_text_files(folder)
    say(f"In {folder.resolve()}: {finds}.")
    if not finds.files:
        raise DemoFailed("there is no text file in that folder: choose another one")

    with connect() as connection, tempfile.TemporaryDirectory() as scratch:
        say(f"Connected to PostgreSQL {connection.info.parameter_status('server_version')}.")
        install(connection)
        os.environ["DEMO_REPORTS"] = scratch
        defer_from_python(finds.files)
        defer_from_psql(finds.files)
        with WorkerProcesses(Path(scratch)) as workers:
            workers.start("anne", queues="hashing,words", concurrency=4)
            workers.start("bert", queues="hashing,words", concurrency=4)
            workers.start("carl", queues="later,services", concurrency=2)
            say("Started three worker processes.")
            watch(connection, workers)
        say()
        run_psql("-f", str(HERE / "look.sql"))
        all_is_well = judge(find_problems(connection, finds.files))
        offer_a_look(connection, keep)
    return 0 if all_is_well else 1


def connect() -> psycopg.Connection[Any]:
    """Connect to the database of $PROCRASTINATE_DSN, else of libpq's environment."""
    return psycopg.connect(os.environ.get("PROCRASTINATE_DSN", ""), autocommit=True)


def install(connection: psycopg.Connection[Any]) -> None:
    """Install the schema with psql, unless it is there and its queue is empty."""
    if connection.execute("select to_regclass('procrastinate_jobs')").fetchone() == (None,):
        run_psql("-f", str(PROJECT / "sql" / "install.sql"))
        say("Installed the schema with psql: psql -f sql/install.sql")
    if connection.execute("select 1 from procrastinate_jobs limit 1").fetchone():
        raise DemoFailed("there are jobs in this database already: give the demo one of its own")


def run_psql(*options: str, stdin: str = "") -> None:
    """Run psql, showing what it prints; it stops at the first error."""
    dsn = os.environ.get("PROCRASTINATE_DSN")
    database = ["-d", dsn] if dsn else []
    command = ["psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-P", "pager=off", *database, *options]
    environment = {**os.environ, "PGCLIENTENCODING": "UTF8"}
    try:
        subprocess.run(
            command, input=stdin, env=environment, encoding="utf-8", check=True, timeout=60
        )
    except FileNotFoundError:
        raise DemoFailed("psql is not on the PATH; `make demo` brings one") from None
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        raise DemoFailed(f"psql did not succeed: {error}") from None


def defer_from_python(files: Sequence[TextFile]) -> None:
    """Defer a job for each file, and some that have a life of their own."""
    hash_file.defer_many({"path": file.path} for file in files)
    hash_file.configure(queue="later", schedule_in={"seconds": 3}).defer(path=files[0].path)
    ask_service.defer()
    wait_for_ever.defer()
    bindings.close()
    say(f"Deferred from Python: {len(files)} jobs that hash a file, one of them again in 3 s,")
    say("    one that fails twice before it succeeds, one to be aborted while it runs.")


def defer_from_psql(files: Sequence[TextFile]) -> None:
    """Defer another job for each file; see defer.sql."""
    table = io.StringIO()
    csv.writer(table).writerows((file.path, file.kind) for file in files)
    run_psql("-f", str(HERE / "defer.sql"), stdin=table.getvalue())


def watch(connection: psycopg.Connection[Any], workers: WorkerProcesses) -> None:
    """Show progress until every job has ended.

    Raises:
        WorkerEnded: A worker did before.
        DemoFailed: Nothing moved for too long.
    """
    progress = Progress()
    before, moved = None, time.monotonic()
    while True:
        counts = connection.execute(COUNTS).fetchone()
        assert counts
        progress.show(*counts)
        jobs, ended, _ = counts
        if ended == jobs:
            progress.close()
            return
        connection.execute(ABORT)
        workers.check()
        if counts != before:
            before, moved = counts, time.monotonic()
        elif time.monotonic() - moved > STALLED_AFTER:
            raise DemoFailed(f"no job moved for {STALLED_AFTER} seconds\n{workers.logs()}")
        time.sleep(0.1)


def judge(problems: Sequence[str]) -> bool:
    """Say whether all is well, and return that."""
    for problem in problems[:SHOWN]:
        say(f"WRONG: {problem}")
    if len(problems) > SHOWN:
        say(f"WRONG: {len(problems) - SHOWN} more")
    if not problems:
        say("OK: every result in the database equals that of the same work done directly;")
        say("    no two jobs with one lock overlapped, and none began before its turn or its time.")
    return not problems


def offer_a_look(connection: psycopg.Connection[Any], keep: bool) -> None:
    """Say how to browse the jobs, and keep the server for that if somebody wants it."""
    at = connection.info
    psql = [shutil.which("psql") or "psql", "-h", at.host, "-p", str(at.port), "-U", at.user]
    query = "select * from procrastinate_jobs order by id desc limit 20"
    say("\nBrowse the jobs, in another terminal:")
    say("    " + shlex.join([*psql, "-d", at.dbname, "-x", "-c", query]))
    if keep:
        say("The server runs until you press Enter here.")
        wait_for_enter()
    elif sys.stdin.isatty():
        say(f"The server stops in {OFFER} seconds; press Enter here to keep it.")
        if answers_within(OFFER):
            say("It runs until you press Enter again.")
            wait_for_enter()
    else:
        say("The server of `make demo` stops now; `make demo ARGS=--keep` keeps it running.")


def answers_within(seconds: float) -> bool:
    """Wait for a line from the terminal; return whether one came in time."""
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    return bool(ready) and bool(sys.stdin.readline())


def wait_for_enter() -> None:
    """Wait for somebody to say that it is enough."""
    with suppress(KeyboardInterrupt):
        sys.stdin.readline()


def say(text: str = "") -> None:
    """Print at once, so that what psql prints stands in its place."""
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
