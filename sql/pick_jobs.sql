-- Which jobs to claim: the hot queries, each pinned to one index (tests/python/test_plans.py).
--
-- Each takes the rows it returns with `for update skip locked`, and no other. A job with a lock is
-- taken only while it is the first of its lock by what is committed (_procrastinate_is_head), so
-- that one that was overtaken a moment ago is left for the settler.

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
    before bigint;
    picked bigint[];
begin
    if _procrastinate_looks_from_floors('') then
        picked := _procrastinate_pick_above_floors(max_jobs);
        perform _procrastinate_raise_floors(array[''], picked[max_jobs], newest);
        return picked;
    end if;

    before := _procrastinate_effort('procrastinate_jobs_ready_any_queue_idx');
    picked := array(
        select job.id
        from procrastinate_jobs as job
        where
            job.ready_seq + 0 is not null
            and (job.lock is null or _procrastinate_is_head(job.id, job.lock, job.priority))
        order by job.priority desc, job.ready_seq
        limit max_jobs
        for update skip locked
    );
    if _procrastinate_effort('procrastinate_jobs_ready_any_queue_idx') - before - max_jobs / 50 > 15
    then
        perform _procrastinate_survey('');
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
        from _procrastinate_floors_of(array['']) as level
        cross join lateral (
            select job.id
            from procrastinate_jobs as job
            where
                job.priority = level.priority
                and job.ready_seq >= level.floor
                and job.ready_seq + 0 is not null
                and (job.lock is null or _procrastinate_is_head(job.id, job.lock, job.priority))
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
    newest constant bigint := pg_sequence_last_value('procrastinate_ready_seq');
    before bigint;
    effort bigint;
    seen bigint[] := array[]::bigint[];
    window_ids bigint[];
    picked bigint[] := array[]::bigint[];
begin
    select part.at_floor, part.at_start into crowded, others
    from _procrastinate_part_by_floor(queue_names) as part;
    before := _procrastinate_effort('procrastinate_jobs_ready_idx');

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
                and (job.lock is null or _procrastinate_is_head(job.id, job.lock, job.priority))
            order by ready.place
            for update of job skip locked
        );
    end loop;

    perform _procrastinate_raise_floors(crowded, picked[max_jobs], newest);
    effort := _procrastinate_effort('procrastinate_jobs_ready_idx') - before
        - 3 * cardinality(queue_names) - max_jobs / 50;
    if effort > 15 then
        perform _procrastinate_survey(named.queue) from unnest(others) as named (queue);
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
            from _procrastinate_floors_of(crowded) as level
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
        from _procrastinate_floors_of(array['']) as level
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
    index constant regclass := _procrastinate_ready_index(keys[1]);
    before bigint;
    effort bigint;
    ready bigint[];
begin
    select part.at_floor, part.at_start into crowded, others
    from _procrastinate_part_by_floor(keys) as part;
    before := _procrastinate_effort(index);

    ready := case
        when queue_names is null then _procrastinate_peek_all(crowded <> '{}', up_to)
        else _procrastinate_peek(others, crowded, array[]::bigint[], up_to)
    end;
    effort := _procrastinate_effort(index) - before - 3 * cardinality(keys) - up_to / 50;
    if effort > 15 then
        perform _procrastinate_survey(named.queue) from unnest(others) as named (queue);
    end if;
    return cardinality(ready);
end;
$$;

comment on function _procrastinate_count_ready is
'How many jobs of these queues (null: all) are ready, whoever holds their rows? Counted no further '
'than asked for. After a look from the start that had to pass many entries the claim of this fetch '
'begins at floors.';
