-- Who is next: the only code that lets a job with a lock start (docs/decisions/0002-locks.md).
--
-- Everybody else only appends to procrastinate_lock_events. One session at a time reads the events
-- and, in later statements that see whatever caused them, finds the jobs that are next. It never
-- waits for a row: a lock whose row is held gets its event back.

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

create function _procrastinate_settle_locks(max_locks integer)
returns bigint[]
language plpgsql
set search_path from current
as $$
begin
    if not _procrastinate_has_events() then
        return array[]::bigint[];
    end if;
    return _procrastinate_make_ready(freed.heads)
    from _procrastinate_free_heads(max_locks) as freed;
end;
$$;

comment on function _procrastinate_settle_locks is
'Take events of up to max_locks locks, if no other session is busy with them, and bring these '
'locks in order. Returns the jobs that became ready.';

create function _procrastinate_free_heads(max_locks integer)
returns table (heads bigint[], is_more boolean, busy boolean)
language plpgsql
set search_path from current
as $$
declare
    era bigint;
    event_ids bigint[];
    taken record;
    settled_id bigint := 0;
    before bigint;
    overtaken text[];
    overtaken_held text[];
    heads_held text[];
begin
    heads := array[]::bigint[];
    is_more := false;
    busy := not _procrastinate_become_settler(wait => false);
    if busy then
        return next;
        return;
    end if;

    era := _procrastinate_lock_era();
    select next_up.ids, next_up.is_more into event_ids, is_more
    from _procrastinate_next_events(max_locks, with_early => era is not null) as next_up;
    select * into taken from _procrastinate_take_events(event_ids);
    if taken.locks is null then
        return next;
        return;
    end if;
    if era is not null then
        if _procrastinate_is_era_over(era, taken.locks) then
            era := null;
        end if;
        delete from procrastinate_lock_floors as noted where noted.lock = any(taken.early_locks);
        settled_id := _procrastinate_settled_id();
    end if;

    before := _procrastinate_lock_entries();
    select next_up.heads, next_up.held, next_up.overtaken into heads, heads_held, overtaken
    from _procrastinate_hold_heads(era, taken.locks) as next_up;
    if overtaken is not null then
        overtaken_held := _procrastinate_unready(overtaken);
        select next_up.heads, next_up.held into heads, heads_held
        from _procrastinate_hold_heads(era, taken.locks) as next_up;
    end if;
    perform _procrastinate_note_lock_floors(
        era, taken.locks, heads, settled_id, _procrastinate_lock_entries() - before
    );

    if num_nonnulls(overtaken_held, heads_held) > 0 then
        insert into procrastinate_lock_events (locks, due_at, tries)
        select
            array[named.lock],
            clock_timestamp()
            + least(interval '10 milliseconds' * 2 ^ named.tries, interval '1 second'),
            least(named.tries + 1, 10)
        from unnest(taken.locks, taken.tries) as named (lock, tries)
        where named.lock = any(overtaken_held || heads_held);
    end if;
    return next;
end;
$$;

comment on function _procrastinate_free_heads is
'Take events of up to max_locks locks, and hold the jobs that are next of these and may start now: '
'the caller makes them ready, or claims them. Returns them in order of priority, whether there are '
'more events, and whether another session is busy with all of them.';

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
    fresh bigint[];
    put_off constant bigint[] := array(
        select event.id
        from procrastinate_lock_events as event
        where event.due_at <= due_by
        order by event.due_at
        limit max_locks
    );
begin
    -- As many as fit, and one at least.
    select
        array_agg(event.id order by event.id) filter (where event.fits),
        coalesce(not bool_and(event.fits) or count(*) = max_locks, false)
        or cardinality(put_off) = max_locks
    into fresh, is_more
    from (
        select
            event.id,
            sum(cardinality(event.locks)) over (order by event.id)
            <= greatest(max_locks, cardinality(event.locks)) as fits
        from (
            select * from procrastinate_lock_events as event
            where event.id >= first_id and event.due_at is null
            order by event.id
            limit max_locks
        ) as event
    ) as event;
    if crowded and fresh is not null then
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

create function _procrastinate_unready(overtaken text[])
returns text[]
language plpgsql
set search_path from current
as $$
declare
    held text[];
