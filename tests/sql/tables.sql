-- What must be true of a row, whoever writes it: each check by its name.
begin;
\ir support/arrange.sql
select plan(72);

select procrastinate_defer_job('waiting', queue_name => 'wait');
select procrastinate_defer_job('locked', queue_name => 'wait', lock => 'x');
select procrastinate_defer_job('running', queue_name => 'run');
select procrastinate_defer_job('finished', queue_name => 'finish');
select pg_temp.fetch(10, array['run']);
select pg_temp.fetch(10, array['finish']);
select pg_temp.finish('finished');

create temporary table refused (check_name text, statement text);

insert into refused
values
('args_are_an_object', $$insert into procrastinate_jobs (task_name, args) values ('t', '[]')$$),
('args_are_an_object', $$insert into procrastinate_jobs (task_name, args) values ('t', 'null')$$),
('args_are_an_object', $$update procrastinate_jobs set args = '"text"'$$),
('names_have_1_to_512_characters', $$insert into procrastinate_jobs (task_name) values ('')$$),
(
    'names_have_1_to_512_characters',
    $$insert into procrastinate_jobs (task_name) values (repeat('x', 513))$$
),
(
    'names_have_1_to_512_characters',
    $$insert into procrastinate_jobs (task_name, queue_name) values ('t', '')$$
),
(
    'names_have_1_to_512_characters',
    $$insert into procrastinate_jobs (task_name, lock) values ('t', '')$$
),
(
    'names_have_1_to_512_characters',
    $$insert into procrastinate_jobs (task_name, queueing_lock) values ('t', '')$$
),
(
    'names_have_1_to_512_characters',
    $$insert into procrastinate_jobs (task_name, lock) values ('t', repeat('x', 513))$$
),
('names_have_1_to_512_characters', $$update procrastinate_jobs set task_name = ''$$),
(
    'times_lie_between_years_1_and_9999',
    $$insert into procrastinate_jobs (task_name, scheduled_at) values ('t', 'infinity')$$
),
(
    'times_lie_between_years_1_and_9999',
    $$insert into procrastinate_jobs (task_name, scheduled_at) values ('t', '-infinity')$$
),
(
    'times_lie_between_years_1_and_9999',
    $$insert into procrastinate_jobs (task_name, scheduled_at) values ('t', '10000-01-01')$$
),
(
    'times_lie_between_years_1_and_9999',
    $$update procrastinate_jobs set scheduled_at = '0044-03-15 bc'$$
),
(
    'times_lie_between_years_1_and_9999',
    $$update procrastinate_jobs set due_at = 'infinity', ready_seq = null
    where task_name = 'waiting'$$
),
(
    'times_lie_between_years_1_and_9999',
    $$update procrastinate_jobs set started_at = '-infinity' where task_name = 'running'$$
),
(
    'times_lie_between_years_1_and_9999',
    $$update procrastinate_jobs set finished_at = 'infinity' where task_name = 'finished'$$
),
(
    'times_lie_between_years_1_and_9999',
    $$update procrastinate_jobs set purge_at = 'infinity' where task_name = 'finished'$$
),
(
    'times_lie_between_years_1_and_9999',
    $$insert into procrastinate_jobs (task_name, created_at) values ('t', 'infinity')$$
),
(
    'doing_has_worker_and_start_time',
    $$update procrastinate_jobs set worker_id = null where task_name = 'running'$$
),
(
    'doing_has_worker_and_start_time',
    $$update procrastinate_jobs set started_at = null where task_name = 'running'$$
),
(
    'waiting_has_no_worker_and_no_start_time',
    $$insert into procrastinate_jobs (task_name, worker_id) values ('t', 1)$$
),
(
    'waiting_has_no_worker_and_no_start_time',
    $$update procrastinate_jobs set worker_id = 1 where task_name = 'waiting'$$
),
(
    'waiting_has_no_worker_and_no_start_time',
    $$update procrastinate_jobs set started_at = now() where task_name = 'waiting'$$
),
(
    'finished_has_finish_time',
    $$insert into procrastinate_jobs (task_name, status) values ('t', 'succeeded')$$
),
(
    'finished_has_finish_time',
    $$insert into procrastinate_jobs (task_name, finished_at) values ('t', now())$$
),
(
    'finished_has_finish_time',
    $$update procrastinate_jobs set finished_at = null where task_name = 'finished'$$
),
(
    'finished_has_finish_time',
    $$update procrastinate_jobs set finished_at = now() where task_name = 'running'$$
),
(
    'only_waiting_is_ready_or_due',
    $$update procrastinate_jobs set ready_seq = 1 where task_name = 'running'$$
),
(
    'only_waiting_is_ready_or_due',
    $$update procrastinate_jobs set due_at = now() where task_name = 'finished'$$
),
(
    'waiting_is_ready_or_due_or_has_lock',
    $$update procrastinate_jobs set ready_seq = null where task_name = 'waiting'$$
),
(
    'waiting_is_ready_or_due_or_has_lock',
    $$update procrastinate_jobs set due_at = now() where task_name = 'waiting'$$
),
(
    'waiting_is_ready_or_due_or_has_lock',
    $$insert into procrastinate_jobs (task_name, ready_seq) values ('t', null)$$
),
(
    'aborting_is_never_stored',
    $$insert into procrastinate_jobs (task_name, status, finished_at)
    values ('t', 'aborting', now())$$
),
('runs_are_counted_from_zero', $$update procrastinate_jobs set failures = -1$$),
('runs_are_counted_from_zero', $$update procrastinate_jobs set lost = -1$$),
('runs_are_counted_from_zero', $$update procrastinate_jobs set handed_back = -1$$),
(
    'runs_are_counted_from_zero',
    $$insert into procrastinate_jobs (task_name, attempts) values ('t', -1)$$
),
(
    'runs_are_counted_from_zero',
    $$insert into procrastinate_jobs (task_name, attempts) values ('t', 2147483647)$$
),
('runs_are_counted_from_zero', $$update procrastinate_jobs set failures = 2147483647$$),
('runs_are_counted_from_zero', $$update procrastinate_jobs set lost = 2147483647$$),
(
    'names_have_1_to_512_characters',
    $$insert into procrastinate_tasks (task_name, queue_name) values ('t', '')$$
),
(
    'names_have_1_to_512_characters',
    $$insert into procrastinate_tasks (task_name, lock) values ('t', repeat('x', 513))$$
),
(
    'policy_is_one',
    $$insert into procrastinate_tasks (task_name, max_attempts) values ('t', 0)$$
),
(
    'policy_is_one',
    $$insert into procrastinate_tasks (task_name, backoff) values ('t', 'quadratic')$$
),
(
    'policy_is_one',
    $$insert into procrastinate_tasks (task_name, jitter) values ('t', 1.5)$$
),
(
    'policy_is_one',
    $$insert into procrastinate_tasks (task_name, jitter) values ('t', 'NaN')$$
),
(
    'policy_is_one',
    $$insert into procrastinate_tasks (task_name, max_lost) values ('t', -1)$$
),
(
    'policy_is_one',
    $$insert into procrastinate_tasks (task_name, timeout) values ('t', '0')$$
),
(
    'durations_lie_between_0_and_1000_years',
    $$insert into procrastinate_tasks (task_name, retry_delay) values ('t', '-1 second')$$
),
(
    'durations_lie_between_0_and_1000_years',
    $$insert into procrastinate_tasks (task_name, max_retry_delay) values ('t', '1001 years')$$
),
(
    'durations_lie_between_0_and_1000_years',
    $$insert into procrastinate_tasks (task_name, keep_finished) values ('t', '1001 years')$$
),
(
    'durations_lie_between_0_and_1000_years',
    $$insert into procrastinate_tasks (task_name, timeout) values ('t', '1001 years')$$
),
(
    'times_lie_between_years_1_and_9999',
    $$update procrastinate_workers set last_heartbeat = 'infinity'$$
),
(
    'times_lie_between_years_1_and_9999',
    $$update procrastinate_workers set awake_since = '-infinity'$$
),
(
    'times_lie_between_years_1_and_9999',
    $$update procrastinate_workers set gone_at = 'infinity'$$
),
(
    'three_heartbeats_fit_into_the_lease',
    $$update procrastinate_workers set heartbeat_interval = '1000 years'$$
),
(
    'three_heartbeats_fit_into_the_lease',
    $$update procrastinate_workers set lease = '1 second'$$
),
(
    'times_lie_between_years_1_and_9999',
    $$insert into procrastinate_queues values ('q', 'infinity')$$
);

