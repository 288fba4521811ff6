-- Many jobs are created in one statement, all or none.
begin;
\ir support/arrange.sql
select plan(48);

select is_empty($$select * from procrastinate_defer_jobs('[]')$$, 'an empty batch creates nothing');

create temporary table deferred as
select created.ordinal, created.id, created.created
from procrastinate_defer_jobs('[
    {"task_name": "first"},
    {
        "task_name": "second", "args": {"to": "ann"}, "queue_name": "mail", "priority": -3,
        "lock": "ann", "queueing_lock": "once", "scheduled_at": "2100-01-01T00:00:00Z",
        "on_conflict": "raise"
    },
    {
        "task_name": "third", "args": null, "queue_name": null, "priority": null, "lock": null,
        "queueing_lock": null, "scheduled_at": null, "on_conflict": null
    }
]') as created;

select results_eq(
    'select deferred.ordinal, deferred.created from deferred order by deferred.ordinal',
    'values (1, true), (2, true), (3, true)',
    'there is one row for each element, numbered from 1'
);

select results_eq(
    'select deferred.id from deferred order by deferred.ordinal',
    $$values (pg_temp.id('first')), (pg_temp.id('second')), (pg_temp.id('third'))$$,
    'each row has the id of its job'
);

select ok(
    pg_temp.id('first') < pg_temp.id('second') and pg_temp.id('second') < pg_temp.id('third'),
    'ids grow in the order of the elements'
);

select results_eq(
    format(
        $$
        select
            job.args, job.queue_name, job.priority, job.lock, job.queueing_lock, job.scheduled_at
        from procrastinate_jobs as job
        where job.task_name = %L
        $$,
        expected.task
    ),
    expected.columns,
    expected.fact
)
from (
    values
    (
        'first',
        $$values ('{}'::jsonb, 'default', 0, null::text, null::text, null::timestamptz)$$,
        'a missing key takes the default'
    ),
    (
        'second',
        $$values (
            '{"to": "ann"}'::jsonb, 'mail', -3, 'ann', 'once', '2100-01-01 00:00:00+00'::timestamptz
        )$$,
        'keys are the arguments of procrastinate_defer_job'
    ),
    (
        'third',
        $$values ('{}'::jsonb, 'default', 0, null::text, null::text, null::timestamptz)$$,
        'a null takes the default'
    )
) as expected (task, columns, fact);

select procrastinate_declare_task('declared', queue_name => 'slow', priority => 7, lock => 'one');
select * from procrastinate_defer_jobs('[{"task_name": "declared"}]');

select results_eq(
    $$
    select job.queue_name, job.priority, job.lock
    from procrastinate_jobs as job
    where job.task_name = 'declared'
    $$,
    $$values ('slow', 7, 'one')$$,
    'a job takes what its task was declared with'
);

-- Order.

delete from procrastinate_jobs;
select * from procrastinate_defer_jobs('[
    {"task_name": "a"}, {"task_name": "b"}, {"task_name": "c", "lock": "x"},
    {"task_name": "d", "priority": 1}, {"task_name": "e", "lock": "x"}
]');

select is(
    pg_temp.drain(), 'd a b c, e', 'a batch is served like jobs that were deferred one by one'
);

-- Queueing locks.

delete from procrastinate_jobs;
select procrastinate_defer_job('waiting', '{"n": 1}', queueing_lock => 'once');

select throws_ok(
    $$select * from procrastinate_defer_jobs('[
        {"task_name": "free"}, {"task_name": "second", "queueing_lock": "once"}
    ]')$$,
    'PC002',
    null,
    'a queueing lock that waits refuses the batch'
);

select is(
    pg_temp.id('free'), null, 'nothing of a batch that was refused is created'
);

select results_eq(
    $$select created.ordinal, created.id, created.created
    from procrastinate_defer_jobs('[
        {"task_name": "second", "queueing_lock": "once", "on_conflict": "skip"}
    ]') as created$$,
    $$values (1, pg_temp.id('waiting'), false)$$,
    'skip returns the job that waits, as one that was not created'
);

