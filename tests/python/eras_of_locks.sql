-- Floors of locks come into use and go out of it all the time, and rise as soon as they may, so that
-- few jobs show what is wrong with them (tests/python/test_property.py).
--
--     PROCRASTINATE_OVERLAY=tests/python/eras_of_locks.sql make test-python TESTS=…

begin;

create or replace function _procrastinate_are_many(entries bigint, locks integer)
returns boolean
language sql
set search_path from current
as $$ select locks > 0 and entries % 3 <> 1 $$;

-- So that each look asks whether they are still needed.
create or replace function _procrastinate_keep_lock_floors()
returns void
language sql
set search_path from current
as $$ select $$;

-- And they rise at each look, as far as they may.
do $$
declare
    as_it_is constant text := pg_get_functiondef('_procrastinate_settled_id'::regproc);
    each_time constant text := replace(as_it_is, 'not between 0 and 1000', 'is not null');
    at_once constant text := replace(each_time, '_id_seq'') - 200', '_id_seq'')');
begin
    assert each_time <> as_it_is and at_once <> each_time;
    execute at_once;
end;
$$;

commit;
