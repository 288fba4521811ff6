"""The floor: a bare SQL loop, fetch 500 and delete 500, on a narrow table. No queue at all."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from time import sleep

import psycopg

from bench.programs.contract import Contract

BATCH = 500

SCHEMA = """
create table floor_jobs (
    id bigint generated always as identity primary key,
    args jsonb not null,
    taken boolean not null default false
);
create index on floor_jobs (id) where not taken;
"""

FETCH = """
with candidate as materialized (
    select id from floor_jobs where not taken order by id limit %s for update skip locked
)
update floor_jobs as job set taken = true from candidate where job.id = candidate.id
returning job.id, job.args
"""

DELETE = "delete from floor_jobs where id = any(%s)"

INSERT = (
    "insert into floor_jobs (args) select jsonb_build_object('n', n) from unnest(%s::int[]) as n"
)


def work(connection: psycopg.Connection[tuple[int, dict[str, int]]], contract: Contract) -> None:
    """Fetch and delete until told to stop."""
    stopped = threading.Event()
    contract.ready()
    contract.when_stopped(stopped.set)
    while not stopped.is_set():
        rows = connection.execute(FETCH, (BATCH,)).fetchall()
        if not rows:
            sleep(0.005)
            continue
        for _, args in rows:
            contract.ran(args["n"])
        connection.execute(DELETE, ([job_id for job_id, _ in rows],))
    contract.report()


def main() -> None:
    contract = Contract()
    with psycopg.connect(contract.dsn, autocommit=True) as connection:
        if contract.kind == "install":
            connection.execute(SCHEMA)
            contract.say(done=True)
        elif contract.is_client:

            def send_many(numbers: Sequence[int]) -> object:
                return connection.execute(INSERT, (list(numbers),))

            asyncio.run(contract.serve_client(lambda n: send_many([n]), send_many))
        else:
            work(connection, contract)


if __name__ == "__main__":
    main()
