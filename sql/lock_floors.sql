-- Where to begin to look for the next job of a lock, while a snapshot is held.
--
-- All that a lock has run since then lies, dead, before its next job, and in the index of holders
-- under the same key. So of locks with many such entries the settler notes who holds the lock, and
-- for each priority an id below which none of its jobs waits: its floor. Unlike the floors of
-- sql/floors.sql, which are hints, these are facts, so that the order within a lock is kept: no
-- floor is above an id of which the job may still be committed, and whoever puts an older job there
-- says so in its event, which the settler reads before it looks (docs/decisions/0002-locks.md).
--
-- They are rows, as facts have to be undone with the transaction that found them. Only the settler
-- writes them, and with each change the version goes up: the last one stands at the end of its lock
-- in the index, where a look finds it at once, and not behind those that are dead.

create table procrastinate_lock_floors (
    lock text,
    era bigint,
    version integer not null default 1,
    holder_id bigint,
    priorities integer[] not null,
    first_ids bigint[] not null,
    primary key (lock, era, version)
) with (autovacuum_vacuum_scale_factor = 0.2, vacuum_truncate = off);

comment on table procrastinate_lock_floors is
'Where to look for the next job of a lock, and for the job that holds it, while a snapshot is held '
'and many have run. Rows of a past era mean nothing.';
comment on column procrastinate_lock_floors.lock is 'The lock.';
comment on column procrastinate_lock_floors.era is
'During which of the times that floors were needed it was noted.';
comment on column procrastinate_lock_floors.version is 'How often it was noted in this era.';
comment on column procrastinate_lock_floors.holder_id is
'The job that was let start last: if it neither runs nor is ready, nobody holds the lock.';
comment on column procrastinate_lock_floors.priorities is
'Some of the priorities in use, from the highest down.';
comment on column procrastinate_lock_floors.first_ids is
'For each of these: no job of the lock with this priority and a lower id waits.';

create sequence procrastinate_lock_era owned by procrastinate_lock_floors.era;

comment on sequence procrastinate_lock_era is
'Odd while floors of locks are in use. It goes on by one when they come into use and when they go '
'out of it, for all sessions at once, so that an era that has ended never comes back.';

create function _procrastinate_lock_entries()
returns bigint
language plpgsql
set search_path from current
as $$
begin
    return pg_stat_get_xact_tuples_returned('procrastinate_jobs_lock_waiting_idx'::regclass)
        + pg_stat_get_xact_tuples_returned('procrastinate_jobs_lock_ready_idx'::regclass)
        + pg_stat_get_xact_tuples_returned('procrastinate_jobs_lock_running_idx'::regclass);
end;
$$;

comment on function _procrastinate_lock_entries is
'How many index entries of jobs with locks this transaction has passed so far.';

create function _procrastinate_are_many(entries bigint, locks integer)
returns boolean
language plpgsql
immutable
set search_path from current
as $$
begin
    return entries > 30 * locks;
end;
$$;

comment on function _procrastinate_are_many is
'Did a look from the start at so many locks pass more entries than it costs to keep floors?';

create function _procrastinate_lock_era()
returns bigint
language plpgsql
set search_path from current
as $$
declare
    era constant bigint := pg_sequence_last_value('procrastinate_lock_era');
    index constant regclass := 'procrastinate_lock_events_early_idx';
    before bigint;
    early bigint;
begin
    if coalesce(era, 0) % 2 = 0 then
        return null;
    end if;
    before := pg_stat_get_xact_tuples_returned(index);
    select count(*) into early
    from (select from procrastinate_lock_events as event where event.is_early limit 101) as event;
    -- All of these are read before any lock is looked at, and past ones are passed.
    if early > 100 or pg_stat_get_xact_tuples_returned(index) - before > 1000 then
        perform _procrastinate_put_off('no floors of locks', 10000);
        perform nextval('procrastinate_lock_era');
        return null;
    end if;
    return era;
end;
$$;

comment on function _procrastinate_lock_era is
'The era in which locks are to be looked at (null: from the start). It ends, and none begins for '
'ten seconds, where jobs are edited or run afresh by the hundred.';

create function _procrastinate_is_era_over(era bigint, locks text[])
returns boolean
language plpgsql
set search_path from current
as $$
declare
    before bigint;
    looked_at text[];
