"""The command `procrastinate-sql`. Exit codes: 0 done, 1 it failed, 2 it was called wrongly."""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import sys
import threading
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import psycopg

from procrastinate_sql import bindings, health, schema
from procrastinate_sql.app import App
from procrastinate_sql.connections import Address
from procrastinate_sql.errors import ProcrastinateError

EXAMPLES = """examples:
  procrastinate-sql schema install
  procrastinate-sql defer send_email --arg to=ann@example.org --queue mail
  procrastinate-sql worker --app shop.tasks --queues mail,reports --concurrency 20

The database: --dsn, else $PROCRASTINATE_DSN, else libpq's own environment (PGHOST, PGDATABASE, …).
"""


class Failure(Exception):
    """The command cannot do what was asked; the message is for the user."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = _parser().parse_args(argv)
    try:
        return int(options.run(options) or 0)
    except ProcrastinateError as error:
        return _complain(str(error), error.hint)
    except psycopg.Error as error:
        hint = error.diag.message_hint or (
            "Is --dsn (or PROCRASTINATE_DSN) right?" if error.sqlstate is None else None
        )
        return _complain(str(error).strip(), hint)
    except Failure as failure:
        return _complain(str(failure))


def _complain(message: str, hint: str | None = None) -> int:
    print(f"procrastinate-sql: {message}", file=sys.stderr)
    if hint:
        print(f"  {hint}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="procrastinate-sql", description="A PostgreSQL job queue.", epilog=EXAMPLES
    )
    database = argparse.ArgumentParser(add_help=False)
    database.add_argument("--dsn", help="connection string or URL of the database")
    database.add_argument("--schema", help="schema of the queue, if not in the search_path")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
    _add_schema(commands, database)
    _add_defer(commands, database)
    _add_worker(commands, database)
    _add_healthcheck(commands)
    return parser


class _Parser(argparse.ArgumentParser):
    """Shows descriptions and examples as they are written."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)


# --- schema ------------------------------------------------------------------------


def _add_schema(commands: Any, database: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "schema",
        help="install, upgrade, check or remove the schema",
        description="install: into the current schema, all or nothing\n"
        "upgrade: apply what is missing, while producers and workers go on\n"
        "check: does the schema fit this package? exit code 0 or 1\n"
        "uninstall: drop everything, jobs included (needs --yes)",
        epilog="example:\n  procrastinate-sql schema install --dsn postgresql://localhost/shop",
        parents=[database],
    )
    parser.add_argument("action", choices=["install", "upgrade", "check", "uninstall"])
    parser.add_argument("--yes", action="store_true", help="do drop all jobs")
    parser.add_argument(
        "--wait",
        type=float,
        default=schema.PATIENCE,
        metavar="SECONDS",
        help=f"how long an upgrade tries to lock the tables ({schema.PATIENCE})",
    )
    parser.set_defaults(run=_schema)


def _schema(options: argparse.Namespace) -> None:
    if options.action == "uninstall" and not options.yes:
        raise Failure("uninstall drops all jobs: repeat it with --yes")
    with psycopg.connect(**Address(options.dsn).options()) as connection:
        if options.action == "install":
            schema.install(connection, options.schema)
            print("installed")
        elif options.action == "upgrade":
            applied = schema.upgrade(connection, options.schema, options.wait)
            print("\n".join(f"applied {name}" for name in applied) or "nothing to do")
        elif options.action == "uninstall":
            schema.uninstall(connection, options.schema)
            print("uninstalled")
        else:
            _check(*schema.check(connection, options.schema))


def _check(installed: int | None, needed: int) -> None:
    if installed is None:
        raise Failure("not installed: run procrastinate-sql schema install")
    if installed < needed:
        raise Failure(
            f"the schema has version {installed}, this package needs {needed}; "
            "upgrade the schema: run procrastinate-sql schema upgrade"
        )
    print(f"version {installed}, {'as needed' if installed == needed else f'{needed} is needed'}")


# --- defer -------------------------------------------------------------------------


def _add_defer(commands: Any, database: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "defer",
        help="create a job and print its id",
        description="Create a job and print its id.",
        epilog="""examples:
  procrastinate-sql defer send_email --arg to=ann@example.org --arg copies=2
  procrastinate-sql defer send_email --args '{"to": "ann@example.org"}' --schedule-in 60""",
        parents=[database],
    )
    parser.add_argument("task", help="name of the task")
    parser.add_argument(
        "--arg",
        action="append",
        default=[],
        type=_pair,
        metavar="NAME=VALUE",
        help="an argument: a JSON value if it is one (2, true, null, [1]), else a text; repeatable",
    )
    parser.add_argument("--args", type=_object, default={}, help="all arguments, a JSON object")
    parser.add_argument("--queue")
    parser.add_argument("--priority", type=int, help="higher runs first")
    parser.add_argument("--lock", help="jobs with the same lock run one at a time")
    parser.add_argument("--queueing-lock", help="at most one waiting job carries it")
    parser.add_argument(
        "--schedule-in", type=_seconds, metavar="SECONDS", help="not to be started before"
    )
    parser.add_argument("--on-conflict", choices=["raise", "skip", "replace"], default="raise")
    parser.set_defaults(run=_defer)


