-- A run failed: the declared policy decides what comes next.
begin;
\ir support/arrange.sql
select plan(17);

select procrastinate_defer_job('undeclared');
select pg_temp.fetch();

select is(
    procrastinate_fail_job(pg_temp.id('undeclared'), 1, 'no luck', pg_temp.worker()),
    'failed',
    'a job of a task that was not declared is failed for good'
);

select results_eq(
    $$
    select job.status::text, job.attempts, job.error, job.finished_at is not null
    from procrastinate_jobs as job
    where job.task_name = 'undeclared'
    $$,
    $$values ('failed', 1, 'no luck', true)$$,
    'it keeps the text of its error'
);

select throws_ok(
    $$select procrastinate_fail_job(pg_temp.id('undeclared'), 1, 'again')$$,
    'PC001',
    null,
    'a failure cannot be reported twice'
);

select procrastinate_declare_task(
    'retried', max_attempts => 2, retry_delay => '1 hour', jitter => 0
);
select procrastinate_defer_job('retried');
select pg_temp.fetch();

select is(
    pg_temp.fail('retried', 'first'), 'todo', 'a job whose policy allows another run waits for it'
);

select results_eq(
    $$
    select job.attempts, job.error, job.worker_id, job.started_at, job.finished_at
    from procrastinate_jobs as job
    where job.task_name = 'retried'
    $$,
    $$values (1, 'first', null::bigint, null::timestamptz, null::timestamptz)$$,
    'it keeps the error of the run that failed, and nothing else of that run'
);

select ok(
    procrastinate_next_due() between interval '59 minutes' and interval '1 hour',
    'it waits as long as its policy says'
);

update procrastinate_jobs as job set scheduled_at = null where job.task_name = 'retried';

select is(pg_temp.fetch(), 'retried', 'then it runs again');

select throws_ok(
    $$select procrastinate_fail_job(pg_temp.id('retried'), 1, 'late')$$,
    'PC001',
    null,
    'the first run cannot be reported again while the second one runs'
);

select is(pg_temp.fail('retried', 'second'), 'failed', 'the last run that is allowed ends it');

select is((pg_temp.job('retried')).error, 'second', 'the last error is kept');

-- What does not count as a failure.

delete from procrastinate_jobs;
select procrastinate_defer_job('retried');
select pg_temp.fetch();
select procrastinate_release_jobs(pg_temp.worker(), array[pg_temp.id('retried')]);
select pg_temp.fetch();

select is(
    pg_temp.fail('retried'), 'todo', 'a run that was handed back does not use up max_attempts'
);

-- An abort that was asked for.

delete from procrastinate_jobs;
select procrastinate_defer_job('retried');
select pg_temp.fetch();
select procrastinate_cancel_job(pg_temp.id('retried'), abort => true);

select is(
    pg_temp.fail('retried', 'stopped'), 'aborted', 'a job that was asked to stop is not retried'
);

select is((pg_temp.job('retried')).error, 'stopped', 'it keeps its error');

-- Fences.

delete from procrastinate_jobs;
select procrastinate_defer_job('t');
select pg_temp.fetch();

select throws_ok(
    given.statement, 'PC001', null, given.fact
)
from (
    values
    ($$select procrastinate_fail_job(pg_temp.id('t'), 2, 'error')$$, 'another attempt is refused'),
    (
        $$select procrastinate_fail_job(pg_temp.id('t'), 1, 'error', pg_temp.worker('bob'))$$,
        'another worker is refused'
    ),
    ($$select procrastinate_fail_job(-1, 1, 'error')$$, 'an unknown job is refused')
) as given (statement, fact);

select lives_ok(
    $$select procrastinate_fail_job(pg_temp.id('t'), 1, null)$$, 'a failure may have no text'
);

select * from finish();
rollback;
