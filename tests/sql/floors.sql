-- Floors: hints that outlive what is rolled back, each under its own key.
begin;
\ir support/arrange.sql
select plan(17);

select is(_procrastinate_floor('mail 0'), 0::bigint, 'where none was noted there is none');

select _procrastinate_set_floor('mail 0', 42);
select is(_procrastinate_floor('mail 0'), 42::bigint, 'a floor is read as it was noted');

do $$
begin
    perform _procrastinate_set_floor('mail 0', 43);
    raise exception 'undone';
exception
    when raise_exception then null;
end;
$$;

select is(_procrastinate_floor('mail 0'), 43::bigint, 'a rollback does not take it back');

select _procrastinate_set_floor('mail 0', 7);
select is(_procrastinate_floor('mail 0'), 7::bigint, 'it can go back');

select ok(
    bool_and(_procrastinate_floor('key ' || number) = 0),
    'no other key takes it for its own'
)
from generate_series(1, 1000) as number;

select _procrastinate_set_floor('mail 0', 9223372036854775807);
select is(_procrastinate_floor('mail 0'), 8796093022207, 'it has 43 bits');

select ok(not _procrastinate_is_crowded('mail'), 'nothing is crowded without a reason');
select ok(not _procrastinate_note_effort('mail', 15), 'a short look is no reason');
select ok(_procrastinate_note_effort('mail', 5000), 'a long look is one');
select ok(_procrastinate_is_crowded('mail'), 'then looks begin at the floor');

select ok(
    _procrastinate_next_look(array['mail']) between clock_timestamp()
    and clock_timestamp() + interval '1 second',
    'for a second at most'
);

select ok(
    procrastinate_next_due(array['mail']) <= interval '1 second',
    'and a worker is told when to look again'
);

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

select * from finish();
rollback;
