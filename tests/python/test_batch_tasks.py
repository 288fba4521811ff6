"""Batch tasks: one call for many jobs, and what becomes of each of them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import psycopg
import pytest

from procrastinate_sql import App, InvalidArgument, JobAborted, JobContext, Retry
from procrastinate_sql.job import Job

Contexts = list[JobContext]


@pytest.fixture
def app(dsn: str) -> Iterator[App]:
    app = App(dsn)
    yield app
    app.close()


async def drain(app: App, **options: Any) -> None:
    """Run a worker until there is nothing to run."""
    await asyncio.wait_for(app.run_worker_async(wait=False, **options), 30)


def read(app: App, job_id: int) -> Job:
    job = app.job_store.get_job(job_id)
    assert job is not None
    return job


def statuses(app: App, ids: list[int]) -> list[str]:
    return [read(app, job_id).status for job_id in ids]


async def until(condition: Callable[[], Any], timeout: float = 15) -> None:
    """Wait for a condition, on the loop."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        await asyncio.sleep(0.01)


def declare(app: App, func: Callable[[Contexts], Any], is_async: bool, **options: Any) -> None:
    """Make a task called `batch` of a function, as it is or as an async one."""

    async def on_loop(contexts: Contexts) -> Any:
        return func(contexts)

    app.task(name="batch", **{"batch": 100, **options})(on_loop if is_async else func)


kinds = pytest.mark.parametrize("is_async", [True, False], ids=["async", "sync"])


@kinds
async def test_one_call_gets_many_jobs(app: App, is_async: bool):
    seen: list[list[int]] = []
    threads = set()

    def take(contexts: Contexts) -> str:
        threads.add(threading.current_thread() is threading.main_thread())
        assert {context.job.attempt for context in contexts} == {1}
        seen.append([context.job.args["n"] for context in contexts])
        return "is the result of none of them"

    declare(app, take, is_async)
    ids = app.defer_many("batch", [{"n": n} for n in range(1000)])
    await drain(app)
    assert sorted(n for batch in seen for n in batch) == list(range(1000))
    assert all(batch == sorted(batch) for batch in seen)
    assert max(map(len, seen)) == 100
    assert threads == {is_async}
    jobs = [read(app, job_id) for job_id in ids]
    assert {(job.status, job.attempts, job.result) for job in jobs} == {("succeeded", 1, None)}


@kinds
async def test_what_it_raises_fails_every_job(app: App, is_async: bool):
    def fail(contexts: Contexts) -> None:
        raise LookupError("no mail server")

    declare(app, fail, is_async, max_attempts=2, retry_delay=0)
    ids = app.defer_many("batch", [{}] * 20)
    await drain(app)
    jobs = [read(app, job_id) for job_id in ids]
    assert {(job.status, job.failures) for job in jobs} == {("failed", 2)}
    assert {(job.error or "").partition("\n")[0] for job in jobs} == {"LookupError: no mail server"}
    assert all("in fail" in (job.error or "") for job in jobs)


@kinds
@pytest.mark.parametrize("raises", [True, False])
async def test_each_job_may_end_in_its_own_way(app: App, is_async: bool, raises: bool):
    def each(contexts: Contexts) -> None:
        for context in contexts:
            if context.job.attempt > 1:
                continue
            end = context.job.args["end"]
            if end == "result":
                context.set_result({"to": "ann"})
            elif end == "text":
                context.set_error("no such address \0")
            elif end == "error":
                context.set_error(ValueError("too long"))
            elif end == "abort":
                context.set_error(JobAborted())
            elif end == "retry":
                context.set_retry(error="busy")
            elif end == "again":
                context.set_error(Retry(0))
            elif end == "changed":
                context.set_error("first thought")
                context.set_result()
        if raises and contexts[0].job.attempt == 1:
            raise LookupError

    declare(app, each, is_async)
    ends = ["result", "text", "error", "abort", "retry", "again", "changed", None]
    ids = app.defer_many("batch", [{"end": end} for end in ends])
    await drain(app, concurrency=8)
    jobs = {end: read(app, job_id) for end, job_id in zip(ends, ids, strict=True)}
    assert {end: (job.status, job.attempts) for end, job in jobs.items()} == {
        "result": ("succeeded", 1),
        "text": ("failed", 1),
        "error": ("failed", 1),
        "abort": ("aborted", 1),
        "retry": ("succeeded", 2),
        "again": ("succeeded", 2),
        "changed": ("succeeded", 1),
        None: ("failed" if raises else "succeeded", 1),
    }
    assert jobs["result"].result == {"to": "ann"}
    assert jobs["text"].error == "no such address \ufffd"
    assert (jobs["error"].error or "").startswith("ValueError: too long")
    assert jobs["retry"].error == "busy"


