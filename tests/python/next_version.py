"""The version after the newest, made up as migrations/README.md says, to test upgrades with.

The jobs get a column, procrastinate_defer_job gets an argument that fills it, and there is a new
table. `make` writes what a release would hold: sql/, migrations/, and the Python package.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from procrastinate_sql.connections import SCHEMA_VERSION

ROOT = Path(__file__).resolve().parents[2]
NEXT = SCHEMA_VERSION + 1
MIGRATION = f"{NEXT:04}_add_note"

# What a file of sql/ holds of a function.
FUNCTION = re.compile(
    r"^create function .*?^\$\$;\n|^comment on function .*?;\n", re.DOTALL | re.MULTILINE
)

OLD_ARGUMENTS = "text, jsonb, text, integer, text, text, timestamptz, text"
LEFT_BEHIND = f"_procrastinate_defer_job_{SCHEMA_VERSION}"

LEFT_BEHIND_FILE = f"""\
-- What statements of version {SCHEMA_VERSION} that are under way call; the next version drops it.

create function {LEFT_BEHIND}(
    task_name text,
    args jsonb = '{{}}',
    queue_name text = null,
    priority integer = null,
    lock text = null,
    queueing_lock text = null,
    scheduled_at timestamptz = null,
    on_conflict text = 'raise'
)
returns bigint
language plpgsql
set search_path from current
as $$
begin
    return procrastinate_defer_job(
        task_name, args, queue_name, priority, lock, queueing_lock, scheduled_at, on_conflict
    );
end;
$$;

comment on function {LEFT_BEHIND} is
'procrastinate_defer_job as it was in version {SCHEMA_VERSION}.';
"""

RENAME = f"""\
-- Not dropped: statements under way hold it by its number.
alter function procrastinate_defer_job({OLD_ARGUMENTS}) rename to {LEFT_BEHIND};

"""

MOVE_GRANTS = f"""
-- What was granted on a function that was renamed goes to the one that has its name now.
do $$
declare
    renamed constant regprocedure := '{LEFT_BEHIND}({OLD_ARGUMENTS})';
    replacement constant regprocedure := 'procrastinate_defer_job({OLD_ARGUMENTS}, text)';
    granted record;
begin
    for granted in
        select
            quote_ident(grantee.rolname) as grantee,
            case when entry.is_grantable then 'with grant option' else '' end as option
        from pg_proc as fn
        cross join lateral aclexplode(fn.proacl) as entry
        inner join pg_roles as grantee on grantee.oid = entry.grantee
        where fn.oid = renamed and entry.grantee <> fn.proowner
    loop
        execute format(
            'grant execute on function %s to %s %s', replacement, granted.grantee, granted.option
        );
    end loop;
end;
$$;

"""

LOCK = """\
-- Tables last: from here to the commit everybody waits.
do $$
begin
    -- Ends an autovacuum and keeps it away; nobody who works has to wait behind this.
    set local lock_timeout = '10s';
    lock table procrastinate_jobs in share update exclusive mode;
    set local lock_timeout = '500ms';
    lock table procrastinate_jobs in access exclusive mode;
exception
    when lock_not_available then
        raise exception 'another transaction kept procrastinate_jobs for too long'
            using
                errcode = '55P03',
                hint = 'Nothing was changed. Run it again; long transactions: '
                    'pg_stat_activity.xact_start.';
end;
$$;

"""

TABLES = """\
alter table procrastinate_jobs add column note text;

