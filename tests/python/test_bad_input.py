"""Every public function, called with what it does not want: it refuses by name, or it works.

The functions and their arguments are read from the catalog, so that a new one is covered the day
it is added. Each is first called as it should be, by the names of its arguments, in a small
database with jobs in every state; then one argument, or two of them, get other values. A call

- is refused with an SQLSTATE that its comment documents, a message that begins with the name of the
  argument, a hint, and every table as it was; or
- works: its answer and every row can be read by the driver, all workers can beat, and what is in
  the queue can be fetched, failed, finished and drained.

What PostgreSQL cannot even read as a value of the argument's type never reaches a function of ours:
it is tried alone first, and must be refused with one of `UNREADABLE`.
"""

from __future__ import annotations

import base64
import json
import random
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from string import Template
from typing import Any

import psycopg
import pytest
from concurrency import ISOLATION_LEVELS, Worker, defer, value
from psycopg import sql
from psycopg.types.json import set_json_loads

Connection = psycopg.Connection[Any]
Arguments = dict[str, "str | None"]
Json = Any

SEED = 20261125
PAIRS = 25  # calls with two odd arguments, for each function that has two

REFUSALS = {"22023", "25001", "PC001", "PC002", "PC003", "PC004", "PC005"}
UNREADABLE = {
    "22P02",  # not a number, not JSON, not an array
    "22003",  # a number beyond its type
    "22007",  # not a time or an interval
    "22008",  # a time beyond its type
    "22015",  # an interval beyond its type
    "22P05",  # JSON with \u0000, which a text cannot hold
}
# Refused by PostgreSQL itself, on its way into or out of a function: JSON that is nested too deep
# (docs/protocol.md).
TOO_DEEP = "54001"
UNFINISHED = "select id from procrastinate_jobs where status in ('todo', 'doing')"
MAX_MESSAGE = 1000  # characters: an error goes to logs, and is not to repeat what was sent

# --- What a call is made of --------------------------------------------------------

# A value for each argument with which all functions that have it work. `$running`, `$waiting`,
# `$finished` and `$worker` are ids that `arrange` knows.
VALID: Mapping[str, str | None] = {
    "abort": "true",
    "args": '{"n": 1}',
    "attempt": "1",
    "attempts": "{1}",
    "backoff": "linear",
    "backend_pid": "1",
    "error": "broken",
    "first_ordinal": "1",
    "give_up_silent": "false",
    "heartbeat_interval": "1 second",
    "jitter": "0.5",
    "job_id": "$running",
    "job_ids": "{$running}",
    "keep_finished": "1 day",
    "known_job_ids": "{$running}",
    "lease": "1 minute",
    "lock": "a lock",
    "max_attempts": "3",
    "max_jobs": "10",
    "max_lost": "2",
    "max_retry_delay": "1 minute",
    "name": "a worker",
    "older_than": "0",
    "on_conflict": "replace",
    "priority": "1",
    "queue_name": "a queue",
    "queue_names": '{"a queue"}',
    "queueing_lock": "a queueing lock",
    "rescuer_id": "$worker",
    "result": "[1]",
    "retry_delay": "1 second",
    "retry_in": "1 second",
    "scheduled_at": "2020-02-02 00:00:00+00",
    "status": "failed",
    "statuses": "{failed}",
    "task_name": "task",
    "timeout": "1 minute",
    "worker_id": "$worker",
}
VALID_FOR = {
    ("procrastinate_cancel_job", "job_id"): "$waiting",
    ("procrastinate_rerun_job", "job_id"): "$finished",
}
# Arrays of objects: a valid value for each key. Which keys there are says the function itself: each
# must be here.
BATCHES: Mapping[str, Mapping[str, Json]] = {
    "jobs": {
        "task_name": "task",
        "args": {"n": 1},
        "queue_name": "a queue",
        "priority": 1,
        "lock": "a lock",
        "queueing_lock": "a queueing lock",
        "scheduled_at": "2020-02-02T00:00:00Z",
        "on_conflict": "replace",
    },
    "outcomes": {
        "job_id": "$running",
        "attempt": 1,
        "worker_id": "$worker",
        "status": "failed",
        "result": [1],
        "error": "broken",
        "fail": None,
        "retry_in": None,
    },
}
# Keys of which a batch has one in each element: what is tried is given in place of the others.
INSTEAD = {"fail": "status", "retry_in": "status"}
BATCH_TYPES = {
    "task_name": "text",
    "args": "jsonb",
    "queue_name": "text",
    "priority": "integer",
    "lock": "text",
    "queueing_lock": "text",
    "scheduled_at": "timestamp with time zone",
    "on_conflict": "text",
    "job_id": "bigint",
    "attempt": "integer",
    "worker_id": "bigint",
    "status": "text",
    "result": "jsonb",
    "error": "text",
    "fail": "boolean",
    "retry_in": "interval",
}
# What is wrong with one argument may be said of the one that it must fit.
RELATED = {"job_ids": {"attempts"}, "heartbeat_interval": {"lease"}}

