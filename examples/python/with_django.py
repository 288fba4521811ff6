"""Store an order and defer its e-mail in one transaction of Django: both exist, or neither.

python with_django.py 42 ann@example.org
"""

# mypy: disable-error-code="import-untyped"
from __future__ import annotations

import os
import sys

import django
from django.conf import settings
from django.db import connection, transaction

from procrastinate_sql import bindings


def place_order(number: int, email: str) -> None:
    """Store an order, and have its e-mail sent once that is committed."""
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("insert into orders (number, email) values (%s, %s)", [number, email])
        bindings.configure("send_email", queue="mail", connection=connection).defer(
            to=email, subject=f"Your order {number}"
        )


if __name__ == "__main__":
    # A project has this in its settings. What is not said comes from PGHOST, PGUSER and so on.
    database = {"ENGINE": "django.db.backends.postgresql", "NAME": os.environ["PGDATABASE"]}
    settings.configure(DATABASES={"default": database})
    django.setup()
    with connection.cursor() as cursor:
        cursor.execute("create table if not exists orders (number integer primary key, email text)")
    place_order(int(sys.argv[1]), sys.argv[2])
