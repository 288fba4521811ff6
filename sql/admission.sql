-- How many fetches of many jobs go on at once.
--
-- Each passes the rows that the others hold, so that many at once do more work for the same jobs:
-- beyond a few, they wait for one to end (docs/performance.md). Nothing else relies on it. A fetch
-- that has waited for a while goes on all the same, since nobody can tell how long the transactions
-- of others stay open.

create function _procrastinate_be_admitted()
returns void
language plpgsql
set search_path from current
as $$
declare
    places constant integer := 8;
    own constant integer := pg_backend_pid() % places;
    -- Far from the small numbers that applications use; keys of its own for each installation.
    first_key constant bigint := hashtextextended(
        'procrastinate_fetch_jobs', 'procrastinate_jobs'::regclass::oid::bigint
    ) & -places;
begin
    for wait in 1..10 loop
        for place in own..own + places - 1 loop
            if pg_try_advisory_xact_lock(first_key + place % places) then
                return;
            end if;
        end loop;
        exit when _procrastinate_wait_for_place(first_key + own);
    end loop;
end;
$$;

comment on function _procrastinate_be_admitted is
'Take one of the places for fetches of many jobs until the end of the transaction; go on without '
'one if none gets free within a second.';

create function _procrastinate_wait_for_place(key bigint)
returns boolean
language plpgsql
set search_path from current
set lock_timeout = '100ms'
as $$
begin
    perform pg_advisory_xact_lock(key);
    return true;
exception
    when lock_not_available then
        return false;
end;
$$;

comment on function _procrastinate_wait_for_place is
'Wait for this place for up to 100 milliseconds: less than PostgreSQL waits before it looks for a '
'deadlock. Returns whether it was taken.';
