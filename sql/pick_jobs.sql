-- Which jobs to claim: the hot queries, each pinned to one index (tests/python/test_plans.py).
--
-- Each takes the rows it returns with `for update skip locked`, and no other. A job with a lock is
-- taken only while it is the first of its lock among what this statement sees, so that one that was
-- overtaken a moment ago is left for the settler.

create function _procrastinate_pick(queue_names text[], max_jobs integer)
returns bigint[]
language plpgsql
set search_path from current
as $$
begin
    return case
        when queue_names is null then _procrastinate_pick_from_all(max_jobs)
        else _procrastinate_pick_from_named(queue_names, max_jobs)
    end;
end;
$$;

comment on function _procrastinate_pick is
'Take the rows of up to max_jobs ready jobs of these queues (null: all), and return their ids in '
'order.';

create function _procrastinate_pick_from_all(max_jobs integer)
returns bigint[]
language plpgsql
set search_path from current
as $$
declare
    newest constant bigint := pg_sequence_last_value('procrastinate_ready_seq');
    before constant bigint := _procrastinate_effort('procrastinate_jobs_ready_any_queue_idx');
    at_floor constant boolean := _procrastinate_begins_at_floor('');
    effort bigint;
    picked bigint[];
begin
    if at_floor then
        picked := _procrastinate_pick_above_floors(max_jobs);
        perform _procrastinate_set_floors(array[''], picked[max_jobs], newest, false);
        return picked;
    end if;

    picked := array(
        select job.id
        from procrastinate_jobs as job
        where
            job.ready_seq + 0 is not null
            and (
                job.lock is null
                or job.id = (
                    select first.id from procrastinate_jobs as first
                    where first.lock = job.lock and first.status = 'todo'
                    order by first.priority desc, first.id
                    limit 1
                )
            )
        order by job.priority desc, job.ready_seq
        limit max_jobs
        for update skip locked
    );
    effort := _procrastinate_effort('procrastinate_jobs_ready_any_queue_idx') - before
        - max_jobs / 50;
    if effort > 0 or at_floor is null then
        perform _procrastinate_note_floors(array[''], picked, max_jobs, newest, effort);
    end if;
    return picked;
end;
$$;

comment on function _procrastinate_pick_from_all is 'Take ready jobs of any queue.';

create function _procrastinate_pick_above_floors(max_jobs integer)
returns bigint[]
language plpgsql
set search_path from current
as $$
begin
    return array(
        select ready.id
        from (
            select level.priority, _procrastinate_floor(' ' || level.priority) as floor
            from procrastinate_levels as level
            where level.queue_name = ''
            order by level.priority desc
        ) as level
        cross join lateral (
            select job.id
            from procrastinate_jobs as job
            where
                job.priority = level.priority
                and job.ready_seq >= level.floor
                and job.ready_seq + 0 is not null
                and (
                    job.lock is null
                    or job.id = (
                        select first.id from procrastinate_jobs as first
                        where first.lock = job.lock and first.status = 'todo'
                        order by first.priority desc, first.id
                        limit 1
                    )
                )
            order by job.ready_seq
            limit max_jobs
            for update skip locked
        ) as ready
        -- The executor asks for no row beyond this: none is held that is not returned.
        limit max_jobs
    );
end;
$$;

comment on function _procrastinate_pick_above_floors is
'Take ready jobs of any queue, each priority from its floor on.';

create function _procrastinate_pick_from_named(queue_names text[], max_jobs integer)
returns bigint[]
language plpgsql
set search_path from current
as $$
declare
    crowded text[];
    others text[];
    is_due boolean;
    newest constant bigint := pg_sequence_last_value('procrastinate_ready_seq');
    before constant bigint := _procrastinate_effort('procrastinate_jobs_ready_idx');
    effort bigint;
    seen bigint[] := array[]::bigint[];
    window_ids bigint[];
    picked bigint[] := array[]::bigint[];
