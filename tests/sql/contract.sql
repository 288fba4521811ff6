-- What programs rely on, for ever: names and defaults of arguments, returned columns, SQLSTATEs.
begin;
\ir support/arrange.sql
select plan(112);

-- Functions. Arguments may be appended, with a default: then their line is added here.

create temporary view actual as
select
    fn.proname::text as name,
    array(
        select concat(
            arg.name, ' ', format_type(arg.type, null),
            ' = ' || lower(regexp_replace(
                pg_get_function_arg_default(fn.oid, arg.place::integer), '::[a-z ]+(\[\])?$', ''
            ))
        )
        from unnest(fn.proargnames[1:fn.pronargs], fn.proargtypes::oid[])
            with ordinality as arg (name, type, place)
        order by arg.place
    ) as arguments,
    lower(pg_get_function_result(fn.oid)) as result
from pg_proc as fn
where
    fn.pronamespace = quote_ident(current_schema())::regnamespace
    and fn.proname ~ '^procrastinate_';

create temporary table pinned (name text primary key, arguments text[], result text);

insert into pinned
values
(
    'procrastinate_cancel_job',
    array[
        'job_id bigint',
        'abort boolean = false'
    ],
    'text'
),
(
    'procrastinate_declare_task',
    array[
        'task_name text',
        'queue_name text = null',
        'priority integer = null',
        'lock text = null',
        'max_attempts integer = 1',
        'backoff text = ''exponential''',
        'retry_delay interval = ''00:00:01''',
        'max_retry_delay interval = ''01:00:00''',
        'jitter double precision = 0.1',
        'timeout interval = null',
        'keep_finished interval = null',
        'max_lost integer = 5'
    ],
    'void'
),
(
    'procrastinate_defer_job',
    array[
        'task_name text',
        'args jsonb = ''{}''',
        'queue_name text = null',
        'priority integer = null',
        'lock text = null',
        'queueing_lock text = null',
        'scheduled_at timestamp with time zone = null',
        'on_conflict text = ''raise'''
    ],
    'bigint'
),
(
    'procrastinate_defer_jobs',
    array[
        'jobs jsonb',
        'first_ordinal integer = 1'
    ],
    'table(ordinal integer, id bigint, created boolean)'
),
(
    'procrastinate_fail_job',
    array[
        'job_id bigint',
        'attempt integer',
        'error text',
        'worker_id bigint = null'
    ],
    'text'
),
(
    'procrastinate_fetch_job',
    array[
        'worker_id bigint',
        'queue_names text[] = null'
    ],
    'setof procrastinate_fetched_job'
),
(
    'procrastinate_fetch_jobs',
    array[
        'worker_id bigint',
        'queue_names text[] = null',
        'max_jobs integer = 1'
    ],
    'setof procrastinate_fetched_job'
),
(
    'procrastinate_finish_job',
    array[
        'job_id bigint',
        'attempt integer',
        'status text = ''succeeded''',
        'result jsonb = null',
        'error text = null',
        'worker_id bigint = null'
    ],
    'void'
),
(
    'procrastinate_finish_jobs',
    array[
        'outcomes jsonb'
    ],
    'table(ordinal integer, job_id bigint, reason text)'
),
(
    'procrastinate_get_job',
    array[
        'job_id bigint'
    ],
    'table(id bigint, queue_name text, task_name text, priority integer, lock text, '
    'queueing_lock text, args jsonb, status text, scheduled_at timestamp with time zone, '
    'attempts integer, failures integer, handed_back integer, lost integer, abort_requested '
    'boolean, worker_id bigint, created_at timestamp with time zone, created_by text, '
    'started_at timestamp with time zone, finished_at timestamp with time zone, purge_at '
    'timestamp with time zone, result jsonb, error text)'
),
(
    'procrastinate_heartbeat',
    array[
        'worker_id bigint',
        'job_ids bigint[] = ''{}''',
        'attempts integer[] = ''{}''',
        'queue_names text[] = null',
        'backend_pid integer = null'
    ],
    'table(abort_job_ids bigint[], lost_job_ids bigint[], stop_requested boolean, '
        || 'next_heartbeat interval, next_due interval)'
),
(
    'procrastinate_listen_channels',
    array[
        'queue_names text[] = null'
    ],
    'setof text'
),
(
    'procrastinate_next_due',
    array[
        'queue_names text[] = null'
    ],
    'interval'
),
(
    'procrastinate_pause_queue',
    array[
        'queue_name text'
    ],
    'void'
),
(
    'procrastinate_purge_jobs',
    array[
        'older_than interval',
        'queue_name text = null',
        'statuses text[] = null',
        'max_jobs integer = 10000'
    ],
    'bigint'
),
(
    'procrastinate_register_worker',
    array[
        'name text = null',
        'heartbeat_interval interval = ''00:00:01.3''',
        'lease interval = ''00:00:30'''
    ],
    'bigint'
),
(
    'procrastinate_release_jobs',
    array[
        'worker_id bigint',
        'job_ids bigint[]',
        'attempts integer[] = null'
    ],
    'setof bigint'
),
(
    'procrastinate_release_unknown_jobs',
    array[
        'worker_id bigint',
        'known_job_ids bigint[]'
    ],
    'setof bigint'
),
(
    'procrastinate_repair',
    array[
        'give_up_silent boolean = false'
    ],
    'table(mended text, amount bigint)'
),
(
    'procrastinate_rerun_job',
    array[
        'job_id bigint'
    ],
    'void'
),
(
    'procrastinate_rescue_jobs',
    array[
        'rescuer_id bigint = null',
        'max_jobs integer = 1000'
    ],
    'table(job_id bigint, worker_id bigint, status text)'
),
(
    'procrastinate_resume_queue',
    array[
        'queue_name text'
    ],
    'void'
),
(
    'procrastinate_retry_job',
    array[
        'job_id bigint',
        'attempt integer',
        'retry_in interval = null',
        'error text = null',
        'worker_id bigint = null'
    ],
    'void'
),
(
    'procrastinate_schema_version',
    '{}',
    'integer'
),
(
    'procrastinate_succeed_jobs',
    array[
        'worker_id bigint',
        'job_ids bigint[]',
        'attempts integer[]'
    ],
    'table(ordinal integer, job_id bigint, reason text)'
),
(
    'procrastinate_unregister_worker',
    array[
        'worker_id bigint'
    ],
    'void'
);