# --- What to give instead ----------------------------------------------------------

# For the arguments that take one of a few words.
WORDS = {
    "backoff": ["constant", "exponential", "Linear", "linear "],
    "on_conflict": ["raise", "skip", "RAISE", "replace "],
    "status": ["succeeded", "aborted", "todo", "doing", "cancelled", "aborting", "Failed"],
    "statuses": ["succeeded", "aborted", "todo", "doing", "cancelled", "aborting", "Failed"],
}
PLANES = "".join(chr((plane << 16) + 0x100) for plane in range(17))
CONTROLS = "".join(map(chr, [*range(1, 0x20), *range(0x7F, 0xA0)]))
INCOMPRESSIBLE = "".join(
    random.Random(SEED).choices(list(map(chr, range(0x10000, 0x10FFFF))), k=512)
)
# One of each in one text: what fails with any of them fails with all.
ODD = "\u0301\u202e\u200f\u2066\ue000\U000f0000\u0378\ufdd0\uffff\U0010ffff"
TEXTS = [
    "",
    " ",
    "null",
    "'\"\\%s$$",
    PLANES,
    CONTROLS,
    ODD,
    "x" * 512,
    "x" * 513,
    "x" * 10_000,
    INCOMPRESSIBLE,
    INCOMPRESSIBLE + "x",
    "x" * 2**20,
]
INTEGERS = ["0", "1", "-1", "2147483647", "-2147483648", "2147483648", "1.5", "", "one", "NaN"]
BIGINTS = [*INTEGERS, "9223372036854775807", "-9223372036854775808", "9223372036854775808"]
FLOATS = [
    "0",
    "-0",
    "1",
    "1.0000000000000002",
    "-1",
    "1e308",
    "-1e308",
    "5e-324",
    "1e400",
    "NaN",
    "Infinity",
    "-Infinity",
    "one",
]
INTERVALS = [
    "0",
    "1 microsecond",
    "-1 microsecond",
    "-1 second",
    "1 second",
    "30 seconds",
    "1 hour",
    "1 day",
    "2 days",
    "1 month -30 days",
    "-1 month 31 days",
    "1000 years",
    "1000 years 1 microsecond",
    "365250 days",
    "8766000 hours",
    "178956970 years 7 months",
    "-178956970 years -8 months",
    "2147483647 days",
    "-2147483648 days",
    "2562047788 hours",
    "-2562047788 hours",
    # Short when compared, as if months had 30 days, and out of range when added to a time.
    "71582788 months -2147483640 days",
    "71582788 months -2147483640 days 1 second",
    "-71582788 months 2147483640 days 1 second",
    "8000000 months -240000000 days 1 second",
    "100000 months -3000000 days 1 second",
    "-100000 months 3000000 days 1 second",
    "100000000 days -2400000000 hours 1 second",
    "3000000000 days",
    "infinity",  # readable as of PostgreSQL 17
    "-infinity",
    "soon",
    "",
]
TIMES = [
    "now",
    "1970-01-01 00:00:00+00",
    "2100-01-01 00:00:00+00",
    "0001-01-01 00:00:00+00",
    "0001-01-03 00:00:00+00",
    "0001-01-02 23:59:59.999999+00",
    "9999-12-29 00:00:00+00",
    "9999-12-29 00:00:00.000001+00",
    "9999-12-31 23:59:59.999999-15:59",
    "10000-01-01 00:00:00+00",
    "294276-12-31 23:59:59.999999+00",
    "294277-01-01 00:00:00+00",
    "4714-11-24 00:00:00+00 BC",
    "4713-01-01 00:00:00+00 BC",
    "infinity",
    "-infinity",
    "soon",
    "2021-02-30",
    "",
]


