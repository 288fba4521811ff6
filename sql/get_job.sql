-- Read one job.

create function procrastinate_get_job(job_id bigint)
returns setof procrastinate_jobs
language plpgsql
stable
set search_path from current
as $$
begin
    return query
    select job.* from procrastinate_jobs as job where job.id = job_id;
end;
$$;

comment on function procrastinate_get_job is
'Read one job: its row of procrastinate_jobs, or none. Example: select status from '
'procrastinate_get_job(42).';
