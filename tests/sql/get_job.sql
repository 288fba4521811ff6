-- Read one job.
begin;
\ir support/arrange.sql
select plan(4);

select procrastinate_defer_job('send_email', '{"to": "ann"}', lock => 'ann');

select is(
    (select to_jsonb(job) from procrastinate_get_job(pg_temp.id('send_email')) as job),
    (
        select to_jsonb(job) - 'ready_seq' - 'due_at'
        from procrastinate_jobs as job where job.task_name = 'send_email'
    ),
    'a job is read as its row of procrastinate_jobs, but for what only the queue needs'
);

select results_eq(
    $$select job.status from procrastinate_get_job(pg_temp.id('send_email')) as job$$,
    array['todo'],
    'its columns can be named'
);

select is_empty('select * from procrastinate_get_job(-1)', 'a job that does not exist is no row');

select is_empty('select * from procrastinate_get_job(null)', 'null is no job');

select * from finish();
rollback;