select results_eq(
    $$select created.ordinal, created.id, created.created
    from procrastinate_defer_jobs('[
        {
            "task_name": "waiting", "args": {"n": 2},
            "queueing_lock": "once", "on_conflict": "replace"
        }
    ]') as created$$,
    $$values (1, pg_temp.id('waiting'), false)$$,
    'replace returns the job that waits, as one that was not created'
);

select is((pg_temp.job('waiting')).args, '{"n": 2}', 'replace gives it the new args');

select throws_ok(
    $$select * from procrastinate_defer_jobs('[
        {"task_name": "one", "queueing_lock": "twice"},
        {"task_name": "two", "queueing_lock": "twice"}
    ]')$$,
    'PC002',
    null,
    'a queueing lock that a batch has twice refuses it'
);

select results_eq(
    $$select created.ordinal, created.created
    from procrastinate_defer_jobs('[
        {"task_name": "one", "queueing_lock": "twice"},
        {"task_name": "two", "queueing_lock": "twice", "on_conflict": "replace"}
    ]') as created
    order by created.ordinal$$,
    'values (1, true), (2, false)',
    'with replace it is one job, created by the first element'
);

select is(
    (select job.task_name from procrastinate_jobs as job where job.queueing_lock = 'twice'),
    'two',
    'it is what the last element says'
);

-- Refusals name the element and what is wrong with it.

create temporary table refused (named text, element text);

insert into refused
values
('unknown', '{"task_name": "t", "unknown": 1}'),
('schedule_at', '{"task_name": "t", "schedule_at": "2100-01-01"}'),
('task_name', '{"args": {}}'),
('task_name', '{"task_name": null}'),
('task_name', '{"task_name": ""}'),
('task_name', '{"task_name": 1}'),
('args', '{"task_name": "t", "args": []}'),
('args', '{"task_name": "t", "args": "{}"}'),
('queue_name', '{"task_name": "t", "queue_name": ""}'),
('queue_name', '{"task_name": "t", "queue_name": 1}'),
('priority', '{"task_name": "t", "priority": "1"}'),
('priority', '{"task_name": "t", "priority": 1.5}'),
('priority', '{"task_name": "t", "priority": 2147483648}'),
('lock', '{"task_name": "t", "lock": ""}'),
('lock', '{"task_name": "t", "lock": {}}'),
('queueing_lock', '{"task_name": "t", "queueing_lock": ""}'),
('scheduled_at', '{"task_name": "t", "scheduled_at": "no time"}'),
('scheduled_at', '{"task_name": "t", "scheduled_at": "infinity"}'),
('scheduled_at', '{"task_name": "t", "scheduled_at": "10000-01-01"}'),
('scheduled_at', '{"task_name": "t", "scheduled_at": 1700000000}'),
('on_conflict', '{"task_name": "t", "on_conflict": "ignore"}'),
('on_conflict', '{"task_name": "t", "on_conflict": ""}'),
('2', '1'),
('2', 'null'),
('2', '[]');

select is(
    (
        select concat_ws(' ', refusal.code, substring(refusal.message from refused.named))
        from pg_temp.refusal(format(
            'select * from procrastinate_defer_jobs(%L)',
            format('[{"task_name": "free"}, %s]', refused.element)
        )) as refusal
    ),
    '22023 ' || refused.named,
    format('%s is refused, and %s named', refused.element, refused.named)
)
from refused;

select is(pg_temp.id('free'), null, 'nothing was created by any of them');

select results_eq(
    $$select created.ordinal
    from procrastinate_defer_jobs('[{"task_name": "a"}, {"task_name": "b"}]', 501) as created$$,
    array[501, 502],
    'a part of a batch counts on from where it begins'
);

select throws_ok(
    $$select * from procrastinate_defer_jobs('[{"task_name": "a"}, {"priority": 1}]', 501)$$,
    '22023',
    'jobs: element 502 has no task_name',
    'so do errors'
);

select throws_ok(
    format('select * from procrastinate_defer_jobs(%L, %s)', '[{"task_name": "a"}]', first.ordinal),
    '22023',
    'first_ordinal: must be between 1 and 1000000000',
    format('a batch cannot begin at %s', first.ordinal)
)
from (values ('0'), ('null'), ('1000000001')) as first (ordinal);

select * from finish();
rollback;
