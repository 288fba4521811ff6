-- The defaults and the policy of a task are said once, for every language.
begin;
\ir support/arrange.sql
select plan(34);

select procrastinate_declare_task('plain');

select results_eq(
    $$
    select
        task.queue_name, task.priority, task.lock, task.max_attempts, task.timeout,
        task.keep_finished, task.max_lost
    from procrastinate_tasks as task
    where task.task_name = 'plain'
    $$,
    $$values (
        null::text, null::integer, null::text, 1, null::interval, null::interval, 5
    )$$,
    'a task has the defaults that are documented'
);

create temporary view version_of_plain as
select concat(task.ctid, task.xmin) as version
from procrastinate_tasks as task
where task.task_name = 'plain';

create temporary table before as
select version_of_plain.version from version_of_plain;

select procrastinate_declare_task('plain');

select is(
    (select version_of_plain.version from version_of_plain),
    (select before.version from before),
    'the same declaration again writes nothing'
);

select procrastinate_declare_task('plain', queue_name => 'mail', max_attempts => 3);
select procrastinate_declare_task('plain', priority => 2);

select results_eq(
    $$
    select task.queue_name, task.priority, task.max_attempts
    from procrastinate_tasks as task
    where task.task_name = 'plain'
    $$,
    $$values (null::text, 2, 1)$$,
    'a declaration replaces the one before in full'
);

select procrastinate_defer_job('plain');
select procrastinate_declare_task('plain', priority => 9);

select is(
    (pg_temp.job('plain')).priority, 2, 'a job that was deferred keeps the defaults of its day'
);

select lives_ok(
    $$select procrastinate_defer_job('not declared')$$, 'a task need not be declared'
);

-- How many runs.

create function pg_temp.fails_with(policy text, runs integer)
returns text
language plpgsql
as $$
declare
    statuses text[] := '{}';
begin
    delete from procrastinate_jobs;
    execute format('select procrastinate_declare_task(''t'', %s)', policy);
    perform procrastinate_defer_job('t');
    for run in 1 .. runs loop
        update procrastinate_jobs as job set scheduled_at = null where job.status = 'todo';
        exit when pg_temp.fetch() = '';
        statuses := statuses || pg_temp.fail('t');
    end loop;
    return array_to_string(statuses, ' ');
end;
$$;

select is(pg_temp.fails_with(given.policy, 8), given.statuses, given.fact)
from (
    values
    ('max_attempts => 1', 'failed', 'with max_attempts 1 a failed job is not retried'),
    ('max_attempts => 3', 'todo todo failed', 'with max_attempts 3 the third failure is the last'),
    (
        'max_attempts => null', 'todo todo todo todo todo todo todo todo',
        'without max_attempts a job is retried for ever'
    )
) as given (policy, statuses, fact);

-- How long between them.

create function pg_temp.delays_with(policy text)
returns text
language plpgsql
as $$
declare
    delays text[] := '{}';
    failed_at timestamptz;
begin
    delete from procrastinate_jobs;
    execute format('select procrastinate_declare_task(''t'', max_attempts => null, %s)', policy);
    perform procrastinate_defer_job('t');
    for run in 1 .. 5 loop
        update procrastinate_jobs as job set scheduled_at = null where job.status = 'todo';
        perform pg_temp.fetch();
        failed_at := clock_timestamp();
        perform pg_temp.fail('t');
        delays := delays || (
            select round(extract(epoch from job.scheduled_at - failed_at))::text
            from procrastinate_jobs as job
        );
    end loop;
    return array_to_string(delays, ' ');
end;
$$;