begin
    with ready as materialized (
        select job.id, named.lock
        from unnest(overtaken) as named (lock)
        cross join lateral (
            select one.id
            from procrastinate_jobs as one
            where one.lock = named.lock and num_nulls(one.ready_seq) = 0
            limit 1
        ) as job
    ),
    free as materialized (
        select job.id
        from procrastinate_jobs as job
        where
            job.id = any(array(select ready.id from ready))
            and job.status = 'todo' and num_nulls(job.ready_seq) = 0
        for update skip locked
    ),
    unreadied as (
        update procrastinate_jobs as job
        set ready_seq = null
        from free
        where job.id = any(array[free.id])
        returning job.id
    )
    select array_agg(ready.lock) into held
    from ready
    where ready.id not in (select unreadied.id from unreadied);
    return held;
end;
$$;

comment on function _procrastinate_unready is
'Take readiness from the ready jobs of these locks, each of which was overtaken. Returns the locks '
'whose job somebody holds.';

create function _procrastinate_hold_heads(era bigint, locks text[])
returns table (heads bigint[], held text[], overtaken text[])
language plpgsql
set search_path from current
as $$
begin
    with noted as materialized (
        select * from _procrastinate_heads_from_floors(era, locks) where era is not null
    ),
    head as materialized (
        select noted.place, noted.lock, noted.id, noted.may_start, noted.is_overtaken
        from noted
        where noted.id is not null
        union all
        select * from _procrastinate_heads_from_start(
            case when era is null then locks else array(
                select case when not noted.has_floors then noted.lock end
                from noted
                order by noted.place
            ) end
        )
    ),
    free as materialized (
        select job.id, job.priority, head.place
        from head
        inner join procrastinate_jobs as job on job.id = any(array[head.id])
        -- Not `=`: a plan could then read the whole lock for it.
        where
            head.may_start
            and job.status = 'todo' and job.due_at is null
            and job.lock is not distinct from head.lock
        for update of job skip locked
    )
    select
        coalesce(
            (select array_agg(free.id order by free.priority desc, free.place) from free),
            array[]::bigint[]
        ),
        (
            select array_agg(head.lock) from head
            where head.may_start and head.id not in (select free.id from free)
        ),
        (select array_agg(head.lock) from head where head.is_overtaken)
    into heads, held, overtaken;
    return next;
end;
$$;

comment on function _procrastinate_hold_heads is
'Hold the first job of each free lock, by priority and then in the order of the locks. Returns '
'those jobs, the locks whose first job somebody else holds, and those of which another job than '
'the first is ready. In an era of floors locks are looked through from theirs.';

create function _procrastinate_heads_from_start(locks text[])
returns table (place bigint, lock text, id bigint, may_start boolean, is_overtaken boolean)
language plpgsql
set search_path from current
as $$
begin
    return query
    select
        named.place,
        named.lock,
        job.id,
        holder.id is null and job.due_at is null,
        holder.status = 'todo' and holder.id <> job.id
    from unnest(locks) with ordinality as named (lock, place)
    cross join lateral (
        select first.id, first.due_at
        from procrastinate_jobs as first
        where first.lock = named.lock and first.status = 'todo'
        order by first.priority desc, first.id + 0
        limit 1
    ) as job
    left join lateral (
        select running.id, running.status
        from procrastinate_jobs as running
        where running.lock = named.lock and running.status = 'doing'
        union all
        select ready.id, ready.status
        from procrastinate_jobs as ready
        where ready.lock = named.lock and num_nulls(ready.ready_seq) = 0
        limit 1
    ) as holder on true;
end;
$$;

comment on function _procrastinate_heads_from_start is
'The first job of each of these locks (null: of none): may it start now, or is another one ready?';

create function _procrastinate_heads_from_floors(era bigint, locks text[])
returns table (
    place bigint, lock text, id bigint, may_start boolean, is_overtaken boolean, has_floors boolean
)
language plpgsql
set search_path from current
as $$
begin
    return query
    select
        noted.place,
        noted.lock,
        job.id,
        holder.id is null and job.due_at is null,
        holder.status = 'todo' and holder.id <> job.id,
        noted.version is not null
    from _procrastinate_floors_of_locks(era, locks) as noted
    left join lateral (
        select first.id, first.due_at
        from (
            select level.priority, level.first_id, noted.priorities[level.place] as next_priority
            from unnest(2147483648 || noted.priorities::bigint[], 0 || noted.first_ids)
            with ordinality as level (priority, first_id, place)
            where noted.version is not null
            order by level.place
        ) as level
        cross join lateral (
            (
                select waiting.id, waiting.due_at
                from procrastinate_jobs as waiting
                where
                    waiting.lock = noted.lock and waiting.status = 'todo'
                    and waiting.priority = level.priority and waiting.id + 0 >= level.first_id
                order by waiting.id + 0
                limit 1
            )
            union all
            -- Of a priority in between, which was not in use.
            (
                select waiting.id, waiting.due_at
                from procrastinate_jobs as waiting
                where
                    waiting.lock = noted.lock and waiting.status = 'todo'
                    and waiting.priority < level.priority
                    and waiting.priority > coalesce(level.next_priority, -2147483649)
                order by waiting.priority desc, waiting.id + 0
                limit 1
            )
        ) as first
        limit 1
    ) as job on true
    left join procrastinate_jobs as holder
        on holder.id = any(array[noted.holder_id])
        and holder.lock is not distinct from noted.lock
        and case holder.status when 'doing' then true else num_nulls(holder.ready_seq) = 0 end;