select is(
    (
        select concat(refusal.code, ' ', refusal.check_name)
        from pg_temp.refusal(refused.statement) as refusal
    ),
    '23514 ' || refused.check_name,
    regexp_replace(refused.statement, '\s+', ' ', 'g') || ' is refused'
)
from refused;

select is_empty(
    $$
    select con.conname
    from pg_constraint as con
    inner join pg_class as rel on rel.oid = con.conrelid
    where rel.relname ~ '^procrastinate_' and con.contype = 'c'
    except
    select refused.check_name from refused
    $$,
    'every named check is tested here'
);

-- Facts about several rows.

select pg_temp.settle();

select procrastinate_defer_job('blocked', queue_name => 'wait', lock => 'x');

select is(
    (pg_temp.refusal(
        $$update procrastinate_jobs set ready_seq = 1 where task_name = 'blocked'$$
    )).code,
    '23514',
    'nobody but the queue makes a job of a lock ready'
);

-- As the queue itself, which its triggers do not check: the index does.
select _procrastinate_act(true);

select is(
    (pg_temp.refusal(
        $$update procrastinate_jobs
        set status = 'doing', ready_seq = null, worker_id = 1, started_at = now()
        where task_name in ('locked', 'blocked')$$
    )).code,
    '23505',
    'two jobs of one lock never run at once'
);

