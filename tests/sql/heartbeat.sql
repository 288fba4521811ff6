-- One call renews a worker's lease, does the housekeeping, and says what the worker must do.
begin;
\ir support/arrange.sql
select plan(25);

select procrastinate_register_worker('ann', '2 seconds', '10 seconds');

select results_eq(
    $$
    select
        beat.abort_job_ids, beat.lost_job_ids, beat.stop_requested, beat.next_heartbeat,
        beat.next_due
    from procrastinate_heartbeat(pg_temp.worker()) as beat
    $$,
    $$values (
        '{}'::bigint[], '{}'::bigint[], false, interval '2 seconds', null::interval
    )$$,
    'a worker that holds nothing has nothing to do until its next heartbeat'
);

-- The lease.

update procrastinate_workers as worker
set last_heartbeat = clock_timestamp() - interval '9 seconds'
where worker.name = 'ann';
select procrastinate_heartbeat(pg_temp.worker());

select ok(
    (
        select clock_timestamp() - worker.last_heartbeat < interval '1 second'
        from procrastinate_workers as worker
        where worker.name = 'ann'
    ),
    'a heartbeat renews the lease'
);

select ok(
    (
        select clock_timestamp() - worker.awake_since < interval '1 second'
        from procrastinate_workers as worker
        where worker.name = 'ann'
    ),
    'after a gap a worker judges others only by what comes'
);

update procrastinate_workers as worker
set
    last_heartbeat = clock_timestamp() - interval '2 seconds',
    awake_since = clock_timestamp() - interval '1 hour'
where worker.name = 'ann';
select procrastinate_heartbeat(pg_temp.worker());

select ok(
    (
        select clock_timestamp() - worker.awake_since > interval '59 minutes'
        from procrastinate_workers as worker
        where worker.name = 'ann'
    ),
    'heartbeats in time leave no gap'
);

-- Jobs that the worker holds, or not any more.

select procrastinate_defer_job('a');
select procrastinate_defer_job('b');
select pg_temp.fetch(10);
select procrastinate_defer_job('c');
select pg_temp.fetch(10, worker_name => 'bob');
select procrastinate_defer_job('waiting');

create function pg_temp.lost(tasks text[], attempts integer[])
returns text
language sql
as $$
    select coalesce(string_agg(job.task_name, ' ' order by job.id), '')
    from procrastinate_heartbeat(
        pg_temp.worker(),
        array(
            select pg_temp.id(named.task)
            from unnest(tasks) with ordinality as named (task, place)
            order by named.place
        ),
        attempts
    ) as beat
    inner join procrastinate_jobs as job on job.id = any(beat.lost_job_ids)
$$;

select is(pg_temp.lost(given.tasks, given.attempts), given.lost, given.fact)
from (
    values
    ('{a, b}'::text[], '{1, 1}'::integer[], '', 'runs that a worker holds are not lost'),
    ('{a}', '{1}', '', 'a worker need not name all that it holds'),
    ('{a, b}', '{1, 2}', 'b', 'another attempt than the running one is lost'),
    ('{a, c}', '{1, 1}', 'c', 'a run of another worker is lost'),
    ('{waiting, a}', '{1, 1}', 'waiting', 'a job that waits is lost')
) as given (tasks, attempts, lost, fact);

select results_eq(
    $$select beat.lost_job_ids
    from procrastinate_heartbeat(pg_temp.worker(), '{-1}', '{1}') as beat$$,
    $$values ('{-1}'::bigint[])$$,
    'a job that was deleted is lost'
);

select pg_temp.finish('b');

select is(pg_temp.lost('{a, b}', '{1, 1}'), 'b', 'a job that was finished is lost');

-- Jobs to abort.

create function pg_temp.to_abort(worker_name text = 'ann')
returns text
language sql
as $$
    select coalesce(string_agg(job.task_name, ' ' order by job.id), '')
    from procrastinate_heartbeat(pg_temp.worker(worker_name)) as beat
    inner join procrastinate_jobs as job on job.id = any(beat.abort_job_ids)
$$;

select procrastinate_cancel_job(pg_temp.id('a'), abort => true);

select is(pg_temp.to_abort(), 'a', 'a worker is told what was asked to stop');

select is(pg_temp.to_abort(), 'a', 'it is told until it has done so');

select is(pg_temp.to_abort('bob'), '', 'another worker is not told');

select pg_temp.finish('a', 'aborted');

select is(pg_temp.to_abort(), '', 'then it is not told any more');

-- A request to stop.

update procrastinate_workers as worker set stop_requested = true where worker.name = 'ann';

select is(
    (select beat.stop_requested from procrastinate_heartbeat(pg_temp.worker()) as beat),
    true,
    'a worker is told when it is asked to stop'
);

select is(
    (select beat.stop_requested from procrastinate_heartbeat(pg_temp.worker('bob')) as beat),
    false,
    'others are not'
);

-- When the next job is due.

select procrastinate_defer_job(
    'mail', queue_name => 'mail', scheduled_at => clock_timestamp() + interval '1 hour'
);
select procrastinate_defer_job(
    'slow', queue_name => 'slow', scheduled_at => clock_timestamp() + interval '2 hours'
);

create function pg_temp.next_due(queue_names text[])
returns interval
language sql
as $$
    select beat.next_due
    from procrastinate_heartbeat(pg_temp.worker(), queue_names => next_due.queue_names) as beat
$$;

select ok(
    pg_temp.next_due(null) between interval '59 minutes' and interval '1 hour',
    'a worker is told when the next job is due'
);

select ok(
    pg_temp.next_due('{slow}') between interval '119 minutes' and interval '2 hours',
    'of its own queues only'
);

select is(pg_temp.next_due('{default}'), null, 'null says that none is scheduled');

-- Housekeeping.

delete from procrastinate_jobs;
select procrastinate_defer_job('due', scheduled_at => clock_timestamp() + interval '0.1 seconds');
select procrastinate_defer_job('locked', lock => 'x');
select pg_sleep(0.15);
select procrastinate_heartbeat(pg_temp.worker());

select is(
    (
        select count(*)
        from procrastinate_jobs as job
        where job.ready_seq is not null
    ),
    2::bigint,
    'a heartbeat makes ready what is due, and the first of each lock'
);

select procrastinate_register_worker('frozen', '0.1 seconds', '0.3 seconds');
select pg_temp.fetch(10, worker_name => 'frozen');
select pg_sleep(0.35);
update procrastinate_workers as worker
set
    last_heartbeat = clock_timestamp() - interval '1 second',
    awake_since = clock_timestamp() - interval '1 hour'
where worker.name = 'ann';
select procrastinate_heartbeat(pg_temp.worker());

select is(
    (select count(*) from procrastinate_jobs as job where job.status = 'todo'),
    2::bigint,
    'a heartbeat rescues the jobs of workers that are gone'
);

-- Who may beat.

select throws_ok(
    'select * from procrastinate_heartbeat(-1)', 'PC004', null, 'an unknown worker is refused'
);

select throws_ok(
    format('select * from procrastinate_heartbeat(%s)', worker.id),
    'PC004',
    null,
    'a worker that was given up is refused'
)
from procrastinate_workers as worker
where worker.name = 'frozen';

select throws_ok(
    $$select * from procrastinate_heartbeat(pg_temp.worker(), '{1, 2}', '{1}')$$,
    '22023',
    null,
    'jobs without their attempts are refused'
);

select * from finish();
rollback;