def nested(levels: int, opening: str = '{"a": ', closing: str = "}") -> str:
    return opening * levels + "1" + closing * levels


# As texts, since Python cannot make some of them.
JSONS = [
    "null",
    "true",
    "false",
    "0",
    "-1",
    "1.5",
    "1e400",
    "1e5000",
    "1e200000",
    '"text"',
    '""',
    "[]",
    "[1]",
    "{}",
    "[null]",
    '{"": 1}',
    '{"a": 1, "a": 2}',
    '"\\u0000"',
    '"\\ud800"',
    '{"a": "\\u0000"}',
    "{",
    "",
    json.dumps({PLANES: PLANES, CONTROLS: CONTROLS}),
    json.dumps({"x" * 10_000: "x" * 2**20}),
    json.dumps(["x" * 2**20]),
    nested(6000),
    nested(6000, "[", "]"),
]


def arrays(valid: str, odd: Iterable[str]) -> list[str]:
    """Return arrays in every shape, of one valid element and of others."""
    return [
        "{}",
        "{NULL}",
        f"{{{valid},NULL}}",
        f"{{{valid},{valid}}}",
        f"{{{{{valid},{valid}}}}}",
        f"{{{{{valid}}},{{NULL}}}}",
        f"[5:5]={{{valid}}}",
        f"[-1:0]={{{valid},{valid}}}",
        "{",
        *(f"{{{json.dumps(element, ensure_ascii=False)}}}" for element in odd),
    ]


def pool(name: str, type_name: str, valid: str | None) -> list[str]:
    """Return the values to try as an argument: texts, as PostgreSQL is to read them."""
    element = (valid or "").strip("{}")
    if name in BATCHES:
        return JSONS
    texts = [*TEXTS, *WORDS.get(name, ())]
    pools = {
        "text": texts,
        "integer": INTEGERS,
        "bigint": BIGINTS,
        "boolean": ["true", "false", "maybe"],
        "double precision": FLOATS,
        "interval": INTERVALS,
        "timestamp with time zone": TIMES,
        "jsonb": JSONS,
        "text[]": arrays(element, texts),
        "integer[]": arrays(element, INTEGERS),
        "bigint[]": arrays(element, BIGINTS),
    }
    if type_name not in pools:
        pytest.fail(f"{name} has the type {type_name}, of which `pool` has no values: add some")
    return pools[type_name]


def json_pool(key: str) -> list[str]:
    """Return the values to try for a key of an element: JSON, as a text."""
    type_name = BATCH_TYPES[key]
    if type_name == "jsonb":
        return JSONS
    odd = pool(key, type_name, None)
    numbers = [one for one in odd if type_name in ("integer", "bigint") and is_number(one)]
    delays = ["0", "-1", "0.5", "1e-9", "1e10", "1e15", "1e20", "1e300", "31557600000"]
    strings = [json.dumps(one, ensure_ascii=False) for one in odd]
    zones = [
        '"2020-01-01 00:00:00 Mars/Phobos"',
        '"2020-01-01 00:00:00+99:99"',
        '"20200101T250000"',
    ]
    return [
        *JSONS,
        *strings,
        *numbers,
        *(delays if type_name == "interval" else []),
        *(zones if type_name.startswith("timestamp") else []),
    ]


def is_number(text: str) -> bool:
    return text.lstrip("-").isdigit()


def batches(name: str, ids: Mapping[str, str]) -> Iterator[tuple[str, set[str], str]]:
    """Yield batches to try: what is odd about each, the names that a refusal may give, the JSON."""
    valid = valid_keys(name, ids)
    chance = random.Random(SEED)

    def element(*keys: str, **odd: str) -> str:
        given = {**valid, **odd}
        for key in keys:
            given.pop(key, None)
        return as_object(given)

    good = element()
    yield "two of the same", {name}, f"[{good}, {good}]"
    for key in BATCH_TYPES.keys() & BATCHES[name].keys():
        yield f"no {key}", {name, key}, f"[{element(key)}]"
        replaced = [INSTEAD[key]] if key in INSTEAD else []
        for one in json_pool(key):
            odd = element(*replaced, **{key: one})
            # Alone, and as the last of several, of which nothing may be left then.
            yield f"{key} {brief(one)}", {name, key}, f"[{odd}]"
            if chance.random() < 0.2:
                yield f"good, good, {key} {brief(one)}", {name, key}, f"[{good}, {good}, {odd}]"
    for _ in range(PAIRS):
        keys = chance.sample(list(valid), 2)
        odd = {key: chance.choice(json_pool(key)) for key in keys}
        yield (
            f"{ {key: brief(one) for key, one in odd.items()} }",
            {name, *keys},
            f"[{element(**odd)}]",
        )
    for one in JSONS:
        yield f"an element {brief(one)}", {name}, f"[{good}, {one}]"
    for key in ["", "x", PLANES, CONTROLS, "x" * 2**20, name.upper()]:
        odd = good[:-1] + f", {json.dumps(key)}: 1}}"
        yield f"a key {brief(key)}", {name}, f"[{odd}]"


