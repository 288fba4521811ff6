-- Which locks are to be looked at.
--
-- Whoever may change which job of a lock is next appends an event: that never waits, and is seen
-- exactly when its cause is. Only the settler takes events (sql/settle_locks.sql).

create function _procrastinate_append_events(locks text[])
returns void
language plpgsql
set search_path from current
as $$
begin
    if locks is null then
        return;
    end if;
    insert into procrastinate_lock_events (locks)
    select array_agg(named.lock order by named.place)
    from unnest(locks) with ordinality as named (lock, place)
    group by (named.place - 1) / 20
    order by (named.place - 1) / 20;
end;
$$;

comment on function _procrastinate_append_events is
'Let these locks (null: none) be looked at: an event for twenty of them, as in '
'_procrastinate_jobs_inserted.';

create function _procrastinate_has_events()
returns boolean
language plpgsql
set search_path from current
as $$
declare
    at_floor constant boolean := _procrastinate_begins_at_floor('events');
    first_id constant bigint := case when at_floor then _procrastinate_first_event() else 0 end;
    due_by constant timestamptz := clock_timestamp();
    before constant bigint := _procrastinate_effort('procrastinate_lock_events_pkey');
    fresh constant bigint[] := array(
        select event.id
        from procrastinate_lock_events as event
        where event.id >= first_id and event.due_at is null
        order by event.id
        limit 1
    );
    effort constant bigint := _procrastinate_effort('procrastinate_lock_events_pkey') - before;
begin
    if at_floor then
        if fresh[1] < _procrastinate_floor('events') then
            perform _procrastinate_set_floor('events', fresh[1]);
        end if;
    elsif (effort > 15 or at_floor is null) and _procrastinate_note_effort('events', effort) then
        perform _procrastinate_set_floor(
            'events',
            coalesce(fresh[1], pg_sequence_last_value('procrastinate_lock_events_id_seq'), 0)
        );
    end if;
    return fresh <> '{}' or exists (
        select from procrastinate_lock_events as event
        where event.due_at <= due_by
    );
end;
$$;

comment on function _procrastinate_has_events is
'Are there locks to look at? A look from the start that had to pass many entries notes where the '
'next ones are to begin.';

create function _procrastinate_first_event()
returns bigint
language plpgsql
set search_path from current
as $$
declare
    floor constant bigint := _procrastinate_floor('events');
begin
    if _procrastinate_is_crowded('late events') then
        return floor;
    end if;
    -- Whoever defers draws the number of an event some time before it can be seen: most are late,
    -- and by little.
    perform _procrastinate_put_off('late events', 500);
    return floor - 2000;
end;
$$;

comment on function _procrastinate_first_event is
'The event at which a look that begins at the floor is to begin: once in half a second one that is '
'2,000 lower.';

create function _procrastinate_next_events(max_locks integer, with_early boolean)
returns table (ids bigint[], is_more boolean)
language plpgsql
set search_path from current
as $$
declare
    crowded constant boolean := _procrastinate_is_crowded('events');
    first_id constant bigint := case when crowded then _procrastinate_floor('events') else 0 end;
    due_by constant timestamptz := clock_timestamp();
    put_off constant bigint[] := array(
        select event.id
        from procrastinate_lock_events as event
        where event.due_at <= due_by
        order by event.due_at
        limit max_locks
    );
    fresh bigint[] := array[]::bigint[];
    locks integer := 0;
    next_up record;
begin
    -- As many as fit, and one at least; a loop reads no further.
    is_more := false;
    for next_up in
        select one.id, cardinality(one.locks) as locks
        from procrastinate_lock_events as one
        where one.id >= first_id and one.due_at is null
        order by one.id
        limit max_locks
    loop
        is_more := fresh <> '{}' and locks + next_up.locks > max_locks;
        exit when is_more;
        fresh := fresh || next_up.id;
        locks := locks + next_up.locks;
    end loop;
    is_more := is_more or max_locks in (cardinality(fresh), cardinality(put_off));
    if crowded and fresh <> '{}' then
        perform _procrastinate_set_floor('events', fresh[cardinality(fresh)]);
    end if;
    ids := fresh || put_off || array(
        select event.id from procrastinate_lock_events as event where event.is_early and with_early
    );
    return next;
end;
$$;

comment on function _procrastinate_next_events is
'The first events, of up to max_locks locks, as many again that were put off and, if they are '
'wanted, all of early jobs; and whether there are more.';

create function _procrastinate_take_events(event_ids bigint[])
returns table (locks text[], tries integer[], early_locks text[])
language plpgsql
set search_path from current
as $$
begin
    with event as (
        delete from procrastinate_lock_events as event
        where event.id = any(event_ids)
        returning event.id, event.locks, event.tries, event.is_early
    ),
    named as (
        select
            -- Told apart by their bytes: quicker than by the rules of a language.
            named.lock collate "C" as lock,
            max(event.tries) as tries,
            bool_or(event.is_early) as is_early,
            min(event.id) as first_id,
            min(named.place) as first_place
        from event
        cross join unnest(event.locks) with ordinality as named (lock, place)
        group by named.lock collate "C"
    )
    select
        array_agg(named.lock),
        array_agg(named.tries),
        array_agg(named.lock) filter (where named.is_early)
    into locks, tries, early_locks
    from (select * from named order by named.first_id, named.first_place) as named;
    return next;
end;
$$;

comment on function _procrastinate_take_events is
'Take these events. Returns the locks (null: none), each once, in order, with how often a row was '
'found held; and those for which an early job has come to wait.';
