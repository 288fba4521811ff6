-- Jobs whose time has come can be fetched.

create function procrastinate_next_due(queue_names text[] = null)
returns interval
language plpgsql
set search_path from current
as $$
declare
    first constant timestamptz := case
        when _procrastinate_is_crowded('due') then _procrastinate_floor_time('due') else '-infinity'
    end;
    due_at timestamptz;
begin
    perform _procrastinate_check_list('queue_names', coalesce(queue_names, '{}'));
    if queue_names is null then
        select job.due_at into due_at
        from procrastinate_jobs as job
        where job.due_at >= first and job.status = 'todo'
        order by job.due_at
        limit 1;
    else
        select min(earliest.due_at) into due_at
        from unnest(queue_names) as named (queue)
        cross join lateral (
            select job.due_at
            from procrastinate_jobs as job
            where job.queue_name = named.queue and job.queue_name <> '' and job.due_at >= first
            order by job.due_at
            limit 1
        ) as earliest;
    end if;
    due_at := least(due_at, _procrastinate_next_look(coalesce(queue_names, array[''])));
    -- Not greatest() alone: it ignores a null, and a worker would never sleep.
    if due_at is null then
        return null;
    end if;
    return greatest(due_at - clock_timestamp(), interval '0');
end;
$$;

comment on function procrastinate_next_due is
'How long until the next scheduled job of these queues (null: all) can be fetched: zero if one is '
'due, null if none is scheduled. While fetches look from a floor (sql/floors.sql), at most until '
'one has to look below it. Error: 22023. Example: '
'select procrastinate_next_due(array[''mail'']).';

create function _procrastinate_promote_due(max_jobs integer)
returns bigint[]
language plpgsql
set search_path from current
as $$
declare
    -- Once: a volatile function in a condition keeps the index from being searched, it is read through.
    due_by constant timestamptz := clock_timestamp();
    at_floor constant boolean := _procrastinate_begins_at_floor('due');
    first constant timestamptz := case
        when at_floor then _procrastinate_floor_time('due') else '-infinity'
    end;
    before constant bigint := _procrastinate_effort('procrastinate_jobs_due_idx');
    effort bigint;
    promoted bigint[] := array[]::bigint[];
begin
    if exists (
        select from procrastinate_jobs as job
        where job.due_at between first and due_by and job.status = 'todo'
    ) then
        promoted := _procrastinate_make_due(first, due_by, max_jobs);
    end if;

    if at_floor then
        -- What went on is passed only for a moment: most that is late is so by less.
        if cardinality(promoted) < max_jobs and first < due_by - interval '0.5 seconds' then
            perform _procrastinate_set_floor_time('due', due_by - interval '0.25 seconds');
        end if;
        return promoted;
    end if;
    effort := _procrastinate_effort('procrastinate_jobs_due_idx') - before - max_jobs / 20;
    if cardinality(promoted) = max_jobs then
        effort := 0;
    end if;
    if (effort > 0 or at_floor is null) and _procrastinate_note_effort('due', effort) then
        perform _procrastinate_set_floor_time('due', due_by);
    end if;
    return promoted;
end;
$$;

comment on function _procrastinate_promote_due is
'Let up to max_jobs jobs whose time has come take their turn, or their place in their lock. '
'Returns them.';

create function _procrastinate_make_due(first timestamptz, due_by timestamptz, max_jobs integer)
returns bigint[]
language plpgsql
set search_path from current
as $$
declare
    promoted bigint[];
    locks text[];
begin
    perform _procrastinate_act(true);
    with due as materialized (
        select job.id, job.lock
        from procrastinate_jobs as job
        where job.due_at between first and due_by and job.status = 'todo'
        order by job.due_at, job.id
        limit max_jobs
        for update skip locked
    ),
    -- Turns are drawn here, in the order of the due times, not in whatever order the update joins.
    turn as materialized (
        select
            due.id,
            case when due.lock is null then nextval('procrastinate_ready_seq') end as ready_seq
        from due
    ),
    ready as (
        update procrastinate_jobs as job
        set due_at = null, ready_seq = turn.ready_seq
        from turn
        where job.id = any(array[turn.id])
        returning job.id, job.lock
    )
    select
        coalesce(array_agg(ready.id), array[]::bigint[]),
        array_agg(distinct ready.lock collate "C") filter (where ready.lock is not null)
    into promoted, locks
    from ready;
    perform _procrastinate_act(false);
    perform _procrastinate_append_events(locks);
    return promoted;
end;
$$;

comment on function _procrastinate_make_due is
'Let the jobs that are due between two times go on. Returns them.';