begin
    select part.at_floor, part.at_start, part.is_due into crowded, others, is_due
    from _procrastinate_part_by_floor(queue_names) as part;

    -- Merge the heads of the queues without holding them, then take that many and no more: rows
    -- that another session holds are left out, and the next round looks behind them.
    while cardinality(picked) < max_jobs loop
        window_ids := _procrastinate_peek(others, crowded, seen, max_jobs - cardinality(picked));
        exit when window_ids = '{}';

        seen := seen || window_ids;
        picked := picked || array(
            select job.id
            from unnest(window_ids) with ordinality as ready (id, place)
            inner join procrastinate_jobs as job on job.id = any(array[ready.id])
            where
                -- Still ready; said so that no plan takes it for a reason to read a ready index.
                job.status = 'todo' and num_nulls(job.ready_seq) = 0
                and (
                    job.lock is null
                    or job.id = (
                        select first.id from procrastinate_jobs as first
                        where first.lock = job.lock and first.status = 'todo'
                        order by first.priority desc, first.id
                        limit 1
                    )
                )
            order by ready.place
            for update of job skip locked
        );
    end loop;

    perform _procrastinate_set_floors(crowded, picked[max_jobs], newest, false);
    effort := _procrastinate_effort('procrastinate_jobs_ready_idx') - before
        - 3 * cardinality(queue_names) - max_jobs / 50;
    if effort > 0 or is_due then
        perform _procrastinate_note_floors(others, picked, max_jobs, newest, effort);
    end if;
    return picked;
end;
$$;

comment on function _procrastinate_pick_from_named is
'Take ready jobs of some queues, merged by priority and turn.';

create function _procrastinate_peek(
    queue_names text[],
    crowded text[],
    seen bigint[],
    max_jobs integer
)
returns bigint[]
language plpgsql
set search_path from current
as $$
begin
    return array(
        select ready.id
        from (
            select first.id, first.priority, first.ready_seq
            from unnest(queue_names) as named (queue)
            cross join lateral (
                select job.id, job.priority, job.ready_seq
                from procrastinate_jobs as job
                where
                    job.queue_name = named.queue
                    and job.ready_seq is not null
                    and job.id <> all(seen)
                order by job.priority desc, job.ready_seq
                limit max_jobs
            ) as first
            union all
            select above.id, above.priority, above.ready_seq
            from (
                select
                    level.queue_name,
                    level.priority,
                    _procrastinate_floor(level.queue_name || ' ' || level.priority) as floor
                from procrastinate_levels as level
                where level.queue_name = any(crowded)
            ) as level
            cross join lateral (
                select job.id, job.priority, job.ready_seq
                from procrastinate_jobs as job
                where
                    job.queue_name = level.queue_name
                    and job.priority = level.priority
                    and job.ready_seq >= level.floor
                    and job.ready_seq is not null
                    and job.id <> all(seen)
                order by job.ready_seq
                limit max_jobs
            ) as above
        ) as ready
        order by ready.priority desc, ready.ready_seq
        limit max_jobs
    );
end;
$$;

comment on function _procrastinate_peek is
'The first ready jobs of some queues, from the floor on of those that are crowded, without taking '
'their rows.';

create function _procrastinate_peek_all(from_floors boolean, max_jobs integer)
returns bigint[]
language plpgsql
set search_path from current
as $$
begin
    if not from_floors then
        return array(
            select job.id
            from procrastinate_jobs as job
            where job.ready_seq + 0 is not null
            order by job.priority desc, job.ready_seq
            limit max_jobs
        );
    end if;
    return array(
        select ready.id
        from (
            select level.priority, _procrastinate_floor(' ' || level.priority) as floor
            from procrastinate_levels as level
            where level.queue_name = ''
            order by level.priority desc
        ) as level
        cross join lateral (
            select job.id
            from procrastinate_jobs as job
            where
                job.priority = level.priority
                and job.ready_seq >= level.floor
                and job.ready_seq + 0 is not null
            order by job.ready_seq
            limit max_jobs
        ) as ready
        limit max_jobs
    );
end;
$$;

comment on function _procrastinate_peek_all is
'The first ready jobs of any queue, from the start or from the floors on, without taking their '
'rows.';

