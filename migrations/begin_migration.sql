-- How each transaction of upgrade.sql begins: one session at a time finds out what is missing.

do $$
declare
    newest constant integer := 1;
    target constant text := current_schema();
    installed integer := 0;
begin
    if target is null then
        raise exception 'there is no schema to install into'
            using errcode = '3F000', hint = 'Create the schema, and put it first in search_path.';
    end if;
    perform pg_advisory_xact_lock(hashtext('procrastinate-sql upgrade'));

    -- Whoever waits to lock a table holds up all who come after, so that none waits long; and not
    -- as long as deadlock_timeout, so that of two that wait for each other the upgrade gives up.
    perform set_config('lock_timeout', '500ms', true);

    if to_regprocedure(format('%I.procrastinate_schema_version()', target)) is not null then
        execute format('select %I.procrastinate_schema_version()', target) into installed;
    end if;
    if installed > newest then
        raise exception 'schema % holds version % of procrastinate-sql, and this release knows %',
            target, installed, newest
            using
                errcode = 'PC003',
                hint = 'Nothing was changed. Use the files of the release that has that version.';
    end if;

    perform set_config('procrastinate.installed', installed::text, true);
    -- What each function of ours pins by `set search_path from current`.
    perform set_config('search_path', format('%I, pg_temp', target), true);
end;
$$;

select current_setting('procrastinate.installed')::integer < 1 as need_1 \gset
