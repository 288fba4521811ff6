-- Floors: hints that outlive what is rolled back, each under its own key.
begin;
\ir support/arrange.sql
select plan(27);

select is(_procrastinate_floor('crowded 0'), 0::bigint, 'where none was noted there is none');

select _procrastinate_set_floor('crowded 0', 42);
select is(_procrastinate_floor('crowded 0'), 42::bigint, 'a floor is read as it was noted');

do $$
begin
    perform _procrastinate_set_floor('crowded 0', 43);
    raise exception 'undone';
exception
    when raise_exception then null;
end;
$$;

select is(_procrastinate_floor('crowded 0'), 43::bigint, 'a rollback does not take it back');

select _procrastinate_set_floor('crowded 0', 7);
select is(_procrastinate_floor('crowded 0'), 7::bigint, 'it can go back');

select ok(
    bool_and(_procrastinate_floor('key ' || number) = 0),
    'no other key takes it for its own'
)
from generate_series(1, 1000) as number;

select _procrastinate_set_floor('crowded 0', 9223372036854775807);
select is(_procrastinate_floor('crowded 0'), 8796093022207, 'it has 43 bits');

select ok(not _procrastinate_is_crowded('crowded'), 'nothing is crowded without a reason');
select ok(not _procrastinate_note_effort('crowded', 15), 'a short look is no reason');
select ok(_procrastinate_note_effort('crowded', 1000), 'a long look is one');
select ok(_procrastinate_is_crowded('crowded'), 'then looks begin at the floor');

select _procrastinate_note_effort('events', 1000);
select ok(
    _procrastinate_next_look('{}') between clock_timestamp()
    and clock_timestamp() + interval '10 seconds',
    'for ten seconds at most'
);

select ok(
    procrastinate_next_due() <= interval '10 seconds', 'and a worker is told when to look again'
);
select _procrastinate_note_effort('events', 0);

-- Who looks from the start.

select is(_procrastinate_begins_at_floor('slow'), false, 'without a reason everybody does');

select _procrastinate_note_effort('slow', 5000);
select is(_procrastinate_begins_at_floor('slow'), true, 'with one nobody does for a while');

select _procrastinate_set_floor('until slow', 2);
select is(_procrastinate_begins_at_floor('slow'), null, 'then somebody does');
select is(_procrastinate_begins_at_floor('slow'), true, 'while others do not');

select _procrastinate_note_effort('slow', 3);
select is(
    _procrastinate_begins_at_floor('slow'), false, 'if that one was short, everybody does again'
);

-- A survey.

create function pg_temp.floor_of(queue text, priority integer)
returns bigint
language sql
as $$ select _procrastinate_floor(_procrastinate_floor_key(queue, priority)) $$;

-- Entries of what is gone, which no look can remove while this transaction lasts.
create function pg_temp.leave_entries(queue text)
returns void
language sql
as $$
    insert into procrastinate_jobs (task_name, queue_name, priority, ready_seq)
    select 'gone', queue, 9, number from generate_series(1, 3000) as number;
    delete from procrastinate_jobs where task_name = 'gone';
$$;

insert into procrastinate_jobs (task_name, queue_name, priority, ready_seq) values
('t', 'post', 5, 1000), ('t', 'post', 5, 2000), ('t', 'post', -5, 3000), ('t', 'other', 7, 500);
select setval('procrastinate_ready_seq', 4000);

select _procrastinate_survey('post');
select is_empty(
    'select * from procrastinate_levels where queue_name = ''post''',
    'without much to pass nothing is noted'
);

select pg_temp.leave_entries('post');
select _procrastinate_survey('post');
select ok(not _procrastinate_looks_from_floors('post'), 'levels that are new are noted first');
select results_eq(
    'select priority from procrastinate_levels where queue_name = ''post'' order by priority',
    array[-5, 0, 5],
    'those in use, and that of most jobs'
);
select _procrastinate_survey('post');
select ok(
    not _procrastinate_looks_from_floors('post'),
    'and not used by the transaction that has noted them'
);

select set_config('procrastinate.adds_levels', '', true);
select _procrastinate_survey('post');
select ok(_procrastinate_looks_from_floors('post'), 'then looks begin at floors');
select results_eq(
    'select pg_temp.floor_of(''post'', level) from unnest(array[5, 0, -5]) as level',
    array[900, 3900, 2900]::bigint[],
    'one for each level, a little below what waits first, or below all turns'
);
select _procrastinate_raise_floors(array['post'], max(job.id), 4000)
from procrastinate_jobs as job
where job.ready_seq = 2000;
select results_eq(
    'select pg_temp.floor_of(''post'', level) from unnest(array[5, 0, -5]) as level',
    array[1900, 3900, 2900]::bigint[],
    'a look raises those of the levels that it saw'
);
select _procrastinate_raise_floors(array['post'], null, 5000);
select is(pg_temp.floor_of('post', -5), 4900::bigint, 'one that came to the end raises all');
select ok(
    pg_temp.floor_of('', 5) + pg_temp.floor_of('other', 7) = 0, 'other queues have their own'
);

insert into procrastinate_jobs (task_name, queue_name, priority)
select 't', 'motley', number from generate_series(1, 21) as number;
select pg_temp.leave_entries('motley');
select _procrastinate_survey('motley');
select ok(not _procrastinate_looks_from_floors('motley'), 'of too many levels none are kept');

select * from finish();
rollback;
