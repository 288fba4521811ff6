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
    finished_by timestamptz;
    purge record;
    before bigint;
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

    finished_by := clock_timestamp() - older_than;
    if num_nonnulls(queue_name, statuses) > 0 then
        return (_procrastinate_purge_finished(
            '-infinity', finished_by, queue_name, statuses, max_jobs
        )).purged;
    end if;

    if _procrastinate_begins_at_floor('finished') then
        purge := _procrastinate_purge_finished(
            _procrastinate_floor_time('finished'), finished_by, null, null, max_jobs
        );
        if purge.purged > 0 then
            perform _procrastinate_note_purge('finished', null, purge.latest);
            return purge.purged;
        end if;
    end if;

    -- Only who has looked from the start may say that nothing is left.
    before := _procrastinate_effort('procrastinate_jobs_finished_idx');
    purge := _procrastinate_purge_finished('-infinity', finished_by, null, null, max_jobs);
    perform _procrastinate_note_purge(
        'finished',
        _procrastinate_effort('procrastinate_jobs_finished_idx') - before - purge.purged / 20,
        coalesce(purge.latest, finished_by)
    );
    return purge.purged;
end;
$$;

comment on function procrastinate_purge_jobs is
'Delete up to max_jobs jobs that finished longer ago than older_than, the oldest first, of one '
'queue and of some statuses if given. Returns how many: call it again until that is 0. While '
'somebody holds an old snapshot, a job whose end was committed late may be purged later than '
'others, but before the call that returns 0. Error: 22023. Example: '
'select procrastinate_purge_jobs(''7 days'').';

create function _procrastinate_purge_finished(
    first timestamptz,
    finished_by timestamptz,
    queue_name text,
    statuses text[],
    max_jobs integer,
    out purged bigint,
    out latest timestamptz
)
language plpgsql
set search_path from current
as $$
#variable_conflict use_variable
begin
    with old as materialized (
        select job.id, job.finished_at
        from procrastinate_jobs as job
        where
            job.finished_at between first and finished_by
            and job.queue_name = coalesce(queue_name, job.queue_name)
            and (statuses is null or job.status = any(statuses::procrastinate_job_status[]))
        order by job.finished_at
        limit max_jobs
        for update skip locked
    ),
    deleted as (
        delete from procrastinate_jobs as job
        where job.id = any(array(select old.id from old))
    )
    select count(*), max(old.finished_at) into purged, latest
    from old;
end;
$$;

comment on function _procrastinate_purge_finished is
'Delete up to max_jobs jobs that finished between two times, the oldest first, of one queue and of '
'some statuses if given. Returns how many, and when the last of them finished.';

create function _procrastinate_note_purge(key text, effort bigint, latest timestamptz)
returns void
language plpgsql
set search_path from current
as $$
begin
    if effort is not null then
        if not _procrastinate_note_effort(key, effort) then
            return;
        end if;
        -- There is no hurry to delete what is hidden.
        perform _procrastinate_put_off(key, 60000);
    end if;
    if latest is not null then
        perform _procrastinate_set_floor_time(key, latest);
    end if;
end;
$$;

comment on function _procrastinate_note_purge is
'After a purge up to some time: let the next ones begin there, for a minute, if a look from the '
'start has read much (null: it was none).';

create function _procrastinate_purge_due(max_jobs integer)
returns void
language plpgsql
set search_path from current
as $$
declare
    due_by constant timestamptz := clock_timestamp();
    at_floor constant boolean := _procrastinate_begins_at_floor('purge');
    first constant timestamptz := case
        when at_floor then _procrastinate_floor_time('purge')
        else '-infinity'
    end;
    before constant bigint := _procrastinate_effort('procrastinate_jobs_purge_idx');
    purged bigint;
    latest timestamptz;
begin
    with due as materialized (
        select job.id, job.purge_at
        from procrastinate_jobs as job
        where job.purge_at between first and due_by
        order by job.purge_at
        limit max_jobs
        for update skip locked
    ),
    deleted as (
        delete from procrastinate_jobs as job
        where job.id = any(array(select due.id from due))
    )
    select count(*), max(due.purge_at) into purged, latest
    from due;

    if at_floor then
        perform _procrastinate_note_purge('purge', null, latest);
        return;
    end if;
    perform _procrastinate_note_purge(
        'purge',
        _procrastinate_effort('procrastinate_jobs_purge_idx') - before - purged / 20,
        coalesce(latest, due_by)
    );
end;
$$;

comment on function _procrastinate_purge_due is
'Delete up to max_jobs jobs whose task does not keep them any longer. While a snapshot is held, '
'what came late is deleted within a minute.';
