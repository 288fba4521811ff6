"""Lint the SQL that sqlfluff sees only as a string: the statements in the bodies of functions.

sqlfluff reads a `$$` body as one literal, so pglast takes each body apart and every statement is
linted alone, with the configuration of .sqlfluff.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import pglast
from pglast.ast import CreateFunctionStmt
from sqlfluff.core import FluffConfig, Linter

# Beyond .sqlfluff's: arguments look like unknown columns or tables, and a body is not a file.
ALSO_EXCLUDED = "RF01,RF02,RF03,LT12,LT13"
STATEMENTS = ("insert", "update", "delete", "select", "with")
INTO = re.compile(r"(?<!insert)\s+into (strict )?\w+(, \w+)*(?=;?$| from )", re.MULTILINE)
ARRAY_OF_OURS = re.compile(r"\b_?procrastinate_\w+\[\]")


@cache
def linter() -> Linter:
    excluded = FluffConfig.from_path(".").get("exclude_rules") + "," + ALSO_EXCLUDED
    return Linter(config=FluffConfig.from_path(".", overrides={"exclude_rules": excluded}))


def plain_sql(path: Path) -> str:
    """Return the file without psql's own commands, which the server's parser does not know."""
    lines = path.read_text().splitlines(keepends=True)
    return "".join("\n" if line.startswith("\\") else line for line in lines)


def functions(text: str) -> Iterator[tuple[str, str, str, str]]:
    """Yield the source, name, language and body of each function that is created."""
    for statement in map(str, pglast.split(text)):
        node = pglast.parse_sql(statement)[0].stmt
        if isinstance(node, CreateFunctionStmt) and node.funcname:
            options: dict[str, Any] = {option.defname: option.arg for option in node.options or ()}
            if "as" in options:
                name = node.funcname[-1].sval
                yield statement, name, options["language"].sval, options["as"][0].sval


def queries(tree: Any, line: int = 1) -> Iterator[tuple[int, str]]:
    """Yield every SQL text inside a parsed PL/pgSQL body, with the first line of its statement."""
    if isinstance(tree, list):
        for item in tree:
            yield from queries(item, line)
    elif isinstance(tree, dict):
        if "PLpgSQL_expr" in tree:
            yield line, tree["PLpgSQL_expr"]["query"]
        else:
            for item in tree.values():
                yield from queries(item, tree.get("lineno", line))


def as_written(query: str, body: list[str]) -> str:
    """Return the query at its place in the margin; `body` is the source from its statement on."""
    first = re.split(r" {2,}", query.splitlines()[0].removeprefix("SELECT").strip())[0]
    line = next((line for line in body if first in line), "")
    text = line[: len(line) - len(line.lstrip())] + query
    if query not in "\n".join(body):  # the parser turns `perform f()` into `SELECT f()`
        text = text.replace("SELECT", "select", 1)
    return textwrap.dedent(text).strip() + "\n"


def statements(source: str, language: str, body: str) -> Iterator[str]:
    """Yield the statements of a function's body."""
    if language == "sql":
        yield textwrap.dedent(body).strip() + "\n"
    elif language == "plpgsql":
        # The parser leaves blanks for `into`, the only part that is no SQL. It has no catalog: it
        # takes our types for records, and knows no array of those.
        source, body = (ARRAY_OF_OURS.sub("text[]", INTO.sub("", text)) for text in (source, body))
        for line, query in queries(pglast.parse_plpgsql(source)):
            if query.split(None, 1)[0].lower() in STATEMENTS:
                yield as_written(query, body.splitlines()[line - 1 :])


def findings(path: Path) -> list[str]:
    """Return what is wrong with the bodies in one file."""
    return [
        f"{path}: {name}: {finding.rule_code()} {finding.desc()}"
        for source, name, language, body in functions(plain_sql(path))
        for text in statements(source, language, body)
        for finding in linter().lint_string(text).get_violations()
        if finding.rule_code() != "PRS"  # pglast has parsed it: sqlfluff's own gaps, as `rows from`
    ]


def main() -> int:
    # The largest first, so that both processes end together.
    paths = sorted(map(Path, sys.argv[1:]), key=lambda path: -path.stat().st_size)
    with ProcessPoolExecutor() as pool:
        found = [finding for result in pool.map(findings, paths) for finding in result]
    print("\n".join(found), end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
