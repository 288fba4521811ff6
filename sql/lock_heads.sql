-- Which job of a lock is its head, the next one, and may it start?
--
-- Looked up from the start of the lock or, while a snapshot is held and many have run, from its
-- floors (sql/lock_floors.sql).

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