def valid_keys(name: str, ids: Mapping[str, str]) -> dict[str, str]:
    """Return the keys of a valid element, and their values as JSON texts."""
    filled = {key: fill(one, ids) for key, one in BATCHES[name].items()}
    return {key: json.dumps(one) for key, one in filled.items() if one is not None}


def as_object(values: Mapping[str, str]) -> str:
    """Return a JSON object of JSON texts."""
    return "{" + ", ".join(f"{json.dumps(key)}: {one}" for key, one in values.items()) + "}"


def fill(template: Any, ids: Mapping[str, str]) -> Any:
    """Put an id of this database, a number, into a value of `BATCHES`."""
    if not isinstance(template, str):
        return template
    text = Template(template).substitute(ids)
    return text if text == template else int(text)


def brief(text: str | None) -> str:
    """Return what a report shows of a value."""
    if text is None:
        return "null"
    return ascii(text) if len(text) <= 60 else f"{text[:40]!a}… ({len(text)} characters)"


# --- The database ------------------------------------------------------------------


@dataclass
class Function:
    """A public function, as the catalog has it."""

    name: str
    comment: str
    types: dict[str, str]  # by the names of its arguments
    optional: set[str]


def functions(conn: Connection) -> list[Function]:
    """Return all public functions."""
    rows = conn.execute("""
        select
            fn.proname,
            coalesce(obj_description(fn.oid), ''),
            array(
                select array[arg.name, format_type(arg.type, null)]
                from unnest(fn.proargnames[1:fn.pronargs], fn.proargtypes::oid[])
                with ordinality as arg (name, type, place)
                order by arg.place
            ),
            fn.pronargs - fn.pronargdefaults
        from pg_proc as fn
        where
            fn.pronamespace = quote_ident(current_schema())::regnamespace
            and fn.proname ~ '^procrastinate_'
        order by fn.proname
    """).fetchall()
    return [
        Function(name, comment, dict(arguments), {pair[0] for pair in arguments[required:]})
        for name, comment, arguments, required in rows
    ]


def arrange(conn: Connection) -> dict[str, str]:
    """Put jobs into every state, some behind locks, and return the ids that `VALID` names."""
    conn.execute("select procrastinate_declare_task('task', max_attempts => 3, retry_delay => '0')")
    worker, dead = Worker(conn), Worker(conn)
    ids = {"worker": str(worker.id)}
    for name in ("running", "failed", "finished", "aborted", "retried"):
        ids[name] = str(
            defer(conn, queue_name="a queue", lock="a lock" if name == "running" else None)
        )
    worker.fetch(5)
    worker.end("fail", int(ids["retried"]))
    for name, end in (("failed", "failed"), ("finished", "succeeded"), ("aborted", "aborted")):
        conn.execute("select procrastinate_finish_job(%s, 1, %s)", (ids[name], end))
    defer(conn, queue_name="another queue")
    dead.fetch(1, ["another queue"])
    conn.execute("select procrastinate_cancel_job(%s)", (defer(conn),))
    ids["waiting"] = str(defer(conn, lock="a lock", queueing_lock="a queueing lock"))
    defer(conn, scheduled_at="2100-01-01")
    defer(conn, scheduled_at="2020-01-01", lock="another lock")
    defer(conn, queue_name="a paused queue", lock="another lock")
    conn.execute("select procrastinate_pause_queue('a paused queue')")
    gone = Worker(conn)
    conn.execute("select procrastinate_unregister_worker(%s)", (gone.id,))
    conn.execute("update procrastinate_workers set name = 'dead' where id = %s", (dead.id,))
    dead.die()
    return ids