async def test_a_result_that_cannot_be_stored_fails_its_job_alone(app: App):
    @app.task(batch=10)
    async def batch(contexts: Contexts) -> None:
        for context in contexts:
            context.set_result(object() if context.job.args["n"] == 1 else 0)

    ids = batch.defer_many([{"n": n} for n in range(5)])
    await drain(app)
    assert statuses(app, ids) == ["succeeded", "failed", *["succeeded"] * 3]


async def test_a_delay_that_is_none_is_refused_at_once(app: App):
    @app.task(batch=10)
    async def batch(contexts: Contexts) -> None:
        with pytest.raises(InvalidArgument):
            contexts[0].set_retry("soon")  # type: ignore[arg-type]

    job_id = batch.defer()
    await drain(app)
    assert read(app, job_id).status == "succeeded"


async def test_a_call_takes_one_slot(app: App):
    running, most, sizes = 0, 0, []

    @app.task(batch=50)
    async def batch(contexts: Contexts) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        sizes.append(len(contexts))
        await asyncio.sleep(0.01)
        running -= 1

    batch.defer_many([{}] * 1000)
    await drain(app, concurrency=3)
    assert most <= 3
    assert sum(sizes) == 1000
    assert max(sizes) == 50


async def test_calls_stay_full_though_they_are_slow(app: App):
    sizes = []

    @app.task(batch=50)
    async def batch(contexts: Contexts) -> None:
        sizes.append(len(contexts))
        await asyncio.sleep(0.3)  # longer than jobs are held in advance for

    batch.defer_many([{}] * 200)
    await drain(app, concurrency=1)
    assert sum(sizes) == 200
    assert len(sizes) < 20


async def test_other_tasks_run_between_them(app: App):
    order = []

    @app.task(batch=10)
    async def batch(contexts: Contexts) -> None:
        order.append(("batch", [context.job.args["n"] for context in contexts]))

    @app.task
    async def single(n: int) -> None:
        order.append(("single", [n]))

    @app.task(batch=10)
    def other(contexts: Contexts) -> None:
        order.append(("other", [context.job.args["n"] for context in contexts]))

    names = ("batch", "single", "other")
    for n in range(300):
        app.defer(names[n % 3], n=n)
    await drain(app, concurrency=1)
    for place, name in enumerate(names):
        seen = [n for task, ns in order if task == name for n in ns]
        assert seen == list(range(place, 300, 3))


async def test_jobs_of_a_lock_are_never_in_one_call(app: App):
    seen = []

    @app.task(batch=10)
    async def batch(contexts: Contexts) -> None:
        assert len(contexts) == 1
        seen.append(contexts[0].job.args["n"])

    batch.configure(lock="l").defer_many([{"n": n} for n in range(20)])
    await drain(app)
    assert seen == list(range(20))


async def test_middleware_surrounds_each_job(app: App):
    entered, left = [], []

    @app.middleware
    async def on_loop(context: JobContext) -> AsyncIterator[None]:
        entered.append(context.job.id)
        yield
        left.append(context.job.id)

    @app.middleware
    def beside(context: JobContext) -> Iterator[None]:
        entered.append(context.job.id)
        yield
        left.append(context.job.id)

    @app.task(batch=10)
    async def on_the_loop(contexts: Contexts) -> None: ...

    @app.task(batch=10)
    def in_a_thread(contexts: Contexts) -> None: ...

    ids = on_the_loop.defer_many([{}] * 5) + in_a_thread.defer_many([{}] * 5)
    await drain(app)
    assert set(statuses(app, ids)) == {"succeeded"}
    assert sorted(entered) == sorted(left) == sorted(ids * 2)


async def test_a_job_can_be_finished_in_a_transaction_of_the_task(app: App, dsn: str):
    @app.task(batch=10)
    def batch(contexts: Contexts) -> None:
        with psycopg.connect(dsn) as connection:
            contexts[0].finish(connection, result="by the task")

    ids = batch.defer_many([{}] * 3)
    async with working(app, concurrency=3):
        await until(lambda: set(statuses(app, ids)) == {"succeeded"})


