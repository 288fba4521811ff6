"""What a person does with psql: install, install again, uninstall, in any schema, as any owner."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from concurrency import Worker, at_once, defer, drain, never_wait, status, value
from databases import INSTALL, ROOT, UNINSTALL, UPGRADE, Database, owned_database, succeed
from flatten import flatten

STOPPED_BY_AN_ERROR = 3  # psql's exit code, which only ON_ERROR_STOP gives

# Of the tables of procrastinate 3.x: what it has by a name that we use too.
PROCRASTINATE_3 = """
    create type procrastinate_job_status as enum ('todo', 'doing', 'succeeded');
    create table procrastinate_jobs (
        id bigserial primary key, status procrastinate_job_status not null default 'todo'
    );
    create table procrastinate_events (id bigserial primary key, job_id bigint);
    create function procrastinate_fetch_job_v2(text[], bigint) returns bigint
        language sql as 'select 1::bigint';
    insert into procrastinate_jobs default values;
"""

# Objects of the user that look like ours.
SIMILAR = """
    create table procrastinate_jobs_archive{0} (id bigint primary key);
    create type procrastinate_job_state{0} as enum ('todo');
    create sequence procrastinate_ready_seq{0}s;
    create function procrastinate_report{0}() returns integer language sql as 'select 1';
    create function _procrastinate_check{0}() returns integer language sql as 'select 1';
    create procedure procrastinate_tidy{0}() language sql as 'select 1';
    create view procrastinate_workers_view{0} as select 1 as one;
    comment on function procrastinate_report{0}() is 'Mine.';
    grant execute on function procrastinate_report{0}() to public;
"""

CALLABLE_BY_ANYONE = """
    select array_agg(proname::text order by proname)
    from pg_proc where pronamespace = quote_ident(%s)::regnamespace and proacl is null