select is(
    (select actual.arguments from actual where actual.name = pinned.name),
    pinned.arguments,
    pinned.name || ' takes the arguments that were promised'
)
from pinned
order by pinned.name;

select is(
    (select actual.result from actual where actual.name = pinned.name),
    pinned.result,
    pinned.name || ' returns what was promised'
)
from pinned
order by pinned.name;

select is_empty(
    'select actual.name from actual except select pinned.name from pinned',
    'every public function is pinned here'
);

select is_empty(
    'select actual.name from actual group by actual.name having count(*) > 1',
    'no public function is overloaded: a call by name is never ambiguous'
);

-- Rows.

select is(
    array(
        select concat(att.attname, ' ', format_type(att.atttypid, att.atttypmod))
        from pg_attribute as att
        where att.attrelid = 'procrastinate_fetched_job'::regclass and not att.attisdropped
        order by att.attnum
    ),
    array[
        'id bigint',
        'task_name text',
        'args jsonb',
        'queue_name text',
        'priority integer',
        'lock text',
        'queueing_lock text',
        'scheduled_at timestamp with time zone',
        'attempt integer',
        'timeout interval'
    ],
    'a fetched job has the columns that were promised'
);

select has_column('procrastinate_jobs', named.col, format('a job has its %s', named.col))
from unnest(array[
    'id', 'queue_name', 'task_name', 'priority', 'lock', 'queueing_lock', 'args', 'status',
    'scheduled_at', 'attempts', 'abort_requested', 'worker_id', 'handed_back', 'created_at',
    'created_by', 'started_at', 'finished_at', 'error', 'result'
]) as named (col);

