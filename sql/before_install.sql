-- Nothing is installed over anything: find out what is there, and pin the schema to install into.

do $$
declare
    target constant text := current_schema();
    installed integer;
begin
    if target is null then
        raise exception 'there is no schema to install into'
            using errcode = '3F000', hint = 'Create the schema, and put it first in search_path.';
    end if;

    -- Two at once: the second waits, and then finds the first.
    perform pg_advisory_xact_lock(hashtext('procrastinate-sql upgrade'));

    if to_regprocedure(format('%I.procrastinate_schema_version()', target)) is not null then
        execute format('select %I.procrastinate_schema_version()', target) into installed;
        raise exception 'procrastinate-sql version % is already installed in schema %',
            installed, target
            using
                errcode = 'PC003',
                hint = 'Nothing was changed. To upgrade: psql -f migrations/upgrade.sql, '
                    'or procrastinate-sql schema upgrade.';
    end if;

    if to_regclass(format('%I.procrastinate_jobs', target)) is not null then
        raise exception 'schema % holds the tables of the Python package procrastinate', target
            using
                errcode = 'PC003',
                hint = 'Nothing was changed. Install into another schema (create it, set '
                    'search_path), or drop the old tables once their jobs are done.';
    end if;

    -- What each function of ours then pins by `set search_path from current`.
    perform set_config('search_path', format('%I, pg_temp', target), true);
end;
$$;
