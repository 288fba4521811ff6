-- Give back jobs that were claimed and not started, or of which the worker never heard.

create function procrastinate_release_jobs(
    worker_id bigint,
    job_ids bigint[],
    attempts integer[] = null
)
returns setof bigint
language plpgsql
set search_path from current
as $$
begin
    if worker_id is null then
        perform _procrastinate_refuse('worker_id', 'must not be null');
    end if;
    perform
        _procrastinate_check_list('job_ids', job_ids),
        _procrastinate_check_list('attempts', coalesce(attempts, '{}'));
    if cardinality(job_ids) <> cardinality(attempts) then
        perform _procrastinate_refuse('attempts', 'must have one element for each of job_ids');
    end if;

    return query
    select ended.job_id
    from _procrastinate_end_runs(array(
        select
            (held.id, held.attempt, worker_id, 'release', null, null, null, null)
            ::procrastinate_outcome
        from unnest(job_ids, attempts) as held (id, attempt)
    )) as ended;
end;
$$;

comment on function procrastinate_release_jobs is
'Give back claimed jobs that were not started: they wait again at once, and no attempt is burnt. '
'attempts has the attempt of each of job_ids, so that a call that is repeated, its answer lost, '
'leaves a next run of the job alone (null: whatever runs). Returns the jobs that were given '
'back; those that the worker does not hold are left alone. Error: 22023. Example: select '
'procrastinate_release_jobs(7, array[42, 43], attempts => array[1, 1]).';

create function procrastinate_release_unknown_jobs(worker_id bigint, known_job_ids bigint[])
returns setof bigint
language plpgsql
set search_path from current
set jit = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
as $$
begin
    if worker_id is null then
        perform _procrastinate_refuse('worker_id', 'must not be null');
    end if;
    perform _procrastinate_check_list('known_job_ids', known_job_ids);

    return query
    select released.job_id
    from procrastinate_release_jobs(worker_id, array(
        select job.id
        from procrastinate_jobs as job
        where
            job.status = 'doing'
            and job.worker_id + 0 = procrastinate_release_unknown_jobs.worker_id
            and job.id <> all(known_job_ids)
    )) as released (job_id);
end;
$$;

comment on function procrastinate_release_unknown_jobs is
'Give back the jobs that the queue says a worker holds and that are not among those it knows: a '
'fetch whose answer was lost with the connection has left them. To be called when no other fetch '
'of the worker is under way. Returns the jobs that were given back. Error: 22023. Example: select '
'procrastinate_release_unknown_jobs(7, array[42]).';
