"""At most one job waits with a queueing lock, and no request is lost, whoever defers when."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from functools import partial
from threading import Event

import psycopg
import pytest
from concurrency import (
    SUCCEEDED,
    Connect,
    Connection,
    Worker,
    at_once,
    begin,
    blocked,
    cancel,
    defer,
    delete,
    drain,
    never_wait,
    refused,
    status,
    value,
)

POLICIES = ("raise", "skip", "replace")
CLIENTS = 8
ROUNDS = 100
any_policy = pytest.mark.parametrize("policy", POLICIES)
# A caller whose snapshot is older than what it meets has to try again: SQLSTATE 40001.
keeps_its_snapshot = pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])


@pytest.fixture
def producer(connect: Connect) -> Connection:
    return connect(autocommit=True)


@pytest.fixture
def clients(connect: Connect) -> list[Connection]:
    return [connect(autocommit=True) for _ in range(CLIENTS)]


def ask(conn: Connection, policy: str, lock: str = "q") -> int:
    """Defer a job with a queueing lock."""
    return defer(conn, queueing_lock=lock, on_conflict=policy)


def answer(conn: Connection, policy: str) -> int | str | None:
    """The id that a call returns, or its SQLSTATE."""
    try:
        return ask(conn, policy)
    except psycopg.Error as error:
        return error.sqlstate


def waiting(conn: Connection) -> list[int]:
    """The jobs that wait with the queueing lock, the oldest first."""
    query = """
        select id from procrastinate_jobs
        where queueing_lock = 'q' and status = 'todo' order by id
    """
    return [row[0] for row in conn.execute(query)]


def ask_for_many(conn: Connection, *locks: str, policy: str = "skip") -> list[int]:
    """Defer a job with each of these queueing locks, in one batch."""
    jobs = [{"task_name": "task", "queueing_lock": lock, "on_conflict": policy} for lock in locks]
    query = "select id from procrastinate_defer_jobs(%s) order by ordinal"
    return [row[0] for row in conn.execute(query, (json.dumps(jobs),))]


# Eight at once


@any_policy
def test_eight_connections_at_once_make_one_job(
    conn: Connection, clients: list[Connection], policy: str
) -> None:
    for _ in range(ROUNDS):
        answers = at_once(*(partial(answer, client, policy) for client in clients))
        (job,) = waiting(conn)
        others = "PC002" if policy == "raise" else job
        assert sorted(map(str, answers)) == sorted(map(str, [job] + [others] * (CLIENTS - 1)))
        delete(conn, job)


def test_eight_connections_of_all_policies_make_one_job(
    conn: Connection, clients: list[Connection]
) -> None:
    for _ in range(ROUNDS):
        calls = [
            partial(answer, client, POLICIES[number % 3]) for number, client in enumerate(clients)
        ]
        answers = at_once(*calls)
        (job,) = waiting(conn)
        assert {job} <= set(answers) <= {job, "PC002"}
        delete(conn, job)


@any_policy
def test_no_request_is_lost_while_a_worker_fetches(
    conn: Connection, clients: list[Connection], worker: Worker, policy: str
) -> None:
    """Whatever call succeeded: its job was handed to a worker later than that, or still waits."""
    asked: list[tuple[float, int | str | None]] = []
    handed_at: dict[int | str | None, float] = {}
    over = Event()

    def fetch_all() -> None:
        while not over.is_set():
            for job in worker.fetch():
                handed_at[job] = time.monotonic()
                worker.finish(job)

    def ask_often(client: Connection) -> None:
        for _ in range(ROUNDS):
            asked.append((time.monotonic(), answer(client, policy)))

    def ask_and_stop() -> None:
        try:
            at_once(*(partial(ask_often, client) for client in clients))
        finally:
            over.set()

    at_once(fetch_all, ask_and_stop)
    handed_at |= dict.fromkeys(drain(worker), time.monotonic())
    assert {job for _, job in asked} - {"PC002"} == handed_at.keys()
    assert all(handed_at[job] > moment for moment, job in asked if job != "PC002")


@keeps_its_snapshot
@any_policy
def test_eight_connections_that_keep_their_snapshots_make_one_job_or_try_again(
    conn: Connection, clients: list[Connection], policy: str, isolation: str
) -> None:
    for client in clients:
        client.execute(f"set default_transaction_isolation = '{isolation}'")
    for _ in range(ROUNDS):
        answers = at_once(*(partial(answer, client, policy) for client in clients))
        (job,) = waiting(conn)
        assert {job} <= set(answers) <= {job, "PC002", "40001"}
        delete(conn, job)


# A producer whose transaction is open


@any_policy
def test_whoever_asks_waits_for_a_request_left_open(
    conn: Connection, caller: Connection, producer: Connection, policy: str
) -> None:
    begin(caller)
    job = ask(caller, "raise")
    with blocked(conn, producer, ask, producer, policy) as second:
        caller.execute("commit")
    if policy == "raise":
        with refused("PC002"):
            second.result()
    else:
        assert second.result() == job
    assert waiting(conn) == [job]


@any_policy
def test_a_request_that_is_rolled_back_leaves_the_job_to_the_next(
    conn: Connection, caller: Connection, producer: Connection, policy: str
) -> None:
    begin(caller)
    ask(caller, "raise")
    with blocked(conn, producer, ask, producer, policy) as second:
        caller.execute("rollback")
    assert waiting(conn) == [second.result()]


@any_policy
@pytest.mark.parametrize("end", [cancel, delete])
@pytest.mark.parametrize("ending", ["commit", "rollback"])
def test_whoever_asks_waits_for_an_end_of_the_job_left_open(
    conn: Connection,
    caller: Connection,
    producer: Connection,
    policy: str,
    end: Callable[[Connection, int], object],
    ending: str,
) -> None:
    job = ask(conn, "raise")
    begin(caller)
    end(caller, job)
    with blocked(conn, producer, answer, producer, policy) as second:
        caller.execute(ending)
    if ending == "rollback":
        assert second.result() == ("PC002" if policy == "raise" else job)
        assert waiting(conn) == [job]
    else:
        assert waiting(conn) == [second.result()]
        assert second.result() != job


def test_half_of_eight_transactions_rolled_back_leave_one_job(
    conn: Connection, clients: list[Connection]
) -> None:
    def ask_in_a_transaction(client: Connection, ending: str) -> tuple[str, int]:
        client.execute("begin")
        job = ask(client, "skip")
        client.execute(ending)
        return ending, job

    for _ in range(ROUNDS):
        calls = [
            partial(ask_in_a_transaction, client, ("commit", "rollback")[number % 2])
            for number, client in enumerate(clients)
        ]
        (job,) = {job for ending, job in at_once(*calls) if ending == "commit"}
        assert waiting(conn) == [job]
        delete(conn, job)


# A fetch that is left open


@any_policy
def test_whoever_asks_during_a_fetch_makes_a_new_job(
    conn: Connection, producer: Connection, worker: Worker, policy: str
) -> None:
    job = ask(conn, "raise")
    begin(worker.conn)
    assert worker.fetch() == [job]
    with blocked(conn, producer, ask, producer, policy) as second:
        worker.conn.execute("commit")
    assert second.result() != job
    assert waiting(conn) == [second.result()]
    worker.finish(job)
    assert drain(worker) == [second.result()]


@any_policy
def test_whoever_asks_during_a_fetch_that_is_rolled_back_meets_the_job(
    conn: Connection, producer: Connection, worker: Worker, policy: str
) -> None:
    job = ask(conn, "raise")
    begin(worker.conn)
    assert worker.fetch() == [job]
    with blocked(conn, producer, answer, producer, policy) as second:
        worker.conn.execute("rollback")
    assert second.result() == ("PC002" if policy == "raise" else job)
    assert waiting(conn) == [job]


def test_eight_who_ask_during_a_fetch_make_one_new_job(
    conn: Connection, clients: list[Connection], worker: Worker
) -> None:
    job = ask(conn, "raise")
    begin(worker.conn)
    assert worker.fetch() == [job]
    asked: list[Future[int]] = []
    with ExitStack() as stack:
        for number, client in enumerate(clients):
            policy = ("skip", "replace")[number % 2]
            asked.append(stack.enter_context(blocked(conn, client, ask, client, policy)))
        worker.conn.execute("commit")
    assert waiting(conn) == list({call.result() for call in asked})
    assert job not in waiting(conn)


def test_a_job_is_not_fetched_while_its_replacement_is_open(
    conn: Connection, caller: Connection, worker: Worker
) -> None:
    """So that the run sees what was committed together with the last request."""
    job = ask(conn, "raise")
    begin(caller)
    assert defer(caller, queueing_lock="q", args='{"n": 2}', on_conflict="replace") == job
    assert worker.fetch() == []
    caller.execute("commit")
    assert worker.fetch() == [job]
    assert value(conn, "select args from procrastinate_jobs where id = %s", job) == {"n": 2}


def test_a_replacement_moves_the_job_to_another_lock_and_queue_at_once(
    conn: Connection, caller: Connection, worker: Worker
) -> None:
    """It was made ready for its old lock when it was replaced."""
    job = defer(conn, "a", queueing_lock="q")
    following = defer(conn, "a")
    assert worker.fetch(1, ["none"]) == []
    begin(caller)
    moved = {"queue_name": "elsewhere", "queueing_lock": "q", "on_conflict": "replace"}
    assert defer(caller, "b", **moved) == job
    assert worker.fetch(10) == []
    caller.execute("commit")
    assert sorted(worker.fetch(10)) == [job, following]


# Batches


@pytest.mark.parametrize("ending", ["commit", "rollback"])
@pytest.mark.parametrize("policy", ["skip", "replace"])
def test_two_batches_in_opposite_order_do_not_deadlock(
    conn: Connection, connect: Connect, caller: Connection, policy: str, ending: str
) -> None:
    """Both come to a queueing lock that somebody holds; neither holds by then the other one."""
    begin(caller)
    held = ask(caller, "raise", "a")
    one, two = connect(autocommit=True), connect(autocommit=True)
    with (
        blocked(conn, one, ask_for_many, one, "a", "b", policy=policy) as forth,
        blocked(conn, two, ask_for_many, two, "b", "a", policy=policy) as back,
    ):
        caller.execute(ending)
    assert forth.result() == list(reversed(back.result()))
    assert (held in forth.result()) == (ending == "commit")


def test_batches_of_eight_in_many_orders_make_one_job_of_each(
    conn: Connection, clients: list[Connection]
) -> None:
    locks = ["a", "b", "c", "d", "q"]
    for number in range(ROUNDS):
        calls = []
        for place, client in enumerate(clients):
            turn = (number + place) % len(locks)
            order = [*locks[turn:], *locks[:turn]][:: 1 if place % 2 else -1]
            calls.append(partial(ask_for_many, client, *order, policy=POLICIES[1 + place % 2]))
        assert len({frozenset(jobs) for jobs in at_once(*calls)}) == 1
        conn.execute("delete from procrastinate_jobs")


def test_a_batch_that_is_refused_leaves_nothing_and_lets_others_go_on(
    conn: Connection, caller: Connection, producer: Connection
) -> None:
    begin(caller)
    ask(caller, "raise", "b")
    with blocked(conn, producer, ask_for_many, producer, "b", "q", policy="raise") as batch:
        caller.execute("commit")
    with refused("PC002"):
        batch.result()
    assert waiting(conn) == []
    never_wait(conn)
    ask(conn, "raise")


# Callers that keep their snapshot


@keeps_its_snapshot
@any_policy
def test_a_snapshot_older_than_the_waiting_job_must_be_taken_again(
    conn: Connection, caller: Connection, policy: str, isolation: str
) -> None:
    begin(caller, isolation)
    ask(conn, "raise")
    with refused("40001"):
        ask(caller, policy)


@keeps_its_snapshot
@any_policy
def test_a_snapshot_older_than_a_replacement_must_be_taken_again(
    conn: Connection, caller: Connection, policy: str, isolation: str
) -> None:
    ask(conn, "raise")
    begin(caller, isolation)
    ask(conn, "replace")
    with refused("40001"):
        ask(caller, policy)


@keeps_its_snapshot
@any_policy
def test_a_snapshot_that_sees_the_waiting_job_gives_the_answer_of_any_other(
    conn: Connection, caller: Connection, policy: str, isolation: str
) -> None:
    job = ask(conn, "raise")
    begin(caller, isolation)
    assert answer(caller, policy) == ("PC002" if policy == "raise" else job)


@keeps_its_snapshot
@any_policy
def test_a_snapshot_older_than_a_fetch_makes_a_new_job(
    conn: Connection, caller: Connection, worker: Worker, policy: str, isolation: str
) -> None:
    """The caller still sees the job wait, and yet its request is not lost."""
    job = ask(conn, "raise")
    begin(caller, isolation)
    assert worker.fetch() == [job]
    assert worker.finish_many({job: SUCCEEDED}) == []
    new_job = ask(caller, policy)
    caller.execute("commit")
    assert waiting(conn) == [new_job]
    assert status(conn, job) == "succeeded"
