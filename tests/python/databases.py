"""Databases of an ordinary owner, empty at first, for tests of what is installed into them."""

from __future__ import annotations

import os
import re
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from postgres import default_version, installation
from psycopg.conninfo import conninfo_to_dict, make_conninfo

ROOT = Path(__file__).resolve().parents[2]
INSTALL = ROOT / "sql" / "install.sql"
UNINSTALL = ROOT / "sql" / "uninstall.sql"
UPGRADE = ROOT / "migrations" / "upgrade.sql"

# They vary from run to run: what pg_dump draws at random, and the name of the owner.
RANDOM = re.compile(r"^\\(un)?restrict .*\n", re.MULTILINE)

Output = subprocess.CompletedProcess[str]


@dataclass(frozen=True)
class Database:
    """A database, and the role that owns it and may nothing else; both have the same name.

    Attributes:
        name: What they are called.
        dsn: Where the database is, for its owner.
    """

    name: str
    dsn: str

    def connect(self, schema: str = "public") -> psycopg.Connection[Any]:
        """Connect in autocommit mode; to be closed by the caller."""
        connection = psycopg.connect(self.dsn, autocommit=True)
        connection.execute("select set_config('search_path', quote_ident(%s), false)", (schema,))
        return connection

    def execute(self, statements: str) -> list[Any]:
        """Execute statements as the owner; return the rows of the last one, if it has any."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            cursor = connection.execute(statements.encode())
            while cursor.nextset():
                pass
            return cursor.fetchall() if cursor.description else []

    def psql(self, *arguments: object, schema: str | None = None) -> Output:
        """Run psql as a person does, with no start-up file and no flag but these."""
        return self._run("psql", arguments, schema)

    def start_psql(self, *arguments: object) -> subprocess.Popen[bytes]:
        """Start psql, to do something else meanwhile."""
        return subprocess.Popen(**self._command("psql", arguments))

    def dump(self) -> str:
        """Return all that pg_dump says, comments, owners and privileges included."""
        output = self._run("pg_dump", ())
        assert output.returncode == 0, output.stderr
        return RANDOM.sub("", output.stdout).replace(self.name, "owner")

    def _run(
        self, program: str, arguments: tuple[object, ...], schema: str | None = None
    ) -> Output:
        return subprocess.run(
            **self._command(program, arguments, schema),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def _command(
        self, program: str, arguments: tuple[object, ...], schema: str | None = None
    ) -> dict[str, Any]:
        """Return what `subprocess` needs to know of a program of PostgreSQL."""
        place = {name: str(value) for name, value in conninfo_to_dict(self.dsn).items()}
        environment = {
            **os.environ,
            "PSQLRC": os.devnull,
            "PGHOST": place["host"],
            "PGPORT": place["port"],
            "PGUSER": place["user"],
            "PGPASSWORD": place["password"],
            "PGDATABASE": place["dbname"],
        }
        if schema is not None:
            quoted = '"' + schema.replace('"', '""') + '"'
            escaped = re.sub(r"([\\ ])", r"\\\1", quoted)
            environment["PGOPTIONS"] = f"-c search_path={escaped}"
        return {
            "args": [str(installation(default_version()).client / program), *map(str, arguments)],
            "env": environment,
            "stdin": subprocess.DEVNULL,
        }


@contextmanager
def owned_database(dsn: str, options: str = "") -> Iterator[Database]:
    """Make an empty database and its owner, with the rights of `dsn`; drop both at the end."""
    name = f"owner_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(dsn, autocommit=True) as administrator:
        administrator.execute(f"create role {name} login password '{name}'".encode())
        administrator.execute(f"create database {name} owner {name} {options}".encode())
        try:
            yield Database(name, make_conninfo(dsn, user=name, password=name, dbname=name))
        finally:
            administrator.execute(f"drop database {name} with (force)".encode())
            administrator.execute(f"drop role {name}".encode())


def succeed(output: Output) -> str:
    """Return what a command printed; fail with its errors unless it succeeded."""
    assert output.returncode == 0, output.stderr
    return output.stdout