begin
    if _procrastinate_begins_at_floor('locks') then
        return false;
    end if;
    -- Is it still worth it? A look from the start at a few locks that have floors tells.
    looked_at := array(
        select noted.lock
        from _procrastinate_floors_of_locks(era, locks) as noted
        where noted.version is not null
        limit 5
    );
    if looked_at = '{}' and exists (
        select from procrastinate_lock_floors as noted
        where noted.era = _procrastinate_is_era_over.era
    ) then
        return false;
    end if;
    before := _procrastinate_lock_entries();
    perform _procrastinate_heads_from_start(looked_at);
    if _procrastinate_are_many(_procrastinate_lock_entries() - before, cardinality(looked_at)) then
        perform _procrastinate_keep_lock_floors();
        return false;
    end if;
    perform nextval('procrastinate_lock_era');
    return true;
end;
$$;

comment on function _procrastinate_is_era_over is
'Every ten seconds: are floors of locks no longer needed? Then the era ends.';

create function _procrastinate_keep_lock_floors()
returns void
language plpgsql
set search_path from current
as $$
begin
    perform _procrastinate_put_off('locks', 10000);
end;
$$;

comment on function _procrastinate_keep_lock_floors is
'Let floors of locks be used for ten seconds before anybody asks whether they are needed.';

-- Facts, so not among those of sql/floors.sql, of which two may take each other's places.
create sequence procrastinate_jobs_drawn owned by procrastinate_lock_floors.first_ids;
create sequence procrastinate_jobs_drawn_before owned by procrastinate_lock_floors.first_ids;
create sequence procrastinate_jobs_settled owned by procrastinate_lock_floors.first_ids;

comment on sequence procrastinate_jobs_drawn is
'An id that was drawn some time ago: a job that is inserted with a lower one is early.';
comment on sequence procrastinate_jobs_drawn_before is
'The next transaction at that moment; 1: all before it have ended.';
comment on sequence procrastinate_jobs_settled is
'An id up to which each job is committed by now or never will be, unless it is early.';

create function _procrastinate_settled_id()
returns bigint
language plpgsql
set search_path from current
as $$
declare
    -- In milliseconds.
    this_moment constant bigint := extract(epoch from clock_timestamp()) * 1000;
    -- What is being inserted right now is not to be early.
    next_drawn constant bigint := pg_sequence_last_value('procrastinate_jobs_id_seq') - 200;
    drawn constant bigint := pg_sequence_last_value('procrastinate_jobs_drawn');
    drawn_before constant bigint := pg_sequence_last_value('procrastinate_jobs_drawn_before');
begin
    if drawn_before > 1 then
        if pg_snapshot_xmin(pg_current_snapshot())::text::bigint >= drawn_before then
            perform setval('procrastinate_jobs_settled', drawn);
            perform setval('procrastinate_jobs_drawn_before', 1);
        end if;
    elsif next_drawn > coalesce(drawn, 0)
        and this_moment - _procrastinate_floor('jobs drawn at') not between 0 and 1000
    then
        perform _procrastinate_set_floor('jobs drawn at', this_moment);
        perform setval('procrastinate_jobs_drawn', next_drawn);
        -- Who writes an older job from here on sees that it is early, and who has written one
        -- before has a number below this.
        perform setval(
            'procrastinate_jobs_drawn_before',
            pg_snapshot_xmax(pg_current_snapshot())::text::bigint
        );
    end if;
    return coalesce(pg_sequence_last_value('procrastinate_jobs_settled'), 0);
end;
$$;

comment on function _procrastinate_settled_id is
'An id, a second or so old, up to which each job is committed by now or never will be, unless its '
'event says that it is early. For the settler only.';

create function _procrastinate_floors_of_locks(era bigint, locks text[])
returns table (
    place bigint,
    lock text,
    version integer,
    holder_id bigint,
    priorities integer[],
    first_ids bigint[]
)
language plpgsql
set search_path from current
as $$
begin
    return query
    select
        named.place, named.lock, last.version, last.holder_id, last.priorities, last.first_ids
    from unnest(locks) with ordinality as named (lock, place)
    left join lateral (
        select *
        from procrastinate_lock_floors as noted
        where noted.lock = named.lock and noted.era = _procrastinate_floors_of_locks.era
        order by noted.version desc
        limit 1
    ) as last on true;
end;
$$;

comment on function _procrastinate_floors_of_locks is
'The floors of each of these locks in this era; a lock that has none has no version.';

create function _procrastinate_note_lock_floors(
    era bigint,
    locks text[],
    heads bigint[],
    settled_id bigint,
    entries bigint
)
returns void
language plpgsql
set search_path from current
as $$
begin
    if _procrastinate_are_many(entries, cardinality(locks))
        and not _procrastinate_is_crowded('no floors of locks')
    then
        if era is null then
            era := nextval('procrastinate_lock_era');
            perform _procrastinate_keep_lock_floors();
            delete from procrastinate_lock_floors;
        end if;
        perform _procrastinate_add_lock_floors(era, locks, settled_id);
    end if;
    if era is not null and heads <> '{}' then
        perform _procrastinate_raise_lock_floors(era, heads, settled_id);
    end if;
