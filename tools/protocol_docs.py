"""Write docs/protocol.md from the catalog's comments, so that psql and the page say the same.

python tools/protocol_docs.py            # write
python tools/protocol_docs.py --check    # fail when the page is stale
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

import psycopg
from postgres import cluster
from psycopg.rows import dict_row

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "protocol.md"
HEAD = ROOT / "tools" / "protocol.head.md"

# The order of a job's life. A public function that no section names is an error.
SECTIONS = {
    "Defer": ["declare_task", "defer_job", "defer_jobs"],
    "Work": ["register_worker", "heartbeat", "unregister_worker", "fetch_jobs", "fetch_job"],
    "End a run": [
        "finish_job",
        "fail_job",
        "retry_job",
        "finish_jobs",
        "succeed_jobs",
        "release_jobs",
        "release_unknown_jobs",
    ],
    "Steer jobs": ["get_job", "cancel_job", "rerun_job"],
    "Queues": ["pause_queue", "resume_queue", "next_due", "listen_channels"],
    "Operate": ["rescue_jobs", "purge_jobs", "repair", "schema_version"],
}

FUNCTIONS = """
select
    fn.oid,
    fn.proname as name,
    obj_description(fn.oid, 'pg_proc') as comment,
    fn.proretset as many,
    format_type(fn.prorettype, null) as result,
    result.typrelid as result_relation,
    (
        select json_agg(json_build_object(
            'name', arg.name,
            'type', format_type(arg.type, null),
            'mode', coalesce(arg.mode, 'i'),
            'default', pg_get_function_arg_default(fn.oid, arg.position::integer)
        ) order by arg.position)
        from rows from (
            unnest(fn.proargnames),
            unnest(coalesce(fn.proallargtypes, fn.proargtypes::oid[])),
            unnest(fn.proargmodes)
        ) with ordinality as arg (name, type, mode, position)
    ) as arguments
from pg_proc as fn
inner join pg_type as result on fn.prorettype = result.oid
where fn.pronamespace = 'public'::regnamespace
    and fn.proname ~ '^procrastinate_'
    and fn.prorettype <> 'trigger'::regtype
order by fn.proname, fn.pronargs
"""

RELATIONS = """
select rel.oid, rel.relname as name, rel.relkind as kind, coalesce(
    obj_description(rel.oid, 'pg_class'), obj_description(rel.reltype, 'pg_type')
) as comment
from pg_class as rel
where rel.relnamespace = 'public'::regnamespace
    and rel.relname ~ '^procrastinate_'
    and rel.relkind in ('r', 'v', 'c')
order by rel.relkind <> 'r', rel.relname <> 'procrastinate_jobs', rel.relname
"""

COLUMNS = """
select
    att.attname as name,
    format_type(att.atttypid, att.atttypmod) as type,
    att.attnotnull as required,
    col_description(att.attrelid, att.attnum) as comment
from pg_attribute as att
where att.attrelid = %s and att.attnum > 0 and not att.attisdropped
order by att.attnum
"""

Row = dict[str, Any]


class Page:
    """The page in the making: what is read of the catalog, as Markdown."""

    def __init__(self, connection: psycopg.Connection[Row]) -> None:
        self.connection = connection

    def write(self) -> str:
        functions: dict[str, list[Row]] = {}
        for row in self.connection.execute(FUNCTIONS):
            functions.setdefault(row["name"].removeprefix("procrastinate_"), []).append(row)
        if unknown := functions.keys() - {name for names in SECTIONS.values() for name in names}:
            raise SystemExit(f"{__file__}: name the section of {', '.join(sorted(unknown))}")

        parts = [HEAD.read_text().strip()]
        for title, names in SECTIONS.items():
            parts.append(f"## {title}")
            for name in names:
                parts += map(self.function, functions.get(name, []))
        parts.append("## Tables and types")
        parts += map(self.relation, self.connection.execute(RELATIONS).fetchall())
        return "\n\n".join(parts) + "\n"

    def function(self, row: Row) -> str:
        arguments = row["arguments"] or []
        taken = [argument(each) for each in arguments if each["mode"] in "ibv"]
        returned = [each for each in arguments if each["mode"] in "tob"]
        signature = f"{row['name']}({', '.join(taken)})"
        if len(signature) > 90:
            signature = f"{row['name']}(\n    " + ",\n    ".join(taken) + "\n)"
        result = ("setof " if row["many"] else "") + ("record" if returned else row["result"])

        text, _, example = (row["comment"] or "").partition("Example: ")
        parts = [f"### {row['name']}", f"```\n{signature} → {result}\n```", text.strip()]
        if row["result_relation"]:
            returned = self.connection.execute(COLUMNS, [row["result_relation"]]).fetchall()
        if returned:
            columns = ", ".join(f"`{each['name']}` {each['type']}" for each in returned)
            parts.append(f"Columns: {columns}.")
        if example:
            parts.append(f"```sql\n{example.strip().removesuffix('.').removesuffix(';')};\n```")
        return "\n\n".join(part for part in parts if part)

    def relation(self, row: Row) -> str:
        kind = {"r": "table", "v": "view", "c": "type"}[row["kind"]]
        lines = [f"### {row['name']} ({kind})", "", row["comment"] or "", ""]
        lines += ["| column | type | meaning |", "|---|---|---|"]
        for column in self.connection.execute(COLUMNS, [row["oid"]]):
            null = "" if column["required"] or kind != "table" else ", null"
            meaning = (column["comment"] or "").replace("|", "\\|")
            lines.append(f"| `{column['name']}` | {column['type']}{null} | {meaning} |")
        return "\n".join(lines)


def argument(row: Row) -> str:
    """Return an argument as one would write it: without the casts that the catalog adds."""
    text = f"{row['name']} {row['type']}"
    if row["default"] is None:
        return text
    default = re.sub(r"::[\w ]+(\[\])?$", "", row["default"])
    return f"{text} = {'null' if default == 'NULL' else default}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Write docs/protocol.md from the catalog.")
    parser.add_argument("--check", action="store_true", help="only say whether it is up to date")
    check = parser.parse_args().check

    with cluster() as server:
        server.psql("-f", ROOT / "sql" / "install.sql")
        with psycopg.connect(server.dsn, row_factory=dict_row) as connection:
            text = Page(connection).write()

    if not check:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(text)
    elif not PAGE.exists() or PAGE.read_text() != text:
        print(f"{PAGE.relative_to(ROOT)} is stale: run make docs", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
