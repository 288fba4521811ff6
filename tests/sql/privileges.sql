-- A stranger, a role to which nothing was granted, can ask what is installed, and no more.
begin;
select plan(10);

create role procrastinate_test_stranger;

select set_eq(
    $$
    select fn.proname::text
    from pg_proc as fn
    where
        fn.pronamespace = quote_ident(current_schema())::regnamespace
        and fn.proname ~ '^_?procrastinate_'
        and has_function_privilege('procrastinate_test_stranger', fn.oid, 'execute')
    $$,
    array[
        'procrastinate_schema_version', 'procrastinate_listen_channels', '_procrastinate_channel'
    ],
    'of all functions, helpers included, a stranger may call those that read nothing'
);

select is_empty(
    $$
    select fn.proname
    from pg_proc as fn
    where
        fn.pronamespace = quote_ident(current_schema())::regnamespace
        and fn.proname ~ '^_?procrastinate_'
        and has_function_privilege('procrastinate_test_stranger', fn.oid, 'execute')
        and (fn.provolatile = 'v' or fn.prosecdef)
    $$,
    'none of them changes anything, or runs as the owner'
);

select is_empty(
    $$
    select rel.relname, privilege.name
    from pg_class as rel
    cross join unnest(array['select', 'insert', 'update', 'delete', 'truncate']) as privilege (name)
    where
        rel.relnamespace = quote_ident(current_schema())::regnamespace
        and rel.relname ~ '^procrastinate_'
        and rel.relkind = 'r'
        and has_table_privilege('procrastinate_test_stranger', rel.oid, privilege.name)
    $$,
    'a stranger may neither read nor write a table'
);

select is_empty(
    $$
    select rel.relname, privilege.name
    from pg_class as rel
    cross join unnest(array['usage', 'select', 'update']) as privilege (name)
    where
        rel.relnamespace = quote_ident(current_schema())::regnamespace
        and rel.relname ~ '^procrastinate_'
        and rel.relkind = 'S'
        and has_sequence_privilege('procrastinate_test_stranger', rel.oid, privilege.name)
    $$,
    'a stranger may not touch a sequence'
);

select set_eq(
    $$
    select fn.oid::regprocedure
    from pg_proc as fn
    where fn.pronamespace = quote_ident(current_schema())::regnamespace and fn.prosecdef
    $$,
    $$
    select fn.oid::regprocedure
    from pg_proc as fn
    where
        fn.pronamespace = quote_ident(current_schema())::regnamespace
        and (fn.proname ~ '^procrastinate_' or fn.prorettype = 'trigger'::regtype)
        and fn.proname not in ('procrastinate_schema_version', 'procrastinate_listen_channels')
    $$,
    'what can be granted, and what inserting fires, runs with the rights of the owner: nothing else'
);

do $$
begin
    execute format(
        'grant usage on schema %I, tap to procrastinate_test_stranger', current_schema()
    );
end;
$$;
grant all on all tables in schema pg_temp to procrastinate_test_stranger;
grant all on all sequences in schema pg_temp to procrastinate_test_stranger;
set local role procrastinate_test_stranger;

select lives_ok(
    'select procrastinate_schema_version()', 'a stranger can ask for the version'
);

select lives_ok(
    'select procrastinate_listen_channels()', 'a stranger can ask for the channel of all queues'
);

select lives_ok(
    $$select procrastinate_listen_channels(array['mail'])$$,
    'a stranger can ask for the channel of a queue'
);

select throws_ok(
    $$select procrastinate_defer_job('send_email')$$, '42501', null, 'a stranger cannot defer a job'
);

select throws_ok(
    'select * from procrastinate_get_job(1)', '42501', null, 'a stranger cannot read a job'
);

reset role;
select * from finish();
rollback;
