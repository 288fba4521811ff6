"""The roles of sql/roles.sql as people use them: real log-ins, workers, upgrades, uninstalling."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import next_version as next_release
import psycopg
import pytest
from databases import INSTALL, ROOT, UNINSTALL, Database, Output, owned_database, succeed
from psycopg import errors
from psycopg.conninfo import make_conninfo

from procrastinate_sql import App, InvalidArgument, Worker

ROLES = ROOT / "sql" / "roles.sql"
KINDS = ("producer", "worker", "reader", "admin")
SCHEMA = "the jobs"

# What the roles may do here, but for their use of the schema: the same text means the same rights.
RIGHTS = """
    select format('%s %s %s', object.name, entry.grantee::regrole, entry.privilege_type)
    from (
        select rel.relname as name, rel.relacl as acl from pg_class as rel
        union all
        select fn.proname, fn.proacl from pg_proc as fn
        union all
        select rel.relname || '.' || att.attname, att.attacl
        from pg_attribute as att inner join pg_class as rel on rel.oid = att.attrelid
    ) as object
    cross join lateral aclexplode(object.acl) as entry
    inner join pg_roles as grantee on grantee.oid = entry.grantee
    where grantee.rolname ~ '^owner_.*_(producer|worker|reader|admin)$'
        and object.name ~ '^procrastinate_'
    order by 1
"""

RUNS_AS_OWNER = """
    select fn.proname from pg_proc as fn
    where fn.proname ~ '^_?procrastinate_' and fn.prosecdef order by 1
"""


@dataclass(frozen=True)
class Queue:
    """An installation in a schema of an ordinary owner, and one who logs in for each role.

    Attributes:
        database: Where it is, for the owner.
        administrator: The same, for a superuser.
    """

    database: Database
    administrator: str

    def run_roles(self, script: Path = ROLES, schema: str = SCHEMA) -> Output:
        """Run roles.sql as the owner, the names of whose roles begin with the database's name."""
        prefix = f"set procrastinate.role_prefix = '{self.database.name}'"
        return self.database.psql(
            "-v", "VERBOSITY=verbose", "-c", prefix, "-f", script, schema=schema
        )

    def dsn(self, kind: str) -> str:
        """The address for who has a role."""
        login = f"{self.database.name}_{kind}_login"
        return make_conninfo(self.database.dsn, user=login, password=login)

    def connect(self, kind: str, path: str = f'"{SCHEMA}"') -> psycopg.Connection[Any]:
        """Connect with a role, in autocommit mode."""
        connection = psycopg.connect(self.dsn(kind), autocommit=True)
        connection.execute(f"set search_path = {path}".encode())
        return connection

    def app(self, kind: str) -> App:
        return App(self.dsn(kind), schema=SCHEMA)

    def superuser(self, statements: str) -> list[Any]:
        with psycopg.connect(self.administrator, autocommit=True) as connection:
            cursor = connection.execute(statements.encode())
            return cursor.fetchall() if cursor.description else []


@pytest.fixture
def bare(dsn: str) -> Iterator[Queue]:
    """An installation without roles, whose owner may create some."""
    with owned_database(dsn) as database:
        queue = Queue(database, make_conninfo(dsn, dbname=database.name))
        queue.superuser(f"alter role {database.name} createrole")
        database.execute(f'create schema "{SCHEMA}"')
        succeed(database.psql("-f", INSTALL, schema=SCHEMA))
        yield queue
        succeed(database.psql("-c", f'drop schema "{SCHEMA}" cascade'))
        for (name,) in queue.superuser(
            f"select rolname from pg_roles where rolname ~ '^{database.name}_'"
        ):
            queue.superuser(f"drop role {name}")


@pytest.fixture
def queue(bare: Queue) -> Queue:
    """An installation with roles and those who log in."""
    succeed(bare.run_roles())
    for kind in KINDS:
        role = f"{bare.database.name}_{kind}"
        bare.superuser(f"create role {role}_login login password '{role}_login' in role {role}")
    return bare