class Examiner:
    """Makes calls, and notes what is wrong with how they end."""

    def __init__(self, conn: Connection) -> None:
        self.conn = conn
        set_json_loads(lambda data: data, conn)  # Python's own gives up on what is nested deep
        conn.execute("set statement_timeout = '60 s'")
        conn.execute("set lock_timeout = '1 s'")
        self.ids = arrange(conn)
        # Not among those that calls name.
        self.runner = Worker(conn).id
        conn.execute(
            "update procrastinate_workers set lease = '1 day', heartbeat_interval = '1 hour'"
            " where name is distinct from 'dead'"
        )
        tables = conn.execute(
            "select relname from pg_class where relkind = 'r' and relname ~ '^procrastinate_'"
            " and relnamespace = quote_ident(current_schema())::regnamespace order by 1"
        )
        self.tables = [row[0] for row in tables]
        rows = [
            f"select '{name}', md5(string_agg(t::text, '|' order by t::text)) from {name} as t"
            for name in self.tables
        ]
        self.contents = " union all ".join(rows)
        self.before = self.digest()
        self.readable: dict[tuple[str, str | None], bool] = {}
        self.problems: dict[tuple[str, str], list[str]] = defaultdict(list)
        self.calls = self.refusals = 0

    def digest(self) -> dict[str, str]:
        """Return what can be compared of the contents of all tables."""
        return dict(self.conn.execute(self.contents).fetchall())

    def valid(self, function: Function) -> Arguments:
        """Return arguments with which a function works."""
        arguments: Arguments = {}
        for name in function.types:
            if name in BATCHES:
                arguments[name] = f"[{as_object(valid_keys(name, self.ids))}]"
            elif name in VALID:
                template = VALID_FOR.get((function.name, name), VALID[name])
                arguments[name] = template and Template(template).substitute(self.ids)
            else:
                pytest.fail(f"{function.name}: add a value with which it works for {name} to VALID")
        return arguments

    def can_read(self, type_name: str, text: str | None) -> bool:
        """Can PostgreSQL read this as a value of that type? If not, it says so in a known way."""
        key = (type_name, text)
        if key not in self.readable:
            try:
                with self.conn.transaction():
                    self.conn.execute(f"select %s::{type_name} is null", (text,))
                self.readable[key] = True
            except psycopg.Error as error:
                self.readable[key] = False
                if error.sqlstate not in UNREADABLE | {TOO_DEEP}:
                    self.problems["unreadable", str(error)].append(f"{brief(text)}::{type_name}")
        return self.readable[key]

    def try_call(
        self,
        function: Function,
        arguments: Arguments,
        odd: Iterable[str],
        names: set[str] | None = None,
    ) -> str | None:
        """Make a call and undo it; note what was wrong with it. Returns how it was refused.

        `odd` are the arguments that may be wrong, `names` those that a refusal may name.
        """
        odd = list(odd)
        case = ", ".join(f"{name} => {brief(arguments.get(name))}" for name in odd)
        return self.try_case(function, arguments, case, names or set(odd))

    def try_case(
        self, function: Function, arguments: Arguments, case: str, names: set[str]
    ) -> str | None:
        if not all(self.can_read(function.types[name], one) for name, one in arguments.items()):
            return None
        self.calls += 1
        sqlstate = None
        with self.conn.transaction(force_rollback=True):
            try:
                with self.conn.transaction():
                    self.call(function, arguments)
            except psycopg.Error as error:
                self.refusals += 1
                sqlstate = error.sqlstate
                problems = list(self.of_refusal(function, error, names))
            else:
                problems = list(self.of_success())
        for problem in problems:
            self.problems[function.name, problem].append(case)
        return sqlstate

    def call(self, function: Function, arguments: Arguments) -> list[tuple[Any, ...]]:
        """Call a function by the names of its arguments."""
        passed = [
            sql.SQL("{} => {}::{}").format(
                sql.Identifier(name), sql.Placeholder(name), sql.SQL(function.types[name])
            )
            for name in arguments
        ]
        statement = sql.SQL("select * from {}({})").format(
            sql.Identifier(function.name), sql.SQL(", ").join(passed)
        )
        return self.conn.execute(statement, arguments).fetchall()

    def of_refusal(
        self, function: Function, error: psycopg.Error, names: set[str]
    ) -> Iterator[str]:
        """Yield what is wrong with an error."""
        code, message = error.sqlstate, error.diag.message_primary or str(error)
        if code not in REFUSALS | {TOO_DEEP}:
            yield f"{type(error).__name__} {code}: {message[:200]}"
        elif code != TOO_DEEP and code not in function.comment:
            yield f"{code} is not in its comment"
        if code == "22023":
            named = message.partition(":")[0]
            if named not in names.union(*(RELATED.get(name, ()) for name in names)):
                yield f"the message does not name the argument: {message[:100]}"
        if code in REFUSALS and not error.diag.message_hint:
            yield f"{code} without a hint"
        if len(message) > MAX_MESSAGE:
            yield f"a message of {len(message)} characters"
        after = self.digest()
        if after != self.before:
            changed = [name for name in after if after[name] != self.before[name]]
            yield f"refused, and yet it changed {changed}"

    def of_success(self) -> Iterator[str]:
        """Yield what goes wrong after a call that worked."""
        for step in (self.read_all, self.beat, self.fail_all, self.read_all, self.drain):
            try:
                with self.conn.transaction():
                    step()
            except psycopg.Error as error:
                yield f"it works, but then {step.__name__}: {error.sqlstate} {str(error)[:200]}"
                return
            except AssertionError as error:
                yield f"it works, but then {step.__name__}: {error}"
                return

    def read_all(self) -> None:
        for name in self.tables:
            self.conn.execute(f"select * from {name}").fetchall()

    def beat(self) -> None:
        self.conn.execute("""
            select beat.* from procrastinate_workers as worker
            cross join lateral procrastinate_heartbeat(worker.id) as beat
            where worker.gone_at is null and worker.name is distinct from 'dead'
        """).fetchall()

    def fail_all(self) -> None:
        """Start whatever can be started, from queues by name, and let everything that runs fail."""
        queues = "select array_agg(distinct queue_name) from procrastinate_jobs"
        self.fetch(f"({queues})")
        self.finish("'fail', true, 'error', 'broken'")

    def drain(self) -> None:
        """Run everything, what is scheduled and paused too, until nothing is left."""
        self.conn.execute(
            "select procrastinate_resume_queue(queue_name) from procrastinate_queues"
            " where paused_at is not null"
        )
        self.conn.execute(
            "update procrastinate_jobs set scheduled_at = null"
            " where status = 'todo' and scheduled_at is not null"
        )
        deadline = time.monotonic() + 5
        while self.fetch("null") or time.monotonic() < deadline:
            self.finish("'status', 'succeeded'")
            if self.conn.execute(f"select not exists ({UNFINISHED})").fetchone() == (True,):
                return
        pytest.fail(f"stranded: {self.conn.execute(UNFINISHED).fetchall()}")

    def fetch(self, queue_names: str) -> int:
        query = f"select * from procrastinate_fetch_jobs(%s, {queue_names}, 1000)"
        return len(self.conn.execute(query, (self.runner,)).fetchall())

    def finish(self, outcome: str) -> None:
        """Let everything that runs end like this."""
        left_out = self.conn.execute(f"""
            select ended.* from procrastinate_finish_jobs((
                select coalesce(jsonb_agg(jsonb_build_object(
                    'job_id', job.id, 'attempt', job.attempts + 1, {outcome}
                )), '[]')
                from procrastinate_jobs as job where job.status = 'doing'
            )) as ended
        """).fetchall()
        assert not left_out, left_out

    def report(self) -> None:
        """Fail with all problems, grouped."""
        lines = [
            f"{function}: {problem} ({len(cases)} times)\n        " + "\n        ".join(cases[:4])
            for (function, problem), cases in sorted(self.problems.items())
        ]
        if lines:
            pytest.fail("\n\n".join([f"{len(lines)} problems", *lines]), pytrace=False)


