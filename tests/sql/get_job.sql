-- Read one job.
begin;
\ir support/arrange.sql
select plan(4);

select procrastinate_defer_job('send_email', '{"to": "ann"}', lock => 'ann');

select results_eq(
    $$select * from procrastinate_get_job(pg_temp.id('send_email'))$$,
    $$select * from procrastinate_jobs where task_name = 'send_email'$$,
    'a job is read as its row of procrastinate_jobs'
);

select results_eq(
    $$select job.status::text from procrastinate_get_job(pg_temp.id('send_email')) as job$$,
    array['todo'],
    'its columns can be named'
);

select is_empty('select * from procrastinate_get_job(-1)', 'a job that does not exist is no row');

select is_empty('select * from procrastinate_get_job(null)', 'null is no job');

select * from finish();
rollback;
