"""The procrastinate package with its documented concurrency of 10; it keeps finished jobs."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence

from procrastinate import App, PsycopgConnector
from procrastinate.types import JSONDict

from bench.programs.contract import Contract


async def main() -> None:
    contract = Contract()
    app = App(connector=PsycopgConnector(conninfo=contract.dsn))
    ran = contract.ran

    if contract.kind == "sync":

        @app.task(name="noop")
        def noop(n: int) -> None:
            ran(n)

    else:

        @app.task(name="noop")
        async def noop_async(n: int) -> None:
            ran(n)

    async with app.open_async():
        if contract.kind == "install":
            await app.schema_manager.apply_schema_async()
            contract.say(done=True)
        elif contract.is_client:
            task = app.tasks["noop"]

            async def send_one(n: int) -> None:
                await task.defer_async(n=n)

            async def send_many(numbers: Sequence[int]) -> None:
                jobs: list[JSONDict] = [{"n": n} for n in numbers]
                await task.batch_defer_async(*jobs)

            await contract.serve_client(send_one, send_many)
        else:
            contract.ready()
            contract.when_stopped(lambda: os.kill(os.getpid(), signal.SIGTERM))
            await app.run_worker_async(concurrency=10)
            contract.report()


if __name__ == "__main__":
    asyncio.run(main())
