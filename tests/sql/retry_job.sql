-- A job runs again by the worker's own decision, whatever its policy says.
begin;
\ir support/arrange.sql
select plan(16);

select procrastinate_defer_job('first');
select pg_temp.fetch();
select procrastinate_defer_job('second');
select procrastinate_retry_job(
    pg_temp.id('first'), 1, error => 'busy', worker_id => pg_temp.worker()
);

select results_eq(
    $$
    select
        job.status::text, job.attempts, job.error, job.worker_id, job.started_at, job.scheduled_at
    from procrastinate_jobs as job
    where job.task_name = 'first'
    $$,
    $$values ('todo', 1, 'busy', null::bigint, null::timestamptz, null::timestamptz)$$,
    'a retried job waits again, and keeps the error'
);

select is(
    pg_temp.fetch(10), 'second first', 'it takes its turn by when it became runnable again'
);

select procrastinate_retry_job(pg_temp.id('first'), 2, '1 hour');

select is(pg_temp.fetch(10), '', 'with a delay it is not fetched at once');

select ok(
    procrastinate_next_due() between interval '59 minutes' and interval '1 hour',
    'it is due after the delay'
);

select is((pg_temp.job('first')).error, 'busy', 'the last error is kept when there is no new one');

select procrastinate_retry_job(pg_temp.id('second'), 1, '0');

select is(pg_temp.fetch(10), 'second', 'a delay of zero is at once');

-- An urgent job stays urgent.

delete from procrastinate_jobs;
select procrastinate_defer_job('urgent', priority => 1);
select procrastinate_defer_job('other');
select pg_temp.fetch();
select procrastinate_retry_job(pg_temp.id('urgent'), 1);

select is(pg_temp.fetch(10), 'urgent other', 'a retried job keeps its priority');

-- Whatever the policy says.

delete from procrastinate_jobs;
select procrastinate_declare_task('t', max_attempts => 1);
select procrastinate_defer_job('t');
select pg_temp.fetch();
select procrastinate_retry_job(pg_temp.id('t'), 1);

select is(pg_temp.fetch(), 't', 'a job is retried even when its policy allows one attempt only');

select is(
    pg_temp.fail('t'), 'failed', 'the policy decides again when the worker leaves it to that'
);

-- The queueing lock of a job that was started binds nobody.

delete from procrastinate_jobs;
select procrastinate_defer_job('first', queueing_lock => 'once');
select pg_temp.fetch();
select procrastinate_defer_job('second', queueing_lock => 'once');

select lives_ok(
    $$select procrastinate_retry_job(pg_temp.id('first'), 1)$$,
    'a retry that meets its queueing lock is no error'
);

select is(pg_temp.drain(), 'second first', 'both run');

-- An abort that was asked for.

delete from procrastinate_jobs;
select procrastinate_defer_job('t');
select pg_temp.fetch();
select procrastinate_cancel_job(pg_temp.id('t'), abort => true);
select procrastinate_retry_job(pg_temp.id('t'), 1, error => 'stopped');

select results_eq(
    $$
    select job.status::text, job.error, job.finished_at is not null
    from procrastinate_jobs as job
    where job.task_name = 't'
    $$,
    $$values ('aborted', 'stopped', true)$$,
    'a job that was asked to stop is not retried'
);

-- Fences.

delete from procrastinate_jobs;
select procrastinate_defer_job('t');
select pg_temp.fetch();

select throws_ok(given.statement, 'PC001', null, given.fact)
from (
    values
    ($$select procrastinate_retry_job(pg_temp.id('t'), 2)$$, 'another attempt is refused'),
    (
        $$select procrastinate_retry_job(pg_temp.id('t'), 1, worker_id => pg_temp.worker('bob'))$$,
        'another worker is refused'
    ),
    ('select procrastinate_retry_job(-1, 1)', 'an unknown job is refused')
) as given (statement, fact);

select is((pg_temp.job('t')).status::text, 'doing', 'what was refused changed nothing');

select * from finish();
rollback;
