-- Delete finished jobs, a bounded batch a call.

create function procrastinate_purge_jobs(
    older_than interval,
    queue_name text = null,
    statuses text[] = null,
    max_jobs integer = 10000
)
returns bigint
language plpgsql
set search_path from current
set jit = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
as $$
declare
    purged bigint;
    finished_by timestamptz;
begin
    if older_than is null then
        perform _procrastinate_refuse('older_than', 'must not be null');
    elsif coalesce(max_jobs < 1, true) then
        perform _procrastinate_refuse('max_jobs', 'must be at least 1');
    elsif not coalesce(statuses <@ array['succeeded', 'failed', 'cancelled', 'aborted'], true) then
        perform _procrastinate_refuse(
            'statuses', 'must be among succeeded, failed, cancelled and aborted'
        );
    end if;
    perform _procrastinate_check_interval('older_than', older_than);

    -- A variable: a volatile function in the condition would have the whole index read.
    finished_by := clock_timestamp() - older_than;

    delete from procrastinate_jobs as job
    where job.id = any(array(
        select old.id
        from procrastinate_jobs as old
        where
            old.finished_at <= finished_by
            and old.queue_name = coalesce(procrastinate_purge_jobs.queue_name, old.queue_name)
            and (statuses is null or old.status = any(statuses::procrastinate_job_status[]))
        order by old.finished_at
        limit max_jobs
        for update skip locked
    ));
    get diagnostics purged = row_count;
    return purged;
end;
$$;

comment on function procrastinate_purge_jobs is
'Delete up to max_jobs jobs that finished longer ago than older_than, the oldest first, of one '
'queue and of some statuses if given. Returns how many: call it again until that is 0. Error: '
'22023. Example: select procrastinate_purge_jobs(''7 days'').';

create function _procrastinate_purge_due(max_jobs integer)
returns void
language plpgsql
set search_path from current
as $$
declare
    due_by constant timestamptz := clock_timestamp();
begin
    delete from procrastinate_jobs as job
    where job.id = any(array(
        select due.id
        from procrastinate_jobs as due
        where due.purge_at <= due_by
        order by due.purge_at
        limit max_jobs
        for update skip locked
    ));
end;
$$;

comment on function _procrastinate_purge_due is
'Delete up to max_jobs jobs whose task does not keep them any longer.';
