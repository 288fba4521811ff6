"""Flatten psql scripts into plain SQL, for drivers, migration tools and the Python package.

`\\ir` is psql's own. The flattened text also lacks the outer `begin; … commit;`, so that a caller
decides: sent as one simple query it is atomic by itself, and in a transaction it belongs to that.

    python tools/flatten.py sql/install.sql > install.sql
    python tools/flatten.py --package FOLDER        # everything that the Python package carries
    python tools/flatten.py --initial > migrations/0001_initial.sql
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# They only change how psql talks or reacts to errors; others would change what the SQL means.
IGNORED = ("\\set ON_ERROR_STOP", "\\set QUIET", "\\echo", "\\pset", "\\unset")

INITIAL_HEADER = """\
-- Schema version 1: what its sql/install.sql installs, in one file.
-- Made by tools/flatten.py --initial until that version is released, and frozen from then on.

"""


def flatten(path: Path) -> str:
    """Return the SQL of a psql script and of all that it includes.

    Raises:
        ValueError: The script uses a command of psql that plain SQL cannot express.
    """
    return _text(_lines(path, outermost=True))


def initial() -> str:
    """Return the first migration: the installation, less the comments of its table of contents."""
    return INITIAL_HEADER + _text(_lines(ROOT / "sql/install.sql", outermost=True, comments=False))


def _text(lines: Iterator[str]) -> str:
    return "".join(lines).strip("\n") + "\n"


def _lines(path: Path, *, outermost: bool = False, comments: bool = True) -> Iterator[str]:
    for line in path.read_text().splitlines(keepends=True):
        command = line.strip()
        if line.startswith("\\ir "):
            yield from _lines(path.parent / command.removeprefix("\\ir ").strip("'"))
            yield "\n"
        elif line.startswith("\\"):
            if not command.startswith(IGNORED):
                raise ValueError(f"{path}: {command} has no counterpart outside psql")
        elif outermost and line.lower().startswith(("begin;", "commit;")):
            continue
        elif comments or not (command == "" or command.startswith("--")):
            yield line


def write_package(folder: Path) -> None:
    """Fill the folder of the package with the schema; what was there before goes."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "migrations").mkdir(parents=True)
    for name in ("install.sql", "uninstall.sql"):
        if (ROOT / "sql" / name).exists():
            (folder / name).write_text(flatten(ROOT / "sql" / name))
    for migration in sorted((ROOT / "migrations").glob("[0-9]*.sql")):
        shutil.copy(migration, folder / "migrations")


def main() -> None:
    parser = argparse.ArgumentParser(description="Flatten psql scripts into plain SQL.")
    parser.add_argument("--package", action="store_true", help="PATH is the package's sql folder")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--initial", action="store_true", help="the first migration")
    what.add_argument("path", type=Path, nargs="?")
    options = parser.parse_args()
    if options.initial:
        sys.stdout.write(initial())
    elif options.package:
        write_package(options.path)
    else:
        sys.stdout.write(flatten(options.path))


if __name__ == "__main__":
    main()