end;
$$;

comment on function _procrastinate_note_lock_floors is
'After a look at these locks, which passed so many index entries: these heads are let start. No '
'job up to the settled id was still to be committed before the look.';

create function _procrastinate_raise_lock_floors(era bigint, heads bigint[], settled_id bigint)
returns void
language plpgsql
set search_path from current
as $$
begin
    with raised as materialized (
        select noted.lock, noted.version, head.id as holder_id, level.priorities, level.first_ids
        from unnest(heads) as named (id)
        inner join procrastinate_jobs as head on head.id = any(array[named.id])
        cross join lateral (
            select *
            from procrastinate_lock_floors as last
            where
                last.lock = head.lock and last.era = _procrastinate_raise_lock_floors.era
            order by last.version desc
            limit 1
        ) as noted
        cross join lateral (
            select
                array_agg(one.priority order by one.priority desc) as priorities,
                array_agg(
                    -- Nothing waits above the head, nor before it.
                    case
                        when one.priority > head.priority
                            then greatest(one.first_id, settled_id + 1)
                        when one.priority = head.priority
                            then greatest(one.first_id, least(head.id, settled_id + 1))
                        else one.first_id
                    end
                    order by one.priority desc
                ) as first_ids
            from (
                select * from unnest(noted.priorities, noted.first_ids)
                union all
                select head.priority, -9223372036854775808
                where head.priority <> all(noted.priorities)
            ) as one (priority, first_id)
        ) as level
    ),
    given_up as (
        -- Each priority is a look of its own.
        delete from procrastinate_lock_floors as noted
        using raised
        where
            noted.lock = raised.lock and noted.version = raised.version
            and noted.era = _procrastinate_raise_lock_floors.era
            and cardinality(raised.priorities) > 20
    )
    update procrastinate_lock_floors as noted
    set
        version = noted.version + 1,
        holder_id = raised.holder_id,
        priorities = raised.priorities,
        first_ids = raised.first_ids
    from raised
    where
        noted.lock = raised.lock and noted.version = raised.version
        and noted.era = _procrastinate_raise_lock_floors.era
        and cardinality(raised.priorities) <= 20;
end;
$$;

comment on function _procrastinate_raise_lock_floors is
'Raise the floors of the locks of these heads, which are let start, or give them up if they are of '
'more than twenty priorities.';

create function _procrastinate_add_lock_floors(
    era bigint,
    locks text[],
    settled_id bigint
)
returns void
language plpgsql
set search_path from current
as $$
begin
    insert into procrastinate_lock_floors (lock, era, holder_id, priorities, first_ids)
    select
        noted.lock,
        era,
        holder.id,
        coalesce(used.priorities, '{}'),
        coalesce(used.first_ids, '{}')
    from _procrastinate_floors_of_locks(era, locks) as noted
    left join lateral (
        select running.id, running.priority
        from procrastinate_jobs as running
        where running.lock = noted.lock and running.status = 'doing'
        union all
        select ready.id, ready.priority
        from procrastinate_jobs as ready
        where ready.lock = noted.lock and num_nulls(ready.ready_seq) = 0
        limit 1
    ) as holder on true
    cross join lateral (
        -- From priority to priority by the index, since few are in use.
        with recursive waiting (priority, id) as (
            (
                select job.priority, job.id
                from procrastinate_jobs as job
                where job.lock = noted.lock and job.status = 'todo'
                order by job.priority desc, job.id + 0
                limit 1
            )
            union all
            select lower.priority, lower.id
            from waiting
            cross join lateral (
                select job.priority, job.id
                from procrastinate_jobs as job
                where
                    job.lock = noted.lock and job.status = 'todo'
                    and job.priority < waiting.priority
                order by job.priority desc, job.id + 0
                limit 1
            ) as lower
        )
        select
            array_agg(level.priority order by level.priority desc) as priorities,
            array_agg(least(level.id, settled_id + 1) order by level.priority desc) as first_ids
        from (
            select one.priority, min(one.id) as id
            from (
                (select * from waiting limit 21)
                union all
                -- It may come to wait again.
                select holder.priority, holder.id where holder.id is not null
            ) as one
            group by one.priority
        ) as level
    ) as used
    where noted.version is null and coalesce(cardinality(used.priorities) <= 20, true);
end;
$$;

comment on function _procrastinate_add_lock_floors is
'Note the floors of those of these locks that have none, unless jobs of more than twenty '
'priorities wait.';
