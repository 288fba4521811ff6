"""The package as pip installs it, wheel and source distribution: the schema is inside."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from databases import INSTALL, ROOT, Database, Output, owned_database, succeed

from procrastinate_sql.connections import SCHEMA_VERSION

PARTS = ("bindings/python", "sql", "migrations", "tools")


@pytest.fixture
def database(dsn: str) -> Iterator[Database]:
    """An empty database, and the ordinary role that owns it."""
    with owned_database(dsn) as made:
        yield made


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of both distributions, built from a copy of the clone without what make made."""
    clone = tmp_path_factory.mktemp("clone")
    made = shutil.ignore_patterns("sql", "dist", "__pycache__")
    for part in PARTS:
        shutil.copytree(ROOT / part, clone / part, ignore=made)
    folder = clone / "dist"
    # The wheel is built from the source distribution.
    succeed(run(sys.executable, "-m", "build", "--outdir", folder, clone / "bindings/python"))
    return folder


@pytest.fixture(scope="module", params=["whl", "tar.gz"])
def program(
    request: pytest.FixtureRequest, distributions: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The command, of one of the distributions, in a virtual environment that was empty before."""
    (distribution,) = distributions.glob(f"*.{request.param}")
    environment = tmp_path_factory.mktemp("environment")
    succeed(run(sys.executable, "-m", "venv", "--without-pip", environment))
    # Debian's Python may lack what would bring a pip into it.
    pip = [sys.executable, "-m", "pip", "--python", environment / "bin" / "python"]
    succeed(run(*pip, "install", "--quiet", f"{distribution}[binary]"))
    return environment / "bin" / "procrastinate-sql"


def run(*command: object, dsn: str | None = None, cwd: Path | None = None) -> Output:
    """Run a command that knows nothing of the environment in which the tests run."""
    ours = ("PYTHON", "VIRTUAL_ENV", "PROCRASTINATE_")
    environment = {name: text for name, text in os.environ.items() if not name.startswith(ours)}
    if dsn is not None:
        environment["PROCRASTINATE_DSN"] = dsn
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_the_installed_package_installs_the_schema(
    program: Path, database: Database, dsn: str, tmp_path: Path
):
    """Without a clone: what it installs, checks, upgrades and drops is what psql makes."""
    empty = database.dump()
    command = partial(run, program, dsn=database.dsn, cwd=tmp_path)
    schema = partial(command, "schema")
    assert "not installed" in schema("check").stderr
    assert succeed(schema("install")) == "installed\n"
    assert succeed(schema("check")) == f"version {SCHEMA_VERSION}, as needed\n"
    with owned_database(dsn) as other:
        succeed(other.psql("-f", INSTALL))
        assert database.dump() == other.dump()

    assert succeed(schema("uninstall", "--yes")) == "uninstalled\n"
    assert database.dump() == empty
    assert "applied 0001_initial.sql" in succeed(schema("upgrade"))
    assert succeed(schema("check")) == f"version {SCHEMA_VERSION}, as needed\n"
    assert succeed(command("defer", "task")) == "1\n"
