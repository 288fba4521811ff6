-- Legal edits of a job, by hand, just work and keep every promise; others are refused with a hint.
begin;
\ir support/arrange.sql
select plan(141);

-- Five jobs wait: two of lock x, one of lock y, one free, one for tomorrow.
create function pg_temp.arrange_waiting()
returns void
language sql
as $$
    delete from procrastinate_jobs;
    select procrastinate_defer_job('x1', lock => 'x');
    select procrastinate_defer_job('x2', lock => 'x');
    select procrastinate_defer_job('y1', lock => 'y');
    select procrastinate_defer_job('free');
    select procrastinate_defer_job('later', scheduled_at => clock_timestamp() + interval '1 day');
$$;

-- What runs after an edit, round after round, the jobs of a round in the order of their names.
-- With 'x1 runs', that job is running at the edit, and ends at the round '-'.
create function pg_temp.rounds_after(edit text, first text)
returns text
language plpgsql
as $$
declare
    rounds text[] := '{}';
    fetched text;
    kept_running text := case first when 'x1 runs' then 'x1' else '' end;
begin
    perform pg_temp.arrange_waiting();
    if first = 'settled' then
        perform pg_temp.settle();
    elsif first = 'x1 runs' then
        perform pg_temp.settle(), procrastinate_pause_queue('default');
        update procrastinate_jobs as job set queue_name = 'run' where job.task_name = 'x1';
        perform pg_temp.fetch(1, array['run']), procrastinate_resume_queue('default');
    end if;
    execute edit;
    loop
        fetched := pg_temp.fetch(10);
        if fetched = '' then
            exit when kept_running = '';
            kept_running := '';
            fetched := '-';
        end if;
        perform pg_temp.finish(job.task_name)
        from procrastinate_jobs as job
        where job.status = 'doing' and job.task_name <> kept_running;
        rounds := rounds || pg_temp.sorted(fetched);
    end loop;
    return array_to_string(rounds, ', ');
end;
$$;

create temporary table edits (fact text, edit text, waiting text, running text);

