-- Where to begin to look in each priority of a queue, its levels (docs/decisions/0006-floors.md).
--
-- The fetch that first has much to pass surveys the queue: it notes as floors what waits first, in
-- every level. From then on fetches begin there, and raise the floors as they take jobs; what
-- appears below is found by sweeps (sql/sweeps.sql).

create table procrastinate_levels (
    queue_name text,
    priority integer,
    primary key (queue_name, priority)
);

comment on table procrastinate_levels is
'Priorities that were in use while a floor was needed: each has a floor of its own.';
comment on column procrastinate_levels.queue_name is
'Name of the queue; empty for fetches from all queues.';
comment on column procrastinate_levels.priority is 'A priority of jobs in it.';

create function _procrastinate_looks_from_floors(key text)
returns boolean
language plpgsql
set search_path from current
as $$
begin
    if not _procrastinate_are_floors_in_use() then
        return false;
    end if;

    -- Heartbeats sweep. If none comes, somebody has to.
    if _procrastinate_is_to_be_swept(key, 2000) then
        perform _procrastinate_sweep(key);
    end if;
    return _procrastinate_floor('until ' || key) > 1;
end;
$$;

comment on function _procrastinate_looks_from_floors is
'Is this queue (empty: all queues) looked through from its floors?';

create function _procrastinate_part_by_floor(keys text[])
returns table (at_floor text[], at_start text[])
language plpgsql
set search_path from current
as $$
begin
    return query
    select
        coalesce(array_agg(named.key) filter (where named.is_at_floor), '{}'),
        coalesce(array_agg(named.key) filter (where not named.is_at_floor), '{}')
    from (
        select given.key, _procrastinate_looks_from_floors(given.key) as is_at_floor
        from (select distinct unnest(keys) as key) as given
    ) as named;
end;
$$;

comment on function _procrastinate_part_by_floor is
'Which of these queues are looked through from their floors, and which from the start?';

create function _procrastinate_survey(key text)
returns void
language plpgsql
set search_path from current
as $$
declare
    -- Of more, too many floors would take each other's places.
    most_levels constant integer := 20;
    index constant regclass := _procrastinate_ready_index(key);
    newest constant bigint := pg_sequence_last_value('procrastinate_ready_seq');
    before constant bigint := _procrastinate_effort(index);
    effort bigint;
    priorities integer[];
    turns bigint[];
begin
    select array_agg(first.priority), array_agg(first.ready_seq) into priorities, turns
    from _procrastinate_first_of_levels(key, most_levels + 1) as first;
    effort := _procrastinate_effort(index) - before - 4 * (1 + coalesce(cardinality(turns), 0));

    -- A floor is seen by all at once, a level when it is committed: whoever began at floors without
    -- the level of a job would not find it. So the levels come first, the floors with a later look.
    if effort <= 15
        or cardinality(turns) > most_levels
        or _procrastinate_add_levels(key, priorities)
    then
        return;
    end if;
    perform _procrastinate_set_floor(
        _procrastinate_floor_key(key, level.priority),
        coalesce(turns[array_position(priorities, level.priority)], newest) - 100
    )
    from procrastinate_levels as level
    where level.queue_name = key;
    perform _procrastinate_set_floor('swept ' || key, 1);
    perform _procrastinate_set_floor('bottom ' || key, newest);
    perform _procrastinate_put_off(key, 1000);
end;
$$;

comment on function _procrastinate_survey is
'Look at what waits first in each level of a queue (empty: of all queues); if that took much, note '
'it as floors, a little lower since a turn is drawn some time before it can be seen, and let looks '
'begin there.';

create function _procrastinate_ready_index(key text)
returns regclass
language plpgsql
set search_path from current
as $$
begin
    return case
        when key = '' then 'procrastinate_jobs_ready_any_queue_idx'
        else 'procrastinate_jobs_ready_idx'
    end;
end;
$$;

comment on function _procrastinate_ready_index is
'The index that is read for the ready jobs of a queue (empty: of all queues).';

create function _procrastinate_floor_key(key text, priority integer)
returns text
language plpgsql
set search_path from current
as $$
begin
    return key || ' ' || priority;
