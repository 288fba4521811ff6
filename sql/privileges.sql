-- A stranger may not call what reads or changes the queue: the owner grants what others need, by
-- hand or with roles.sql. A grant is meant by function, so what can be granted runs as the owner
-- and needs no right to what it uses (docs/decisions/0007-roles.md).

do $$
declare
    ours record;
begin
    for ours in
        select
            fn.oid::regprocedure as signature,
            -- Triggers too: whoever may insert needs no right to what they write.
            fn.proname ~ '^procrastinate_' or fn.prorettype = 'trigger'::regtype as runs_as_owner
        from pg_proc as fn
        where
            fn.pronamespace = quote_ident(current_schema())::regnamespace
            and fn.proname ~ '^_?procrastinate_'
            -- Ours pin the path of this installation; what the user has by such a name does not.
            and 'search_path=' || current_setting('search_path') = any(fn.proconfig)
            and fn.proname not in (
                'procrastinate_schema_version', 'procrastinate_listen_channels', '_procrastinate_channel'
            )
    loop
        execute format('revoke execute on function %s from public', ours.signature);
        if ours.runs_as_owner then
            execute format('alter function %s security definer', ours.signature);
        end if;
    end loop;
end;
$$;
