"""Absurd through its Python SDK with batches of 100; the schema is the one in its own command."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import absurdctl  # type: ignore[import-untyped]
import psycopg
from absurd_sdk import Absurd, AsyncAbsurd

from bench.programs.contract import Contract

BATCH = 100


async def work_async(contract: Contract) -> None:
    """Run async tasks until told to stop."""
    app = AsyncAbsurd(contract.dsn)

    @app.register_task("noop")
    async def noop(params: Any, context: Any) -> None:
        contract.ran(params["n"])

    contract.ready()
    contract.when_stopped(app.stop_worker)
    await app.start_worker(concurrency=BATCH, batch_size=BATCH)
    contract.report()


def work_sync(contract: Contract) -> None:
    """Run sync tasks until told to stop."""
    app = Absurd(contract.dsn)

    @app.register_task("noop")
    def noop(params: Any, context: Any) -> None:
        contract.ran(params["n"])

    contract.ready()
    contract.when_stopped(app.stop_worker)
    app.start_worker(batch_size=BATCH)
    contract.report()


def main() -> None:
    contract = Contract()
    if contract.kind == "install":
        with psycopg.connect(contract.dsn, autocommit=True) as connection:
            connection.execute(absurdctl.BUNDLED_SCHEMA_SQL.encode())
        Absurd(contract.dsn).create_queue("default")
        contract.say(done=True)
    elif contract.is_client:
        client = Absurd(contract.dsn)

        def send_one(n: int) -> object:
            return client.spawn("noop", {"n": n}, queue="default")

        def send_many(numbers: Sequence[int]) -> None:
            # There is no call for many.
            for n in numbers:
                send_one(n)

        asyncio.run(contract.serve_client(send_one, send_many))
    elif contract.kind == "sync":
        work_sync(contract)
    else:
        asyncio.run(work_async(contract))


if __name__ == "__main__":
    main()
