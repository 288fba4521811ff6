-- A running job is closed, once, by the attempt and the worker that run it.
begin;
\ir support/arrange.sql
select plan(33);

select procrastinate_defer_job('first');
select pg_temp.fetch();

select is(
    (pg_temp.refusal(given.statement)).code, 'PC001', given.fact
)
from (
    values
    (
        $$select procrastinate_finish_job(pg_temp.id('first'), 0)$$,
        'an attempt that ended is refused'
    ),
    (
        $$select procrastinate_finish_job(pg_temp.id('first'), 2)$$,
        'an attempt that has not begun is refused'
    ),
    (
        $$select procrastinate_finish_job(
            pg_temp.id('first'), 1, worker_id => pg_temp.worker('bob')
        )$$,
        'another worker is refused'
    ),
    (
        $$select procrastinate_finish_job(pg_temp.id('first'), 1, worker_id => -1)$$,
        'an unknown worker is refused'
    ),
    ('select procrastinate_finish_job(-1, 1)', 'an unknown job is refused')
) as given (statement, fact);

select is((pg_temp.job('first')).status::text, 'doing', 'what was refused changed nothing');

select procrastinate_finish_job(
    pg_temp.id('first'), 1, result => '{"sent": true}', worker_id => pg_temp.worker()
);

select results_eq(
    $$
    select job.status::text, job.attempts, job.result, job.error, job.worker_id
    from procrastinate_jobs as job
    where job.task_name = 'first'
    $$,
    $$values ('succeeded', 1, '{"sent": true}'::jsonb, null::text, pg_temp.worker())$$,
    'a job succeeds by default; its attempt, its result and its worker are kept'
);

select ok(
    (
        select job.created_at <= job.started_at and job.started_at <= job.finished_at
        from pg_temp.job('first') as job
    ),
    'it says when it was started and finished'
);

select throws_ok(
    $$select procrastinate_finish_job(pg_temp.id('first'), 1)$$,
    'PC001',
    null,
    'a finished job cannot be finished again'
);

select throws_ok(
    $$select procrastinate_finish_job(pg_temp.id('first'), 2)$$,
    'PC001',
    null,
    'nor as its next attempt'
);

select procrastinate_defer_job('waiting');

select throws_ok(
    $$select procrastinate_finish_job(pg_temp.id('waiting'), 1)$$,
    'PC001',
    null,
    'a waiting job cannot be finished'
);

-- How it may end.

create function pg_temp.ended_as(status text)
returns text
language plpgsql
as $$
begin
    delete from procrastinate_jobs;
    perform procrastinate_defer_job('t');
    perform pg_temp.fetch();
    perform procrastinate_finish_job(pg_temp.id('t'), 1, status, error => 'text');
    return concat_ws(' ', (pg_temp.job('t')).status, (pg_temp.job('t')).error);
end;
$$;

select is(pg_temp.ended_as(status), status || ' text', format('a job may end as %s', status))
from unnest(array['succeeded', 'failed', 'aborted']) as status;

delete from procrastinate_jobs;
select procrastinate_defer_job('t');
select pg_temp.fetch();

select throws_ok(
    format($$select procrastinate_finish_job(pg_temp.id('t'), 1, %L)$$, status),
    '22023',
    null,
    format('a running job cannot end as %s', coalesce(status, 'null'))
)
from unnest(array['todo', 'doing', 'cancelled', 'aborting', 'Succeeded', '', null]) as status;

select is((pg_temp.job('t')).status::text, 'doing', 'after a bad status it still runs');

select procrastinate_cancel_job(pg_temp.id('t'), abort => true);
select procrastinate_finish_job(pg_temp.id('t'), 1);

select is(
    (pg_temp.job('t')).status::text, 'succeeded', 'a job that was asked to stop may still succeed'
);

-- Any result.

create function pg_temp.kept_result(result jsonb)
returns jsonb
language plpgsql
as $$
begin
    delete from procrastinate_jobs;
    perform procrastinate_defer_job('t');
    perform pg_temp.fetch();
    perform procrastinate_finish_job(pg_temp.id('t'), 1, result => result);
    return (pg_temp.job('t')).result;
end;
$$;

select is(pg_temp.kept_result(value::jsonb), value::jsonb, format('a result may be %s', value))
from unnest(array['1', '"text"', '[1, 2]', '{}', 'true', null]) as value;

-- A new run is another attempt.

delete from procrastinate_jobs;
select procrastinate_defer_job('t');
select pg_temp.fetch();
select procrastinate_release_jobs(pg_temp.worker(), array[pg_temp.id('t')]);
select pg_temp.fetch(worker_name => 'bob');

select throws_ok(
    $$select procrastinate_finish_job(pg_temp.id('t'), 1)$$,
    'PC001',
    null,
    'who gave a job back cannot close its next run'
);

select throws_ok(
    $$select procrastinate_finish_job(pg_temp.id('t'), 2, worker_id => pg_temp.worker())$$,
    'PC001',
    null,
    'not even with the number of that run'
);

select lives_ok(
    $$select procrastinate_finish_job(pg_temp.id('t'), 2, worker_id => pg_temp.worker('bob'))$$,
    'its own worker can'
);

-- A deleted job has no run.

delete from procrastinate_jobs;
select procrastinate_defer_job('t');
create temporary table deleted as
select fetched.id from procrastinate_fetch_jobs(pg_temp.worker()) as fetched;
delete from procrastinate_jobs;

select throws_ok(
    'select procrastinate_finish_job(deleted.id, 1) from deleted',
    'PC001',
    null,
    'a job that was deleted while it ran cannot be finished'
);

select * from finish();
rollback;
