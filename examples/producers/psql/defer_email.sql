-- Defer a job from psql. `:'to'` is the variable `to`, quoted as a literal whatever is in it.
--
--   psql -v to=ann@example.org -v subject='Hello Ann' -f defer_email.sql
--
-- psql finds the database by its options or by PGHOST, PGDATABASE and so on. The job exists when
-- the transaction commits: put a `begin` in front, and it commits with whatever else you do.

\set ON_ERROR_STOP on

select procrastinate_defer_job(
    'send_email',
    jsonb_build_object('to', :'to', 'subject', :'subject'),
    queue_name => 'mail',
    lock => :'to'
) as job_id;