def rights(queue: Queue) -> list[str]:
    return [line for (line,) in queue.database.execute(RIGHTS)]


# --- At work -----------------------------------------------------------------------


async def test_a_job_goes_from_a_producer_to_a_worker_and_its_producer_sees_what_came_of_it(
    queue: Queue,
):
    producer, worker, admin = (queue.app(kind) for kind in ("producer", "worker", "admin"))

    @worker.task(max_attempts=2, retry_delay=0)
    def flaky(secret: str) -> str:
        if not calls:
            calls.append(secret)
            raise RuntimeError("no luck")
        return secret

    calls: list[str] = []
    job_id = producer.configure("flaky", lock="lock").defer(secret="s")
    await asyncio.wait_for(worker.run_worker_async(wait=False), 30)
    with closing(queue.connect("producer")) as conn:
        seen = conn.execute("select id, status::text, attempts from procrastinate_own_jobs")
        assert seen.fetchall() == [(job_id, "succeeded", 2)]
    job = admin.job_store.get_job(job_id)
    assert job is not None
    assert (job.result, job.created_by) == ("s", f"{queue.database.name}_producer_login")
    with pytest.raises(errors.InsufficientPrivilege):
        producer.job_store.get_job(job_id)
    with pytest.raises(errors.InsufficientPrivilege):
        worker.defer("flaky", secret="s")
    for app in (producer, worker, admin):
        app.close()


async def test_a_worker_is_woken_for_what_a_producer_loads(
    queue: Queue, wait_until: Callable[..., Any]
):
    """The triggers of COPY notify: also those who listen to a queue whose name needs quotes."""
    name = '60 bytes, "quoted"; drop table x; --'.ljust(60, "x")
    worker = queue.app("worker")
    with closing(queue.connect("producer")) as conn, closing(queue.connect("worker")) as listener:
        for channel in worker.job_store.listen_channels([name]):
            listener.execute(psycopg.sql.SQL("listen {}").format(psycopg.sql.Identifier(channel)))
        with conn.cursor().copy(
            "copy procrastinate_jobs (task_name, args, queue_name, lock) from stdin"
        ) as copy:
            for number in range(3):
                copy.write_row(("t", f'{{"n": {number}}}', name, "lock"))
        notified = await asyncio.to_thread(lambda: next(listener.notifies(timeout=10)))
        assert notified.payload == ""
    worker_id = worker.job_store.register_worker()
    jobs = worker.job_store.fetch_jobs(worker_id, [name], 10)
    assert [job.args for job in jobs] == [{"n": 0}]
    worker.close()


async def test_what_strangers_notify_makes_a_worker_look_and_find_nothing(
    queue: Queue, wait_until: Callable[..., Any]
):
    """Anybody may send anything on its channels: a payload is never read."""
    ran = []
    producer, app = queue.app("producer"), queue.app("worker")

    @app.task(name="task")
    def run() -> None:
        ran.append(1)

    worker = Worker(app, ["mail"], poll_interval=60)
    running = asyncio.create_task(worker.run_async())
    listening = "select 1 from pg_stat_activity where query ~* '^listen'"
    await asyncio.to_thread(wait_until, lambda: queue.superuser(listening))
    with closing(queue.connect("reader")) as stranger:
        for payload in ("", '{"type": "abort_job_requested", "job_id": 1}', "'; --", "ü" * 3999):
            for channel in app.job_store.listen_channels(["mail"]):
                stranger.execute("select pg_notify(%s, %s)", (channel, payload))
    job_id = producer.configure("task", queue="mail").defer()
    await asyncio.to_thread(wait_until, lambda: ran)
    worker.stop()
    await asyncio.wait_for(running, 30)
    assert ran == [1]
    jobs = f'select id, status::text, attempts from "{SCHEMA}".procrastinate_jobs'
    assert queue.database.execute(jobs) == [(job_id, "succeeded", 1)]
    producer.close()
    app.close()


