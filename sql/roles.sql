-- Four roles, none with more rights than it needs: psql -f sql/roles.sql
--
--   procrastinate_producer  defers jobs, and looks up the status of those that it deferred
--   procrastinate_worker    runs jobs
--   procrastinate_reader    looks at everything but arguments, results and errors
--   procrastinate_admin     does what people do, but changes no object
--
-- They cannot log in: grant them to roles that do. Optional; run by the owner after install.sql, in
-- the same schema, and again after an upgrade that adds functions: it sets just the rights that
-- stand here. Roles that are missing are created, which takes CREATEROLE; those that exist are
-- taken. Other names, for a second queue in the same cluster:
--   PGOPTIONS='-c procrastinate.role_prefix=shop' psql -f sql/roles.sql

\set ON_ERROR_STOP on

-- What runs as the owner finds types, operators and functions in this schema: whoever may create
-- there could slip it one of his own.

do $$
declare
    target constant text := current_schema();
    jobs constant regclass := to_regclass(quote_ident(target) || '.procrastinate_jobs');
    owner_id oid;
    strangers text;
    foreign_view regclass;
begin
    if jobs is null or jobs <> to_regclass('procrastinate_jobs') then
        raise exception 'procrastinate-sql is not installed in schema %', coalesce(target, '(none)')
            using errcode = 'PC003', hint = 'Put the schema that it is in first in search_path.';
    end if;

    select rel.relowner into owner_id from pg_class as rel where rel.oid = jobs;
    if not pg_has_role(owner_id, 'usage') then
        raise exception 'the queue belongs to %', owner_id::regrole
            using errcode = 'insufficient_privilege', hint = 'Let its owner run this.';
    elsif (select owner.rolsuper from pg_roles as owner where owner.oid = owner_id) then
        raise warning 'the queue belongs to a superuser, %', owner_id::regrole
            using hint = 'Its functions run as their owner: let an ordinary role own it.';
    end if;

    select string_agg(
        case entry.grantee when 0 then 'public' else entry.grantee::regrole::text end, ', '
    ) into strangers
    from pg_namespace as nsp
    cross join lateral aclexplode(nsp.nspacl) as entry
    where
        nsp.nspname = target
        and entry.privilege_type = 'CREATE'
        and entry.grantee not in (nsp.nspowner, owner_id);
    if strangers is not null then
        raise exception 'others may create objects in schema %: %', target, strangers
            using
                errcode = 'object_not_in_prerequisite_state',
                hint = format(
                    'Nothing was changed. revoke create on schema %I from %s;', target, strangers
                );
    end if;

    select rel.oid into foreign_view
    from pg_class as rel
    where
        rel.relnamespace = quote_ident(target)::regnamespace
        and rel.relname in ('procrastinate_jobs_overview', 'procrastinate_own_jobs')
        and rel.relowner <> owner_id;
    if found then
        raise exception '% belongs to another role than the queue', foreign_view
            using
                errcode = 'object_not_in_prerequisite_state',
                hint = 'Nothing was changed. Drop it if it is not yours.';
    end if;
end;
$$;

-- What readers and producers see. A barrier: no function in a query gets to see rows of others.

create or replace view procrastinate_jobs_overview as
select
    job.id,
    job.queue_name,
    job.task_name,
    job.priority,
    job.lock,
    job.queueing_lock,
    job.status,
    job.scheduled_at,
    job.attempts,
    job.failures,
    job.handed_back,
    job.lost,
    job.abort_requested,
    job.worker_id,
    job.created_at,
    job.created_by,
    job.started_at,
    job.finished_at,
    job.purge_at
from procrastinate_jobs as job;

comment on view procrastinate_jobs_overview is
'Jobs without their arguments, results and errors.';

create or replace view procrastinate_own_jobs with (security_barrier) as
select
    job.id,
    job.queue_name,
    job.task_name,
    job.status,
    job.scheduled_at,
    job.attempts,
    job.created_at,
    job.started_at,
    job.finished_at
from procrastinate_jobs as job
where job.created_by = session_user;

comment on view procrastinate_own_jobs is
'What became of the jobs that the role deferred that is logged in (session_user).';

do $$
declare
    shown record;
begin
    for shown in
        select
            att.attrelid::regclass as name,
            att.attname,
            col_description(origin.attrelid, origin.attnum) as says
        from pg_attribute as att
        inner join pg_attribute as origin using (attname)
        where
            att.attrelid in (
                'procrastinate_jobs_overview'::regclass, 'procrastinate_own_jobs'::regclass
            )
            and origin.attrelid = 'procrastinate_jobs'::regclass
            and att.attnum > 0 and origin.attnum > 0
    loop
        execute format('comment on column %s.%I is %L', shown.name, shown.attname, shown.says);
    end loop;
