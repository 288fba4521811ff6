-- Jobs of one lock run one at a time, by priority, then by id; and no lock is ever stranded.
begin;
\ir support/arrange.sql
select plan(34);

create function pg_temp.running(lock_name text)
returns bigint
language sql
as $$
    select count(*)
    from procrastinate_jobs as job
    where job.lock = lock_name and job.status = 'doing'
$$;

-- One at a time, in order.

select procrastinate_defer_job('a', lock => 'x');
select procrastinate_defer_job('b', lock => 'x');
select procrastinate_defer_job('free');
select procrastinate_defer_job('c', lock => 'x');
select procrastinate_defer_job('other', lock => 'y');

select is(
    pg_temp.sorted(pg_temp.fetch(10)), 'a free other',
    'one job of each lock is fetched, and the free ones'
);

select is(pg_temp.fetch(10), '', 'the others wait while it runs');

select is(pg_temp.running('x'), 1::bigint, 'one job of the lock runs');

select is(pg_temp.drain(), 'b, c', 'they follow one after the other, in the order of their ids');

delete from procrastinate_jobs;
select procrastinate_defer_job('low', lock => 'x', priority => -1);
select procrastinate_defer_job('first', lock => 'x');
select procrastinate_defer_job('second', lock => 'x');
select procrastinate_defer_job('urgent', lock => 'x', priority => 1);

select is(
    pg_temp.drain(), 'urgent, first, second, low', 'within a lock, higher priority goes first'
);

delete from procrastinate_jobs;
select procrastinate_defer_job('first', lock => 'x');
select pg_temp.settle();
select procrastinate_defer_job('urgent', lock => 'x', priority => 1);

select is(
    pg_temp.drain(), 'urgent, first',
    'a more urgent job overtakes one that could already have been fetched'
);

delete from procrastinate_jobs;
select procrastinate_defer_job('second', lock => 'x');
select pg_temp.settle();
insert into procrastinate_jobs (id, task_name, lock) values (-1, 'first', 'x');

select is(
    pg_temp.drain(), 'first, second',
    'so does an earlier one that was committed later'
);

-- Across queues, whatever the worker asks for.

delete from procrastinate_jobs;
select procrastinate_defer_job('first', lock => 'x', queue_name => 'slow');
select procrastinate_defer_job('second', lock => 'x', queue_name => 'mail');

select is(
    pg_temp.fetch(10, array['mail']), '', 'a job does not overtake an earlier one of another queue'
);

select is(
    pg_temp.fetch(10, array['slow']), 'first',
    'the earlier one is fetched from its queue'
);

select pg_temp.finish('first');
select pg_temp.settle();

select is(
    pg_temp.fetch(10, array['mail']), 'second', 'then the other from its own'
);

-- Who waits for something else keeps its place.

select is(pg_temp.fetch(10), '', 'nothing is left');

delete from procrastinate_jobs;
select procrastinate_defer_job('first', lock => 'x', scheduled_at => '2100-01-01');
select procrastinate_defer_job('second', lock => 'x');

select is(pg_temp.fetch(10), '', 'a job that waits for its schedule is not overtaken');

update procrastinate_jobs as job set scheduled_at = null where job.task_name = 'first';

select is(pg_temp.drain(), 'first, second', 'both run once its time has come');

delete from procrastinate_jobs;
select procrastinate_defer_job('first', lock => 'x');
select procrastinate_defer_job('second', lock => 'x');
select pg_temp.fetch();
select procrastinate_retry_job(pg_temp.id('first'), 1, '1 day');

select is(pg_temp.fetch(10), '', 'a job that waits for a retry is not overtaken');

update procrastinate_jobs as job set scheduled_at = null where job.task_name = 'first';

select is(pg_temp.drain(), 'first, second', 'both run once its time has come again');

