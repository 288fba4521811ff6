-- The words of the protocol.
begin;
select plan(6);

select enum_has_labels(
    'procrastinate_job_status',
    array['todo', 'doing', 'succeeded', 'failed', 'cancelled', 'aborting', 'aborted'],
    'a job has the statuses that the protocol names, those of the Python package procrastinate'
);

select has_composite(named.type_name, format('there is the row %s', named.type_name))
from unnest(array[
    'procrastinate_fetched_job', 'procrastinate_outcome', 'procrastinate_new_job',
    'procrastinate_left_lock'
]) as named (type_name);

select is_empty(
    $$
    select pg_get_function_identity_arguments(fn.oid), pg_get_function_result(fn.oid)
    from pg_proc as fn
    where
        fn.pronamespace = quote_ident(current_schema())::regnamespace
        and fn.proname ~ '^procrastinate_'
        and concat(pg_get_function_identity_arguments(fn.oid), pg_get_function_result(fn.oid))
        ~ 'procrastinate_(job_status|outcome|new_job|left_lock)'
    $$,
    'public functions take and return statuses as text, and no rows of our own making'
);

select * from finish();
rollback;