# --- Stopping ----------------------------------------------------------------------


class working:  # noqa: N801  # reads as a function
    """Run a worker beside the block; stop it in good order at the end."""

    def __init__(self, app: App, **options: Any) -> None:
        from procrastinate_sql import Worker

        self._worker = Worker(app, **options)

    async def __aenter__(self) -> None:
        self._running = asyncio.create_task(self._worker.run_async())

    async def __aexit__(self, *_: object) -> None:
        self._worker.stop()
        await asyncio.wait_for(self._running, 30)


async def test_the_call_is_cancelled_when_all_its_jobs_are_to_stop(app: App):
    calls: list[Contexts] = []

    @app.task(batch=10)
    async def batch(contexts: Contexts) -> None:
        calls.append(contexts)
        contexts[0].set_result("done")
        await asyncio.Event().wait()

    ids = batch.defer_many([{}] * 3)
    async with working(app, concurrency=3):
        await until(lambda: calls)
        assert len(calls[0]) == 3
        app.job_store.cancel_job(ids[1], abort=True)
        await until(calls[0][1].abort_requested)
        assert not calls[0][2].abort_requested()
        assert set(statuses(app, ids)) == {"doing"}
        app.job_store.cancel_job(ids[0], abort=True)
        app.job_store.cancel_job(ids[2], abort=True)
        await until(lambda: "doing" not in statuses(app, ids))
    assert statuses(app, ids) == ["succeeded", "aborted", "aborted"]
    assert read(app, ids[0]).result == "done"


async def test_a_sync_call_sees_which_job_is_to_stop(app: App):
    calls: list[Contexts] = []

    @app.task(batch=10)
    def batch(contexts: Contexts) -> None:
        calls.append(contexts)
        while not contexts[0].abort_requested():
            time.sleep(0.01)
        contexts[0].set_error(JobAborted())

    ids = batch.defer_many([{}] * 2)
    async with working(app, concurrency=2):
        await until(lambda: calls)
        app.job_store.cancel_job(ids[0], abort=True)
        await until(lambda: "doing" not in statuses(app, ids))
    assert statuses(app, ids) == ["aborted", "succeeded"]


@kinds
async def test_a_call_has_so_much_time_and_no_more(app: App, is_async: bool):
    async def on_loop(contexts: Contexts) -> None:
        contexts[0].set_result()
        await asyncio.Event().wait()

    def in_thread(contexts: Contexts) -> None:
        contexts[0].set_result()
        while not contexts[-1].abort_requested():
            time.sleep(0.01)

    app.task(name="batch", batch=10, timeout=0.1)(on_loop if is_async else in_thread)
    ids = app.defer_many("batch", [{}] * 3)
    await drain(app, concurrency=3)
    assert statuses(app, ids) == ["succeeded", "failed", "failed"]
    assert "timed out after 0:00:00.1" in (read(app, ids[1]).error or "")


async def test_what_does_not_finish_is_handed_back(app: App):
    started = asyncio.Event()

    @app.task(batch=10)
    async def batch(contexts: Contexts) -> None:
        contexts[0].set_result()
        started.set()
        await asyncio.Event().wait()

    ids = batch.defer_many([{}] * 3)
    async with working(app, concurrency=3, shutdown_timeout=0.1):
        await asyncio.wait_for(started.wait(), 15)
    jobs = [read(app, job_id) for job_id in ids]
    assert [(job.status, job.handed_back) for job in jobs] == [
        ("succeeded", 0),
        ("todo", 1),
        ("todo", 1),
    ]


# --- What can be a batch task ------------------------------------------------------


def test_arguments_are_the_task_s_own_affair(app: App):
    @app.task(batch=10)
    def batch(contexts: Contexts) -> None: ...

    assert read(app, batch.defer(anything=1)).args == {"anything": 1}
    with pytest.raises(InvalidArgument):
        batch.defer(value=object())


@pytest.mark.parametrize(
    "options", [{"batch": 0}, {"pass_context": True}, {"run_in": "process"}], ids=str
)
def test_what_does_not_go_together_is_refused(options: dict[str, Any]):
    with pytest.raises(ValueError, match="batch"):

        @App().task(**{"batch": 10, **options})
        def batch(contexts: Contexts) -> None: ...


def test_a_function_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="batch"):

        @App().task(batch=10)
        def batch(to: str, subject: str) -> None: ...
