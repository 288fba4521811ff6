-- The jobs of workers that are gone are given back; those of slow ones are not.
begin;
\ir support/arrange.sql
select plan(35);

create function pg_temp.rescued(rescuer bigint = null, max_jobs integer = 1000)
returns text
language sql
as $$
    select coalesce(
        string_agg(concat(job.task_name, ' ', taken.status), ', ' order by job.id), ''
    )
    from procrastinate_rescue_jobs(rescuer, max_jobs) as taken
    left join procrastinate_jobs as job on taken.job_id = job.id
$$;

-- A worker that was silent for that long, whose connection is there or not.
create function pg_temp.silence(worker_name text, lasts interval, connected boolean)
returns void
language sql
as $$
    update procrastinate_workers as worker
    set
        last_heartbeat = clock_timestamp() - lasts,
        backend_pid = case when connected then pg_backend_pid() else 2147483647 end
    where worker.name = worker_name
$$;

-- A rescuer that kept its heartbeat for an hour.
create function pg_temp.watcher()
returns bigint
language plpgsql
as $$
declare
    watcher_id bigint := pg_temp.worker('watcher');
begin
    update procrastinate_workers as worker
    set awake_since = clock_timestamp() - interval '1 hour'
    where worker.id = watcher_id;
    return watcher_id;
end;
$$;

select is(pg_temp.rescued(), '', 'there is nothing to rescue when nobody is gone');

-- Who is gone.

create function pg_temp.rescued_after(silence interval, connected boolean)
returns text
language plpgsql
as $$
begin
    delete from procrastinate_jobs;
    delete from procrastinate_workers;
    perform procrastinate_register_worker('ann', '2 seconds', '30 seconds');
    perform procrastinate_defer_job('t');
    perform pg_temp.fetch();
    perform pg_temp.silence('ann', silence, connected);
    return pg_temp.rescued(pg_temp.watcher());
end;
$$;

select is(pg_temp.rescued_after(given.silence, given.connected), given.rescued, given.fact)
from (
    values
    (interval '0', true, '', 'a worker that beats keeps its jobs'),
    (interval '0', false, '', 'so does one that beats through a pooler'),
    (interval '4 seconds', false, '', 'two heartbeats that are late are forgiven'),
    (interval '6 seconds', false, 't todo', 'who is silent, with its connection gone, is gone'),
    (interval '6 seconds', true, '', 'who is silent, but connected, has its full lease'),
    (interval '29 seconds', true, '', 'up to its end'),
    (interval '31 seconds', true, 't todo', 'and no longer')
) as given (silence, connected, rescued, fact);

-- Behind a pooler.

create function pg_temp.beat_of_ann(driver_pid integer)
returns integer
language plpgsql
as $$
begin
    perform procrastinate_heartbeat(pg_temp.worker('ann'), backend_pid => driver_pid);
    return (
        select worker.backend_pid from procrastinate_workers as worker where worker.name = 'ann'
    );
end;
$$;

-- A worker that was not given up, as the last one in the table above was.
delete from procrastinate_workers;

select is(
    pg_temp.beat_of_ann(given.driver_pid), given.noted,
    format('a driver that is connected to %s', given.fact)
)
from (
    values
    (null, pg_backend_pid(), 'whatever: who says nothing has no pooler'),
    (pg_backend_pid(), pg_backend_pid(), 'this server process has no pooler'),
    (1, null, 'another one has a pooler')
) as given (driver_pid, noted, fact);

create function pg_temp.rescued_behind_pooler(silence interval)
returns text
language plpgsql
as $$
begin
    delete from procrastinate_jobs;
    delete from procrastinate_workers;
    perform procrastinate_defer_job('t');
    perform pg_temp.fetch();
    perform pg_temp.silence('ann', silence, false);
    update procrastinate_workers set backend_pid = null;
    return pg_temp.rescued(pg_temp.watcher());
end;
$$;

select is(
    pg_temp.rescued_behind_pooler('29 seconds'), '', 'who is behind a pooler has its full lease'
);
select is(pg_temp.rescued_behind_pooler('31 seconds'), 't todo', 'and no longer');

-- What becomes of its jobs.

select results_eq(
    $$
    select
        job.status::text, job.attempts, job.lost, job.error, job.worker_id, job.started_at
    from procrastinate_jobs as job
    $$,
    $$values ('todo', 1, 1, 'worker lost', null::bigint, null::timestamptz)$$,
    'a rescued job waits again, and says why'
);

select throws_ok(
    format('select * from procrastinate_heartbeat(%s)', worker.id),
    'PC004',
    null,
    'a worker that was given up learns it from its next heartbeat'
)
from procrastinate_workers as worker
where worker.name = 'ann';

select is(pg_temp.fetch(worker_name => 'bob'), 't', 'another worker runs the job');

select throws_ok(
    format(
        'select procrastinate_finish_job(%s, 1, worker_id => %s)', pg_temp.id('t'), worker.id
    ),
    'PC001',
    null,
    'a late finish after a rescue is refused'
)
from procrastinate_workers as worker
where worker.name = 'ann';

select throws_ok(
    format(
        'select procrastinate_finish_job(%s, 2, worker_id => %s)', pg_temp.id('t'), worker.id
    ),
    'PC001',
    null,
    'also when it guesses the attempt'
)
from procrastinate_workers as worker
where worker.name = 'ann';

