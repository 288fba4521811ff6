-- Read one job.

create function procrastinate_get_job(job_id bigint)
returns table (
    id bigint,
    queue_name text,
    task_name text,
    priority integer,
    lock text,
    queueing_lock text,
    args jsonb,
    status text,
    scheduled_at timestamptz,
    attempts integer,
    failures integer,
    handed_back integer,
    lost integer,
    abort_requested boolean,
    worker_id bigint,
    created_at timestamptz,
    created_by text,
    started_at timestamptz,
    finished_at timestamptz,
    purge_at timestamptz,
    result jsonb,
    error text
)
language plpgsql
stable
set search_path from current
as $$
begin
    -- By name, not `job.*`: an upgrade may add a column while this runs.
    return query
    select
        job.id,
        job.queue_name,
        job.task_name,
        job.priority,
        job.lock,
        job.queueing_lock,
        job.args,
        job.status::text,
        job.scheduled_at,
        job.attempts,
        job.failures,
        job.handed_back,
        job.lost,
        job.abort_requested,
        job.worker_id,
        job.created_at,
        job.created_by,
        job.started_at,
        job.finished_at,
        job.purge_at,
        job.result,
        job.error
    from procrastinate_jobs as job
    where job.id = job_id;
end;
$$;

comment on function procrastinate_get_job is
'Read one job: what procrastinate_jobs says of it, or no row. Example: select status from '
'procrastinate_get_job(42).';