def test_what_a_caller_sets_does_not_reach_into_the_functions(queue: Queue):
    """No setting that changes how SQL is read or compared, from the first call of a session on."""
    with closing(queue.connect("producer", path="pg_temp, pg_catalog")) as conn:
        for setting in (
            "standard_conforming_strings = off",
            "transform_null_equals = on",
            "quote_all_identifiers = on",
            "DateStyle = 'SQL, DMY'",
            "IntervalStyle = 'sql_standard'",
            "TimeZone = 'Asia/Kathmandu'",
            "default_transaction_isolation = serializable",
        ):
            conn.execute(f"set {setting}".encode())
        conn.execute("create temporary table procrastinate_jobs (task_name text)")
        conn.execute("create temporary table procrastinate_lock_events (locks text[])")
        conn.execute(
            f'select "{SCHEMA}".procrastinate_defer_job(%s, queue_name => %s, lock => %s)',
            ("back\\slash'", "quo'te\\", "null"),
        )
        conn.execute(
            f'insert into "{SCHEMA}".procrastinate_jobs (task_name, scheduled_at)'
            " values ('later', '2100-12-31')"
        )
        assert conn.execute("table pg_temp.procrastinate_lock_events").fetchall() == []
    jobs = queue.database.execute(
        f'select task_name, queue_name from "{SCHEMA}".procrastinate_jobs order by id'
    )
    assert jobs == [("back\\slash'", "quo'te\\"), ("later", "default")]


def test_a_producer_sees_only_its_own_jobs(queue: Queue):
    """Another log-in with the same role is somebody else, whatever role is set."""
    name = queue.database.name
    queue.superuser(f"create role {name}_other login password 'x' in role {name}_producer")
    with closing(queue.connect("producer")) as conn:
        conn.execute("select procrastinate_defer_job('mine', '{\"secret\": 1}')")
    other = make_conninfo(queue.database.dsn, user=f"{name}_other", password="x")
    with closing(psycopg.connect(other, autocommit=True)) as conn:
        conn.execute(f'set search_path = "{SCHEMA}"'.encode())
        conn.execute(f"set role {name}_producer".encode())
        assert conn.execute("table procrastinate_own_jobs").fetchall() == []
        with pytest.raises(errors.InsufficientPrivilege):
            conn.execute(f"set session authorization {name}_producer_login".encode())


# --- Upgrading and uninstalling ----------------------------------------------------


def test_the_roles_keep_their_rights_when_the_schema_is_upgraded(queue: Queue, tmp_path: Path):
    """All functions are replaced, and one gets another argument, under sessions that stay open."""
    before = rights(queue)
    owners = queue.database.execute(RUNS_AS_OWNER)
    assert any("procrastinate_defer_job " in line for line in before)
    following = next_release.make(tmp_path)
    with closing(queue.connect("producer")) as producer, closing(queue.connect("worker")) as worker:
        producer.prepare_threshold = 0
        defer = "select procrastinate_defer_job('t')"
        fetch = "select id from procrastinate_fetch_jobs(%s)"
        producer.execute(defer)
        worker_id = worker.execute("select procrastinate_register_worker()").fetchone()
        assert worker.execute(fetch, worker_id).fetchone()

        output = queue.database.psql("-f", following.upgrade, schema=SCHEMA)
        assert f"schema version {next_release.NEXT}" in succeed(output)
        assert rights(queue) == before
        assert queue.database.execute(RUNS_AS_OWNER) == owners
        producer.execute(defer)
        producer.execute("insert into procrastinate_jobs (task_name, lock) values ('t', 'l')")
        assert worker.execute(fetch, worker_id).fetchone()

    # Again, with what the version has for new functions.
    succeed(queue.run_roles(tmp_path / "sql" / "roles.sql"))
    assert rights(queue) == before


