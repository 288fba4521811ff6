"""pgbench: PostgreSQL's own driver, neutral and fast, where what is measured is SQL alone."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from bench.peers import Unavailable
from bench.process import Failed
from bench.server import Database


def pgbench(
    database: Database,
    script: str,
    clients: int,
    *,
    transactions: int | None = None,
    seconds: float | None = None,
    variables: Mapping[str, int] | None = None,
) -> float:
    """Run a script and return its transactions per second, without the time to connect.

    Args:
        database: Where.
        script: Text of the script.
        clients: How many connections.
        transactions: So many for each client,
        seconds: or for so long.
        variables: What the script may use.

    Raises:
        Unavailable: There is no pgbench.
    """
    server = database.server
    program = server.programs.client / "pgbench"
    if not program.exists():
        raise Unavailable("there is no pgbench beside this PostgreSQL")
    with _file(script) as path:
        command = [str(program), "--no-vacuum", "--protocol=prepared", f"--file={path}"]
        command += [f"--client={clients}", f"--jobs={min(clients, 2)}"]
        command += [f"--define={name}={value}" for name, value in (variables or {}).items()]
        if transactions is not None:
            command.append(f"--transactions={transactions}")
        else:
            command.append(f"--time={max(1, round(seconds or 1))}")
        result = subprocess.run(
            [*command, database.name],
            env=server.environment,
            capture_output=True,
            text=True,
            check=False,
        )
    found = re.search(r"^tps = ([0-9.]+)", result.stdout, re.MULTILINE)
    if result.returncode or not found:
        raise Failed(f"pgbench: {(result.stderr or result.stdout).strip()[-400:]}")
    return float(found.group(1))


@contextmanager
def _file(script: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "script.sql"
        path.write_text(script)
        yield path
