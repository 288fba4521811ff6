"""The command: what it prints, where, and its exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

from procrastinate_sql import App
from procrastinate_sql.cli import main

TASKS = """
from procrastinate_sql import App, bindings

app = App()

@bindings.task
def note(text):
    return text

@app.task(name="note", queue="own")
def own_note(text):
    return "own " + text
"""


@pytest.fixture(autouse=True)
def _address(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROCRASTINATE_DSN", dsn)


@pytest.fixture
def jobs(dsn: str):
    app = App(dsn)
    yield app.job_store
    app.close()


def run(*argv: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "procrastinate_sql.cli", *argv]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False, timeout=60)


def test_a_job_is_deferred(capsys: pytest.CaptureFixture[str], jobs: Any):
    options = ["--queue", "q", "--priority", "2", "--lock", "l", "--schedule-in", "60"]
    arguments = ["--args", '{"a": 1, "b": 1}', "--arg", "b=2", "--arg", "to=ann@example.org"]
    assert main(["defer", "send_email", *options, *arguments, "--arg", "list=[1]"]) == 0
    job = jobs.get_job(int(capsys.readouterr().out))
    assert job.args == {"a": 1, "b": 2, "to": "ann@example.org", "list": [1]}
    assert (job.queue_name, job.priority, job.lock) == ("q", 2, "l")
    assert job.scheduled_at > job.created_at


def test_a_taken_queueing_lock_is_told_with_its_hint(capsys: pytest.CaptureFixture[str]):
    defer = ["defer", "t", "--queueing-lock", "q"]
    assert main(defer) == 0
    assert main(defer) == 1
    error = capsys.readouterr().err
    assert "already waits" in error
    assert "on_conflict" in error
    assert main([*defer, "--on-conflict", "skip"]) == 0


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["schema"],
        ["schema", "improve"],
        ["defer"],
        ["defer", "t", "--arg", "nothing"],
        ["defer", "t", "--args", "[1]"],
        ["defer", "t", "--args", "{"],
        ["defer", "t", "--schedule-in", "soon"],
        ["worker"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_with_2(argv: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as raised:
        main(argv)
    assert raised.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_help_has_examples(capsys: pytest.CaptureFixture[str]):
    for command in [[], ["schema"], ["defer"], ["worker"], ["healthcheck"]]:
        with pytest.raises(SystemExit) as raised:
            main([*command, "--help"])
        assert raised.value.code == 0
        assert "example" in capsys.readouterr().out


def test_a_server_that_is_not_there_is_told_without_a_traceback():
    result = run("defer", "t", "--dsn", "host=/nowhere")
    assert result.returncode == 1
    assert "PROCRASTINATE_DSN" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_life_of_a_schema(
    capsys: pytest.CaptureFixture[str], conn: psycopg.Connection[Any], jobs: Any
):
    conn.execute("create schema other")
    other = ["--schema", "other"]
    assert main(["schema", "check", *other]) == 1
    assert "schema install" in capsys.readouterr().err
    assert main(["defer", "t", *other]) == 1
    assert "schema install" in capsys.readouterr().err

    assert main(["schema", "install", *other]) == 0
    assert main(["schema", "check", *other]) == 0
    assert main(["schema", "upgrade", *other]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert main(["schema", "install", *other]) == 1
    assert "already installed" in capsys.readouterr().err

    assert main(["schema", "uninstall", *other]) == 1
    assert "--yes" in capsys.readouterr().err
    assert main(["schema", "uninstall", *other, "--yes"]) == 0
    assert main(["schema", "check", *other]) == 1
    assert main(["schema", "check"]) == 0


def test_a_schema_that_does_not_exist_is_told(capsys: pytest.CaptureFixture[str]):
    assert main(["schema", "check", "--schema", "missing"]) == 1
    assert capsys.readouterr().err.startswith("procrastinate-sql: not installed")
    for action in ("install", "upgrade"):
        assert main(["schema", action, "--schema", "missing"]) == 1
        assert "schema to install into" in capsys.readouterr().err


def test_a_newer_schema_is_told_and_does(
    capsys: pytest.CaptureFixture[str], conn: psycopg.Connection[Any]
):
    conn.execute(
        "create or replace function procrastinate_schema_version() returns integer"
        " language sql immutable as 'select 99'"
    )
    assert main(["schema", "check"]) == 0
    assert capsys.readouterr().out == "version 99, 1 is needed\n"


def test_a_worker_runs_the_jobs_of_a_module(tmp_path: Path, jobs: Any):
    (tmp_path / "notes.py").write_text(TASKS)
    ours = jobs.defer_job("note", {"text": "hello"}, "mail")
    other = jobs.defer_job("note", {"text": "hello"}, "else")
    result = run("worker", "--app", "notes", "--queues", "mail", "--no-wait", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert jobs.get_job(ours).result == "hello"
    assert jobs.get_job(other).status == "todo"

    result = run("worker", "--app", "notes:app", "--no-wait", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert jobs.get_job(other).result == "own hello"


def test_a_worker_logs_no_arguments_unless_asked(tmp_path: Path, jobs: Any):
    (tmp_path / "notes.py").write_text(TASKS)
    worker = ["worker", "--app", "notes", "--no-wait", "--log-level", "debug"]
    jobs.defer_job("note", {"text": "secret"})
    jobs.defer_job("note", {"secret": 1})
    assert "secret" not in run(*worker, cwd=tmp_path).stderr
    jobs.defer_job("note", {"text": "secret"})
    assert "secret" in run(*worker, "--log-args", cwd=tmp_path).stderr


@pytest.mark.parametrize(
    ("path", "message"),
    [("nothing_there", "no module"), ("notes:nothing", "no App"), ("notes:note", "no App")],
)
def test_an_app_that_is_not_there_is_told(tmp_path: Path, path: str, message: str):
    (tmp_path / "notes.py").write_text(TASKS)
    result = run("worker", "--app", path, cwd=tmp_path)
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_the_health_of_a_worker(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "alive"
    monkeypatch.setenv("PROCRASTINATE_HEALTH_FILE", str(path))
    assert main(["healthcheck"]) == 1
    assert "no worker" in capsys.readouterr().err

    (tmp_path / "notes.py").write_text(TASKS)
    assert run("worker", "--app", "notes", "--no-wait", cwd=tmp_path).returncode == 0
    assert main(["healthcheck"]) == 0

    os.utime(path, (time.time() - 100,) * 2)
    assert main(["healthcheck"]) == 1
    assert "silent" in capsys.readouterr().err
    assert main(["healthcheck", "--max-age", "200"]) == 0


def test_json_arguments_survive_the_shell(capsys: pytest.CaptureFixture[str], jobs: Any):
    value = {"text": 'quotes " and ünïcode', "none": None}
    assert main(["defer", "t", "--args", json.dumps(value)]) == 0
    assert jobs.get_job(int(capsys.readouterr().out)).args == value