select is(pg_temp.delays_with(given.policy), given.delays, given.fact)
from (
    values
    (
        $$backoff => 'constant', retry_delay => '100 s', jitter => 0$$,
        '100 100 100 100 100',
        'constant backoff waits as long each time'
    ),
    (
        $$backoff => 'linear', retry_delay => '100 s', jitter => 0$$,
        '100 200 300 400 500',
        'linear backoff adds the delay each time'
    ),
    (
        $$backoff => 'exponential', retry_delay => '100 s', jitter => 0$$,
        '100 200 400 800 1600',
        'exponential backoff doubles the delay each time'
    ),
    (
        $$retry_delay => '100 s', max_retry_delay => '500 s', jitter => 0$$,
        '100 200 400 500 500',
        'no delay is longer than max_retry_delay'
    ),
    (
        $$backoff => 'constant', retry_delay => '100 s', max_retry_delay => '50 s', jitter => 0$$,
        '50 50 50 50 50',
        'max_retry_delay holds for the first delay too'
    ),
    (
        $$retry_delay => '0', jitter => 1$$,
        '0 0 0 0 0',
        'a delay of zero stays zero'
    ),
    (
        $$jitter => 0$$,
        '1 2 4 8 16',
        'by default the first delay is a second, and the next is twice as long'
    )
) as given (policy, delays, fact);

create temporary table jittered as
select delay.seconds::integer
from generate_series(1, 20) as round (number)
cross join lateral regexp_split_to_table(
    pg_temp.delays_with(
        format(
            $$backoff => 'constant', retry_delay => '1000 s', jitter => 0.5 + 0 * %s$$, round.number
        )
    ),
    ' '
) as delay (seconds);

select cmp_ok(
    (select min(jittered.seconds) from jittered), '>=', 500,
    'jitter never takes away more than its share of the delay'
);

select cmp_ok(
    (select max(jittered.seconds) from jittered), '<=', 1000, 'jitter never makes a delay longer'
);

select cmp_ok(
    (select max(jittered.seconds) - min(jittered.seconds) from jittered), '>', 100,
    'jitter spreads the delays'
);

select is(
    pg_temp.fails_with(
        $$max_attempts => null, retry_delay => '1000 years', max_retry_delay => '1000 years'$$, 3
    ),
    'todo todo todo',
    'the longest delay that may be declared does not break the report of a failure'
);

-- How long a run may take.

delete from procrastinate_jobs;
select procrastinate_declare_task('timed', timeout => '90 seconds');
select procrastinate_defer_job('timed');

select is(
    (select fetched.timeout from procrastinate_fetch_jobs(pg_temp.worker()) as fetched),
    interval '90 seconds',
    'a worker is told the timeout of a job'
);

-- How long finished jobs are kept.

create function pg_temp.kept_with(policy text, finish text)
returns text
language plpgsql
as $$
begin
    delete from procrastinate_jobs;
    execute format('select procrastinate_declare_task(''t'', %s)', policy);
    perform procrastinate_defer_job('t');
    if finish ~ 'cancel' then
        perform procrastinate_cancel_job(pg_temp.id('t'));
    else
        perform pg_temp.fetch();
        execute finish;
    end if;
    perform pg_sleep(0.01);
    perform procrastinate_heartbeat(pg_temp.worker());
    return case when pg_temp.id('t') is null then 'gone' else 'kept' end;
end;
$$;

select is(
    pg_temp.kept_with(given.policy, ended.how),
    given.outcome,
    format('a job that %s is %s with %s', ended.fact, given.outcome, given.policy)
)
from (
    values
    ('keep_finished => null', 'kept'),
    ($$keep_finished => '1 day'$$, 'kept'),
    ($$keep_finished => '1 millisecond'$$, 'gone'),
    ($$keep_finished => '0'$$, 'gone')
) as given (policy, outcome)
cross join (
    values
    ('succeeded', $$select pg_temp.finish('t')$$),
    ('failed', $$select pg_temp.fail('t')$$),
    ('was cancelled', 'cancel')
) as ended (fact, how);

select procrastinate_declare_task('t', max_attempts => 2, retry_delay => '0', keep_finished => '0');
delete from procrastinate_jobs;
select procrastinate_defer_job('t');
select pg_temp.fetch();
select pg_temp.fail('t');
select procrastinate_heartbeat(pg_temp.worker());

select is(
    (pg_temp.job('t')).status::text, 'todo', 'a job that waits for a retry is not purged'
);

set local synchronous_commit = off;
select procrastinate_declare_task('t');

select is(
    current_setting('synchronous_commit'), 'on',
    'a crash cannot take a declaration back: a worker declares only when it starts'
);

select * from finish();
rollback;
