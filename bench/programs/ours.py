"""This queue, through its public Python binding."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
from collections.abc import Callable, Sequence
from typing import Any

from bench.programs.contract import Contract
from procrastinate_sql import App, JobContext


def register_tasks(app: App, contract: Contract) -> None:
    """Register the no-op tasks; the option `keep` keeps finished jobs."""
    ran = contract.ran
    keep_finished = None if contract.options.get("keep") else 0

    if contract.kind == "sync":

        @app.task(keep_finished=keep_finished)
        def noop(n: int) -> None:
            ran(n)

    elif contract.kind == "batch":
        register_batch_task(app, ran, int(contract.options.get("batch", 500)), keep_finished)
    elif contract.kind == "locked":

        @app.task(name="noop", keep_finished=keep_finished)
        async def noop_locked(n: int, lock: str, turn: int) -> None:
            contract.ran_in_turn(n, lock, turn)

    else:

        @app.task(name="noop", keep_finished=keep_finished)
        async def noop_async(n: int) -> None:
            ran(n)

    @app.task(pass_context=True)
    async def hold(context: JobContext, n: int) -> None:
        contract.say(start=n, attempt=context.job.attempt)
        await asyncio.sleep(3600)


def has_batch_tasks() -> bool:
    """Can a task be called once for many jobs?"""
    # `App.task` names its options in `_register`, since it is overloaded.
    return any("batch" in inspect.signature(f).parameters for f in (App.task, App._register))


def register_batch_task(
    app: App, ran: Callable[[int], None], batch: int, keep_finished: float | None
) -> None:
    """Register a task that is called once for up to `batch` jobs, whose outcomes stay their own."""
    if not has_batch_tasks():
        raise SystemExit("App.task has no `batch`")

    async def noop(contexts: list[JobContext]) -> None:
        for context in contexts:
            ran(context.job.args["n"])

    options: dict[str, Any] = {"batch": batch, "keep_finished": keep_finished}
    app.task(**options)(noop)


def work(app: App, contract: Contract) -> None:
    """Run a worker until told to stop; the option `workers` runs several, for their idle cost.

    The option `durable_claims` is that of the worker.
    """
    concurrency = int(contract.options.get("concurrency", 100))
    durable_claims = bool(contract.options.get("durable_claims", True))
    workers = int(contract.options.get("workers", 1))
    contract.ready()
    contract.when_stopped(lambda: os.kill(os.getpid(), signal.SIGTERM))
    if workers == 1:
        app.run_worker(concurrency=concurrency, durable_claims=durable_claims)
    else:
        asyncio.run(_run_many(app, workers, concurrency))
    contract.report()


async def _run_many(app: App, workers: int, concurrency: int) -> None:
    # The last worker handles the signal; the others are stopped with it.
    tasks = [
        asyncio.create_task(app.run_worker_async(concurrency=concurrency)) for _ in range(workers)
    ]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def main() -> None:
    contract = Contract()
    app = App(contract.dsn)
    if not contract.is_client:
        register_tasks(app, contract)
        work(app, contract)
        return

    task = app.configure(contract.options.get("task", "noop"))

    def send_one(n: int) -> object:
        return task.defer(n=n)

    def send_many(numbers: Sequence[int]) -> object:
        return task.defer_many([{"n": n} for n in numbers])

    app.job_store.schema_version()  # connects
    asyncio.run(contract.serve_client(send_one, send_many))
    app.close()


if __name__ == "__main__":
    main()