def test_uninstalling_takes_the_views_and_leaves_roles_without_rights(queue: Queue):
    """They can be dropped at once: nothing here depends on them."""
    name = queue.database.name
    prefix = f"set procrastinate.role_prefix = '{name}'"
    succeed(queue.database.psql("-c", prefix, "-f", UNINSTALL, schema=SCHEMA))
    left = f"""
        select rel.relname from pg_class as rel
        where rel.relnamespace = '"{SCHEMA}"'::regnamespace
    """
    assert queue.database.execute(left) == []
    for kind in KINDS:
        queue.superuser(f"drop role {name}_{kind}")


# --- Running roles.sql -------------------------------------------------------------


def test_running_it_again_changes_nothing(queue: Queue):
    """Not even a line of the dump; without CREATEROLE too, since the roles are there."""
    queue.superuser(f"alter role {queue.database.name} nocreaterole")
    before = queue.database.dump()
    assert "procrastinate_own_jobs" in before
    succeed(queue.run_roles())
    assert queue.database.dump() == before


def test_the_owner_is_told_if_the_roles_cannot_be_created(bare: Queue):
    bare.superuser(f"alter role {bare.database.name} nocreaterole")
    output = bare.run_roles()
    assert "42501" in output.stderr
    assert "permission denied to create role" in output.stderr
    assert rights(bare) == []


@pytest.mark.parametrize("grantee", ["public", "pg_monitor"])
def test_a_schema_in_which_others_create_is_refused(bare: Queue, grantee: str):
    """They could slip what runs as the owner an operator of theirs."""
    bare.database.execute(f'grant create on schema "{SCHEMA}" to {grantee}')
    before = bare.database.dump()
    output = bare.run_roles()
    assert f"others may create objects in schema {SCHEMA}: {grantee}" in output.stderr
    assert f'revoke create on schema "{SCHEMA}" from {grantee};' in output.stderr
    assert bare.database.dump() == before


def test_a_view_that_somebody_has_put_there_is_refused(bare: Queue):
    bare.superuser(f"""create view "{SCHEMA}".procrastinate_own_jobs as select 1 as trap""")
    output = bare.run_roles()
    assert "procrastinate_own_jobs" in output.stderr
    assert "belongs to another role than the queue" in output.stderr
    assert rights(bare) == []


def test_only_the_owner_may_run_it(queue: Queue):
    """Nothing is changed by others, nor where there is no queue."""
    stranger = Database(queue.database.name, queue.dsn("admin"))
    assert "the queue belongs to" in Queue(stranger, "").run_roles().stderr
    output = queue.run_roles(schema="public")
    assert "PC003" in output.stderr
    assert "is not installed in schema public" in output.stderr


def test_a_superuser_is_warned_that_the_functions_have_its_rights(dsn: str, bare: Queue):
    superuser = Database(bare.database.name, bare.administrator + " password=x")
    owned_by_it = Queue(superuser, bare.administrator)
    superuser.execute("create schema its; set search_path = its")
    succeed(superuser.psql("-f", INSTALL, schema="its"))
    output = owned_by_it.run_roles(schema="its")
    assert "the queue belongs to a superuser" in output.stderr
    succeed(superuser.psql("-c", "drop schema its cascade"))


def test_another_prefix_is_checked(bare: Queue):
    prefix = f"set procrastinate.role_prefix = '{'x' * 51}'"
    output = bare.database.psql("-c", prefix, "-f", ROLES, schema=SCHEMA)
    assert "procrastinate.role_prefix: must have at most 50 bytes" in output.stderr


def test_an_error_of_the_queue_is_still_one_for_a_role(queue: Queue):
    producer = queue.app("producer")
    with pytest.raises(InvalidArgument, match="task_name"):
        producer.defer("")
    producer.close()
