"""The server of the benchmark: its own, durable, on a real disk; a fresh database each time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from tempfile import gettempdir
from typing import Any
from urllib.parse import quote

import psycopg

from bench.paths import BUILD
from tools import postgres

# Durable as by default. Checkpoints come between measurements, not within them.
SETTINGS = {
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "shared_buffers": "1GB",
    "max_connections": "400",
    "max_wal_size": "16GB",
    "checkpoint_timeout": "1h",
}
SHOWN = (*SETTINGS, "autovacuum", "random_page_cost", "wal_compression", "jit")


@dataclass(frozen=True)
class Database:
    """A database of the server."""

    server: postgres.Server
    name: str

    @property
    def dsn(self) -> str:
        """A URL, which all drivers read."""
        server = self.server
        return f"postgresql:///{self.name}?host={quote(server.host)}&port={server.port}&user={server.user}"

    def connect(self, **options: Any) -> psycopg.Connection[Any]:
        """Return a connection that commits each statement."""
        return psycopg.connect(self.dsn, autocommit=True, **options)


class Databases:
    """Makes databases from templates, which are installed once for each peer."""

    def __init__(self, server: postgres.Server) -> None:
        self.server = server
        self._templates: set[str] = set()
        self._numbers = count(1)

    @cached_property
    def admin(self) -> psycopg.Connection[Any]:
        """A connection that measures nothing."""
        return Database(self.server, "postgres").connect()

    def has_template(self, name: str) -> bool:
        return name in self._templates

    def new_template(self, name: str) -> Database:
        """Return an empty database, to be filled and then closed by everybody."""
        self.admin.execute(f"create database {name}".encode())
        self._templates.add(name)
        return Database(self.server, name)

    @contextmanager
    def database(self, template: str) -> Iterator[Database]:
        """Yield a copy of a template after a checkpoint; drop it at the end."""
        name = f"{template}_{next(self._numbers)}"
        self.admin.execute(f"create database {name} template {template}".encode())
        self.admin.execute("checkpoint")
        try:
            yield Database(self.server, name)
        finally:
            self.admin.execute(f"drop database {name} with (force)".encode())

    def settings(self) -> dict[str, str]:
        """Return the settings that matter, for the report."""
        rows = self.admin.execute(
            "select name, current_setting(name) from pg_settings where name = any(%s)",
            (list(SHOWN),),
        )
        return dict(rows.fetchall())


@contextmanager
def running_server(version: int | None = None) -> Iterator[Databases]:
    """Yield a server of our own; stop it and remove it at the end."""
    with postgres.cluster(version, SETTINGS, disk_folder()) as server:
        databases = Databases(server)
        yield databases
        databases.admin.close()


def disk_folder() -> Path:
    """Return a folder on a disk that the server's user can enter, with a path short enough."""
    BUILD.mkdir(parents=True, exist_ok=True)
    enterable = all(folder.stat().st_mode & 0o001 for folder in (BUILD, *BUILD.parents))
    if len(str(BUILD)) < 70 and (postgres.server_user() is None or enterable):
        return BUILD
    return Path("/var/tmp") if Path("/var/tmp").is_dir() else Path(gettempdir())
