"""So many fetches of many jobs go on at once; the others wait for one to end, but not for long."""

from __future__ import annotations

import pytest
from concurrency import Connect, Connection, Worker, blocked, defer, value

PLACES = 8
MANY = 21
# Keys of type bigint are shown in halves.
PLACES_HELD = """
select (classid::bigint << 32) | objid::bigint as key, pid
from pg_locks
where locktype = 'advisory' and objsubid = 1
    and database = (select oid from pg_database where datname = current_database())
"""


@pytest.fixture
def all_places(connect: Connect) -> Connection:
    """A session that holds each place for fetches, in a transaction."""
    holder = connect(autocommit=False)
    worker = Worker(connect(autocommit=False))
    worker.fetch(MANY)
    key = value(holder, f"select key from ({PLACES_HELD}) as place")
    worker.conn.rollback()
    for place in range(PLACES):
        holder.execute("select pg_advisory_xact_lock(%s)", (key & -PLACES | place,))
    return holder


def test_a_fetch_waits_for_a_place_and_goes_on_when_one_gets_free(
    conn: Connection, worker: Worker, all_places: Connection
) -> None:
    conn.execute("alter function _procrastinate_wait_for_place set lock_timeout = '10 s'")
    job = defer(conn)
    with blocked(conn, worker.conn, worker.fetch, MANY) as fetched:
        all_places.rollback()
    assert fetched.result() == [job]


def test_a_fetch_goes_on_without_a_place_when_none_gets_free(
    conn: Connection, worker: Worker, all_places: Connection
) -> None:
    job = defer(conn)
    worker.conn.execute("set lock_timeout = '9 s'")
    assert worker.fetch(MANY) == [job]
    assert value(worker.conn, "show lock_timeout") == "9s"


def test_a_fetch_of_few_jobs_does_not_ask_for_a_place(
    conn: Connection, worker: Worker, all_places: Connection
) -> None:
    job = defer(conn)
    conn.execute("alter function _procrastinate_wait_for_place rename to renamed")
    assert worker.fetch(MANY - 1) == [job]


def test_fetches_that_are_left_open_hold_up_no_other_for_long(
    conn: Connection, connect: Connect
) -> None:
    jobs = [defer(conn) for _ in range(MANY * (PLACES + 1))]
    workers = [Worker(connect()) for _ in range(PLACES + 1)]
    for worker in workers:
        worker.conn.execute("begin")
    assert [job for worker in workers for job in worker.fetch(MANY)] == jobs

    places = conn.execute(PLACES_HELD).fetchall()
    assert len({key for key, _ in places}) == len(places) == PLACES
    assert workers[-1].conn.info.backend_pid not in {pid for _, pid in places}


def test_fetches_of_one_transaction_share_a_place(conn: Connection, worker: Worker) -> None:
    worker.conn.execute("begin")
    for _ in range(3):
        worker.fetch(MANY)
    assert len(conn.execute(PLACES_HELD).fetchall()) == 1
