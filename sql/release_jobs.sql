-- Give back jobs that were claimed and not started.

create function procrastinate_release_jobs(worker_id bigint, job_ids bigint[])
returns setof bigint
language plpgsql
set search_path from current
as $$
begin
    if worker_id is null then
        perform _procrastinate_refuse('worker_id', 'must not be null');
    elsif job_ids is null or array_position(job_ids, null) is not null then
        perform _procrastinate_refuse('job_ids', 'must be an array without nulls');
    end if;

    return query
    select ended.job_id
    from _procrastinate_end_runs(array(
        select (held.id, null, worker_id, 'release', null, null, null, null)::procrastinate_outcome
        from unnest(job_ids) as held (id)
    )) as ended;
end;
$$;

comment on function procrastinate_release_jobs is
'Give back claimed jobs that were not started: they wait again at once, and no attempt is burnt. Returns the jobs '
'that were given back; those that the worker does not hold are left alone. Error: 22023. '
'Example: select procrastinate_release_jobs(7, array[42, 43]).';
