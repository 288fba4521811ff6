-- Where to begin to look while the entries of what is gone pile up in an index.
--
-- A snapshot that is held open (a report, pg_dump, a forgotten begin) keeps the index entries of
-- all jobs that have been claimed since, and each look from the start of the index passes them.
-- So a look that had to pass many notes how far it came, its floor, and others begin there. A floor
-- is a hint: what lies below it (a producer that committed late, a claim rolled back) is found by
-- another look. Ready jobs are swept for by heartbeats (sql/sweeps.sql); of due times and of events
-- of locks there are fewer, and after some seconds one look begins at the start again. Runs of
-- workers that are gone have no floor: for as long nobody looks for them
-- (docs/decisions/0006-floors.md).
--
-- Floors live in sequences, since a row would itself leave a dead version for each change. There is
-- a fixed number: each holds 20 bits of the hash of what it is the floor of, and 43 bits of floor.
-- Each floor has two places where it may be, so that a dozen of them hardly ever meet (Azar et al.,
-- Balanced Allocations, 1994); two that do only lose their floors to each other.

do $$
begin
    for number in 0..31 loop
        execute format(
            'create sequence procrastinate_floor_%s owned by procrastinate_jobs.ready_seq', number
        );
        execute format(
            'comment on sequence procrastinate_floor_%s is %L', number,
            'A floor: where to begin to look in an index (sql/floors.sql).'
        );
    end loop;
end;
$$;

create sequence procrastinate_floors_until owned by procrastinate_jobs.ready_seq;

comment on sequence procrastinate_floors_until is
'Until when looks begin at some floor, in milliseconds since 1970: who comes much later need not '
'ask for each.';

create function _procrastinate_floor(key text)
returns bigint
language plpgsql
set search_path from current
as $$
declare
    hash constant bigint := hashtextextended(key, 0);
    tag constant bigint := (hash >> 10) & 1048575;
    held bigint := pg_sequence_last_value(('procrastinate_floor_' || (hash & 31))::regclass);
begin
    if held >> 43 = tag then
        return held & 8796093022207;
    end if;
    held := pg_sequence_last_value(('procrastinate_floor_' || ((hash >> 5) & 31))::regclass);
    if held >> 43 = tag then
        return held & 8796093022207;
    end if;
    return 0;
end;
$$;

comment on function _procrastinate_floor is
'The floor noted under this key; zero if there is none.';

create function _procrastinate_set_floor(key text, floor bigint)
returns void
language plpgsql
set search_path from current
as $$
declare
    hash constant bigint := hashtextextended(key, 0);
    tag constant bigint := (hash >> 10) & 1048575;
    first constant regclass := 'procrastinate_floor_' || (hash & 31);
    second constant regclass := 'procrastinate_floor_' || ((hash >> 5) & 31);
    in_first constant bigint := pg_sequence_last_value(first) >> 43;
    in_second constant bigint := pg_sequence_last_value(second) >> 43;
begin
    perform setval(
        case
            when in_first is null or in_first = tag then first
            when in_second is null or in_second = tag then second
            else first
        end,
        (tag << 43) | greatest(least(floor, 8796093022207), 1)
    );
end;
$$;

comment on function _procrastinate_set_floor is
'Note a floor, for all sessions, at once and whatever becomes of this transaction.';

create function _procrastinate_floor_time(key text)
returns timestamptz
language plpgsql
set search_path from current
as $$
begin
    return to_timestamp(_procrastinate_floor(key) / 1e3);
end;
$$;

comment on function _procrastinate_floor_time is
'The floor noted under this key, of an index of times; 1970 if there is none.';

create function _procrastinate_set_floor_time(key text, floor timestamptz)
returns void
language plpgsql
set search_path from current
as $$
begin
    perform _procrastinate_set_floor(key, floor(extract(epoch from floor) * 1000)::bigint);
end;
$$;

comment on function _procrastinate_set_floor_time is
'Note a time as a floor, as _procrastinate_set_floor: its millisecond, from the start of it.';

create function _procrastinate_is_crowded(key text)
returns boolean
language plpgsql
set search_path from current
as $$
declare
    this_moment constant bigint := extract(epoch from clock_timestamp()) * 1000;