delete from procrastinate_jobs;
select procrastinate_defer_job('first', lock => 'x', queue_name => 'slow');
select procrastinate_defer_job('second', lock => 'x', queue_name => 'mail');
select procrastinate_pause_queue('slow');

select is(pg_temp.fetch(10), '', 'a job in a paused queue is not overtaken');

select procrastinate_resume_queue('slow');

select is(pg_temp.drain(), 'first, second', 'both run once its queue is resumed');

-- Whatever ends, gives back or removes the running or the first job lets the next one go.

create function pg_temp.next_after(happens text, started boolean)
returns text
language plpgsql
as $$
begin
    delete from procrastinate_jobs;
    perform procrastinate_defer_job('first', lock => 'x');
    perform procrastinate_defer_job('second', lock => 'x');
    if started then
        perform pg_temp.fetch();
    else
        perform pg_temp.settle();
    end if;
    execute happens;
    return pg_temp.fetch(10);
end;
$$;

select is(pg_temp.next_after(given.happens, given.started), given.expected, given.fact)
from (
    values
    (true, $$select pg_temp.finish('first')$$, 'second', 'a success releases the lock'),
    (true, $$select pg_temp.finish('first', 'failed')$$, 'second', 'a failure releases the lock'),
    (true, $$select pg_temp.finish('first', 'aborted')$$, 'second', 'an abort releases the lock'),
    (true, $$select pg_temp.fail('first')$$, 'second', 'a failure without retry releases the lock'),
    (
        true, $$select procrastinate_retry_job(pg_temp.id('first'), 1)$$, 'first',
        'a retry at once comes before the next job'
    ),
    (
        true, $$select procrastinate_release_jobs(pg_temp.worker(), array[pg_temp.id('first')])$$,
        'first', 'a job that was given back comes before the next'
    ),
    (
        true, $$select procrastinate_unregister_worker(pg_temp.worker())$$, 'first',
        'a job whose worker left comes before the next'
    ),
    (
        true, $$delete from procrastinate_jobs as job where job.task_name = 'first'$$, 'second',
        'deleting the running job releases the lock'
    ),
    (
        false, $$select procrastinate_cancel_job(pg_temp.id('first'))$$, 'second',
        'cancelling the first job lets the next one go'
    ),
    (
        false, $$delete from procrastinate_jobs as job where job.task_name = 'first'$$, 'second',
        'deleting the first job lets the next one go'
    ),
    (
        false,
        $$update procrastinate_jobs as job set scheduled_at = '2100-01-01'
        where job.task_name = 'first'$$,
        '', 'postponing the first job postpones the next too'
    ),
    (
        false, $$update procrastinate_jobs as job set lock = null where job.task_name = 'first'$$,
        'first second', 'taking its lock from the first job lets the next one go'
    )
) as given (started, happens, expected, fact);

delete from procrastinate_jobs;
select procrastinate_defer_job('first', lock => 'x');
select procrastinate_defer_job('second', lock => 'x');
select pg_temp.fetch();
select pg_temp.finish('first');
select pg_temp.fetch();
select procrastinate_rerun_job(pg_temp.id('first'));

select is(pg_temp.fetch(10), '', 'a job that is run again waits for its lock');

select procrastinate_defer_job('third', lock => 'x');

select is(pg_temp.drain(), 'first, third', 'it takes its place by its id');

-- Many.

delete from procrastinate_jobs;
select procrastinate_defer_job(lock_name || step, lock => lock_name)
from generate_series(1, 3) as step
cross join unnest(array['a', 'b', 'c']) as lock_name;

select pg_temp.fetch(10);

select is(pg_temp.fetch(10), '', 'of each of several locks one job runs at a time');

select pg_temp.finish('a1');
select pg_temp.finish('c1');

select is(pg_temp.sorted(pg_temp.fetch(10)), 'a2 c2', 'locks do not wait for each other');

select pg_temp.finish('a2');

select is(pg_temp.fetch(10), 'a3', 'each goes its own way');

select * from finish();
rollback;
