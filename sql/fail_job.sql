-- Report that a run failed: the declared policy decides what comes next.

create function procrastinate_fail_job(
    job_id bigint,
    attempt integer,
    error text,
    worker_id bigint = null
)
returns text
language plpgsql
set search_path from current
as $$
begin
    return _procrastinate_end_run((job_id, attempt, worker_id, 'fail', null, null, error, null));
end;
$$;

comment on function procrastinate_fail_job is
'Report that a run failed, with the text of its error. The policy of the task '
'(procrastinate_declare_task; undeclared: one attempt) decides between another run after its '
'backoff and the end. Returns the new status: todo, failed, or aborted if an abort was asked for. '
'Errors: PC001 if this attempt is not the running one; 22023. Example: select '
'procrastinate_fail_job(42, attempt => 1, error => ''timed out'', worker_id => 7).';
