-- The whole housekeeping in one call, made by each worker every second or so.

create function procrastinate_heartbeat(
    worker_id bigint,
    job_ids bigint[] = '{}',
    attempts integer[] = '{}',
    queue_names text[] = null,
    backend_pid integer = null
)
returns table (
    abort_job_ids bigint[],
    lost_job_ids bigint[],
    stop_requested boolean,
    next_heartbeat interval,
    next_due interval
)
language plpgsql
set search_path from current
set jit = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
begin
    perform _procrastinate_check_read_committed();
    perform
        _procrastinate_check_list('job_ids', job_ids),
        _procrastinate_check_list('attempts', attempts);
    if cardinality(job_ids) <> cardinality(attempts) then
        perform _procrastinate_refuse('attempts', 'must have one element for each of job_ids');
    end if;

    select renewed.stop_requested, renewed.heartbeat_interval into stop_requested, next_heartbeat
    from _procrastinate_renew_lease(worker_id, backend_pid) as renewed;

    perform procrastinate_rescue_jobs(worker_id);
    perform _procrastinate_carry_over_aborts();
    perform _procrastinate_wake_ready();
    perform _procrastinate_sweep_queues(queue_names);
    perform _procrastinate_purge_due(1000);

    abort_job_ids := array(
        select job.id from procrastinate_jobs as job
        where
            job.worker_id = procrastinate_heartbeat.worker_id
            and job.status = 'doing' and job.abort_requested
    );
    lost_job_ids := array(
        select held.id
        from unnest(job_ids, attempts) as held (id, attempt)
        left join procrastinate_jobs as job
            on
                job.id = any(array[held.id])
                and job.status = 'doing'
                and job.worker_id = procrastinate_heartbeat.worker_id
                and job.attempts + 1 = held.attempt
        where job.id is null
    );
    next_due := procrastinate_next_due(queue_names);
    return next;
end;
$$;

comment on function procrastinate_heartbeat is
'Renew the lease of a worker and do the housekeeping of the whole queue: promote what is due, '
'rescue the jobs of workers that are gone, settle locks, sweep for late jobs, purge. job_ids and '
'attempts are the runs that the worker believes to hold. Returns what it must do: abort_job_ids '
'were asked to stop; lost_job_ids it no longer holds, so it must stop them and drop their '
'outcome; stop_requested asks it to leave in good order; next_heartbeat is how long to wait '
'before the next call; next_due how long until the next scheduled job of queue_names (null: all) '
'can be fetched (null: none). backend_pid is the server process that the driver believes to talk '
'to: if another one answers, a pooler is in between, so that only the lease tells whether the '
'worker is gone (null: there is none). Errors: PC004 if the worker was given up: it must '
'register again and drop all its jobs; 22023; 25001. Example: select * from '
'procrastinate_heartbeat(7, array[42], array[1]).';

create function _procrastinate_renew_lease(worker_id bigint, backend_pid integer)
returns table (stop_requested boolean, heartbeat_interval interval)
language plpgsql
set search_path from current
as $$
declare
    beat_at constant timestamptz := clock_timestamp();
begin
    return query
    update procrastinate_workers as worker
    set
        last_heartbeat = beat_at,
        -- After a gap (an outage, a freeze) this worker knows nothing of the silence of others.
        awake_since = case
            when beat_at < worker.last_heartbeat + worker.heartbeat_interval * 2
                then worker.awake_since
            else beat_at
        end,
        -- None of a pooler: it may end at any time, whatever becomes of this worker.
        backend_pid = case
            when _procrastinate_renew_lease.backend_pid <> pg_backend_pid() then null
            else pg_backend_pid()
        end,
        server_started_at = pg_postmaster_start_time()
    where worker.id = worker_id and worker.gone_at is null
    returning worker.stop_requested, worker.heartbeat_interval;
    if not found then
        perform _procrastinate_refuse_worker(worker_id);
    end if;
end;
$$;

comment on function _procrastinate_renew_lease is
'Note that a worker lives, whether its heartbeats came without a gap, and which server process '
'will be gone when it is.';

create function _procrastinate_wake_ready()
returns void
language plpgsql
set search_path from current
as $$
declare
    -- A variable: in a condition on the table the volatile call would be made for each of its rows.
    ready_ids bigint[] := _procrastinate_promote_due(1000);
begin
    ready_ids := ready_ids || _procrastinate_settle_locks(1000);
    perform _procrastinate_notify_waiting(ready_ids);
end;
$$;

comment on function _procrastinate_wake_ready is
'Promote what is due, settle locks, and wake workers for what became ready.';