-- SQLSTATEs: a job for each state that a refusal can be about.

select procrastinate_defer_job('waiting', queueing_lock => 'once');
select procrastinate_defer_job('running', queue_name => 'run');
select pg_temp.fetch(queue_names => array['run']);
select procrastinate_defer_job('finished', queue_name => 'finish');
select pg_temp.fetch(queue_names => array['finish']);
select pg_temp.finish('finished');
select procrastinate_unregister_worker(pg_temp.worker('leaver'));

create temporary table refused (fact text, code text, statement text);

insert into refused
values
(
    'finishing a finished job', 'PC001',
    $$select procrastinate_finish_job(pg_temp.id('finished'), 1)$$
),
(
    'finishing a waiting job', 'PC001',
    $$select procrastinate_finish_job(pg_temp.id('waiting'), 1)$$
),
(
    'finishing a job that does not exist', 'PC001',
    $$select procrastinate_finish_job(-1, 1)$$
),
(
    'finishing another attempt than the running one', 'PC001',
    $$select procrastinate_finish_job(pg_temp.id('running'), 2)$$
),
(
    'finishing the run of another worker', 'PC001',
    $$select procrastinate_finish_job(
        pg_temp.id('running'), 1, worker_id => pg_temp.worker('bob')
    )$$
),
(
    'failing another attempt than the running one', 'PC001',
    $$select procrastinate_fail_job(pg_temp.id('running'), 2, 'error')$$
),
(
    'retrying another attempt than the running one', 'PC001',
    $$select procrastinate_retry_job(pg_temp.id('running'), 2)$$
),
(
    'rerunning a waiting job', 'PC001',
    $$select procrastinate_rerun_job(pg_temp.id('waiting'))$$
),
(
    'rerunning a running job', 'PC001',
    $$select procrastinate_rerun_job(pg_temp.id('running'))$$
),
(
    'deferring with a queueing lock that waits', 'PC002',
    $$select procrastinate_defer_job('second', queueing_lock => 'once')$$
),
(
    'deferring a batch with a queueing lock that waits', 'PC002',
    $$select * from procrastinate_defer_jobs(
        '[{"task_name": "second", "queueing_lock": "once"}]'
    )$$
),
(
    'fetching as a worker that is not known', 'PC004',
    $$select * from procrastinate_fetch_jobs(-1)$$
),
(
    'fetching one job as a worker that is not known', 'PC004',
    $$select * from procrastinate_fetch_job(-1)$$
),
(
    'fetching as a worker that left', 'PC004',
    $$select procrastinate_fetch_jobs(worker.id)
    from procrastinate_workers as worker where worker.name = 'leaver'$$
),
(
    'a heartbeat of a worker that left', 'PC004',
    $$select procrastinate_heartbeat(worker.id)
    from procrastinate_workers as worker where worker.name = 'leaver'$$
),
(
    'leaving twice', 'PC004',
    $$select procrastinate_unregister_worker(worker.id)
    from procrastinate_workers as worker where worker.name = 'leaver'$$
),
(
    'cancelling a job that does not exist', 'PC005',
    'select procrastinate_cancel_job(-1)'
),
(
    'rerunning a job that does not exist', 'PC005',
    'select procrastinate_rerun_job(-1)'
),
(
    'a bad argument', '22023',
    $$select procrastinate_defer_job('')$$
);

select throws_ok(
    refused.statement,
    refused.code,
    null,
    format('%s is refused with %s', refused.fact, refused.code)
)
from refused;

select isnt(
    (select coalesce(refusal.hint, '') from pg_temp.refusal(refused.statement) as refusal),
    '',
    refused.fact || ' is refused with a hint'
)
from refused;

select * from finish();
rollback;
