-- Who is next: the only code that makes a job with a lock ready (docs/decisions/0002-locks.md).
--
-- Everybody else only appends to procrastinate_lock_events. One session at a time reads the events
-- and, in later statements that see whatever caused them, brings each lock in order. It never waits
-- for a row: a lock whose row is held gets its event back.

create function _procrastinate_settle_locks(max_events integer)
returns table (taken integer, readied bigint[], busy boolean)
language plpgsql
set search_path from current
as $$
declare
    locks text[];
    tries integer[];
    held text[];
    also_held text[];
begin
    taken := 0;
    busy := exists (
        select from procrastinate_lock_events as event
        where event.due_at is null or event.due_at <= clock_timestamp()
    );
    if not busy or not _procrastinate_become_settler(wait => false) then
        return next;
        return;
    end if;
    busy := false;

    with event as (
        delete from procrastinate_lock_events as event
        where event.id = any(array(
            select due.id
            from procrastinate_lock_events as due
            where due.due_at is null or due.due_at <= clock_timestamp()
            order by due.id
            limit max_events
        ))
        returning event.id, event.lock, event.tries
    ),
    named as (
        select event.lock, max(event.tries) as tries, count(*) as events, min(event.id) as first_id
        from event
        group by event.lock
    )
    select
        array_agg(named.lock order by named.first_id),
        array_agg(named.tries order by named.first_id),
        coalesce(sum(named.events), 0)
    into locks, tries, taken
    from named;

    held := _procrastinate_unready_overtaken(locks);
    select made.readied, made.held into readied, also_held
    from _procrastinate_ready_heads(locks) as made;

    insert into procrastinate_lock_events (lock, due_at, tries)
    select
        named.lock,
        clock_timestamp()
        + least(interval '10 milliseconds' * 2 ^ named.tries, interval '1 second'),
        least(named.tries + 1, 10)
    from unnest(locks, tries) as named (lock, tries)
    where named.lock = any(held || also_held);
    return next;
end;
$$;

comment on function _procrastinate_settle_locks is
'Take up to max_events events and bring their locks in order. Returns how many were taken, the '
'jobs that became ready, and whether events were left because another session is busy with them.';

create function _procrastinate_unready_overtaken(locks text[])
returns text[]
language plpgsql
set search_path from current
as $$
declare
    held text[];
begin
    with overtaken as materialized (
        select holder.id, holder.lock
        from unnest(locks) as named (lock)
        inner join lateral (
            select job.id, job.lock, job.status
            from procrastinate_jobs as job
            where job.lock = named.lock and (job.status = 'doing' or job.ready_seq is not null)
            limit 1
        ) as holder on holder.status = 'todo'
        where holder.id <> _procrastinate_head(named.lock)
    ),
    free as materialized (
        select job.id
        from procrastinate_jobs as job
        where
            job.id = any(array(select overtaken.id from overtaken))
            and num_nulls(job.ready_seq) = 0
        for update skip locked
    ),
    unreadied as (
        update procrastinate_jobs as job
        set ready_seq = null
        from free
        where job.id = any(array[free.id])
        returning job.id
    )
    select array_agg(overtaken.lock) into held
    from overtaken
    where overtaken.id not in (select unreadied.id from unreadied);
    return held;
end;
$$;

comment on function _procrastinate_unready_overtaken is
'Take readiness from jobs that are no longer the first of their lock. Returns the locks whose job '
'somebody holds.';

create function _procrastinate_ready_heads(locks text[])
returns table (readied bigint[], held text[])
language plpgsql
set search_path from current
as $$
begin
    with head as materialized (
        select job.id, job.lock, named.place
        from unnest(locks) with ordinality as named (lock, place)
        inner join procrastinate_jobs as job
            on job.id = any(array[_procrastinate_head(named.lock)])
        where
            job.due_at is null
            and (
                select holder.id from procrastinate_jobs as holder
                where
                    holder.lock = named.lock
                    and (holder.status = 'doing' or holder.ready_seq is not null)
            ) is null
    ),
    free as materialized (
        select job.id
        from procrastinate_jobs as job
        inner join head on job.id = any(array[head.id]) and job.lock is not distinct from head.lock
        where job.status = 'todo' and job.due_at is null
        order by head.place
        for update of job skip locked
    ),
    turn as materialized (
        select free.id, nextval('procrastinate_ready_seq') as ready_seq from free
    ),
    made as (
        update procrastinate_jobs as job
        set ready_seq = turn.ready_seq
        from turn
        where job.id = any(array[turn.id])
        returning job.id
    )
    select
        (select array_agg(made.id) from made),
        (select array_agg(head.lock) from head where head.id not in (select made.id from made))
    into readied, held;
    return next;
end;
$$;

comment on function _procrastinate_ready_heads is
'Make the first job of each free lock ready, in the order of the locks. Returns those jobs, and '
'the locks whose job somebody holds.';

create function _procrastinate_head(lock text)
returns bigint
language plpgsql
stable
set search_path from current
as $$
begin
    return (
        select job.id
        from procrastinate_jobs as job
        where job.lock = _procrastinate_head.lock and job.status = 'todo'
        order by job.priority desc, job.id
        limit 1
    );
end;
$$;

comment on function _procrastinate_head is
'The job of a lock that is next: by priority, then by id.';

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
