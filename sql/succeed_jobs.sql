-- End many runs that succeeded, the cheapest way: no JSON, and nothing to decide.

create function procrastinate_succeed_jobs(
    worker_id bigint,
    job_ids bigint[],
    attempts integer[]
)
returns table (ordinal integer, job_id bigint, reason text)
language plpgsql
set search_path from current
set jit = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
declare
    done integer[];
begin
    if worker_id is null then
        perform _procrastinate_refuse('worker_id', 'must not be null');
    end if;
    perform
        _procrastinate_check_list('job_ids', job_ids),
        _procrastinate_check_list('attempts', attempts);
    if cardinality(job_ids) <> cardinality(attempts) then
        perform _procrastinate_refuse('attempts', 'must have one element for each of job_ids');
    end if;

    done := _procrastinate_succeed(worker_id, job_ids, attempts);
    if cardinality(done) = cardinality(job_ids) then
        return;
    end if;
    return query
    select
        run.place::integer,
        run.id,
        case
            when exists (
                -- Not by subscripts: those of an array may begin anywhere.
                select from unnest(job_ids, attempts) with ordinality as other (id, attempt, place)
                where
                    other.id = run.id and other.attempt = run.attempt and other.place = any(done)
            ) then 'duplicate'
            else 'not running'
        end
    from unnest(job_ids, attempts) with ordinality as run (id, attempt, place)
    where run.place <> all(done);
end;
$$;

comment on function procrastinate_succeed_jobs is
'Close many runs of one worker as succeeded, without a result: what procrastinate_finish_jobs does '
'for them, at a part of its cost. attempts has the attempt of each of job_ids. Returns only the '
'outcomes that were refused: ordinal (from 1), job_id, and the reason, `not running` or '
'`duplicate`. Error: 22023. Example: select * from procrastinate_succeed_jobs(7, array[42, 43], '
'array[1, 1]).';

create function _procrastinate_succeed(worker_id bigint, job_ids bigint[], attempts integer[])
returns integer[]
language plpgsql
set search_path from current
as $$
declare
    ended_at constant timestamptz := clock_timestamp();
    places integer[];
    left_locks procrastinate_left_lock[];
begin
    perform _procrastinate_act(true);
    with held as materialized (
        select
            job.id,
            run.place,
            (
                select task.keep_finished from procrastinate_tasks as task
                where task.task_name = job.task_name and task.keep_finished is not null
            ) as keep_finished
        from (
            select given.*
            from unnest(job_ids, attempts) with ordinality as given (id, attempt, place)
            order by given.id, given.place
        ) as run
        inner join procrastinate_jobs as job on job.id = any(array[run.id])
        where
            job.status = 'doing'
            and job.attempts + 1 = run.attempt
            and job.worker_id = _procrastinate_succeed.worker_id
        for update of job
    ),
    removed as (
        delete from procrastinate_jobs as job
        using held
        where job.id = any(array[held.id]) and held.keep_finished = interval '0'
        returning held.place, job.id, job.lock, job.priority, job.queue_name
    ),
    kept as (
        update procrastinate_jobs as job
        set
            status = 'succeeded',
            attempts = job.attempts + 1,
            finished_at = ended_at,
            purge_at = ended_at + held.keep_finished
        from held
        where job.id = any(array[held.id]) and held.keep_finished is distinct from interval '0'
        returning held.place, job.id, job.lock, job.priority, job.queue_name
    ),
    done as (
        select * from removed
        union all
        select * from kept
    )
    select
        array_agg(done.place::integer),
        array_agg((done.lock, done.priority, done.id, done.queue_name)::procrastinate_left_lock)
        filter (where done.lock is not null)
    into places, left_locks
    from done;
    perform _procrastinate_act(false);

    perform _procrastinate_leave_locks(left_locks);
    return coalesce(places, array[]::integer[]);
end;
$$;

comment on function _procrastinate_succeed is
'End the runs that are still the ones named, their jobs held in the order of their ids (as in '
'_procrastinate_end_runs). Returns the places of those that were applied.';