insert into edits
values
(
    'no edit', 'select', 'free x1 y1, x2', 'free y1, -, x2'
),
(
    'a higher priority of the second job of a lock',
    $$update procrastinate_jobs set priority = 1 where task_name = 'x2'$$,
    'free x2 y1, x1', 'free y1, -, x2'
),
(
    'a lower priority of the first job of a lock',
    $$update procrastinate_jobs set priority = -1 where task_name = 'x1'$$,
    'free x2 y1, x1', 'free y1, -, x2'
),
(
    'a higher priority of all jobs',
    $$update procrastinate_jobs set priority = 5$$,
    'free x1 y1, x2', 'free y1, -, x2'
),
(
    'another queue',
    $$update procrastinate_jobs set queue_name = 'other' where task_name in ('x1', 'free')$$,
    'free x1 y1, x2', 'free y1, -, x2'
),
(
    'other args',
    $$update procrastinate_jobs set args = '{"n": 2}'$$,
    'free x1 y1, x2', 'free y1, -, x2'
),
(
    'another task',
    $$update procrastinate_jobs set task_name = 'x3' where task_name = 'x2'$$,
    'free x1 y1, x3', 'free y1, -, x3'
),
(
    'no lock for the second job of a lock',
    $$update procrastinate_jobs set lock = null where task_name = 'x2'$$,
    'free x1 x2 y1', 'free x2 y1, -'
),
(
    'a lock that is taken for the free job',
    $$update procrastinate_jobs set lock = 'x' where task_name = 'free'$$,
    'x1 y1, x2, free', 'y1, -, x2, free'
),
(
    'a lock of its own for the second job of a lock',
    $$update procrastinate_jobs set lock = 'z' where task_name = 'x2'$$,
    'free x1 x2 y1', 'free x2 y1, -'
),
(
    'the same lock for all that wait',
    $$update procrastinate_jobs set lock = 'y' where status = 'todo'$$,
    'x1, x2, y1, free', 'x2, y1, free, -'
),
(
    'two locks that are exchanged',
    $$update procrastinate_jobs set lock = case task_name when 'x2' then 'y' else 'x' end
    where task_name in ('x2', 'y1')$$,
    'free x1 x2, y1', 'free x2, -, y1'
),
(
    'a schedule for the first job of a lock',
    $$update procrastinate_jobs set scheduled_at = '2100-01-01' where task_name = 'y1'$$,
    'free x1, x2', 'free, -, x2'
),
(
    'no schedule any more',
    $$update procrastinate_jobs set scheduled_at = null where task_name = 'later'$$,
    'free later x1 y1, x2', 'free later y1, -, x2'
),
(
    'a schedule in the past',
    $$update procrastinate_jobs set scheduled_at = '2020-01-01' where task_name = 'later'$$,
    'free later x1 y1, x2', 'free later y1, -, x2'
),
(
    'a lock for a scheduled job',
    $$update procrastinate_jobs set lock = 'x', priority = -1 where task_name = 'later'$$,
    'free x1 y1, x2', 'free y1, -, x2'
),
(
    'no lock and no schedule for any job',
    $$update procrastinate_jobs set lock = null, scheduled_at = null where status = 'todo'$$,
    'free later x1 x2 y1', 'free later x2 y1, -'
),
(
    'deleting the second job of a lock',
    $$delete from procrastinate_jobs where task_name = 'x2'$$,
    'free x1 y1', 'free y1, -'
),
(
    'deleting the first job of a lock',
    $$delete from procrastinate_jobs where task_name = 'x1'$$,
    'free x2 y1', 'free x2 y1, -'
),
(
    'deleting all jobs',
    $$delete from procrastinate_jobs$$,
    '', '-'
),
(
    'inserting a more urgent job of a lock',
    $$insert into procrastinate_jobs (task_name, lock, priority) values ('x0', 'x', 1)$$,
    'free x0 y1, x1, x2', 'free y1, -, x0, x2'
),
(
    'inserting jobs with readiness written by hand',
    $$insert into procrastinate_jobs (task_name, lock, ready_seq) values ('x0', 'x', -1)$$,
    'free x1 y1, x2, x0', 'free y1, -, x2, x0'
),
(
    'inserting a finished job',
    $$insert into procrastinate_jobs (task_name, lock, status, finished_at)
    values ('x0', 'x', 'succeeded', now())$$,
    'free x1 y1, x2', 'free y1, -, x2'
);

select is(
    pg_temp.rounds_after(edits.edit, moment.first),
    case moment.first when 'x1 runs' then edits.running else edits.waiting end,
    format('%s keeps its promise (%s)', edits.fact, moment.first)
)
from edits
cross join unnest(array['just deferred', 'settled', 'x1 runs']) as moment (first);

-- Turns.

select procrastinate_resume_queue('default');
delete from procrastinate_jobs;
select procrastinate_defer_job(task) from unnest(array['a', 'b', 'c']) as task;
update procrastinate_jobs as job set priority = 1 where job.task_name = 'c';
update procrastinate_jobs as job set args = '{"n": 1}' where job.task_name = 'a';

select is(
    pg_temp.fetch(10), 'c a b', 'an edit of the priority changes the turn, one of args does not'
);

select results_eq(
    $$select job.args from procrastinate_jobs as job where job.task_name = 'a'$$,
    $$values ('{"n": 1}'::jsonb)$$,
    'the edit is kept'
);

-- COPY loads jobs, with their locks and schedules.

delete from procrastinate_jobs;
\copy procrastinate_jobs (task_name, args, lock, scheduled_at) from 'tests/sql/support/jobs.tsv'

select is(pg_temp.drain(), 'free past a1, a2', 'jobs that were loaded by copy are run in order');

select is(
    (select job.args from procrastinate_jobs as job where job.task_name = 'free'), '{"n": 1}',
    'they have their args'
);

