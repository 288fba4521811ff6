"""Every program in examples/ does what its header says, on a real server."""

from __future__ import annotations

import email
import email.policy
import fcntl
import mailbox
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from postgres import default_version, installation
from psycopg.conninfo import conninfo_to_dict

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
NODE = ROOT / ".build" / "node"
WORKER = Path(sysconfig.get_path("scripts"), "procrastinate-sql")

# Quotes of SQL, of JSON and of the shell, variables of psql and of the shell, and no ASCII.
TO = "o'neil@example.org"
SUBJECT = """'); drop table x; -- "quoted" \\ :to :'to' $HOME `id` $(id) ünïcode"""

Output = subprocess.CompletedProcess[str]
Run = Callable[..., Output]


@pytest.fixture
def run(dsn: str, tmp_path: Path) -> Run:
    """Run a command for which libpq's environment names this test's database."""
    place = {name: str(value) for name, value in conninfo_to_dict(dsn).items()}
    client = installation(default_version()).client
    environment = {
        **{name: value for name, value in os.environ.items() if name != "PROCRASTINATE_DSN"},
        "PATH": os.pathsep.join([str(client), os.environ["PATH"]]),
        "PGHOST": place["host"],
        "PGPORT": place["port"],
        "PGUSER": place["user"],
        "PGPASSWORD": place.get("password", ""),
        "PGDATABASE": place["dbname"],
        "OUTBOX": str(tmp_path / "outbox"),
        "PROCRASTINATE_HEALTH_FILE": str(tmp_path / "alive"),
    }

    def run_command(*command: object, cwd: Path = tmp_path, **more: str) -> Output:
        return subprocess.run(
            [str(word) for word in command],
            cwd=cwd,
            env={**environment, **more},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=180,
        )

    return run_command


def succeed(output: Output) -> str:
    """Return what a command printed; fail with everything that it printed unless it succeeded."""
    assert output.returncode == 0, output.stdout + output.stderr
    return output.stdout


def work(run: Run, app: str) -> None:
    """Run a worker of examples/python until nothing is left to do."""
    succeed(run(WORKER, "worker", "--app", app, "--no-wait", cwd=EXAMPLES / "python"))


def job(conn: psycopg.Connection[Any], job_id: object) -> tuple[Any, ...]:
    row = conn.execute(
        "select status::text, queue_name, lock, result from procrastinate_jobs where id = %s",
        [job_id],
    ).fetchone()
    assert row
    return row


def sent(tmp_path: Path) -> list[tuple[str, str]]:
    """Return receiver and subject of each message in the mailbox."""
    if not (tmp_path / "outbox").exists():
        return []
    parse = partial(email.message_from_binary_file, policy=email.policy.default)
    return [(mail["To"], mail["Subject"]) for mail in mailbox.mbox(tmp_path / "outbox", parse)]


# --- Producers in other languages --------------------------------------------------


@pytest.fixture(scope="session")
def node_program() -> Path:
    """The program of examples/producers/node with its dependency, outside the tree."""
    NODE.mkdir(parents=True, exist_ok=True)
    with (NODE / "lock").open("w") as lock:
        # For several test runs at a time.
        fcntl.flock(lock, fcntl.LOCK_EX)
        must_succeed("sh", ROOT / "tools" / "setup.sh", "npm")
        package = EXAMPLES / "producers" / "node" / "package.json"
        installed = NODE / "installed.json"
        if not installed.exists() or installed.read_text() != package.read_text():
            shutil.copy(package, NODE)
            quietly = ["--no-audit", "--no-fund", "--no-package-lock", "--loglevel=error"]
            must_succeed("npm", "install", *quietly, "--prefix", NODE)
            shutil.copy(package, installed)
        return Path(shutil.copy(EXAMPLES / "producers" / "node" / "defer_email.mjs", NODE))