"""

NAMES = ["jobs", "My Jobs", "odd\"na'me %I \\ Zoë"]


@pytest.fixture
def database(dsn: str) -> Iterator[Database]:
    """An empty database, and the ordinary role that owns it."""
    with owned_database(dsn) as made:
        yield made


def test_an_ordinary_owner_installs_everything_with_psql_alone(database: Database):
    """No superuser, no extension, no flag, and nothing to be told."""
    assert database.execute("select rolsuper from pg_roles where rolname = user") == [(False,)]
    output = database.psql("-f", INSTALL)
    assert (output.returncode, output.stderr) == (0, "")
    with closing(database.connect()) as conn:
        job = defer(conn, "lock")
        assert drain(Worker(conn)) == [job]
    assert database.execute("select extname from pg_extension") == [("plpgsql",)]


@pytest.mark.parametrize("file", ["types.sql", "fetch_jobs.sql", "privileges.sql"])
def test_installing_stops_at_the_first_error_and_leaves_nothing(
    database: Database, tmp_path: Path, file: str
):
    """Wherever the error is: all of it is one transaction, and psql goes no further."""
    before = database.dump()
    scripts = shutil.copytree(ROOT / "sql", tmp_path / "sql")
    with (scripts / file).open("a") as script:
        script.write("\nselect no_such_thing;\n")
    output = database.psql("-f", scripts / "install.sql")
    assert output.returncode == STOPPED_BY_AN_ERROR
    assert output.stderr.count("ERROR") == 1
    assert "no_such_thing" in output.stderr
    assert database.dump() == before


def test_installing_again_changes_nothing_and_says_how_to_upgrade(database: Database):
    """It says which version is there, and both ways to a newer one."""
    succeed(database.psql("-f", INSTALL))
    database.execute("select procrastinate_defer_job('task')")
    before = database.dump()
    output = database.psql("-f", INSTALL)
    assert output.returncode == STOPPED_BY_AN_ERROR
    assert "version 1 is already installed in schema public" in output.stderr
    assert "psql -f migrations/upgrade.sql" in output.stderr
    assert "procrastinate-sql schema upgrade" in output.stderr
    assert database.dump() == before


def test_of_two_who_install_at_once_the_second_finds_the_first(database: Database):
    """It waits, and is then refused in the same words as later."""
    outputs = at_once(*[lambda: database.psql("-f", INSTALL)] * 2)
    assert sorted(output.returncode for output in outputs) == [0, STOPPED_BY_AN_ERROR]
    assert "already installed" in outputs[0].stderr + outputs[1].stderr


@pytest.mark.parametrize("script", [INSTALL, UPGRADE], ids=["install", "upgrade"])
def test_the_tables_of_procrastinate_3_are_recognised(database: Database, script: Path):
    """Nothing of them is changed, and the ways out are named."""
    database.execute(PROCRASTINATE_3)
    before = database.dump()
    output = database.psql("-f", script)
    assert output.returncode == STOPPED_BY_AN_ERROR
    assert "tables of the Python package procrastinate" in output.stderr
    assert "Install into another schema" in output.stderr
    assert "drop the old tables" in output.stderr
    assert database.dump() == before

    # One of these ways.
    database.execute("create schema jobs")
    succeed(database.psql("-f", script, schema="jobs"))


@pytest.mark.parametrize(
    ("script", "told"),
    [
        (INSTALL, "no schema to install into"),
        (UPGRADE, "no schema to install into"),
        (UNINSTALL, "procrastinate-sql is not installed"),
    ],
    ids=["install", "upgrade", "uninstall"],
)
def test_a_schema_that_is_not_there_is_told(database: Database, script: Path, told: str):
    """A misspelt search_path is refused, with what to do."""
    output = database.psql("-f", script, schema="nowhere")
    assert output.returncode == STOPPED_BY_AN_ERROR
    assert told in output.stderr
    assert "HINT" in output.stderr


# --- Uninstalling ------------------------------------------------------------------


def test_uninstalling_drops_all_of_it_and_nothing_else(database: Database):
    """What the user has in the same schema stays as it was, by whatever name."""
    database.execute(SIMILAR.format("_before"))
    database.execute(SIMILAR.format("_after"))
    before = database.dump()
    database.execute("drop view procrastinate_workers_view_after")
    succeed(database.psql("-f", INSTALL))
    database.execute("create view procrastinate_workers_view_after as select 1 as one")
    database.execute("select procrastinate_defer_job('task', lock => 'lock')")
    succeed(database.psql("-f", UNINSTALL))
    assert database.dump() == before


def test_uninstalling_refuses_to_drop_what_a_view_of_the_user_needs(database: Database):
    """Nothing is dropped, and the view is named."""
    succeed(database.psql("-f", INSTALL))
    database.execute("create view failed as select id from procrastinate_jobs")
    before = database.dump()
    output = database.psql("-f", UNINSTALL)
    assert output.returncode == STOPPED_BY_AN_ERROR
    assert "view failed depends on table procrastinate_jobs" in output.stderr
    assert database.dump() == before

    database.execute("drop view failed")
    succeed(database.psql("-f", UNINSTALL))


def test_uninstalling_another_version_is_refused(database: Database):
    """Its objects are not known here: nothing is dropped."""
    succeed(database.psql("-f", INSTALL))
    database.execute(
        "create or replace function procrastinate_schema_version() returns integer"
        " language sql immutable as 'select 99'"
    )
    before = database.dump()
    output = database.psql("-v", "VERBOSITY=verbose", "-f", UNINSTALL)
    assert output.returncode == STOPPED_BY_AN_ERROR
    assert "PC003" in output.stderr
    assert "version 99" in output.stderr
    assert database.dump() == before


# --- Other schemas -----------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_any_schema_will_do(database: Database, name: str):
    """A name that needs quotes too, from whatever search_path it is used; public stays empty."""
    quoted = psycopg.sql.Identifier(name).as_string(None)
    database.execute(f"create schema {quoted}")
    before = database.dump()
    succeed(database.psql("-f", INSTALL, schema=name))
    with closing(database.connect(name)) as conn:
        job, blocked = defer(conn, "lock"), defer(conn, "lock")
        worker = Worker(conn)
        assert worker.fetch(2) == [job]
        worker.finish(job)
        assert worker.fetch(2) == [blocked]

        conn.execute("set search_path = public")
        finish = f"select {quoted}.procrastinate_finish_job({blocked}, 1)"
        conn.execute(finish.encode())
        assert value(conn, "select to_regclass('procrastinate_jobs')") is None
        assert value(conn, CALLABLE_BY_ANYONE, name) == [
            "_procrastinate_channel",
            "procrastinate_listen_channels",
            "procrastinate_schema_version",
        ]
    assert "already installed" in database.psql("-f", INSTALL, schema=name).stderr
    assert "schema version 1" in succeed(database.psql("-f", UPGRADE, schema=name))
    succeed(database.psql("-f", UNINSTALL, schema=name))
    assert database.dump() == before


def test_two_installations_do_not_disturb_each_other(database: Database):
    """The same locks, queues and numbers in both, while either has a transaction open."""
    for name in ("left", "My Right"):
        database.execute(f'create schema "{name}"')
        succeed(database.psql("-f", INSTALL, schema=name))
    with closing(database.connect("left")) as left, closing(database.connect("My Right")) as right:
        workers = Worker(left), Worker(right)
        for worker in workers:
            never_wait(worker.conn)
            assert [defer(worker.conn, lock) for lock in ("lock", "lock", None)] == [1, 2, 3]
            assert sorted(worker.fetch(3)) == [1, 3]
            assert worker.heartbeat(1, 3) == ([], [])

        with left.transaction():
            # Whoever decides who is next of a lock decides it for its own installation only.
            workers[0].finish(1)
            assert workers[0].fetch(3) == [2]
            left.execute("select procrastinate_pause_queue('default')")
            workers[1].finish(1)
            assert workers[1].fetch(3) == [2]
        job = defer(right)
        assert workers[1].fetch() == [job]
        assert [status(right, number) for number in (1, 2, 3)] == ["succeeded", "doing", "doing"]

        succeed(database.psql("-f", UNINSTALL, schema="left"))
        workers[1].finish(2)
        assert status(right, 2) == "succeeded"


# --- The flattened twin ------------------------------------------------------------


def test_the_flattened_twin_installs_what_psql_installs(dsn: str, database: Database):
    """Sent as one query by a driver, it gives the same dump, comments and privileges included."""
    succeed(database.psql("-f", INSTALL))
    with owned_database(dsn) as twin:
        twin.execute(flatten(INSTALL))
        dump = twin.dump()
    assert "COMMENT ON FUNCTION public.procrastinate_defer_job(" in dump
    assert "REVOKE ALL ON FUNCTION public.procrastinate_defer_job(" in dump
    assert dump == database.dump()


def test_the_flattened_twin_is_all_or_nothing_by_itself(database: Database):
    """A driver that sends it needs no transaction of its own."""
    before = database.dump()
    with pytest.raises(psycopg.errors.UndefinedColumn):
        database.execute(flatten(INSTALL) + "select no_such_thing;")
    assert database.dump() == before


def test_what_plain_sql_cannot_say_is_not_flattened(tmp_path: Path):
    """A command that only psql knows is an error, also in a file that is included."""
    (tmp_path / "contents.sql").write_text("begin;\n\\ir included.sql\ncommit;\n")
    (tmp_path / "included.sql").write_text("select 1 as one \\gset\n\\if :one\n\\endif\n")
    with pytest.raises(ValueError, match=r"included\.sql: \\if :one"):
        flatten(tmp_path / "contents.sql")