@pytest.fixture
def examiner(conn: Connection) -> Examiner:
    return Examiner(conn)


# --- The tests ---------------------------------------------------------------------


def test_every_function_refuses_bad_input_by_name_or_works(examiner: Examiner):
    for function in functions(examiner.conn):
        with examiner.conn.transaction(force_rollback=True):
            vary(examiner, function)
        # The leftovers of so many calls that were undone would cost each fetch more and more.
        for name in examiner.tables:
            examiner.conn.execute(f"vacuum {name}")
    assert examiner.calls > 1000
    assert examiner.refusals > 500
    examiner.report()


def vary(examiner: Examiner, function: Function) -> None:
    valid = examiner.valid(function)
    if code := examiner.try_call(function, valid, valid):
        examiner.problems[
            function.name, "VALID and VALID_FOR have no call of it that works"
        ].append(code)
    required = {name: one for name, one in valid.items() if name not in function.optional}
    examiner.try_call(function, required, ())

    pools = {}
    for name, type_name in function.types.items():
        pools[name] = [None, *pool(name, type_name, valid[name])]
        for one in pools[name]:
            examiner.try_call(function, {**valid, name: one}, [name])
        if name in BATCHES:
            assert len(pools) == 1, f"{function.name}: has other arguments beside {name!r}"
            check_keys(examiner, function, name)
            for case, names, batch in batches(name, examiner.ids):
                examiner.try_case(function, {name: batch}, case, names)
    chance = random.Random(f"{SEED} {function.name}")
    for _ in range(PAIRS if len(pools) > 1 else 0):
        names = chance.sample(list(pools), 2)
        odd = {name: chance.choice(pools[name]) for name in names}
        examiner.try_call(function, {**valid, **odd}, names)

    # Arrays that belong together, all in the same odd shape.
    shapes = {name: arrays((valid[name] or "")[1:-1], ()) for name in pools if name.endswith("s")}
    shapes = {name: some for name, some in shapes.items() if function.types[name].endswith("[]")}
    for odd in zip(*shapes.values(), strict=True) if shapes else ():
        examiner.try_call(function, {**valid, **dict(zip(shapes, odd, strict=True))}, shapes)


