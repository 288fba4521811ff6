-- What waits is cancelled; what runs is asked to stop; what has finished stays as it is.
begin;
\ir support/arrange.sql
select plan(25);

select procrastinate_defer_job('waiting');

select is(
    procrastinate_cancel_job(pg_temp.id('waiting')), 'cancelled', 'a waiting job is cancelled'
);

select results_eq(
    $$
    select job.status::text, job.attempts, job.finished_at is not null, job.worker_id
    from procrastinate_jobs as job
    where job.task_name = 'waiting'
    $$,
    $$values ('cancelled', 0, true, null::bigint)$$,
    'it has finished without a run'
);

select is(pg_temp.fetch(), '', 'it is not fetched');

select is(
    procrastinate_cancel_job(pg_temp.id('waiting'), abort),
    'cancelled',
    format('cancelling it again changes nothing, with abort => %s', abort)
)
from unnest(array[false, true]) as abort;

-- Whatever it waits for.

create function pg_temp.cancelled_while(arrange text)
returns text
language plpgsql
as $$
begin
    delete from procrastinate_jobs;
    execute arrange;
    return procrastinate_cancel_job(pg_temp.id('t'), abort => true);
end;
$$;

select is(pg_temp.cancelled_while(given.arrange), 'cancelled', given.fact)
from (
    values
    (
        $$select procrastinate_defer_job('t', scheduled_at => '2100-01-01')$$,
        'a scheduled job is cancelled'
    ),
    (
        $$select procrastinate_defer_job('holder', lock => 'x'), pg_temp.fetch(),
        procrastinate_defer_job('t', lock => 'x')$$,
        'a job that waits for its lock is cancelled'
    ),
    (
        $$select procrastinate_defer_job('t'), pg_temp.fetch(),
        procrastinate_retry_job(pg_temp.id('t'), 1, '1 hour')$$,
        'a job that waits for a retry is cancelled'
    ),
    (
        $$select procrastinate_defer_job('t', queue_name => 'p'), procrastinate_pause_queue('p')$$,
        'a job in a paused queue is cancelled'
    ),
    (
        $$select procrastinate_defer_job('t', queueing_lock => 'once')$$,
        'a job with a queueing lock is cancelled'
    )
) as given (arrange, fact);

-- A running job.

delete from procrastinate_jobs;
select procrastinate_defer_job('running');
select pg_temp.fetch();

select is(
    procrastinate_cancel_job(pg_temp.id('running')), 'doing',
    'a running job goes on when it is cancelled without abort'
);

select is((pg_temp.job('running')).abort_requested, false, 'it is not asked to stop');

select is(
    procrastinate_cancel_job(pg_temp.id('running'), abort => true), 'doing',
    'with abort a running job goes on until its worker stops it'
);

select is((pg_temp.job('running')).abort_requested, true, 'it is asked to stop');

select is(
    procrastinate_cancel_job(pg_temp.id('running'), abort => true), 'doing',
    'asking twice is asking once'
);

select pg_temp.finish('running', 'aborted');

select is(
    procrastinate_cancel_job(pg_temp.id('running'), abort => true), 'aborted',
    'a finished job says how it ended'
);

-- How a job ends that was asked to stop.

create function pg_temp.ended_by(happens text)
returns text
language plpgsql
as $$
begin
    delete from procrastinate_jobs;
    perform procrastinate_declare_task('t', max_attempts => 5);
    perform procrastinate_defer_job('t');
    perform pg_temp.fetch();
    perform procrastinate_cancel_job(pg_temp.id('t'), abort => true);
    execute happens;
    return (pg_temp.job('t')).status;
end;
$$;

select is(
    pg_temp.ended_by(given.happens), given.status,
    format('%s ends a job that was asked to stop as %s', given.fact, given.status)
)
from (
    values
    ('a retry', $$select procrastinate_retry_job(pg_temp.id('t'), 1)$$, 'aborted'),
    ('a failure', $$select procrastinate_fail_job(pg_temp.id('t'), 1, 'error')$$, 'aborted'),
    (
        'its worker''s leaving', $$select procrastinate_unregister_worker(pg_temp.worker())$$,
        'aborted'
    ),
    (
        'a reported failure',
        $$select procrastinate_finish_job(pg_temp.id('t'), 1, 'failed')$$,
        'aborted'
    ),
    ('a success', $$select procrastinate_finish_job(pg_temp.id('t'), 1)$$, 'succeeded')
) as given (fact, happens, status);

-- A later run is not asked to stop for an earlier one.

select procrastinate_rerun_job(pg_temp.id('t'));
select pg_temp.fetch();

select is((pg_temp.job('t')).abort_requested, false, 'a job that is run again starts afresh');

-- Finished jobs.

delete from procrastinate_jobs;
select procrastinate_defer_job('finished');
select pg_temp.fetch();
select pg_temp.finish('finished', 'failed');

select is(procrastinate_cancel_job(pg_temp.id('finished')), 'failed', 'a failed job stays failed');

select throws_ok(
    'select procrastinate_cancel_job(-1)', 'PC005', null, 'a job that does not exist is PC005'
);

select throws_ok(
    'select procrastinate_cancel_job(-1, abort => true)', 'PC005', null, 'with abort too'
);

select * from finish();
rollback;
