-- No function of ours has an unknown column, an unused variable or a wrong type.
-- Run by `make lint` on the system's PostgreSQL, which alone has that extension.
begin;
create extension plpgsql_check;
select plan(1);

select is_empty(
    $$
    select fn.oid::regprocedure as signature, finding.lineno, finding.message
    from pg_proc as fn
    inner join pg_language as lang on fn.prolang = lang.oid
    left join pg_trigger as trg on fn.oid = trg.tgfoid
    cross join lateral plpgsql_check_function_tb(
        fn.oid,
        coalesce(trg.tgrelid, 0),
        fatal_errors => false,
        extra_warnings => true,
        newtable => case when trg.tgnewtable is not null then trg.tgnewtable end,
        oldtable => case when trg.tgoldtable is not null then trg.tgoldtable end
    ) as finding
    where
        fn.pronamespace = quote_ident(current_schema())::regnamespace
        and fn.proname ~ '^_?procrastinate_'
        and lang.lanname = 'plpgsql'
        -- Its loop has no other end than a return.
        and not (
            fn.proname = 'procrastinate_cancel_job'
            and finding.message = 'control reached end of function without RETURN'
        )
    $$,
    'plpgsql_check finds nothing'
);

select * from finish();
rollback;