end;
$$;

comment on function _procrastinate_floor_key is
'Under which key the floor of a level is noted.';

create function _procrastinate_floors_of(keys text[])
returns table (queue_name text, priority integer, floor bigint)
language plpgsql
set search_path from current
as $$
begin
    return query
    select
        level.queue_name,
        level.priority,
        _procrastinate_floor(_procrastinate_floor_key(level.queue_name, level.priority))
    from procrastinate_levels as level
    where level.queue_name = any(keys)
    order by level.priority desc;
end;
$$;

comment on function _procrastinate_floors_of is
'The levels of some queues (empty: of all queues), the highest first, and the floor of each.';

create function _procrastinate_first_of_levels(key text, max_levels integer)
returns table (priority integer, ready_seq bigint)
language plpgsql
set search_path from current
as $$
declare
    -- Above all integers.
    above bigint := 2147483648;
begin
    -- From level to level by the index of each, since few are in use.
    for _ in 1..max_levels loop
        if key = '' then
            select job.priority, job.ready_seq into priority, ready_seq
            from procrastinate_jobs as job
            where job.ready_seq + 0 is not null and job.priority < above
            order by job.priority desc, job.ready_seq
            limit 1;
        else
            select job.priority, job.ready_seq into priority, ready_seq
            from procrastinate_jobs as job
            where
                job.queue_name = key and job.ready_seq is not null
                and job.priority < above
            order by job.priority desc, job.ready_seq
            limit 1;
        end if;
        exit when not found;
        return next;
        above := priority;
    end loop;
end;
$$;

comment on function _procrastinate_first_of_levels is
'The first turn of each level of a queue (empty: of all queues), from the highest priority down.';

create function _procrastinate_add_levels(key text, priorities integer[])
returns boolean
language plpgsql
set search_path from current
as $$
declare
    adds constant boolean := coalesce(current_setting('procrastinate.adds_levels', true), '') = 'on';
    missing constant integer[] := array(
        -- Most jobs have the priority 0: one that comes while there are none is to be found.
        select used.priority from unnest(priorities || 0) as used (priority)
        except
        select level.priority from procrastinate_levels as level where level.queue_name = key
    );
begin
    if adds or missing = '{}' then
        return adds;
    end if;
    perform set_config('procrastinate.adds_levels', 'on', true);
    -- Nobody waits for another's row: whoever adds some now will let the others know by committing.
    if pg_try_advisory_xact_lock(
        hashtextextended('procrastinate_levels', 'procrastinate_levels'::regclass::oid::bigint)
    ) then
        insert into procrastinate_levels (queue_name, priority)
        select key, added.priority from unnest(missing) as added (priority)
        on conflict do nothing;
    end if;
    return true;
end;
$$;

comment on function _procrastinate_add_levels is
'Note these priorities as used in a queue (empty: in any). Returns whether some are not yet '
'committed, of those of any queue: of a transaction, the first survey only adds levels.';

create function _procrastinate_raise_floors(queue_names text[], last_id bigint, newest bigint)
returns void
language plpgsql
set search_path from current
as $$
declare
    last_priority integer;
    last_seq bigint;
begin
    if queue_names = '{}' then
        return;
    end if;
    select job.priority, job.ready_seq into last_priority, last_seq
    from procrastinate_jobs as job
    where job.id = last_id;

    perform _procrastinate_set_floor(level.key, level.floor)
    from (
        select
            _procrastinate_floor_key(level.queue_name, level.priority) as key,
            -- A little lower: a turn is drawn some time before it can be seen.
            case when level.priority = last_priority then last_seq else newest end - 100 as floor
        from procrastinate_levels as level
        where
            level.queue_name = any(queue_names)
            and level.priority >= coalesce(last_priority, level.priority)
    ) as level
    -- Not for a few: noting costs more than passing them.
    where level.floor > _procrastinate_floor(level.key) + 50;
end;
$$;

comment on function _procrastinate_raise_floors is
'After a look from the floors: let the next ones begin where this one ended. That is at the last '
'job that was taken, if all that were wanted were found (last_id); the levels above it, or without '
'it all levels, were seen as far as to the newest turn before the look.';