end;
$$;

comment on function _procrastinate_heads_from_floors is
'As _procrastinate_heads_from_start, by the floors of this era; no job of a lock that has none.';

create function _procrastinate_is_head(job_id bigint, lock text, priority integer)
returns boolean
language plpgsql
set search_path from current
as $$
#variable_conflict use_variable
declare
    era constant bigint := pg_sequence_last_value('procrastinate_lock_era');
    noted procrastinate_lock_floors;
    first_id bigint;
    is_head boolean;
begin
    if era % 2 = 1
        and not exists (select from procrastinate_lock_events as event where event.is_early)
    then
        select * into noted
        from procrastinate_lock_floors as last
        where last.lock = lock and last.era = era
        order by last.version desc
        limit 1;
    end if;
    if noted.version is not null then
        if noted.priorities[1] > priority then
            is_head := job_id is not distinct from (
                select head.id from _procrastinate_heads_from_floors(era, array[lock]) as head
            );
        else
            -- As nearly always: two probes of an index.
            first_id := noted.first_ids[array_position(noted.priorities, priority)];
            is_head := not exists (
                select from procrastinate_jobs as job
                where job.lock = lock and job.status = 'todo' and job.priority > priority
            ) and not exists (
                select from procrastinate_jobs as job
                where
                    job.lock = lock and job.status = 'todo' and job.priority = priority
                    and job.id + 0 < job_id
                    and job.id + 0 >= coalesce(first_id, -9223372036854775808)
            );
        end if;
        -- Of an era that has ended meanwhile they may be no longer true.
        if pg_sequence_last_value('procrastinate_lock_era') = era then
            return is_head;
        end if;
    end if;
    return job_id is not distinct from (
        select first.id
        from procrastinate_jobs as first
        where first.lock = lock and first.status = 'todo'
        order by first.priority desc, first.id + 0
        limit 1
    );
end;
$$;

comment on function _procrastinate_is_head is
'Is this job, which waits with this priority, the first of its lock by what is committed now?';

create function _procrastinate_make_ready(heads bigint[])
returns bigint[]
language plpgsql
set search_path from current
as $$
begin
    if heads <> '{}' then
        perform _procrastinate_act(true);
        with turn as materialized (
            select head.id, nextval('procrastinate_ready_seq') as ready_seq
            from unnest(heads) as head (id)
        )
        update procrastinate_jobs as job
        set ready_seq = turn.ready_seq
        from turn
        where job.id = any(array[turn.id]);
        perform _procrastinate_act(false);
    end if;
    return heads;
end;
$$;

comment on function _procrastinate_make_ready is
'Let these jobs, which this transaction holds and which are next of their locks, be fetched in '
'this order.';

create function _procrastinate_become_settler(wait boolean)
returns boolean
language plpgsql
set search_path from current
as $$
declare
    -- One key for each installation, far from the small numbers that applications use.
    key constant bigint := hashtextextended(
        'procrastinate_settle_locks', 'procrastinate_lock_events'::regclass::oid::bigint
    );
begin
    if not wait then
        return pg_try_advisory_xact_lock(key);
    end if;
    perform pg_advisory_xact_lock(key);
    return true;
end;
$$;

comment on function _procrastinate_become_settler is
'Become, until the end of the transaction, the only session that decides which job of a lock is '
'ready. Returns whether that worked; with wait it always does.';

create function _procrastinate_await_settler()
returns void
language plpgsql
set search_path from current
as $$
begin
    -- A moment to commit, but no more: nobody can tell how long the other stays open.
    for _ in 1..50 loop
        exit when _procrastinate_become_settler(wait => false);
        perform pg_sleep(0.002);
    end loop;
end;
$$;

comment on function _procrastinate_await_settler is
'Wait until no other session is busy with locks, and become the settler, unless it takes longer '
'than a tenth of a second.';