select is(pg_temp.rescued(pg_temp.watcher()), '', 'a job is rescued once');

-- Outages: only what the rescuer was awake for counts.

delete from procrastinate_jobs;
delete from procrastinate_workers;
select procrastinate_defer_job('t');
select pg_temp.fetch();
select pg_temp.silence('ann', '1 hour', false);

select is(
    pg_temp.rescued(procrastinate_register_worker('just back')), '',
    'a rescuer that has just come gives nobody up'
);

select is((pg_temp.job('t')).status::text, 'doing', 'the job is left where it is');

update procrastinate_workers as worker
set server_started_at = pg_postmaster_start_time() - interval '1 day'
where worker.name = 'ann';
select pg_temp.silence('ann', '10 seconds', false);

select is(
    pg_temp.rescued(pg_temp.watcher()), '',
    'after a restart of the server a lost connection tells nothing'
);

select pg_temp.silence('ann', '31 seconds', false);

select is(pg_temp.rescued(pg_temp.watcher()), 't todo', 'but the lease ends all the same');

-- Who comes takes over from those who watched until now, even if they are gone.

create function pg_temp.rescued_by_newcomer(last_beat_of_others interval)
returns text
language plpgsql
as $$
begin
    delete from procrastinate_jobs;
    delete from procrastinate_workers;
    perform procrastinate_defer_job('t');
    perform pg_temp.fetch();
    perform pg_temp.silence('ann', '10 seconds', false);
    perform pg_temp.watcher();
    update procrastinate_workers as worker
    set last_heartbeat = clock_timestamp() - last_beat_of_others, gone_at = clock_timestamp()
    where worker.name = 'watcher';
    return pg_temp.rescued(procrastinate_register_worker());
end;
$$;

select is(pg_temp.rescued_by_newcomer(given.last_beat), given.rescued, given.fact)
from (
    values
    (interval '1 second', 't todo', 'somebody watched until a moment ago, so there was no outage'),
    ('3 seconds', '', 'nobody beat for a while: that may have been an outage'),
    ('-1 hour', '', 'a heartbeat that is still to come, since the clock was set back, says nothing')
) as given (last_beat, rescued, fact);

-- By hand, without being a worker: what counts is the time since the server started.

delete from procrastinate_jobs;
delete from procrastinate_workers;
select procrastinate_register_worker('ann', '0.1 seconds', '0.3 seconds');
select procrastinate_defer_job('t');
select pg_temp.fetch();
select pg_sleep(0.35);

select is(pg_temp.rescued(), 't todo', 'a person can rescue too');

-- How often a job may be lost.

create function pg_temp.lose(times integer)
returns text
language plpgsql
as $$
declare
    statuses text[] := '{}';
begin
    delete from procrastinate_jobs;
    perform procrastinate_defer_job('t');
    for round in 1 .. times loop
        perform pg_temp.fetch();
        perform pg_temp.silence('ann', '1 hour', false);
        perform procrastinate_rescue_jobs(pg_temp.watcher());
        statuses := statuses || (pg_temp.job('t')).status::text;
    end loop;
    return array_to_string(statuses, ' ');
end;
$$;

select is(
    pg_temp.lose(6), 'todo todo todo todo todo failed',
    'a job is lost five times with its worker, and fails at the sixth'
);

select is((pg_temp.job('t')).error, 'worker lost', 'it says why it failed');

select procrastinate_declare_task('t', max_attempts => 1, max_lost => 0);

select is(pg_temp.lose(1), 'failed', 'with max_lost 0 it fails at the first');

select procrastinate_declare_task('t', max_attempts => 1, max_lost => 2);

select is(
    pg_temp.lose(2), 'todo todo', 'max_attempts 1 does not lose a job to a power cut'
);

select procrastinate_declare_task('t', max_attempts => 2, retry_delay => '0');
select pg_temp.lose(1);
select pg_temp.fetch();

select is(pg_temp.fail('t'), 'todo', 'a run that was lost does not use up max_attempts');

-- An abort that was asked for; many jobs; the order within a lock.

delete from procrastinate_jobs;
select procrastinate_defer_job('t');
select pg_temp.fetch();
select procrastinate_cancel_job(pg_temp.id('t'), abort => true);
select pg_temp.silence('ann', '1 hour', false);

select is(
    pg_temp.rescued(pg_temp.watcher()), 't aborted', 'a job that was asked to stop ends there'
);

delete from procrastinate_jobs;
select procrastinate_defer_job('first', lock => 'x');
select procrastinate_defer_job('second', lock => 'x');
select procrastinate_defer_job('free');
select pg_temp.fetch(10);
select pg_temp.silence('ann', '1 hour', false);

select pg_temp.rescued(pg_temp.watcher(), 1);

select is(
    (select count(*) from procrastinate_jobs as job where job.status = 'doing'),
    1::bigint,
    'no more than max_jobs of a worker are rescued in a call'
);

select pg_temp.rescued(pg_temp.watcher());

select ok(
    pg_temp.fetch(10, worker_name => 'bob') in ('first free', 'free first'),
    'the next call rescues the rest; the first of a lock stays the first'
);

select * from finish();
rollback;
