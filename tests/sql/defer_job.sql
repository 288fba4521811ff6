-- One job is created, with what was asked for or with the defaults of its task.
begin;
\ir support/arrange.sql
select plan(36);

-- Defaults.

select is(
    procrastinate_defer_job('plain'), pg_temp.id('plain'), 'deferring returns the id of the job'
);

select results_eq(
    $$
    select
        job.args, job.queue_name, job.priority, job.lock, job.queueing_lock, job.scheduled_at,
        job.status::text, job.attempts, job.worker_id, job.finished_at
    from procrastinate_jobs as job
    where job.task_name = 'plain'
    $$,
    $$values (
        '{}'::jsonb, 'default', 0, null::text, null::text, null::timestamptz,
        'todo', 0, null::bigint, null::timestamptz
    )$$,
    'a job has the defaults that are documented'
);

select is(
    (pg_temp.job('plain')).created_by, session_user::text, 'it says who deferred it'
);

select cmp_ok(
    clock_timestamp() - (pg_temp.job('plain')).created_at, '<', interval '1 minute',
    'it says when it was deferred'
);

select procrastinate_defer_job(
    'full', '{"to": "ann"}', queue_name => 'mail', priority => -3, lock => 'ann',
    queueing_lock => 'full', scheduled_at => '2100-01-01 00:00:00+00'
);

select results_eq(
    $$
    select
        job.args, job.queue_name, job.priority, job.lock, job.queueing_lock, job.scheduled_at
    from procrastinate_jobs as job
    where job.task_name = 'full'
    $$,
    $$values (
        '{"to": "ann"}'::jsonb, 'mail', -3, 'ann', 'full', '2100-01-01 00:00:00+00'::timestamptz
    )$$,
    'a job has what was asked for'
);

select procrastinate_declare_task('declared', queue_name => 'slow', priority => 7, lock => 'one');
select procrastinate_defer_job('declared');

select results_eq(
    $$
    select job.queue_name, job.priority, job.lock
    from procrastinate_jobs as job
    where job.task_name = 'declared'
    $$,
    $$values ('slow', 7, 'one')$$,
    'a job takes the queue, the priority and the lock that its task was declared with'
);

delete from procrastinate_jobs;
select procrastinate_defer_job('declared', queue_name => 'mail', priority => 0, lock => 'two');

select results_eq(
    $$
    select job.queue_name, job.priority, job.lock
    from procrastinate_jobs as job
    where job.task_name = 'declared'
    $$,
    $$values ('mail', 0, 'two')$$,
    'what was asked for goes before what was declared'
);

-- Time.

delete from procrastinate_jobs;
select procrastinate_defer_job('past', scheduled_at => clock_timestamp() - interval '1 day');
select procrastinate_defer_job('future', scheduled_at => clock_timestamp() + interval '1 day');

select is(pg_temp.fetch(10), 'past', 'a job is not fetched before its time');

select is(
    (pg_temp.job('past')).scheduled_at < clock_timestamp(), true,
    'a job that was scheduled for the past keeps that time'
);

-- The queueing lock is an identity among jobs that wait and were never started.

delete from procrastinate_jobs;
select procrastinate_defer_job('first', '{"n": 1}', queueing_lock => 'once');

select throws_ok(
    $$select procrastinate_defer_job('second', queueing_lock => 'once')$$,
    'PC002',
    null,
    'a second job with a queueing lock that waits is refused'
);

select is(
    (
        select refusal.hint ~ 'on_conflict'
        from pg_temp.refusal(
            $$select procrastinate_defer_job('second', queueing_lock => 'once')$$
        ) as refusal
    ),
    true,
    'the hint says what else could be done'
);

select lives_ok(
    $$select procrastinate_defer_job('other', queueing_lock => 'another')$$,
    'another queueing lock is no conflict'
);

select is(
    procrastinate_defer_job('second', '{"n": 2}', queueing_lock => 'once', on_conflict => 'skip'),
    pg_temp.id('first'),
    'skip returns the job that waits'
);

select is((pg_temp.job('first')).args, '{"n": 1}', 'skip leaves the job that waits as it was');

select is(pg_temp.id('second'), null, 'skip creates no job');

