-- A finished job is started afresh.
begin;
\ir support/arrange.sql
select plan(17);

create function pg_temp.rerun_after(final_status text)
returns text
language plpgsql
as $$
begin
    delete from procrastinate_jobs;
    perform procrastinate_defer_job('t');
    if final_status = 'cancelled' then
        perform procrastinate_cancel_job(pg_temp.id('t'));
    else
        perform pg_temp.fetch();
        perform pg_temp.finish('t', final_status);
    end if;
    perform procrastinate_rerun_job(pg_temp.id('t'));
    return pg_temp.fetch();
end;
$$;

select is(
    pg_temp.rerun_after(final_status), 't',
    format('a job that is %s can be run again', final_status)
)
from unnest(array['succeeded', 'failed', 'aborted', 'cancelled']) as final_status;

delete from procrastinate_jobs;
select procrastinate_declare_task(
    't', max_attempts => 2, retry_delay => '0', keep_finished => '1 day'
);
select procrastinate_defer_job('t', '{"n": 1}', priority => 3, scheduled_at => '2020-01-01');
select pg_temp.fetch();
select pg_temp.fail('t');
select pg_temp.fetch();
select procrastinate_finish_job(
    pg_temp.id('t'), 2, 'failed', result => '{"x": 1}', error => 'no luck'
);
select procrastinate_rerun_job(pg_temp.id('t'));

select results_eq(
    $$
    select
        job.status::text, job.result, job.error, job.worker_id, job.started_at, job.finished_at,
        job.purge_at, job.scheduled_at
    from procrastinate_jobs as job
    where job.task_name = 't'
    $$,
    $$values (
        'todo', null::jsonb, null::text, null::bigint, null::timestamptz, null::timestamptz,
        null::timestamptz, null::timestamptz
    )$$,
    'nothing is left of how it ended'
);

select results_eq(
    $$select job.args, job.priority from procrastinate_jobs as job where job.task_name = 't'$$,
    $$values ('{"n": 1}'::jsonb, 3)$$,
    'what it is to do stays'
);

select is(
    (select fetched.attempt from procrastinate_fetch_jobs(pg_temp.worker()) as fetched),
    3,
    'its attempts go on counting, so that an earlier run cannot close it'
);

select is(pg_temp.fail('t'), 'todo', 'it has all the attempts again that its policy allows');

select is(
    (pg_temp.refusal($$select procrastinate_rerun_job(pg_temp.id('t'))$$)).code, 'PC001',
    'a waiting job cannot be run again'
);

select pg_temp.fetch();

select is(
    (pg_temp.refusal($$select procrastinate_rerun_job(pg_temp.id('t'))$$)).code, 'PC001',
    'a running job cannot be run again'
);

select throws_ok(
    'select procrastinate_rerun_job(-1)', 'PC005', null, 'a job that does not exist is PC005'
);

-- With locks.

delete from procrastinate_jobs;
select procrastinate_defer_job('first', lock => 'x');
select procrastinate_defer_job('second', lock => 'x');
select pg_temp.fetch();
select pg_temp.finish('first');
select procrastinate_rerun_job(pg_temp.id('first'));

select is(pg_temp.drain(), 'first, second', 'a job with a lock takes its place by its id');

-- With queueing locks: a job that was cancelled waits for its first run again.

delete from procrastinate_jobs;
select procrastinate_defer_job('first', queueing_lock => 'once');
select procrastinate_cancel_job(pg_temp.id('first'));
select procrastinate_rerun_job(pg_temp.id('first'));

select throws_ok(
    $$select procrastinate_defer_job('second', queueing_lock => 'once')$$,
    'PC002',
    null,
    'it carries its queueing lock again'
);

select procrastinate_cancel_job(pg_temp.id('first'));
select procrastinate_defer_job('second', queueing_lock => 'once');

select throws_ok(
    $$select procrastinate_rerun_job(pg_temp.id('first'))$$,
    'PC002',
    null,
    'a queueing lock that waits meanwhile refuses it'
);

select is((pg_temp.job('first')).status::text, 'cancelled', 'then it stays as it was');

select pg_temp.fetch();

select lives_ok(
    $$select procrastinate_rerun_job(pg_temp.id('first'))$$,
    'once that job has been started it can be run again'
);

-- A request to abort the run before is not meant for the next.

select procrastinate_finish_job(pg_temp.id('second'), 1);
insert into procrastinate_abort_requests (job_id) values (pg_temp.id('second'));
select procrastinate_rerun_job(pg_temp.id('second'));
select procrastinate_heartbeat(pg_temp.worker());

select is(
    (pg_temp.job('second')).status::text, 'todo', 'a request to abort the run before is dropped'
);

select * from finish();
rollback;
