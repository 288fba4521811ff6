"""Arguments and results that only processes with a key can read.

    python -c 'from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())'
    export JOB_KEYS=…
    python with_encryption.py defer ann@example.org 1234
    procrastinate-sql worker --app with_encryption:app

To change the key, so that at no moment there is a job that a worker cannot read:

1. `JOB_KEYS=old,new` everywhere: all can read what is encrypted with either.
2. `JOB_KEYS=new,old` everywhere: from now on the new one, the first, encrypts.
3. `python with_encryption.py rotate`, until it prints 0: what is stored is encrypted anew.
4. `JOB_KEYS=new` everywhere.

Fernet authenticates: what was changed in the table is refused. It does not tie arguments to their
job: whoever may write to the table can give a job the arguments of another.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import psycopg
from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from psycopg.types.json import Jsonb

from procrastinate_sql import App


class Encryption:
    """Encrypts what a job stores.

    Args:
        keys: Keys of Fernet, separated by commas. The first encrypts, all of them decrypt.
    """

    def __init__(self, keys: str) -> None:
        self._first, *_ = fernets = [Fernet(key) for key in keys.split(",")]
        self._all = MultiFernet(fernets)

    def encode(self, value: Any) -> dict[str, str]:
        """Return what is to be stored of a value."""
        return {"encrypted": self._all.encrypt(json.dumps(value).encode()).decode()}

    def decode(self, stored: Any) -> Any:
        """Return the value. Plain text is refused as well: anybody could have written that."""
        try:
            return json.loads(self._all.decrypt(stored["encrypted"]))
        except (InvalidToken, KeyError, TypeError):
            raise ValueError("not encrypted with a key of this process") from None

    def rotate(self, connection: psycopg.Connection[Any]) -> int:
        """Encrypt anew what is encrypted with another key than the first; return in how many jobs.

        Jobs that run are left out.
        """
        rotated = 0
        ids = connection.execute("select id from procrastinate_jobs where args ? 'encrypted'")
        for (job_id,) in ids.fetchall():
            with connection.transaction():
                row = connection.execute(
                    "select args, result from procrastinate_jobs"
                    " where id = %s and status <> 'doing' for update",
                    [job_id],
                ).fetchone()
                if row is not None and any(map(self._is_old, row)):
                    connection.execute(
                        "update procrastinate_jobs set args = %s, result = %s where id = %s",
                        [*map(self._rotated, row), job_id],
                    )
                    rotated += 1
        return rotated

    def _is_old(self, stored: dict[str, str] | None) -> bool:
        if stored is None:
            return False
        try:
            self._first.decrypt(stored["encrypted"])
        except InvalidToken:
            return True
        return False

    def _rotated(self, stored: dict[str, str] | None) -> Jsonb | None:
        if stored is None:
            return None
        return Jsonb({"encrypted": self._all.rotate(stored["encrypted"]).decode()})


encryption = Encryption(os.environ["JOB_KEYS"])
app = App(encode=encryption.encode, decode=encryption.decode)


@app.task
def send_pin(to: str, pin: str) -> str:
    """Send a secret, and return one."""
    return f"sent {pin} to {to}"


if __name__ == "__main__":
    command, *words = sys.argv[1:]
    if command == "defer":
        print(send_pin.defer(to=words[0], pin=words[1]))
    elif command == "rotate":
        with psycopg.connect(autocommit=True) as connection:
            print(encryption.rotate(connection))