select ok(procrastinate_next_due() > interval '0', 'a scheduled one waits for its time');

-- Deleting a running job.

delete from procrastinate_jobs;
select procrastinate_defer_job('running', lock => 'x');
select procrastinate_defer_job('next', lock => 'x');
select pg_temp.fetch();
delete from procrastinate_jobs as job where job.task_name = 'running';

select is(pg_temp.fetch(), 'next', 'deleting a running job lets the next one of its lock go');

-- Forbidden edits.

create function pg_temp.arrange_states()
returns void
language plpgsql
as $$
begin
    delete from procrastinate_jobs;
    perform procrastinate_defer_job(state, queue_name => state, lock => 'lock of ' || state)
    from unnest(array['running', 'finished', 'retried']) as state;
    perform pg_temp.fetch(10);
    perform pg_temp.finish('finished', 'failed');
    perform procrastinate_retry_job(pg_temp.id('retried'), 1);
    perform procrastinate_defer_job('waiting');
    perform procrastinate_defer_job('blocked', lock => 'lock of running');
end;
$$;

select pg_temp.arrange_states();

create temporary table refused (fact text, job text, edit text, instead text);

insert into refused
values
('starting a waiting job', 'waiting', $$status = 'doing'$$, 'procrastinate_fetch_jobs'),
(
    'starting a waiting job without a worker', 'waiting',
    $$status = 'doing', ready_seq = null, started_at = now()$$, 'procrastinate_fetch_jobs'
),
(
    'starting a job that waits for its lock', 'blocked',
    $$status = 'doing', worker_id = 1, started_at = now()$$, 'procrastinate_fetch_jobs'
),
(
    'cancelling a waiting job halfway', 'waiting', $$status = 'cancelled'$$,
    'procrastinate_cancel_job'
),
(
    'a success that did not run', 'waiting',
    $$status = 'succeeded', ready_seq = null, finished_at = now()$$, 'procrastinate_cancel_job'
),
(
    'a failure that did not run', 'waiting',
    $$status = 'failed', ready_seq = null, finished_at = now()$$, 'procrastinate_cancel_job'
),
(
    'an abort of a waiting job', 'waiting',
    $$status = 'aborted', ready_seq = null, finished_at = now()$$, 'procrastinate_cancel_job'
),
('giving a running job back', 'running', $$status = 'todo'$$, 'procrastinate_retry_job'),
(
    'giving a running job back in full but for its attempts', 'running',
    $$status = 'todo', worker_id = null, started_at = null$$, 'procrastinate_retry_job'
),
('a success of a running job', 'running', $$status = 'succeeded'$$, 'procrastinate_finish_job'),
('a failure of a running job', 'running', $$status = 'failed'$$, 'procrastinate_finish_job'),
(
    'a success that ends no attempt', 'running',
    $$status = 'succeeded', finished_at = now()$$, 'procrastinate_finish_job'
),
(
    'cancelling a running job', 'running',
    $$status = 'cancelled', finished_at = now()$$, 'procrastinate_cancel_job'
),
('another lock of a running job', 'running', $$lock = 'other'$$, 'of a running job'),
('no lock of a running job', 'running', 'lock = null', 'of a running job'),
(
    'readiness of a job that waits for its lock', 'blocked', 'ready_seq = 1',
    'makes a job with a lock ready'
),
('more attempts of a running job', 'running', 'attempts = 7', 'attempts'),
('more attempts of a waiting job', 'waiting', 'attempts = 7', 'attempts'),
('fewer attempts of a job', 'retried', 'attempts = 0', 'attempts'),
('another number of a waiting job', 'waiting', 'id = 7000000', 'id'),
('another number of a running job', 'running', 'id = 7000000', 'id'),
('another number of a finished job', 'finished', 'id = 7000000', 'id'),
('restarting a finished job', 'finished', $$status = 'todo'$$, 'procrastinate_rerun_job'),
(
    'running a finished job', 'finished', $$status = 'doing', finished_at = null$$,
    'procrastinate_(fetch_jobs|rerun_job)'
),
('another end of a finished job', 'finished', $$status = 'succeeded'$$, 'procrastinate_rerun_job'),
('cancelling a finished job', 'finished', $$status = 'cancelled'$$, 'procrastinate_rerun_job');

