-- A worker registers, works, and leaves.
begin;
\ir support/arrange.sql
select plan(18);

create temporary table registered as
select procrastinate_register_worker('twin') as id;

select results_eq(
    $$
    select worker.name, worker.stop_requested, worker.gone_at
    from procrastinate_workers as worker
    inner join registered on worker.id = registered.id
    $$,
    $$values ('twin', false, null::timestamptz)$$,
    'registering returns the id of the worker'
);

select results_eq(
    $$
    select worker.lease
    from procrastinate_workers as worker
    inner join registered on worker.id = registered.id
    $$,
    $$values (interval '30 seconds')$$,
    'a lease is 30 seconds by default'
);

select lives_ok('select procrastinate_register_worker()', 'a worker need not have a name');

select isnt(
    procrastinate_register_worker('twin'),
    (select registered.id from registered),
    'two workers of one name are two workers'
);

select procrastinate_register_worker('own', '0.5 seconds', '2 seconds');

select results_eq(
    $$
    select worker.heartbeat_interval, worker.lease
    from procrastinate_workers as worker
    where worker.name = 'own'
    $$,
    $$values (interval '0.5 seconds', interval '2 seconds')$$,
    'a worker may say how often it beats, and how long its lease is'
);

select throws_ok(
    $$select procrastinate_register_worker(heartbeat_interval => '20 seconds')$$,
    '22023',
    null,
    'a lease of less than three heartbeats is refused'
);

set local synchronous_commit = off;
select procrastinate_register_worker();

select is(
    current_setting('synchronous_commit'), 'on',
    'a crash cannot take a registration back: the next worker would get the same id'
);

-- Leaving.

select procrastinate_declare_task('a', max_attempts => 1);
select procrastinate_defer_job('a');
select procrastinate_defer_job('b', lock => 'x');
select procrastinate_defer_job('c', lock => 'x');
select pg_temp.fetch(10, worker_name => 'leaver');
select procrastinate_defer_job('d');
select pg_temp.fetch(10, worker_name => 'own');
select procrastinate_cancel_job(pg_temp.id('b'), abort => true);
select procrastinate_unregister_worker(pg_temp.worker('leaver'));

select results_eq(
    $$
    select job.task_name, job.status::text, job.attempts, job.handed_back
    from procrastinate_jobs as job
    order by job.id
    $$,
    $$values
    ('a', 'todo', 1, 1), ('b', 'aborted', 1, 1), ('c', 'todo', 0, 0), ('d', 'doing', 0, 0)$$,
    'who leaves gives back what it holds; what was asked to stop is aborted'
);

select is(pg_temp.fetch(10), 'a c', 'others get it at once');

select is(
    pg_temp.fail('a'), 'failed', 'its policy counts only the run that failed'
);

select ok(
    (
        select worker.gone_at is not null
        from procrastinate_workers as worker
        where worker.name = 'leaver'
    ),
    'it says when it left'
);

create function pg_temp.leaver()
returns bigint
language sql
as $$
    select worker.id from procrastinate_workers as worker where worker.name = 'leaver'
$$;

select throws_ok(given.statement, 'PC004', null, given.fact)
from (
    values
    ('select procrastinate_unregister_worker(pg_temp.leaver())', 'a worker leaves once'),
    ('select * from procrastinate_fetch_jobs(pg_temp.leaver())', 'who left gets no job'),
    ('select * from procrastinate_heartbeat(pg_temp.leaver())', 'who left has no heartbeat'),
    ('select procrastinate_unregister_worker(-1)', 'an unknown worker cannot leave')
) as given (statement, fact);

-- What is remembered of those who left.

update procrastinate_workers as worker
set gone_at = clock_timestamp() - interval '2 days'
where worker.name = 'leaver';
select procrastinate_register_worker('next');

select is(pg_temp.leaver(), null, 'who left more than a day ago is forgotten');

select ok(
    (
        select count(*) > 0
        from procrastinate_workers as worker
        where worker.name = 'twin' and worker.gone_at is null
    ),
    'who is here is not'
);

select is(
    (pg_temp.job('c')).status::text, 'doing', 'jobs are not touched by that'
);

select * from finish();
rollback;
