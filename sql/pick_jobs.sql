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
        when cardinality(queue_names) = 1
            then _procrastinate_pick_from_one(queue_names[1], max_jobs)
        else _procrastinate_pick_from_some(queue_names, max_jobs)
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
begin
    return array(
        select job.id
        from procrastinate_jobs as job
        where
            job.ready_seq + 0 is not null
            and (job.lock is null or job.id = _procrastinate_head(job.lock))
        order by job.priority desc, job.ready_seq
        limit max_jobs
        for update skip locked
    );
end;
$$;

comment on function _procrastinate_pick_from_all is 'Take ready jobs of any queue.';

create function _procrastinate_pick_from_one(queue_name text, max_jobs integer)
returns bigint[]
language plpgsql
set search_path from current
as $$
begin
    return array(
        select job.id
        from procrastinate_jobs as job
        where
            job.queue_name = _procrastinate_pick_from_one.queue_name
            and job.ready_seq is not null
            and (job.lock is null or job.id = _procrastinate_head(job.lock))
        order by job.priority desc, job.ready_seq
        limit max_jobs
        for update skip locked
    );
end;
$$;

comment on function _procrastinate_pick_from_one is 'Take ready jobs of one queue.';

create function _procrastinate_pick_from_some(queue_names text[], max_jobs integer)
returns bigint[]
language plpgsql
set search_path from current
as $$
declare
    seen bigint[] := array[]::bigint[];
    window_ids bigint[];
    picked bigint[] := array[]::bigint[];
begin
    -- Merge the heads of the queues without holding them, then take that many and no more: rows
    -- that another session holds are left out, and the next round looks behind them.
    while cardinality(picked) < max_jobs loop
        window_ids := array(
            select ready.id
            from (select distinct named.queue from unnest(queue_names) as named (queue)) as named
            cross join lateral (
                select job.id, job.priority, job.ready_seq
                from procrastinate_jobs as job
                where
                    job.queue_name = named.queue
                    and job.ready_seq is not null
                    and job.id <> all(seen)
                    and (job.lock is null or job.id = _procrastinate_head(job.lock))
                order by job.priority desc, job.ready_seq
                limit max_jobs - cardinality(picked)
            ) as ready
            order by ready.priority desc, ready.ready_seq
            limit max_jobs - cardinality(picked)
        );
        exit when window_ids = '{}';

        seen := seen || window_ids;
        picked := picked || array(
            select job.id
            from unnest(window_ids) with ordinality as ready (id, place)
            inner join procrastinate_jobs as job on job.id = any(array[ready.id])
            -- Still ready; said so that no plan takes it for a reason to read a ready index instead.
            where job.status = 'todo' and num_nulls(job.ready_seq) = 0
            order by ready.place
            for update of job skip locked
        );
    end loop;
    return picked;
end;
$$;

comment on function _procrastinate_pick_from_some is
'Take ready jobs of several queues, merged by priority and turn.';
