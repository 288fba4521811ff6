-- A worker gives back jobs that it claimed and did not start: at once, without burning an attempt.
begin;
\ir support/arrange.sql
select plan(13);

select procrastinate_declare_task('a', max_attempts => 1);
select procrastinate_defer_job('a', queueing_lock => 'a');
select procrastinate_defer_job('b');
select procrastinate_defer_job('c', lock => 'x');
select procrastinate_defer_job('d', lock => 'x');
select pg_temp.fetch(10);

select set_eq(
    $$select procrastinate_release_jobs(
        pg_temp.worker(), array[pg_temp.id('a'), pg_temp.id('c'), pg_temp.id('a')]
    )$$,
    $$values (pg_temp.id('a')), (pg_temp.id('c'))$$,
    'the jobs that were given back are returned, each once'
);

select results_eq(
    $$
    select
        job.status::text, job.attempts, job.handed_back, job.worker_id, job.started_at, job.error
    from procrastinate_jobs as job
    where job.task_name = 'a'
    $$,
    $$values ('todo', 1, 1, null::bigint, null::timestamptz, null::text)$$,
    'they wait again, and their run is counted as handed back'
);

select is((pg_temp.job('b')).status::text, 'doing', 'what was not named is still held');

select is(
    (
        select fetched.attempt
        from procrastinate_fetch_jobs(pg_temp.worker('bob')) as fetched
        where fetched.task_name = 'a'
    ),
    2,
    'another worker gets them at once, as their next attempt'
);

select is(
    pg_temp.fail('a'), 'failed',
    'handing back does not add to what max_attempts allows, nor takes from it'
);

select is(
    pg_temp.fetch(10), 'c', 'a job that was given back comes before the next of its lock'
);

select is_empty(given.statement, given.fact)
from (
    values
    (
        $$select procrastinate_release_jobs(pg_temp.worker('bob'), array[pg_temp.id('b')])$$,
        'a job that another worker holds is left alone'
    ),
    (
        $$select procrastinate_release_jobs(pg_temp.worker(), array[pg_temp.id('a')])$$,
        'a finished job is left alone'
    ),
    (
        $$select procrastinate_release_jobs(pg_temp.worker(), array[pg_temp.id('d'), -1])$$,
        'waiting jobs, and jobs that do not exist, are left alone'
    ),
    (
        $$select procrastinate_release_jobs(pg_temp.worker(), '{}')$$,
        'giving back nothing is nothing'
    )
) as given (statement, fact);

select is((pg_temp.job('b')).status::text, 'doing', 'its worker still holds it');

-- For ever, if need be.

delete from procrastinate_jobs;
select procrastinate_defer_job('a');

create function pg_temp.hand_back(times integer)
returns void
language plpgsql
as $$
begin
    for round in 1 .. times loop
        perform pg_temp.fetch();
        perform procrastinate_release_jobs(pg_temp.worker(), array[pg_temp.id('a')]);
    end loop;
end;
$$;

select pg_temp.hand_back(20);

select is(pg_temp.fetch(), 'a', 'a job can be handed back any number of times');

-- An abort that was asked for.

select procrastinate_cancel_job(pg_temp.id('a'), abort => true);
select procrastinate_release_jobs(pg_temp.worker(), array[pg_temp.id('a')]);

select is(
    (pg_temp.job('a')).status::text, 'aborted',
    'a job that was asked to stop does not wait again when it is handed back'
);

select * from finish();
rollback;
