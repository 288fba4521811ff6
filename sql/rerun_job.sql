-- Start a finished job afresh; read a job.

create function procrastinate_rerun_job(job_id bigint)
returns void
language plpgsql
set search_path from current
as $$
declare
    found_status procrastinate_job_status;
begin
    select job.status into found_status
    from procrastinate_jobs as job
    where job.id = job_id
    for update;
    if not found then
        perform _procrastinate_refuse_job(job_id);
    elsif found_status in ('todo', 'doing') then
        raise exception 'job % is %, not finished', job_id, found_status
            using errcode = 'PC001', hint = 'Only a finished job can be run again.';
    end if;

    -- Requests to abort the run that is over are not meant for the next one.
    delete from procrastinate_abort_requests as request
    where request.job_id = procrastinate_rerun_job.job_id;

    update procrastinate_jobs as job
    set
        status = 'todo',
        scheduled_at = null,
        failures = 0,
        lost = 0,
        abort_requested = false,
        worker_id = null,
        started_at = null,
        finished_at = null,
        purge_at = null,
        result = null,
        error = null
    where job.id = job_id;
exception
    -- Cancelled before it was ever started, it takes up its queueing lock again.
    when unique_violation then
        raise exception 'another job already waits with the queueing lock of job %', job_id
            using errcode = 'PC002', hint = 'Run it again once that job has started.';
end;
$$;

comment on function procrastinate_rerun_job is
'Let a finished job wait again, at once, with all the attempts that its policy allows. Errors: '
'PC005 no such job; PC001 not finished; PC002 it was never started, and its queueing lock waits by '
'now; 22023. Example: select procrastinate_rerun_job(42).';
