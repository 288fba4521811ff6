-- What appears below a floor, found a slice at a time (docs/decisions/0006-floors.md).
--
-- Below the floors of a queue lie the entries of what is gone, and now and then a job: of a
-- producer that committed late, or of a claim that was rolled back. Once a second one heartbeat
-- passes the newest of those entries and a slice of the others, from the lowest turns up and then
-- again, and gives the jobs that it meets a fresh turn, above all floors. So no fetch has to pass
-- them, and no call many.
--
-- The lowest slice reaches up to the newest turn of when the floors were noted, since there was
-- little to pass then. When it is found empty, for the snapshot is gone and vacuum has come, it
-- grows; when it has grown up to the newest turn, there is no need for floors any more.

create function _procrastinate_sweep_queues(queue_names text[])
returns void
language plpgsql
set search_path from current
as $$
begin
    if not _procrastinate_are_floors_in_use() then
        return;
    end if;
    perform _procrastinate_sweep(named.key)
    from unnest(coalesce(queue_names, array[''])) as named (key)
    where _procrastinate_is_to_be_swept(named.key, 0);
end;
$$;

comment on function _procrastinate_sweep_queues is
'Sweep a part of each of these queues (null: of all together) that is looked through from its '
'floors, if it is time to.';

create function _procrastinate_is_to_be_swept(key text, delay integer)
returns boolean
language plpgsql
set search_path from current
as $$
declare
    -- In milliseconds.
    this_moment constant bigint := extract(epoch from clock_timestamp()) * 1000;
    until constant bigint := _procrastinate_floor('until ' || key);
begin
    -- Far in the future: the clock has gone back since.
    return until > 1 and until not between this_moment - delay and this_moment + 5000;
end;
$$;

comment on function _procrastinate_is_to_be_swept is
'Is this queue (empty: all queues) looked through from its floors, and was the next sweep due so '
'many milliseconds ago?';

create function _procrastinate_sweep(key text)
returns void
language plpgsql
set search_path from current
as $$
declare
    slice constant bigint := 20000;
    -- Of one slice, or of many of which vacuum has left nothing.
    effort_left bigint := 300;
    newest constant bigint := pg_sequence_last_value('procrastinate_ready_seq');
    bottom bigint := _procrastinate_floor('bottom ' || key);
    first_seq bigint := _procrastinate_floor('swept ' || key);
    end_seq bigint;
    effort bigint;
    is_clean boolean;
begin
    -- The others leave this second to this session.
    perform _procrastinate_put_off(key, 1000);
    perform _procrastinate_add_levels(key, _procrastinate_new_priorities(key));
    -- Most that is late is so by little.
    perform _procrastinate_sweep_slice(key, newest - slice / 4, newest);

    while effort_left > 0 loop
        end_seq := case when first_seq <= 1 then bottom else first_seq + slice end;
        select swept.effort, swept.is_clean into effort, is_clean
        from _procrastinate_sweep_slice(key, first_seq, end_seq) as swept;
        effort_left := effort_left - greatest(effort, 4);

        continue when not is_clean;
        if first_seq > 1 then
            first_seq := case when end_seq < newest then end_seq else 1 end;
            exit when first_seq = 1;
        elsif effort > 15 then
            first_seq := bottom;
        elsif bottom < newest then
            bottom := bottom + slice;
        else
            perform _procrastinate_set_floor('until ' || key, 1);
            exit;
        end if;
    end loop;
    perform _procrastinate_set_floor('bottom ' || key, bottom);
    perform _procrastinate_set_floor('swept ' || key, first_seq);
end;
$$;

comment on function _procrastinate_sweep is
'Sweep the newest turns of a queue (empty: of all queues), and the next slices as far as there is '
'little to pass; note priorities that were not in use. If nothing at all had to be passed, looks '
'begin at the start again.';

create function _procrastinate_sweep_slice(key text, first_seq bigint, end_seq bigint)
returns table (effort bigint, is_clean boolean)
language plpgsql
set search_path from current
as $$
declare
    index constant regclass := _procrastinate_ready_index(key);
    before constant bigint := _procrastinate_effort(index);
    late constant bigint[] := _procrastinate_hold_late(key, first_seq, end_seq);
begin
    effort := _procrastinate_effort(index) - before
        - (select 4 * count(*) from procrastinate_levels as level where level.queue_name = key);
    is_clean := late = '{}';
    perform _procrastinate_notify_waiting(_procrastinate_make_ready(late));
    return next;
end;
$$;

comment on function _procrastinate_sweep_slice is
'Give jobs below their floors, whose turns lie between these two (the second excluded), a fresh '
'turn, a hundred of each level at most. Returns what that took, and whether there were none.';

create function _procrastinate_hold_late(key text, first_seq bigint, end_seq bigint)
returns bigint[]
language plpgsql
set search_path from current
as $$
declare
    max_jobs constant integer := 100;
begin
    if key = '' then
        return array(
            select late.id
            from _procrastinate_floors_of(array[key]) as level
            cross join lateral (
                select job.id
                from procrastinate_jobs as job
                where
                    job.priority = level.priority
                    and job.ready_seq >= first_seq
                    and job.ready_seq < least(end_seq, level.floor)
                    and job.ready_seq + 0 is not null
                order by job.ready_seq
                limit max_jobs
                for update skip locked
            ) as late
        );
    end if;
    return array(
        select late.id
        from _procrastinate_floors_of(array[key]) as level
        cross join lateral (
            select job.id
            from procrastinate_jobs as job
            where
                job.queue_name = key
                and job.priority = level.priority
                and job.ready_seq >= first_seq
                and job.ready_seq < least(end_seq, level.floor)
                and job.ready_seq is not null
            order by job.ready_seq
            limit max_jobs
            for update skip locked
        ) as late
    );
end;
$$;

comment on function _procrastinate_hold_late is
'Hold the ready jobs of a queue (empty: of all queues) below their floors whose turns lie between '
'these two (the second excluded), a hundred of each level at most, and return them.';

create function _procrastinate_new_priorities(key text)
returns integer[]
language plpgsql
set search_path from current
as $$
declare
    priorities constant integer[] := array(
        select level.priority from procrastinate_levels as level
        where level.queue_name = key
        order by level.priority desc
    );
    -- Between each and the next, above all and below all: nothing is to be passed there. Wider than
    -- integers.
    above constant bigint[] := 2147483648 || priorities::bigint[];
    below constant bigint[] := priorities::bigint[] || -2147483649;
begin
    if key = '' then
        return array(
            select job.priority
            from unnest(above, below) as gap (above, below)
            cross join lateral (
                select job.priority
                from procrastinate_jobs as job
                where
                    job.ready_seq + 0 is not null
                    and job.priority < gap.above and job.priority > gap.below
                order by job.priority desc, job.ready_seq
                limit 1
            ) as job
        );
    end if;
    return array(
        select job.priority
        from unnest(above, below) as gap (above, below)
        cross join lateral (
            select job.priority
            from procrastinate_jobs as job
            where
                job.queue_name = key and job.ready_seq is not null
                and job.priority < gap.above and job.priority > gap.below
            order by job.priority desc, job.ready_seq
            limit 1
        ) as job
    );
end;
$$;

comment on function _procrastinate_new_priorities is
'Priorities of ready jobs of a queue (empty: of any) that are none of its levels: one at most '
'between each two levels.';
