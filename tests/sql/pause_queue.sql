-- Nothing is fetched from a paused queue, by any worker, until it is resumed.
begin;
\ir support/arrange.sql
select plan(21);

create function pg_temp.arrange_two()
returns void
language sql
as $$
    delete from procrastinate_jobs;
    select procrastinate_defer_job('mail', queue_name => 'mail');
    select procrastinate_defer_job('slow', queue_name => 'slow');
$$;

select procrastinate_pause_queue('mail');
select pg_temp.arrange_two();

select is(pg_temp.fetch(10, given.queue_names), '', given.fact)
from (
    values
    ('{mail}'::text[], 'nothing is fetched from a paused queue'),
    ('{mail, none}', 'nor when it is named with others')
) as given (queue_names, fact);

select is(pg_temp.fetch(10), 'slow', 'other queues go on for who fetches from all');

select pg_temp.arrange_two();

select is(pg_temp.fetch(10, '{mail, slow}'), 'slow', 'and for who names them');

select is(pg_temp.fetch(10, worker_name => 'bob'), '', 'the queue is paused for every worker');

select procrastinate_resume_queue('mail');

select is(pg_temp.fetch(10), 'mail', 'after it is resumed its jobs are fetched');

-- What is under way when a queue is paused.

select pg_temp.arrange_two();
select pg_temp.fetch(10, '{mail}');
select procrastinate_pause_queue('mail');

select lives_ok($$select pg_temp.finish('mail')$$, 'a running job can be finished');

select is((pg_temp.job('mail')).status::text, 'succeeded', 'it is finished');

select lives_ok(
    $$select procrastinate_defer_job('more', queue_name => 'mail')$$, 'jobs can be deferred'
);

select lives_ok(
    $$select procrastinate_pause_queue('mail')$$, 'a queue can be paused when it is paused'
);

select procrastinate_resume_queue('mail');
select procrastinate_resume_queue('mail');

select is(pg_temp.fetch(10, '{mail}'), 'more', 'it is resumed once for all');

select lives_ok(
    $$select procrastinate_resume_queue('unknown')$$, 'a queue can be resumed that was not paused'
);

-- What the fetch itself makes ready, with some other queue paused.

delete from procrastinate_jobs;
select procrastinate_pause_queue('mail');
select procrastinate_defer_job('locked', queue_name => 'new', lock => 'x');

select is(
    pg_temp.fetch(10), 'locked', 'the first job of a lock is fetched from all queues but the paused'
);

select procrastinate_defer_job(
    'due', queue_name => 'newer', scheduled_at => clock_timestamp() + interval '0.1 seconds'
);
select pg_sleep(0.15);

select is(pg_temp.fetch(10), 'due', 'so is a job that is due');

select pg_temp.finish('locked');
select procrastinate_defer_job('next', queue_name => 'newest', lock => 'x');

select is(pg_temp.fetch(10), 'next', 'so is the next job of a lock');

-- Paused jobs keep their place.

delete from procrastinate_jobs;
select procrastinate_defer_job('first', queue_name => 'mail', lock => 'x');
select procrastinate_defer_job('second', queue_name => 'slow', lock => 'x');
select procrastinate_defer_job('due', queue_name => 'mail', scheduled_at => '2020-01-01');

select is(pg_temp.fetch(10), '', 'jobs of a paused queue keep their place in their lock');

select procrastinate_resume_queue('mail');

select is(pg_temp.drain(), 'due first, second', 'they run when it is resumed');

-- Waiting jobs can be changed all the same.

select procrastinate_pause_queue('mail');
select procrastinate_defer_job('moved', queue_name => 'mail');
update procrastinate_jobs as job set queue_name = 'slow' where job.task_name = 'moved';

select is(pg_temp.fetch(10), 'moved', 'a job that is moved to another queue is fetched there');

select procrastinate_defer_job('back', queue_name => 'slow');
update procrastinate_jobs as job set queue_name = 'mail' where job.task_name = 'back';

select is(pg_temp.fetch(10), '', 'a job that is moved to the paused queue is not');

-- Every queue paused.

delete from procrastinate_jobs;
select procrastinate_pause_queue('slow');
select pg_temp.arrange_two();

select is(pg_temp.fetch(10), '', 'with every queue paused nothing is fetched');

select is(
    pg_temp.fetch(10, array[repeat('x', 512)]), '',
    'a queue without jobs is no error meanwhile'
);

select * from finish();
rollback;
