-- Many runs end in one statement: what can be applied is, the rest is returned.
begin;
\ir support/arrange.sql
select plan(52);

-- A batch written with the names of tasks: {"task": "a", …} for {"job_id": 42, …}.
create function pg_temp.outcomes(batch jsonb)
returns jsonb
language sql
as $$
    select coalesce(
        jsonb_agg(
            case when outcome.value ? 'task'
                then outcome.value - 'task'
                    || jsonb_build_object('job_id', pg_temp.id(outcome.value ->> 'task'))
                else outcome.value
            end
            order by outcome.place
        ),
        '[]'
    )
    from jsonb_array_elements(batch) with ordinality as outcome (value, place)
$$;

create function pg_temp.arrange_running()
returns void
language plpgsql
as $$
begin
    delete from procrastinate_jobs;
    perform procrastinate_declare_task('retried', max_attempts => 2, retry_delay => '1 hour');
    perform procrastinate_defer_job(task, lock => 'lock of ' || task)
    from unnest(array['a', 'b', 'c', 'd', 'retried']) as task;
    perform pg_temp.fetch(10);
    perform procrastinate_defer_job('waiting');
end;
$$;

select is_empty($$select * from procrastinate_finish_jobs('[]')$$, 'an empty batch does nothing');

select pg_temp.arrange_running();

select is_empty(
    format('select * from procrastinate_finish_jobs(%L)', pg_temp.outcomes(format(
        '[
            {
                "task": "a", "attempt": 1, "worker_id": %s, "status": "succeeded",
                "result": {"n": 1}
            },
            {"task": "b", "attempt": 1, "status": "failed", "error": "text"},
            {"task": "c", "attempt": 1, "status": "aborted", "worker_id": null},
            {"task": "d", "attempt": 1, "retry_in": null, "error": "again"},
            {"task": "retried", "attempt": 1, "fail": true, "error": "policy"}
        ]',
        pg_temp.worker()
    )::jsonb)),
    'a batch of which all can be applied returns no row'
);

select results_eq(
    $$
    select job.task_name, job.status::text, job.attempts, job.result, job.error
    from procrastinate_jobs as job
    where job.task_name <> 'waiting'
    order by job.id
    $$,
    $$values
    ('a', 'succeeded', 1, '{"n": 1}'::jsonb, null),
    ('b', 'failed', 1, null, 'text'),
    ('c', 'aborted', 1, null, null),
    ('d', 'todo', 1, null, 'again'),
    ('retried', 'todo', 1, null, 'policy')$$,
    'each outcome is applied as by the function for one job'
);

select is(pg_temp.fetch(10), 'waiting d', 'a retry at once is at once; a policy''s waits');

-- When a retry is due.

create function pg_temp.retried_in(retry_in text)
returns interval
language plpgsql
as $$
begin
    perform pg_temp.arrange_running();
    perform procrastinate_finish_jobs(pg_temp.outcomes(
        format('[{"task": "a", "attempt": 1, "retry_in": %s}]', retry_in)::jsonb
    ));
    return date_trunc(
        'minute', (pg_temp.job('a')).scheduled_at - clock_timestamp() + interval '20 seconds'
    );
end;
$$;

select is(pg_temp.retried_in(given.retry_in), given.expected, given.fact)
from (
    values
    ('120', interval '2 minutes', 'retry_in is a number of seconds'),
    ('90.5', interval '1 minute', 'which may have a fraction'),
    ('0', interval '0', 'and may be zero'),
    ('"2 hours"', interval '2 hours', 'or it is an interval'),
    ('"PT2H"', interval '2 hours', 'also one of ISO 8601'),
    ('null', null, 'or null for at once, without a schedule')
) as given (retry_in, expected, fact);

-- Refused outcomes.

create function pg_temp.refused_of(batch jsonb)
returns text
language sql
as $$
    select coalesce(string_agg(
        concat_ws(
            ' ',
            refused.ordinal,
            coalesce((
                select job.task_name
                from procrastinate_jobs as job
                where job.id = refused.job_id
            ), '?'),
            refused.reason
        ),
        ', ' order by refused.ordinal
    ), '')
    from procrastinate_finish_jobs(pg_temp.outcomes(batch)) as refused
$$;

select pg_temp.arrange_running();

select is(pg_temp.refused_of(given.batch::jsonb), given.refused, given.fact)
from (
    values
    (
        '[{"job_id": 9223372036854775807, "attempt": 1, "status": "succeeded"}]',
        '1 ? not running', 'a job that does not exist is returned'
    ),
    (
        '[{"task": "waiting", "attempt": 1, "status": "succeeded"}]',
        '1 waiting not running', 'a waiting job is returned'
    ),
    (
        '[{"task": "a", "attempt": 2, "status": "succeeded"}]',
        '1 a not running', 'another attempt is returned'
    ),
    (
        '[{"task": "a", "attempt": 1, "worker_id": 9223372036854775807, "fail": true}]',
        '1 a not running', 'the run of another worker is returned'
    )
) as given (batch, refused, fact);

