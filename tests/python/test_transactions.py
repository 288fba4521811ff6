"""Deferring in the caller's transaction, whatever library holds the connection."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import django
import psycopg
import pytest
import sqlalchemy
from django.conf import settings
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from procrastinate_sql import App, InvalidArgument


@pytest.fixture
def app() -> App:
    """Without an address: it can only use the connection that it is given."""

    def unreachable() -> str:
        raise AssertionError("the app opened a connection of its own")

    return App(unreachable)


@pytest.fixture
def jobs(conn: psycopg.Connection[Any]) -> Callable[[], int]:
    """Count the jobs that another connection sees."""

    def count() -> int:
        row = conn.execute("select count(*) from procrastinate_jobs").fetchone()
        assert row
        return int(row[0])

    return count


def test_psycopg(app: App, connect: Any, jobs: Callable[[], int]):
    connection = connect()
    app.configure("t", connection=connection).defer()
    app.configure("t", connection=connection).defer_many([{}, {}])
    assert jobs() == 0
    connection.rollback()
    assert jobs() == 0

    with connection.transaction():
        app.configure("t", connection=connection).defer()
    assert jobs() == 1


async def test_psycopg_async(app: App, dsn: str, jobs: Callable[[], int]):
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        await app.configure("t", connection=connection).defer_async()
        await app.configure("t", connection=connection).defer_many_async([{}, {}])
        assert jobs() == 0
    assert jobs() == 3


async def test_a_connection_of_the_wrong_kind_is_refused(app: App, connect: Any, dsn: str):
    with pytest.raises(InvalidArgument, match="not async"):
        await app.configure("t", connection=connect()).defer_async()
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        with pytest.raises(InvalidArgument, match="is async"):
            app.configure("t", connection=connection).defer()


@pytest.fixture
def url(dsn: str) -> sqlalchemy.URL:
    place = conninfo_to_dict(dsn)
    return sqlalchemy.URL.create(
        "postgresql+psycopg", query={name: str(value) for name, value in place.items()}
    )


def test_sqlalchemy(app: App, url: sqlalchemy.URL, jobs: Callable[[], int]):
    engine = sqlalchemy.create_engine(url)
    with engine.begin() as connection:
        app.configure("t", connection=connection).defer()
        assert jobs() == 0
    assert jobs() == 1

    with Session(engine) as session:
        app.configure("t", connection=session.connection()).defer()
        session.rollback()
        app.configure("t", connection=session.connection()).defer()
        session.commit()
    assert jobs() == 2
    engine.dispose()


def test_sqlalchemys_connection_must_have_begun(app: App, url: sqlalchemy.URL):
    engine = sqlalchemy.create_engine(url)
    with engine.connect() as connection, pytest.raises(InvalidArgument, match="has not begun"):
        app.configure("t", connection=connection).defer()
    engine.dispose()


async def test_sqlalchemy_async(app: App, url: sqlalchemy.URL, jobs: Callable[[], int]):
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await app.configure("t", connection=connection).defer_async()
        assert jobs() == 0
    assert jobs() == 1

    async with AsyncSession(engine) as session:
        await app.configure("t", connection=await session.connection()).defer_async()
        await session.commit()
    assert jobs() == 2
    await engine.dispose()


@pytest.fixture
def django_connection(dsn: str) -> Iterator[Any]:
    if not settings.configured:
        settings.configure(DATABASES={})
        django.setup()
    from django.db import connections
    from django.db.utils import load_backend

    place = conninfo_to_dict(dsn)
    described = connections.configure_settings(
        {
            "default": {
                "ENGINE": "django.db.backends.postgresql",
                "NAME": place["dbname"],
                "USER": place["user"],
                "HOST": place["host"],
                "PORT": place["port"],
            }
        }
    )["default"]
    connection = load_backend(described["ENGINE"]).DatabaseWrapper(described, "default")
    connections["default"] = connection
    yield connection
    connection.close()


def test_django(app: App, django_connection: Any, jobs: Callable[[], int]):
    from django.db import connection, transaction

    with transaction.atomic():
        app.configure("t", connection=connection).defer(n=1)
        assert jobs() == 0
    assert jobs() == 1

    with transaction.atomic():
        app.configure("t", connection=connection).defer(n=1)
        transaction.set_rollback(True)
    assert jobs() == 1