create function _procrastinate_count_ready(queue_names text[], up_to integer)
returns integer
language plpgsql
set search_path from current
as $$
declare
    keys constant text[] := coalesce(queue_names, array['']);
    crowded text[];
    others text[];
    is_due boolean;
    newest constant bigint := pg_sequence_last_value('procrastinate_ready_seq');
    index constant regclass := case
        when queue_names is null then 'procrastinate_jobs_ready_any_queue_idx'
        else 'procrastinate_jobs_ready_idx'
    end;
    before constant bigint := _procrastinate_effort(index);
    ready bigint[];
    effort bigint;
begin
    select part.at_floor, part.at_start, part.is_due into crowded, others, is_due
    from _procrastinate_part_by_floor(keys) as part;

    ready := case
        when queue_names is null then _procrastinate_peek_all(crowded <> '{}', up_to)
        else _procrastinate_peek(others, crowded, array[]::bigint[], up_to)
    end;
    effort := _procrastinate_effort(index) - before - 3 * cardinality(keys) - up_to / 50;
    if effort > 0 or is_due then
        perform _procrastinate_note_floors(others, ready[:1], 1, newest, effort);
    end if;
    return cardinality(ready);
end;
$$;

comment on function _procrastinate_count_ready is
'How many jobs of these queues (null: all) are ready, whoever holds their rows? Counted no further '
'than asked for. A look from the start that had to pass many entries notes floors, so that the '
'claim of this fetch need not look so as well.';

create function _procrastinate_note_floors(
    queue_names text[],
    picked bigint[],
    max_jobs integer,
    newest bigint,
    effort bigint
)
returns void
language plpgsql
set search_path from current
as $$
begin
    -- A floor is seen by all at once, a level when it is committed: whoever began at floors without
    -- the level of a job would not find it. So the levels come first, the floors with a later look.
    if effort > 15 and _procrastinate_add_levels(queue_names, picked) then
        perform _procrastinate_note_effort(named.queue, 0)
        from unnest(queue_names) as named (queue);
        return;
    end if;
    perform _procrastinate_set_floors(
        array(
            select named.queue from unnest(queue_names) as named (queue)
            where _procrastinate_note_effort(named.queue, effort)
        ),
        picked[max_jobs], newest, true
    );
end;
$$;

comment on function _procrastinate_note_floors is
'After a look from the start with this effort: if that was much, let the next ones begin at the '
'floors of these queues.';

create function _procrastinate_add_levels(queue_names text[], picked bigint[])
returns boolean
language plpgsql
set search_path from current
as $$
begin
    -- Nobody waits for another's row: whoever adds some now will let the others know by committing.
    if not pg_try_advisory_xact_lock(
        hashtextextended('procrastinate_levels', 'procrastinate_levels'::regclass::oid::bigint)
    ) then
        return true;
    end if;

    insert into procrastinate_levels (queue_name, priority)
    select
        named.queue,
        used.priority
    from unnest(queue_names) as named (queue)
    cross join lateral (
        select job.priority
        from procrastinate_jobs as job
        where job.id = any(picked) and named.queue in ('', job.queue_name)
        union
        -- Most jobs have it: one that comes while there are none is to be found.
        select 0
    ) as used
    on conflict do nothing;
    return found;
end;
$$;

comment on function _procrastinate_add_levels is
'Note the priorities of these jobs as used in these queues. Returns whether some are not yet '
'committed.';

create function _procrastinate_set_floors(
    queue_names text[],
    last_id bigint,
    newest bigint,
    was_from_start boolean
)
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
            level.queue_name || ' ' || level.priority as key,
            -- A little lower: a turn is drawn some time before it can be seen.
            case
                when level.priority > last_priority or last_priority is null then newest
                when level.priority = last_priority then last_seq
                else 0
            end - 100 as floor
        from procrastinate_levels as level
        where level.queue_name = any(queue_names)
    ) as level
    -- Else not for a few: noting costs more than passing them.
    where was_from_start or level.floor > _procrastinate_floor(level.key) + 50;
end;
$$;

comment on function _procrastinate_set_floors is
'After a look: let the next ones begin where this one ended. That is at the last job that was '
'taken, if all that were wanted were found (last_id); the levels above it, or without it all '
'levels, were seen as far as to the newest turn before the look, and those below not at all.';