select is(
    procrastinate_defer_job(
        'second', '{"n": 2}', queue_name => 'mail', priority => 5, lock => 'ann',
        queueing_lock => 'once', scheduled_at => '2100-01-01', on_conflict => 'replace'
    ),
    (select job.id from procrastinate_jobs as job where job.queueing_lock = 'once'),
    'replace returns the job that waits'
);

select is(pg_temp.id('first'), null, 'replace creates no job');

select results_eq(
    $$
    select job.args, job.queue_name, job.priority, job.lock, job.scheduled_at
    from procrastinate_jobs as job
    where job.task_name = 'second' and job.queueing_lock = 'once'
    $$,
    $$values ('{"n": 2}'::jsonb, 'mail', 5, 'ann', '2100-01-01'::timestamptz)$$,
    'replace gives the job that waits the new task, args, queue, priority, lock and schedule'
);

select procrastinate_defer_job('third', queueing_lock => 'once', on_conflict => 'replace');

select results_eq(
    $$
    select job.args, job.queue_name, job.priority, job.lock, job.scheduled_at
    from procrastinate_jobs as job
    where job.task_name = 'third' and job.queueing_lock = 'once'
    $$,
    $$values ('{}'::jsonb, 'default', 0, null::text, null::timestamptz)$$,
    'replace takes the defaults for what is not said'
);

select is(
    pg_temp.drain(), 'other third', 'a job that was replaced by one without schedule runs at once'
);

delete from procrastinate_jobs;
select procrastinate_defer_job('first', queueing_lock => 'once');
select procrastinate_defer_job(
    'second', queueing_lock => 'once', scheduled_at => '2100-01-01', on_conflict => 'replace'
);

select is(pg_temp.fetch(10), '', 'a job that was replaced by a later one waits for the later time');

select lives_ok(
    format(
        $$select procrastinate_defer_job('new', queueing_lock => %L, on_conflict => %L)$$,
        policy, policy
    ),
    format('%s creates a job when none waits', policy)
)
from unnest(array['raise', 'skip', 'replace']) as policy;

select lives_ok(
    format($$select procrastinate_defer_job('free', on_conflict => %L)$$, policy),
    format('%s says nothing about a job without queueing lock', policy)
)
from unnest(array['raise', 'skip', 'replace']) as policy;

select is(
    (select count(*) from procrastinate_jobs as job where job.task_name in ('new', 'free')),
    6::bigint,
    'each of them was created'
);

-- Once started, a job does not carry its queueing lock any more.

create temporary table started (fact text, happens text);

insert into started
values
('runs', 'select'),
('has succeeded', $$select pg_temp.finish('first')$$),
('waits for a retry', $$select procrastinate_retry_job(pg_temp.id('first'), 1)$$),
(
    'was given back',
    $$select procrastinate_release_jobs(pg_temp.worker(), array[pg_temp.id('first')])$$
);

create function pg_temp.second_after(happens text)
returns bigint
language plpgsql
as $$
begin
    delete from procrastinate_jobs;
    perform procrastinate_defer_job('first', queueing_lock => 'once');
    perform pg_temp.fetch();
    execute happens;
    return procrastinate_defer_job('second', queueing_lock => 'once');
end;
$$;

select ok(
    pg_temp.second_after(started.happens) is not null,
    format('a second job can be created while the first %s', started.fact)
)
from started;

select throws_ok(
    $$select procrastinate_defer_job('third', queueing_lock => 'once')$$,
    'PC002',
    null,
    'a third cannot: the second waits'
);

delete from procrastinate_jobs;
select procrastinate_defer_job('first', queueing_lock => 'once');
select procrastinate_cancel_job(pg_temp.id('first'));

select lives_ok(
    $$select procrastinate_defer_job('second', queueing_lock => 'once')$$,
    'a second job can be created when the first was cancelled'
);

delete from procrastinate_jobs;
select procrastinate_defer_job('first', queueing_lock => 'once');
delete from procrastinate_jobs;

select lives_ok(
    $$select procrastinate_defer_job('second', queueing_lock => 'once')$$,
    'a second job can be created when the first was deleted'
);

select throws_ok(
    $$select procrastinate_defer_job('t', on_conflict => 'ignore', queueing_lock => 'new')$$,
    '22023',
    null,
    'another policy is refused'
);

select * from finish();
rollback;