def must_succeed(*command: object) -> None:
    """Prepare something; if that is impossible, the tests fail with what the command printed."""
    words = [str(word) for word in command]
    output = subprocess.run(words, cwd=NODE, capture_output=True, text=True, check=False)
    if output.returncode:
        pytest.fail(f"{shlex.join(words)}\n{output.stdout}{output.stderr}", pytrace=False)


@pytest.fixture(params=["psql", "shell", "node"])
def defer_email(request: pytest.FixtureRequest, run: Run) -> Callable[[str, str], Output]:
    """Run the producer of one language; it prints the id of the job."""
    if request.param == "node":
        program = request.getfixturevalue("node_program")
        return lambda to, subject: run("node", program, to, subject)
    if request.param == "shell":
        script = EXAMPLES / "producers" / "shell" / "defer_email.sh"
        return lambda to, subject: run("sh", script, to, subject)
    file = EXAMPLES / "producers" / "psql" / "defer_email.sql"
    psql = ["psql", "-X", "-q", "-At"]
    return lambda to, subject: run(*psql, "-v", f"to={to}", "-v", f"subject={subject}", "-f", file)


def test_a_job_from_another_language_is_run_by_the_python_worker(
    defer_email: Any, run: Run, conn: psycopg.Connection[Any], tmp_path: Path
):
    job_id = int(succeed(defer_email(TO, SUBJECT)))
    assert job(conn, job_id) == ("todo", "mail", TO, None)
    work(run, "send_email")
    assert job(conn, job_id) == ("succeeded", "mail", TO, TO)
    assert sent(tmp_path) == [(TO, SUBJECT)]


def test_a_refusal_reaches_the_producer(defer_email: Any, conn: psycopg.Connection[Any]):
    output = defer_email("", SUBJECT)
    assert output.returncode != 0
    assert "lock" in output.stderr
    assert conn.execute("select count(*) from procrastinate_jobs").fetchone() == (0,)


# --- Python ------------------------------------------------------------------------


def test_a_python_producer_and_its_worker(run: Run, conn: psycopg.Connection[Any], tmp_path: Path):
    job_id = int(succeed(run(sys.executable, EXAMPLES / "python" / "send_email.py")))
    work(run, "send_email")
    assert job(conn, job_id) == ("succeeded", "mail", None, "ann@example.org")
    assert sent(tmp_path) == [("ann@example.org", "Hello Ann")]


@pytest.mark.parametrize("program", ["with_sqlalchemy.py", "with_django.py"])
def test_an_order_and_its_job_are_committed_together(
    run: Run, conn: psycopg.Connection[Any], tmp_path: Path, program: str
):
    place_order = [sys.executable, EXAMPLES / "python" / program, "42", TO]
    succeed(run(*place_order))
    # Refused, as there is such an order: no job is left of it either.
    assert "IntegrityError" in run(*place_order).stderr
    assert conn.execute("select number, email from orders").fetchall() == [(42, TO)]
    work(run, "send_email")
    assert sent(tmp_path) == [(TO, "Your order 42")]


def test_a_job_is_finished_in_the_transaction_of_its_task(run: Run, conn: psycopg.Connection[Any]):
    conn.execute("create table accounts (name text primary key, balance integer)")
    conn.execute("insert into accounts values ('sales', 32)")
    job_id = int(succeed(run(sys.executable, EXAMPLES / "python" / "book_order.py")))
    work(run, "book_order")
    assert job(conn, job_id) == ("succeeded", "books", None, {"booked": 10})
    assert conn.execute("select balance from accounts").fetchall() == [(42,)]


# --- The demo ----------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with texts of two kinds, and what the demo is to leave alone."""
    folder = tmp_path / "texts"
    for name, text in {
        "a.md": "one two three",
        "deep/er/b.md": "four  five\n\nsix\n",
        'deep/c "d", e.MD': "seven",
        "empty.py": "",
        "no kind": "eight",
        ".git/config": "not me",
        "binary.py": "\0",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "link.md").symlink_to("a.md")
    return folder


@pytest.fixture
def demo(run: Run) -> Run:
    """Run the demo; takes its arguments."""
    return lambda *arguments: run(sys.executable, EXAMPLES / "demo" / "demo.py", *arguments)


