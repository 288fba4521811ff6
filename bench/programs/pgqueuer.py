"""PgQueuer at its best documented settings: batches of 100, an asyncpg pool of 20, uvloop."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import asyncpg  # type: ignore[import-untyped]
import uvloop
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.queries import Queries

from bench.programs.contract import Contract


async def work(contract: Contract) -> None:
    """Run workers until told to stop; each of several (the option `workers`) has its own pool."""
    workers = int(contract.options.get("workers", 1))
    batch = int(contract.options.get("batch", 100))
    size = int(contract.options.get("pool", 20))
    pools = [
        await asyncpg.create_pool(contract.dsn, min_size=min(size, 2), max_size=size)
        for _ in range(workers)
    ]
    queues = [build(contract, pool) for pool in pools]
    loop = asyncio.get_running_loop()
    contract.ready()
    contract.when_stopped(
        lambda: [loop.call_soon_threadsafe(queue.shutdown.set) for queue in queues]
    )
    await asyncio.gather(
        *(queue.run(batch_size=batch, dequeue_timeout=timedelta(seconds=5)) for queue in queues)
    )
    for pool in pools:
        await pool.close()
    contract.report()


def build(contract: Contract, pool: Any) -> PgQueuer:
    """Return a worker with the no-op task."""
    ran = contract.ran
    queue = PgQueuer.from_asyncpg_pool(pool)
    if contract.kind == "sync":

        @queue.entrypoint("noop")
        async def noop(job: Any) -> None:
            # As its documentation says: it calls no sync functions itself.
            await asyncio.to_thread(ran, json.loads(job.payload)["n"])

    else:

        @queue.entrypoint("noop")
        async def noop_async(job: Any) -> None:
            ran(json.loads(job.payload)["n"])

    return queue


async def main() -> None:
    contract = Contract()
    if contract.kind not in ("install", "bulk", "single", "send"):
        await work(contract)
        return

    connection = await asyncpg.connect(contract.dsn)
    queries = Queries(AsyncpgDriver(connection))
    if contract.kind == "install":
        await queries.install()
        contract.say(done=True)
        return

    async def send_one(n: int) -> None:
        await queries.enqueue("noop", payload(n), 0)

    async def send_many(numbers: Sequence[int]) -> None:
        count = len(numbers)
        await queries.enqueue(["noop"] * count, [payload(n) for n in numbers], [0] * count)

    await contract.serve_client(send_one, send_many)
    await connection.close()


def payload(n: int) -> bytes:
    return json.dumps({"n": n}).encode()


if __name__ == "__main__":
    uvloop.run(main())
