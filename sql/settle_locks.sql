-- Who is next: the only code that lets a job with a lock start (docs/decisions/0002-locks.md).
--
-- Everybody else only appends events (sql/lock_events.sql). One session at a time, the settler,
-- takes them and, in later statements that see whatever caused them, finds the jobs that are next
-- (sql/lock_heads.sql). It never waits for a row: a lock whose row is held gets its event back.

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