select is((pg_temp.job('a')).status::text, 'doing', 'nothing of this was applied');

select is(
    pg_temp.refused_of('[
        {"task": "waiting", "attempt": 1, "status": "succeeded"},
        {"task": "a", "attempt": 1, "status": "succeeded", "result": 1},
        {"task": "b", "attempt": 7, "status": "succeeded"},
        {"task": "a", "attempt": 1, "status": "failed", "result": 2},
        {"task": "c", "attempt": 1, "fail": true},
        {"task": "c", "attempt": 1, "retry_in": 5}
    ]'),
    '1 waiting not running, 3 b not running, 4 a duplicate, 6 c duplicate',
    'those refused are returned by their place, whatever else is in the batch'
);

select results_eq(
    $$
    select job.task_name, job.status::text, job.result
    from procrastinate_jobs as job
    where job.task_name in ('a', 'b', 'c')
    order by job.task_name
    $$,
    $$values ('a', 'succeeded', '1'::jsonb), ('b', 'doing', null), ('c', 'failed', null)$$,
    'the others are applied; of duplicates the first wins'
);

select is(
    pg_temp.refused_of('[{"task": "a", "attempt": 1, "status": "succeeded"}]'),
    '1 a not running',
    'a batch that is sent again is refused'
);

-- Not kept, and yet a duplicate.

select procrastinate_declare_task('gone', keep_finished => '0');
select procrastinate_defer_job('gone');
select pg_temp.fetch(10);

select results_eq(
    format('select * from procrastinate_finish_jobs(%L)', pg_temp.outcomes('[
        {"task": "gone", "attempt": 1, "status": "succeeded"},
        {"task": "gone", "attempt": 1, "status": "failed"}
    ]')),
    format($$values (2, %s::bigint, 'duplicate')$$, pg_temp.id('gone')),
    'of duplicates for a job that is not kept the first wins too'
);

select is(pg_temp.id('gone'), null, 'a job that is not kept is gone with its batch');

-- Malformed elements refuse all.

select pg_temp.arrange_running();

create temporary table malformed (element text);

insert into malformed
values
('1'),
('null'),
('[]'),
('{}'),
('{"attempt": 1, "status": "succeeded"}'),
('{"job_id": 1, "status": "succeeded"}'),
('{"job_id": null, "attempt": 1, "status": "succeeded"}'),
('{"job_id": 1, "attempt": null, "status": "succeeded"}'),
('{"job_id": "1", "attempt": 1, "status": "succeeded"}'),
('{"job_id": 1.5, "attempt": 1, "status": "succeeded"}'),
('{"job_id": 9223372036854775808, "attempt": 1, "status": "succeeded"}'),
('{"job_id": 1, "attempt": 2147483648, "status": "succeeded"}'),
('{"job_id": 1, "attempt": "1", "status": "succeeded"}'),
('{"job_id": 1, "attempt": 1, "worker_id": "ann", "status": "succeeded"}'),
('{"job_id": 1, "attempt": 1}'),
('{"job_id": 1, "attempt": 1, "status": "done"}'),
('{"job_id": 1, "attempt": 1, "status": "todo"}'),
('{"job_id": 1, "attempt": 1, "status": "cancelled"}'),
('{"job_id": 1, "attempt": 1, "status": 1}'),
('{"job_id": 1, "attempt": 1, "status": "failed", "fail": true}'),
('{"job_id": 1, "attempt": 1, "fail": true, "retry_in": 1}'),
('{"job_id": 1, "attempt": 1, "fail": false}'),
('{"job_id": 1, "attempt": 1, "retry_in": -1}'),
('{"job_id": 1, "attempt": 1, "retry_in": 1e300}'),
('{"job_id": 1, "attempt": 1, "retry_in": "soon"}'),
('{"job_id": 1, "attempt": 1, "retry_in": "infinity"}'),
('{"job_id": 1, "attempt": 1, "retry_in": true}'),
('{"job_id": 1, "attempt": 1, "retry_in": []}'),
('{"job_id": 1, "attempt": 1, "status": "failed", "error": 1}'),
('{"job_id": 1, "attempt": 1, "status": "failed", "errors": "text"}');

select is(
    (
        select refusal.code
        from pg_temp.refusal(format(
            'select * from procrastinate_finish_jobs(%L)',
            pg_temp.outcomes(
                format(
                    '[{"task": "a", "attempt": 1, "status": "succeeded"}, %s]', malformed.element
                )::jsonb
            )
        )) as refusal
    ),
    '22023',
    malformed.element || ' is refused'
)
from malformed;

select is((pg_temp.job('a')).status::text, 'doing', 'a malformed element refuses its whole batch');

select throws_ok(
    'select * from procrastinate_finish_jobs(null)', '22023', null, 'no batch at all is refused'
);

select * from finish();
rollback;