begin
    return coalesce(pg_sequence_last_value('procrastinate_floors_until') > this_moment, false)
        and _procrastinate_floor('until ' || key) > this_moment;
end;
$$;

comment on function _procrastinate_is_crowded is
'Is this an index, or a part of one, that is looked through from its floor at present?';

create function _procrastinate_are_floors_in_use()
returns boolean
language plpgsql
set search_path from current
as $$
begin
    return coalesce(
        pg_sequence_last_value('procrastinate_floors_until')
        >= (extract(epoch from clock_timestamp()) * 1000)::bigint - 60000,
        false
    );
end;
$$;

comment on function _procrastinate_are_floors_in_use is
'Has anybody had much to pass within a minute, of whatever index?';

create function _procrastinate_begins_at_floor(key text)
returns boolean
language plpgsql
set search_path from current
as $$
declare
    until bigint;
    -- In milliseconds.
    this_moment constant bigint := extract(epoch from clock_timestamp()) * 1000;
begin
    if not _procrastinate_are_floors_in_use() then
        return false;
    end if;

    until := _procrastinate_floor('until ' || key);
    if until <= 1 then
        return false;
    elsif until > this_moment then
        return true;
    end if;
    perform _procrastinate_put_off(key, 1000);
    return null;
end;
$$;

comment on function _procrastinate_begins_at_floor is
'Is the look that follows to begin at the floor? False: at the start, as that of everybody. Null: '
'at the start, while others go on at the floor for a moment; it must be noted what it took '
'(_procrastinate_note_effort).';

create function _procrastinate_put_off(key text, milliseconds bigint)
returns void
language plpgsql
set search_path from current
as $$
declare
    until constant bigint := extract(epoch from clock_timestamp()) * 1000 + milliseconds;
begin
    perform _procrastinate_set_floor('until ' || key, until);
    perform setval(
        'procrastinate_floors_until',
        greatest(until, pg_sequence_last_value('procrastinate_floors_until'))
    );
end;
$$;

comment on function _procrastinate_put_off is
'Let looks begin at the floor for so many milliseconds from now.';

create function _procrastinate_next_look(keys text[])
returns timestamptz
language plpgsql
set search_path from current
as $$
declare
    -- In milliseconds.
    this_moment constant bigint := extract(epoch from clock_timestamp()) * 1000;
begin
    return (
        select to_timestamp(min(look.at) / 1e3)
        from (
            select _procrastinate_floor('until ' || named.key) as at
            from unnest(array['due', 'events']) as named (key)
            union all
            -- A fetch sweeps only if heartbeats have not done so.
            select _procrastinate_floor('until ' || named.key) + 2000
            from unnest(keys) as named (key)
        ) as look
        where look.at > this_moment
    );
end;
$$;

comment on function _procrastinate_next_look is
'When a fetch from these queues is the next to look for what is hidden below a floor (null: at '
'once, or there is none).';

create function _procrastinate_effort(index regclass)
returns bigint
language plpgsql
set search_path from current
as $$
begin
    return pg_stat_get_xact_blocks_fetched(index) + pg_stat_get_xact_tuples_returned(index) / 100;
end;
$$;

comment on function _procrastinate_effort is
'What this transaction has read of an index so far: blocks, and a hundredth of the entries.';

create function _procrastinate_note_effort(key text, effort bigint)
returns boolean
language plpgsql
set search_path from current
as $$
begin
    if effort <= 15 then
        if _procrastinate_floor('until ' || key) > 1 then
            perform _procrastinate_set_floor('until ' || key, 1);
        end if;
        return false;
    end if;
    -- An entry costs one to three microseconds to pass, since its row lies anywhere in memory: looks
    -- from the start take a hundredth of the time of one session; where there are very many a tenth
    -- or more, lest what is hidden waits for too long.
    perform _procrastinate_put_off(key, greatest(least(effort * 20, 10000), effort * 3 / 4));
    return true;
end;
$$;

comment on function _procrastinate_note_effort is
'After a look from the start: if it had to pass many entries, let looks begin at the floor for a '
'while: in milliseconds twenty times the effort, up to ten seconds, or three quarters of it, if '
'that is more. Returns whether it did; if not, all looks begin at the start.';
