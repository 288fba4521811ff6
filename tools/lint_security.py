"""Look, with pgspot, for what somebody else's objects could get into: an open search_path, say.

pgspot trusts a schema that the script itself creates, and a path that ends in pg_temp. That is what
sql/before_install.sql pins and what `set search_path from current` takes over; since pgspot cannot
know it, it is told so here. Everything that does not pin that path stays open to its findings.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from flatten import ROOT, flatten

SCRIPTS = ("sql/install.sql", "sql/roles.sql")
PIN = "set search_path = procrastinate, pg_temp"

# PS015 (a view that is replaced may be a trap set before): roles.sql looks first whose it is.
IGNORED = ("PS015",)

# As far as its parser understands our PL/pgSQL: it has no catalog, and loses the quotes of names.
ARRAY_OF_OURS = re.compile(r"\b_?procrastinate_\w+\[\]")
QUOTED_NAME = re.compile(r'"position"')


def script() -> str:
    """Return all SQL of an installation with roles, its path spelt out."""
    text = "\n".join(flatten(ROOT / path) for path in SCRIPTS)
    text = text.replace("set search_path from current", PIN)
    text = QUOTED_NAME.sub("place", ARRAY_OF_OURS.sub("text[]", text))
    return f"create schema procrastinate;\n{PIN};\n{text}"


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "procrastinate.sql"
        path.write_text(script())
        options = [word for code in IGNORED for word in ("--ignore", code)]
        command = [sys.executable, "-m", "pgspot", *options, str(path)]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode:
        print(found.stdout + found.stderr, end="")
    return found.returncode


if __name__ == "__main__":
    sys.exit(main())