def check_keys(examiner: Examiner, function: Function, name: str) -> None:
    """The keys that are tried are those that the function knows, by its own words."""
    with pytest.raises(psycopg.Error) as error, examiner.conn.transaction():
        examiner.call(function, {name: '[{"unknown": 1}]'})
    known = (error.value.diag.message_hint or "").rstrip(".").partition(": ")[2].split(", ")
    assert set(known) == BATCHES[name].keys(), f"add the keys of {name} to BATCHES and BATCH_TYPES"
    assert set(known) <= BATCH_TYPES.keys()


@pytest.mark.parametrize(
    ("signature", "missing"),
    [
        ("procrastinate_new(a_new_name text)", "add a value with which it works for a_new_name"),
        ("procrastinate_new(name macaddr)", "name has the type macaddr"),
    ],
)
def test_what_is_new_is_noticed(examiner: Examiner, signature: str, missing: str):
    examiner.conn.execute(f"create function {signature} returns void language sql as 'select'")
    (function,) = (one for one in functions(examiner.conn) if one.name == "procrastinate_new")
    with pytest.raises(pytest.fail.Exception, match=missing):
        vary(examiner, function)


@pytest.mark.parametrize("level", ISOLATION_LEVELS[1:])
def test_other_isolation_levels_do_or_are_refused(examiner: Examiner, level: str):
    conn = examiner.conn
    refused_by = set()
    for function in functions(conn):
        conn.execute(f"begin isolation level {level}")
        try:
            examiner.call(function, examiner.valid(function))
        except psycopg.errors.ActiveSqlTransaction:
            if "25001" in function.comment:
                refused_by.add(function.name.removeprefix("procrastinate_"))
        conn.execute("rollback")
    assert refused_by == {"fetch_job", "fetch_jobs", "heartbeat", "repair"}


def test_an_array_may_begin_anywhere(examiner: Examiner):
    """Subscripts are no places: what is said of the elements does not depend on the first one."""
    conn, running = examiner.conn, examiner.ids["running"]
    for function in functions(conn):
        valid = examiner.valid(function)
        answers = []
        for first in (1, 7, -3):
            # Twice the same, and one that there is not: each of them has another answer.
            shape = f"[{first}:{first + 2}]="
            lists = {
                name: shape + {"attempts": "{1,1,1}"}.get(name, f"{{{running},{running},0}}")
                for name in valid
                if function.types[name] in ("bigint[]", "integer[]")
            }
            with conn.transaction(force_rollback=True):
                answers += [sorted(map(str, examiner.call(function, {**valid, **lists})))] * bool(
                    lists
                )
        if function.name != "procrastinate_heartbeat":  # its intervals are never the same
            assert answers[1:] == answers[:-1], function.name


