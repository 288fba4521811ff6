-- Which jobs a fetch takes: the first of the ready ones, whatever else is in the table.
--
-- Which index each query reads, and how much of it, is tested from Python (test_plans.py).
begin;
\ir support/arrange.sql
select plan(11);

-- Jobs that cannot run, in front of those that can, in every state that there is.

select procrastinate_defer_job('holder', lock => 'x');
select pg_temp.fetch();
select procrastinate_defer_job('blocked', lock => 'x', priority => 9) from generate_series(1, 50);
select procrastinate_defer_job('later', priority => 9, scheduled_at => '2100-01-01')
from generate_series(1, 50);
select procrastinate_defer_job('cancelled', priority => 9) from generate_series(1, 50);
select procrastinate_cancel_job(job.id)
from procrastinate_jobs as job
where job.task_name = 'cancelled';
select procrastinate_defer_job('paused', queue_name => 'paused', priority => 9)
from generate_series(1, 50);
select procrastinate_pause_queue('paused');

select is(pg_temp.fetch(100), '', 'nothing of what waits for something else is fetched');

-- The same three jobs by each of the three ways to name queues.

create function pg_temp.fetch_of_three(max_jobs integer, queue_names text[])
returns text
language plpgsql
as $$
begin
    delete from procrastinate_jobs as job where job.task_name in ('a', 'b', 'c');
    perform procrastinate_defer_job('a', queue_name => 'one');
    perform procrastinate_defer_job('b', queue_name => 'two', lock => 'y');
    perform procrastinate_defer_job('c', queue_name => 'one', priority => 1);
    return pg_temp.fetch(max_jobs, queue_names);
end;
$$;

select is(
    pg_temp.fetch_of_three(asked.max_jobs, asked.queue_names),
    asked.expected,
    format(
        '%s of %s queues: %s',
        asked.max_jobs,
        coalesce(array_to_string(asked.queue_names, ' and '), 'all'),
        asked.expected
    )
)
from (
    values
    (1, null, 'c'),
    (2, null, 'c a'),
    (100, null, 'c a b'),
    (1, '{one}'::text[], 'c'),
    (100, '{one}', 'c a'),
    (100, '{two}', 'b'),
    (1, '{two, one}', 'c'),
    (2, '{two, one}', 'c a'),
    (100, '{two, one, default, paused}', 'c a b')
) as asked (max_jobs, queue_names, expected);

-- A job that was overtaken since it became ready is left alone.

delete from procrastinate_jobs;
select procrastinate_defer_job('first', lock => 'x', queue_name => 'slow');
select pg_temp.settle();
select procrastinate_defer_job('urgent', lock => 'x', queue_name => 'mail', priority => 1);

select is(
    pg_temp.fetch(1, array['slow']), '',
    'the first of a lock is not fetched any more when a more urgent one has come'
);

select * from finish();
rollback;