create table procrastinate_notes (note text);
"""


@dataclass(frozen=True)
class NextVersion:
    """A release in a folder."""

    root: Path

    @property
    def install(self) -> Path:
        return self.root / "sql" / "install.sql"

    @property
    def migration(self) -> Path:
        return self.root / "migrations" / f"{MIGRATION}.sql"

    @property
    def upgrade(self) -> Path:
        return self.root / "migrations" / "upgrade.sql"

    @property
    def python_path(self) -> Path:
        """The folder from which to import its package."""
        return self.root / "python"

    @property
    def package(self) -> Path:
        return self.python_path / "procrastinate_sql"


def make(root: Path) -> NextVersion:
    """Write the next release into an empty folder."""
    made = NextVersion(root)
    for folder in ("sql", "migrations", "tools"):
        shutil.copytree(ROOT / folder, root / folder)
    _change_sql(root / "sql")
    made.migration.write_text(_migration(root / "sql"))
    _add_to_upgrade(root / "migrations")
    _write_package(made)
    return made


def _change_sql(folder: Path) -> None:
    replace(folder / "schema_version.sql", f"select {SCHEMA_VERSION}\n", f"select {NEXT}\n")
    tables = folder / "tables.sql"
    first_constraint = "\n\n    constraint args_are_an_object"
    replace(tables, first_constraint, f"\n    note text,{first_constraint}")
    with tables.open("a") as file:
        file.write("\ncreate table procrastinate_notes (note text);\n")

    defer_job = folder / "defer_job.sql"
    end = "on_conflict text = 'raise'\n)"
    replace(defer_job, end, "on_conflict text = 'raise',\n    note text = null\n)")
    columns = "task_name, args, queue_name, priority, lock, scheduled_at"
    replace(defer_job, f"        {columns}\n    )", f"        {columns}, note\n    )")
    replace(defer_job, f"({columns})", f"({columns}, note)")

    (folder / "left_behind.sql").write_text(LEFT_BEHIND_FILE)
    version = "\\ir schema_version.sql\n"
    replace(folder / "install.sql", version, f"\\ir left_behind.sql\n{version}")


def _migration(folder: Path) -> str:
    privileges = (folder / "privileges.sql").read_text()
    return "".join([RENAME, *_functions(folder), privileges, MOVE_GRANTS, LOCK, TABLES])


def _functions(folder: Path) -> Iterator[str]:
    """All functions in full, with their comments."""
    for line in (folder / "install.sql").read_text().splitlines():
        if line.startswith("\\ir "):
            for found in FUNCTION.finditer((folder / line.removeprefix("\\ir ")).read_text()):
                yield re.sub("^create function", "create or replace function", found[0]) + "\n"


def _add_to_upgrade(folder: Path) -> None:
    begin = folder / "begin_migration.sql"
    newest = "newest constant integer := "
    replace(begin, f"{newest}{SCHEMA_VERSION};", f"{newest}{NEXT};")
    with begin.open("a") as script:
        condition = f"current_setting('procrastinate.installed')::integer < {NEXT}"
        script.write(f"\nselect {condition} as need_{NEXT} \\gset\n")
    step = [
        "begin;",
        "\\ir begin_migration.sql",
        f"\\if :need_{NEXT}",
        f"\\ir {MIGRATION}.sql",
        f"\\echo applied {MIGRATION}",
        "\\endif",
        "commit;",
    ]
    last = "\nselect procrastinate_schema_version() as version"
    replace(folder / "upgrade.sql", last, "\n".join(["", *step, last]))


def _write_package(made: NextVersion) -> None:
    source = ROOT / "bindings/python/src/procrastinate_sql"
    shutil.copytree(source, made.package, ignore=shutil.ignore_patterns("__pycache__", "sql"))
    connections = made.package / "connections.py"
    replace(connections, f"SCHEMA_VERSION = {SCHEMA_VERSION}\n", f"SCHEMA_VERSION = {NEXT}\n")
    calls = made.package / "calls.py"
    replace(calls, '"text": "backoff', '"text": "note backoff')
    on_conflict = '    on_conflict: str = "raise",\n'
    replace(calls, on_conflict, f"{on_conflict}    note: str | None = None,\n")
    flatten = [sys.executable, made.root / "tools/flatten.py"]
    subprocess.run([*flatten, "--package", made.package / "sql"], check=True)


def replace(file: Path, old: str, new: str) -> None:
    """Replace a text that is there once."""
    text = file.read_text()
    assert text.count(old) == 1, f"{text.count(old)} times in {file.name}: {old}"
    file.write_text(text.replace(old, new))