def test_text_that_is_none_is_refused(examiner: Examiner):
    """Bytes that are no UTF-8, and half a pair of surrogates, never get as far as our functions."""
    for bad in (b"\xff", b"\xed\xa0\x80", b"\xc0\x80"):
        result = examiner.conn.pgconn.exec_params(b"select procrastinate_defer_job($1)", [bad])
        assert result.error_field(psycopg.pq.DiagnosticField.SQLSTATE) == b"22021"


@pytest.mark.parametrize("size", [1, 1_000, 1_000_000, 100_000_000])
def test_args_results_and_errors_may_be_long(conn: Connection, size: int):
    """Where there is no limit there is none; where there is one, a message stays short."""
    set_json_loads(len, conn)
    # Random, since PostgreSQL would spend most of the time on compressing anything else.
    text = base64.b64encode(random.Random(SEED).randbytes(size * 3 // 4 + 1)).decode()[:size]
    args, result = f'{{"a": "{text}"}}', f'"{text}"'
    worker = Worker(conn)
    one = defer(conn, args=args)
    batch = f'[{{"task_name": "task", "args": {args}}}]'
    another = value(conn, "select id from procrastinate_defer_jobs(%s)", batch)
    fetched = conn.execute("select args from procrastinate_fetch_jobs(%s, null, 2)", (worker.id,))
    assert fetched.fetchall() == [(len(args),)] * 2

    conn.execute("select procrastinate_finish_job(%s, 1, result => %s)", (one, result))
    batch = f'[{{"job_id": {another}, "attempt": 1, "status": "failed", "error": {result}}}]'
    assert conn.execute("select procrastinate_finish_jobs(%s)", (batch,)).fetchall() == []
    ends = conn.execute(
        "select job.args, job.result, char_length(job.error)"
        " from unnest(%s::bigint[]) as given (id), procrastinate_get_job(given.id) as job"
        " order by job.id",
        ([one, another],),
    )
    assert ends.fetchall() == [(len(args), len(result), None), (len(args), None, size)]
    for unknown in (f'[{{"{text}": 1}}]', f'[{{"status": {result}, "job_id": 1, "attempt": 1}}]'):
        with pytest.raises(psycopg.errors.InvalidParameterValue) as error:
            conn.execute("select procrastinate_finish_jobs(%s)", (unknown,))
        assert len(error.value.diag.message_primary or "") < MAX_MESSAGE


def test_a_million_elements(examiner: Examiner):
    """Of an array, half of them twice; and with a null at the end."""
    conn = examiner.conn
    some = ",".join(map(str, range(500_000)))
    ones = "1," * 999_999 + "1"
    for function in functions(conn):
        lists = [name for name, type_name in function.types.items() if type_name.endswith("[]")]
        for name in lists:
            numbers = ones if name == "attempts" else f"{some},{some}"
            if name == "statuses":
                numbers = numbers.replace("1", "failed").replace("0", "succeeded")
            # Each name is looked up in an index: that could take a minute for a million of them.
            if name == "queue_names" and function.name != "procrastinate_listen_channels":
                numbers = numbers[: numbers.index(",10000,")]
            odd = [f"{{{numbers}}}", f"{{{numbers},NULL}}"]
            for one in odd[: 1 if function.name == "procrastinate_listen_channels" else 2]:
                given = {**examiner.valid(function), name: one}
                if name == "job_ids" and "attempts" in lists:
                    given["attempts"] = f"{{{ones}}}"
                examiner.try_call(function, given, [name])
    examiner.report()


def test_a_hundred_thousand_elements(examiner: Examiner):
    """Of a batch: all of them, or none if the last one is bad."""
    conn = examiner.conn
    job = '{"task_name": "task", "queue_name": "q", "priority": 3, "args": {"a": 1}}'
    outcome = '{"job_id": %s, "attempt": 1, "status": "succeeded"}'
    elements = {
        "procrastinate_defer_jobs": [job] * 100_000,
        "procrastinate_finish_jobs": [outcome % n for n in range(1, 100_001)],
    }
    for function in functions(conn):
        for name in function.types.keys() & BATCHES.keys():
            some = ", ".join(elements[function.name])
            examiner.try_call(function, {name: f"[{some}, 1]"}, [name])
            with conn.transaction(force_rollback=True):
                assert len(examiner.call(function, {name: f"[{some}]"})) >= 99_990
                examiner.beat()
                assert examiner.fetch("null") > 0
                examiner.finish("'fail', true")
    examiner.report()
