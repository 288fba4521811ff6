-- A worker gives back jobs that it claimed and did not start: at once, without burning an attempt.
begin;
\ir support/arrange.sql
select plan(20);

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

-- Runs that are named by their attempt.

select is_empty(
    $$select procrastinate_release_jobs(pg_temp.worker(), array[pg_temp.id('b')], array[2])$$,
    'a run that is not the one named is left alone'
);

select results_eq(
    $$select procrastinate_release_jobs(
        pg_temp.worker(), array[pg_temp.id('a'), pg_temp.id('b')], attempts => array[2, 1]
    )$$,
    $$select pg_temp.id('b')$$,
    'the one named is given back'
);

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

-- Jobs whose fetch was answered to nobody.

delete from procrastinate_jobs;
select procrastinate_defer_job('heard');
select procrastinate_defer_job('unheard');
select procrastinate_defer_job('foreign');
select pg_temp.fetch(2);
select pg_temp.fetch(worker_name => 'bob');

select results_eq(
    $$select procrastinate_release_unknown_jobs(pg_temp.worker(), array[pg_temp.id('heard')])$$,
    $$select pg_temp.id('unheard')$$,
    'what a worker holds without knowing is given back'
);

select results_eq(
    $$
    select job.task_name, job.status::text, job.handed_back
    from procrastinate_jobs as job
    order by job.id
    $$,
    $$values ('heard', 'doing', 0), ('unheard', 'todo', 1), ('foreign', 'doing', 0)$$,
    'what it knows, and what others hold, is left alone'
);

select is_empty(
    $$select procrastinate_release_unknown_jobs(pg_temp.worker(), array[pg_temp.id('heard'), -1])$$,
    'a worker that knows all gives back nothing'
);

select throws_ok(refused.statement, '22023', null, refused.fact)
from (
    values
    (
        'select procrastinate_release_unknown_jobs(null, array[1])',
        'giving back unknown jobs of no worker is refused'
    ),
    (
        'select procrastinate_release_unknown_jobs(1, null)',
        'no array of known jobs is refused: it would give back everything'
    )
) as refused (statement, fact);

select * from finish();
rollback;