def _defer(options: argparse.Namespace) -> None:
    app = App(options.dsn, schema=options.schema)
    deferrer = app.configure(
        options.task,
        queue=options.queue,
        priority=options.priority,
        lock=options.lock,
        queueing_lock=options.queueing_lock,
        schedule_in=options.schedule_in,
        on_conflict=options.on_conflict,
    )
    print(deferrer.defer(**{**options.args, **dict(options.arg)}))
    app.close()


def _pair(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("not a JSON object")
    return value


def _seconds(text: str) -> timedelta:
    try:
        return timedelta(seconds=float(text))
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds") from None


# --- worker and healthcheck --------------------------------------------------------


def _add_worker(commands: Any, database: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "worker",
        help="run jobs",
        description="Run jobs until told to stop. On SIGTERM or SIGINT it fetches no more,\n"
        "lets what runs finish, and gives the rest back; a second signal stops it at once.",
        epilog="examples:\n"
        "  procrastinate-sql worker --app shop.tasks              # the default app, `bindings`\n"
        "  procrastinate-sql worker --app shop.jobs:app --queues mail,reports --concurrency 20",
        parents=[database],
    )
    parser.add_argument(
        "--app", required=True, metavar="MODULE[:NAME]", help="the module with the tasks"
    )
    parser.add_argument("--queues", help="comma-separated; by default all")
    parser.add_argument("--concurrency", type=int, default=10, help="jobs at a time (10)")
    parser.add_argument("--name", help="what the worker calls itself")
    parser.add_argument(
        "--shutdown-timeout", type=float, default=10, metavar="SECONDS", help="grace period (10)"
    )
    parser.add_argument(
        "--poll-interval",
        type=float,
        default=5,
        metavar="SECONDS",
        help="look at least so often (5)",
    )
    parser.add_argument("--no-listen", action="store_true", help="only poll")
    parser.add_argument("--listen-dsn", help="direct connection for LISTEN, around a pooler")
    parser.add_argument("--no-wait", action="store_true", help="stop when there is nothing to run")
    parser.add_argument(
        "--no-durable-claims",
        action="store_true",
        help="start jobs without waiting for the disk; a crash of the server may start them twice",
    )
    parser.add_argument("--health-file", help="see healthcheck")
    parser.add_argument(
        "--log-level", default="info", choices=["debug", "info", "warning", "error"]
    )
    parser.add_argument("--log-args", action="store_true", help="log arguments and error texts too")
    parser.set_defaults(run=_worker)


def _worker(options: argparse.Namespace) -> None:
    logging.basicConfig(
        level=options.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    app = _load(options.app)
    if options.dsn or options.schema:
        app.connect_to(options.dsn or app.address.dsn, schema=options.schema)
    app.run_worker(
        options.queues.split(",") if options.queues else None,
        concurrency=options.concurrency,
        name=options.name,
        shutdown_timeout=options.shutdown_timeout,
        poll_interval=options.poll_interval,
        listen=not options.no_listen,
        listen_dsn=options.listen_dsn,
        wait=not options.no_wait,
        durable_claims=not options.no_durable_claims,
        health_file=options.health_file or health.default_file(),
        log_args=options.log_args,
    )
    _leave_threads()


def _leave_threads() -> None:
    """Exit at once if tasks go on in their threads: Python would wait for them to end."""
    threads = [t for t in threading.enumerate() if t.name.startswith("procrastinate-task")]
    for thread in threads:
        thread.join(0.1)
    if any(thread.is_alive() for thread in threads):
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _load(path: str) -> App:
    module_name, _, name = path.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not module_name.startswith(error.name):
            raise
        raise Failure(f"there is no module {module_name}") from error
    app = getattr(module, name, None) if name else bindings
    if not isinstance(app, App):
        raise Failure(f"{module_name} has no App called {name}")
    return app


def _add_healthcheck(commands: Any) -> None:
    parser = commands.add_parser(
        "healthcheck",
        help="does the worker on this machine live?",
        description="Exit with 0 if a worker lives: it touches a file with every heartbeat, from\n"
        "its event loop. A worker that waits for its database lives. For several workers on a\n"
        "machine, give each a file.",
        epilog="example:\n  HEALTHCHECK CMD procrastinate-sql healthcheck",
    )
    parser.add_argument("--health-file", help="by default $PROCRASTINATE_HEALTH_FILE, else in /tmp")
    parser.add_argument(
        "--max-age", type=float, default=15, metavar="SECONDS", help="longest silence (15)"
    )
    parser.set_defaults(run=_healthcheck)


def _healthcheck(options: argparse.Namespace) -> None:
    path = options.health_file or health.default_file()
    age = health.age(path)
    if age is None:
        raise Failure(f"no worker has written {path}")
    if age > options.max_age:
        raise Failure(f"the worker has been silent for {age:.0f} seconds ({path})")
    print(f"alive {age:.1f} seconds ago")


if __name__ == "__main__":
    sys.exit(main())
