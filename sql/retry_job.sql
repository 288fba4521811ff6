-- Run a job again by the worker's own decision.

create function procrastinate_retry_job(
    job_id bigint,
    attempt integer,
    retry_in interval = null,
    error text = null,
    worker_id bigint = null
)
returns void
language plpgsql
set search_path from current
as $$
begin
    perform _procrastinate_end_run((
        job_id, attempt, worker_id, 'retry', null, null, error, retry_in
    ));
end;
$$;

comment on function procrastinate_retry_job is
'End a run and let the job wait for another one, after retry_in (null: at once), whatever its '
'policy says. If an abort was asked for, the job ends aborted instead. Errors: PC001 if this '
'attempt is not the running one; 22023. Example: select procrastinate_retry_job(42, attempt => 1, '
'retry_in => ''10 minutes'').';