def test_the_demo_works(demo: Run, folder: Path, conn: psycopg.Connection[Any]):
    # It installs the schema itself.
    conn.execute("drop schema public cascade; create schema public")
    printed = succeed(demo(folder))
    assert "In " + str(folder) + ": 5 text files, left out 1 binary, 1 special." in printed
    assert "14 of 14 jobs" in printed
    assert "OK: every result" in printed
    assert "make demo ARGS=--keep" in printed.splitlines()[-1]

    counts = conn.execute("""
        select task_name, queue_name, status::text, failures, count(*)
        from procrastinate_jobs group by 1, 2, 3, 4 order by 1, 2
    """)
    assert counts.fetchall() == [
        ("ask_service", "services", "succeeded", 2, 1),
        ("count_words", "words", "succeeded", 0, 5),
        ("hash_file", "hashing", "succeeded", 0, 5),
        ("hash_file", "later", "succeeded", 0, 1),
        ("wait_for_ever", "later", "cancelled", 0, 1),
        ("wait_for_ever", "services", "aborted", 0, 1),
    ]
    words = conn.execute("""
        select lock, sum(result::integer) from procrastinate_jobs
        where task_name = 'count_words' group by lock order by lock
    """)
    assert words.fetchall() == [("md", 7), ("other", 1), ("py", 0)]


FALSIFIED_RESULT = """
    create function falsify() returns trigger language plpgsql
    as $$ begin new.result := '"0"'; return new; end; $$;
    create trigger falsify before update on procrastinate_jobs for each row
    when (new.status = 'succeeded' and new.queue_name = 'later')
    execute function falsify();
"""

# As if the second run of a lock had not waited for the first.
FALSIFIED_TIME = """
    create function falsify() returns trigger language plpgsql
    as $$ begin new.started_at := new.created_at; return new; end; $$;
    create trigger falsify before update on procrastinate_jobs for each row
    when (new.status = 'doing' and new.lock = 'md')
    execute function falsify();
"""

# As if three of its words had been lost.
FALSIFIED_REPORT = FALSIFIED_RESULT.replace('"0"', "4").replace("'later'", "'words'")


@pytest.mark.parametrize(
    ("falsify", "told"),
    [
        (FALSIFIED_RESULT, "in the database is Job(task='hash_file', queue='later'"),
        (FALSIFIED_TIME, "began before an earlier one with lock md ended"),
        (FALSIFIED_REPORT, "the report on md files"),
    ],
    ids=["result", "time", "report"],
)
def test_the_demo_tells_what_is_wrong(
    demo: Run, folder: Path, conn: psycopg.Connection[Any], falsify: str, told: str
):
    conn.execute(falsify)
    output = demo(folder)
    assert output.returncode == 1
    assert told in output.stdout
    assert "OK" not in output.stdout


def test_the_demo_does_not_wait_for_a_worker_that_ended(
    demo: Run, folder: Path, conn: psycopg.Connection[Any]
):
    conn.execute("alter table procrastinate_workers alter stop_requested set default true")
    output = demo(folder)
    assert output.returncode == 1
    assert "ended early (exit code 0)" in output.stderr
    assert "procrastinate_sql.worker registered as worker" in output.stderr


def test_the_demo_leaves_other_jobs_alone(demo: Run, folder: Path, conn: psycopg.Connection[Any]):
    conn.execute("select procrastinate_defer_job('t', queue_name => 'words')")
    output = demo(folder)
    assert output.returncode == 1
    assert "there are jobs in this database already" in output.stderr
    assert conn.execute("select status::text from procrastinate_jobs").fetchall() == [("todo",)]


def test_the_demo_wants_a_folder_with_texts(demo: Run, tmp_path: Path):
    assert demo(tmp_path / "nowhere").returncode == 2
    (tmp_path / "empty").mkdir()
    assert "no text file" in demo(tmp_path / "empty").stderr