end;
$$;

-- Who may do what.

do $$
declare
    prefix constant text := coalesce(
        nullif(current_setting('procrastinate.role_prefix', true), ''), 'procrastinate'
    );
    producer constant text := quote_ident(prefix || '_producer');
    worker constant text := quote_ident(prefix || '_worker');
    reader constant text := quote_ident(prefix || '_reader');
    admin constant text := quote_ident(prefix || '_admin');
    everyone constant text := concat_ws(', ', producer, worker, reader, admin);
    target constant regnamespace := quote_ident(current_schema())::regnamespace;
    owner_id oid;
    role_name text;
    ours record;
begin
    if octet_length(prefix) > 50 then
        raise exception 'procrastinate.role_prefix: must have at most 50 bytes'
            using errcode = 'invalid_parameter_value', hint = 'Give it another value.';
    end if;
    select rel.relowner into owner_id
    from pg_class as rel
    where rel.oid = 'procrastinate_jobs'::regclass;
    execute format('alter view procrastinate_jobs_overview owner to %s', owner_id::regrole);
    execute format('alter view procrastinate_own_jobs owner to %s', owner_id::regrole);

    foreach role_name in array array[producer, worker, reader, admin] loop
        if to_regrole(role_name) is null then
            execute format('create role %s', role_name);
        end if;
        -- Most often everybody may use the schema already.
        if not has_schema_privilege(to_regrole(role_name), target, 'usage') then
            execute format('grant usage on schema %s to %s', target, role_name);
        end if;
    end loop;

    -- Just the rights that stand here, also where another version gave others.
    for ours in
        select
            rel.oid::regclass::text as name,
            case rel.relkind when 'S' then 'sequence' else 'table' end as kind
        from pg_class as rel
        where
            rel.relnamespace = target and rel.relname ~ '^procrastinate_'
            and rel.relkind in ('r', 'v', 'S') and rel.relowner = owner_id
        union all
        select fn.oid::regprocedure::text, 'function'
        from pg_proc as fn
        where
            fn.pronamespace = target and fn.proname ~ '^_?procrastinate_'
            and fn.prokind = 'f' and fn.proowner = owner_id
    loop
        execute format('revoke all on %s %s from %s', ours.kind, ours.name, everyone);
    end loop;

    -- By name: what a function takes may differ between versions.
    for ours in
        select fn.oid::regprocedure as signature, may_call.roles
        from (
            values
            (concat_ws(', ', producer, admin), array[
                'procrastinate_defer_job', 'procrastinate_defer_jobs'
            ]),
            (concat_ws(', ', worker, admin), array[
                'procrastinate_declare_task', 'procrastinate_rescue_jobs'
            ]),
            (worker, array[
                'procrastinate_fail_job', 'procrastinate_fetch_job', 'procrastinate_fetch_jobs',
                'procrastinate_finish_job', 'procrastinate_finish_jobs', 'procrastinate_heartbeat',
                'procrastinate_next_due', 'procrastinate_register_worker',
                'procrastinate_release_jobs', 'procrastinate_release_unknown_jobs',
                'procrastinate_retry_job', 'procrastinate_succeed_jobs',
                'procrastinate_unregister_worker'
            ]),
            (admin, array[
                'procrastinate_cancel_job', 'procrastinate_get_job', 'procrastinate_pause_queue',
                'procrastinate_purge_jobs', 'procrastinate_repair', 'procrastinate_rerun_job',
                'procrastinate_resume_queue'
            ])
        ) as may_call (roles, names)
        inner join pg_proc as fn on fn.proname = any(may_call.names)
        where fn.pronamespace = target and fn.proowner = owner_id
    loop
        execute format('grant execute on function %s to %s', ours.signature, ours.roles);
    end loop;

    -- COPY, and insert: the columns that are the producer's own, and the turn that is their default.
    execute format(
        'grant insert (task_name, args, queue_name, priority, lock, queueing_lock, scheduled_at) '
        'on procrastinate_jobs to %s, %s',
        producer, admin
    );
    execute format('grant usage on sequence procrastinate_ready_seq to %s, %s', producer, admin);
    execute format('grant select on procrastinate_own_jobs to %s, %s', producer, admin);

    execute format(
        'grant select on procrastinate_jobs_overview, procrastinate_tasks, procrastinate_queues, '
        'procrastinate_workers, procrastinate_lock_events to %s, %s',
        reader, admin
    );

    execute format(
        'grant select, delete, update (task_name, args, queue_name, priority, lock, queueing_lock, '
        'scheduled_at) on procrastinate_jobs to %s',
        admin
    );
    execute format('grant update (stop_requested) on procrastinate_workers to %s', admin);
end;
$$;
