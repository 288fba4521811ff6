-- A stranger may not call what reads or changes the queue: the owner grants what others need.

do $$
declare
    ours regprocedure;
begin
    for ours in
        select fn.oid
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
        execute format('revoke execute on function %s from public', ours);
    end loop;
end;
$$;