select _procrastinate_act(false);

select procrastinate_defer_job('once', queueing_lock => 'once');

select is(
    (pg_temp.refusal(
        $$insert into procrastinate_jobs (task_name, queueing_lock) values ('twice', 'once')$$
    )).code,
    '23505',
    'two jobs that wait for their first run never carry one queueing lock'
);

-- Other tables.

select col_is_pk('procrastinate_jobs', 'id', 'a job has a number');

select col_is_pk('procrastinate_tasks', 'task_name', 'a task is declared once');

select col_is_pk('procrastinate_queues', 'queue_name', 'a queue is listed once');

select col_is_pk('procrastinate_workers', 'id', 'a worker has a number');

select is_empty(
    $$
    select rel.oid::regclass
    from pg_class as rel
    where
        rel.relnamespace = quote_ident(current_schema())::regnamespace
        and rel.relkind = 'r'
        and rel.relreplident <> 'f'
        and not exists (
            select from pg_index as idx where idx.indrelid = rel.oid and idx.indisprimary
        )
    $$,
    'all tables can be published, with what is updated and deleted: each has a key, or says instead'
);

-- What is not said.

select results_eq(
    $$
    insert into procrastinate_jobs (task_name) values ('by hand')
    returning
        queue_name, priority, args, status::text, attempts, handed_back, abort_requested,
        created_by = session_user, created_at <= clock_timestamp()
    $$,
    $$values ('default', 0, '{}'::jsonb, 'todo', 0, 0, false, true, true)$$,
    'a job that is inserted by hand needs no more than its task'
);

select is(
    pg_temp.fetch(10, array['default']), 'once by hand', 'it is fetched like any other'
);

-- HOT: what a heartbeat writes is in no index.

select is_empty(
    $$
    select idx.indexrelid::regclass
    from pg_index as idx
    where idx.indrelid = 'procrastinate_workers'::regclass and not idx.indisprimary
    $$,
    'no index of workers has to follow their heartbeats'
);

select is_empty(
    $$
    select trg.tgname
    from pg_trigger as trg
    where
        trg.tgrelid = 'procrastinate_jobs'::regclass
        and not trg.tgisinternal
        and trg.tgtype & 1 = 1
        and trg.tgqual is null
    $$,
    'no trigger for each row is called without a condition'
);

select * from finish();
rollback;
