-- Give back the jobs of workers that are gone.

create function procrastinate_rescue_jobs(rescuer_id bigint = null, max_jobs integer = 1000)
returns table (job_id bigint, worker_id bigint, status text)
language plpgsql
set search_path from current
as $$
declare
    silent_ids bigint[];
    gone_id bigint;
    -- A look at a worker that was given up before passes the entries of all that it has run, which
    -- under a held snapshot are many.
    put_off boolean := false;
    before bigint;
    looked_at integer := 0;
begin
    if coalesce(max_jobs < 1, true) then
        perform _procrastinate_refuse('max_jobs', 'must be at least 1');
    end if;

    silent_ids := _procrastinate_silent_workers(rescuer_id);
    update procrastinate_workers as worker
    set gone_at = clock_timestamp()
    where worker.id = any(silent_ids) and worker.gone_at is null;

    if rescuer_id is not null then
        put_off := _procrastinate_begins_at_floor('gone');
    end if;
    before := _procrastinate_effort('procrastinate_jobs_worker_idx');
    for gone_id in
        select worker.id
        from procrastinate_workers as worker
        where
            worker.gone_at is not null and worker.taken_back_at is null
            and (put_off is not true or worker.id = any(silent_ids))
        order by worker.id
    loop
        looked_at := looked_at + 1;
        return query
        select taken.job_id, gone_id, taken.status::text
        from _procrastinate_take_back_jobs(gone_id, max_jobs) as taken;
    end loop;

    if put_off then
        return;
    end if;
    -- A fetch that was under way when its worker was given up may still commit: look for a minute.
    update procrastinate_workers as worker
    set taken_back_at = clock_timestamp()
    where
        worker.gone_at < clock_timestamp() - interval '1 minute'
        and worker.taken_back_at is null
        and not exists (
            select from procrastinate_jobs as job
            where job.status = 'doing' and job.worker_id + 0 = worker.id
        );
    perform _procrastinate_note_effort(
        'gone', _procrastinate_effort('procrastinate_jobs_worker_idx') - before - 10 * looked_at
    );
end;
$$;

comment on function procrastinate_rescue_jobs is
'Give up workers that are gone and let their jobs wait again (or end: aborted if that was asked '
'for, failed with the error `worker lost` after max_lost lost runs). What a worker that left in '
'good order could not hand back is not lost, but handed back. A worker is gone after its '
'lease in silence, or after two and a half heartbeats in silence when its connection is gone too. '
'Only the time counts in which the rescuer, and others before it came, kept their heartbeats; '
'without a rescuer, the time since the server started. Rows that somebody holds are left for the '
'next call; while an old snapshot is held, calls with a rescuer look at workers that were given up '
'before only every few seconds. Any worker, or a person, may call it at any time. Takes up to '
'max_jobs jobs of each worker and returns them with their worker and new status. Error: 22023. '
'Example: select * from procrastinate_rescue_jobs().';

create function _procrastinate_silent_workers(rescuer_id bigint)
returns bigint[]
language plpgsql
set search_path from current
as $$
declare
    judged_since timestamptz;
begin
    select rescuer.awake_since into judged_since
    from procrastinate_workers as rescuer
    where rescuer.id = rescuer_id;
    judged_since := coalesce(judged_since, pg_postmaster_start_time());

    return array(
        select worker.id
        from procrastinate_workers as worker
        cross join lateral (
            select clock_timestamp() - greatest(worker.last_heartbeat, judged_since) as lasts
        ) as silence
        where
            worker.gone_at is null
            and worker.id is distinct from rescuer_id
            and (
                silence.lasts > worker.lease
                -- A restarted server has lost the connections of the living too.
                or (
                    silence.lasts > worker.heartbeat_interval * 2.5
                    and worker.server_started_at = pg_postmaster_start_time()
                    and worker.backend_pid is not null
                    and not exists (
                        select from pg_stat_get_activity(worker.backend_pid)
                    )
                )
            )
        for update of worker skip locked
    );
end;
$$;

comment on function _procrastinate_silent_workers is
'The workers that are gone, as seen by a rescuer that judges only the time that was watched.';

create function _procrastinate_take_back_jobs(worker_id bigint, max_jobs integer)
returns table (job_id bigint, status procrastinate_job_status)
language plpgsql
set search_path from current
set jit = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
as $$
declare
    action constant text := case
        when exists (
            select from procrastinate_workers as worker
            where worker.id = _procrastinate_take_back_jobs.worker_id and worker.unregistered
        ) then 'release'
        else 'lose'
    end;
begin
    return query
    select ended.job_id, ended.status
    from _procrastinate_end_runs(array(
        select (job.id, null, job.worker_id, action, null, null, null, null)::procrastinate_outcome
        from procrastinate_jobs as job
        where job.status = 'doing' and job.worker_id + 0 = _procrastinate_take_back_jobs.worker_id
        limit max_jobs
        for update skip locked
    )) as ended;
end;
$$;

comment on function _procrastinate_take_back_jobs is
'End up to max_jobs (null: all) runs that a worker holds which is gone or unknown, but for those '
'whose row somebody holds: as handed back if it left in good order, else as lost.';