create function pg_temp.edit(job text, edit text)
returns text
language sql
as $$
    select format('update procrastinate_jobs set %s where task_name = %L', edit, job)
$$;

select is(
    (
        select refusal.code
        from pg_temp.refusal(pg_temp.edit(refused.job, refused.edit)) as refusal
    ),
    '23514',
    refused.fact || ' is refused'
)
from refused;

select matches(
    (
        select coalesce(refusal.hint, '')
        from pg_temp.refusal(pg_temp.edit(refused.job, refused.edit)) as refusal
    ),
    refused.instead,
    format('%s: the hint names %s', refused.fact, refused.instead)
)
from refused;

select throws_ok(
    $$insert into procrastinate_jobs (task_name, status, worker_id, started_at, ready_seq)
    values ('t', 'doing', 1, now(), null)$$,
    '23514',
    null,
    'a job cannot be inserted as running'
);

select matches(
    (
        select refusal.hint
        from pg_temp.refusal(
            $$insert into procrastinate_jobs (task_name, status) values ('t', 'doing')$$
        ) as refusal
    ),
    'procrastinate_fetch_jobs',
    'the hint names procrastinate_fetch_jobs'
);

-- What may be edited of jobs that do not wait.

select lives_ok(pg_temp.edit(given.job, given.edit), given.fact)
from (
    values
    ('running', 'priority = 9', 'the priority of a running job may be edited'),
    ('running', $$args = '{"n": 2}'$$, 'the args of a running job may be edited'),
    ('running', $$queue_name = 'other'$$, 'the queue of a running job may be edited'),
    ('running', 'abort_requested = true', 'a running job may be asked to stop by hand'),
    ('finished', $$queue_name = 'other'$$, 'the queue of a finished job may be edited'),
    ('finished', 'lock = null', 'the lock of a finished job may be edited'),
    ('finished', 'purge_at = null', 'a finished job may be kept for longer'),
    (
        'waiting', $$status = 'cancelled', ready_seq = null, finished_at = now()$$,
        'a waiting job may be cancelled by hand, in full'
    )
) as given (job, edit, fact);

select is(
    (select beat.abort_job_ids from procrastinate_heartbeat(pg_temp.worker()) as beat),
    array[pg_temp.id('running')],
    'a worker is told of an abort that was asked for by hand'
);

select throws_ok(
    pg_temp.edit('running', 'worker_id = 9223372036854775807'), '23514', null,
    'a running job cannot be given to another worker: nobody would rescue it'
);

-- Who pretends to be the queue itself, which keeps its rules without the triggers.

delete from procrastinate_lock_events;
select procrastinate_defer_job('first', lock => 'pretended');
select procrastinate_defer_job(
    'second', lock => 'pretended', queueing_lock => 'pretended', priority => -1
);
delete from procrastinate_lock_events;
select set_config('procrastinate.acting', 'on', true);
select procrastinate_defer_job(
    'second', lock => 'moved', queueing_lock => 'pretended', on_conflict => 'replace'
);
select results_eq(
    'select array_agg(distinct event.locks::text order by event.locks::text)
    from procrastinate_lock_events as event',
    $$values (array['{moved}', '{pretended}'])$$,
    'a job that is replaced by them is looked for in both of its locks'
);
delete from procrastinate_lock_events;
select set_config('procrastinate.acting', 'on', true);
select procrastinate_cancel_job(pg_temp.id('first'));
select results_eq(
    'select event.locks from procrastinate_lock_events as event',
    $$values (array['pretended'])$$,
    'a job that they cancel lets the next one of its lock go'
);

select * from finish();
rollback;
