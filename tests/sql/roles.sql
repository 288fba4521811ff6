-- Each of the four roles may do its part and nothing else, and none can turn the queue against its
-- owner.
begin;
select plan(140);

\ir support/arrange.sql

-- The schema of version 14 takes objects of everybody.
revoke create on schema public from public;
set local client_min_messages = error;
\ir ../../sql/roles.sql

create role test_shop in role procrastinate_producer;
create role test_bank in role procrastinate_producer;
create role test_worker in role procrastinate_worker;
create role test_reader in role procrastinate_reader;
create role test_admin in role procrastinate_admin;

create function pg_temp.may_call(role_name text)
returns setof text
language sql
as $$
    select fn.proname::text
    from pg_proc as fn
    where
        fn.pronamespace = 'public'::regnamespace
        and fn.proname ~ '^_?procrastinate_'
        and has_function_privilege(role_name, fn.oid, 'execute')
        and fn.proname not in (
            'procrastinate_schema_version', 'procrastinate_listen_channels', '_procrastinate_channel'
        )
$$;

-- 'insert jobs (args)' for a column, 'select tasks' for a table.
create function pg_temp.may_use(role_name text)
returns setof text
language sql
as $$
    select format('%s %s', privilege.name, substr(rel.relname, 15))
    from pg_class as rel
    cross join unnest(array[
        'select', 'insert', 'update', 'delete', 'truncate', 'references', 'trigger'
    ]) as privilege (name)
    where
        rel.relnamespace = 'public'::regnamespace
        and rel.relname ~ '^procrastinate_' and rel.relkind in ('r', 'v')
        and has_table_privilege(role_name, rel.oid, privilege.name)
    union all
    select format('%s %s (%s)', privilege.name, substr(rel.relname, 15), att.attname)
    from pg_class as rel
    inner join pg_attribute as att on rel.oid = att.attrelid
    cross join unnest(array['select', 'insert', 'update', 'references']) as privilege (name)
    where
        rel.relnamespace = 'public'::regnamespace
        and rel.relname ~ '^procrastinate_' and rel.relkind in ('r', 'v') and att.attnum > 0
        and has_column_privilege(role_name, rel.oid, att.attnum, privilege.name)
        and not has_table_privilege(role_name, rel.oid, privilege.name)
    union all
    select format('%s %s', privilege.name, substr(rel.relname, 15))
    from pg_class as rel
    cross join unnest(array['usage', 'select', 'update']) as privilege (name)
    where
        rel.relnamespace = 'public'::regnamespace
        and rel.relname ~ '^procrastinate_' and rel.relkind = 'S'
        and has_sequence_privilege(role_name, rel.oid, privilege.name)
$$;

-- The code with which a statement is refused to a role that is logged in; 'done' if it is not.
create function pg_temp.as_role(role_name text, statement text)
returns text
language plpgsql
set search_path from current
as $$
declare
    code text;
begin
    execute format('set local session authorization %I', role_name);
    begin
        execute statement;
        code := 'done';
    exception
        when others then
            code := sqlstate;
    end;
    reset session authorization;
    return code;
end;
$$;

-- What stands in the catalog.

select set_eq(
    $$select pg_temp.may_call('test_shop')$$,
    array['procrastinate_defer_job', 'procrastinate_defer_jobs'],
    'a producer may call what defers'
);

select set_eq(
    $$select pg_temp.may_use('test_shop')$$,
    array[
        'insert jobs (task_name)', 'insert jobs (args)', 'insert jobs (queue_name)',
        'insert jobs (priority)', 'insert jobs (lock)', 'insert jobs (queueing_lock)',
        'insert jobs (scheduled_at)', 'usage ready_seq', 'select own_jobs'
    ],
    'a producer may insert the columns that are its own, and look at its jobs'
);

select set_eq(
    $$select pg_temp.may_call('test_worker')$$,
    array[
        'procrastinate_declare_task', 'procrastinate_fail_job', 'procrastinate_fetch_job',
        'procrastinate_fetch_jobs', 'procrastinate_finish_job', 'procrastinate_finish_jobs',
        'procrastinate_heartbeat', 'procrastinate_next_due', 'procrastinate_register_worker',
        'procrastinate_release_jobs', 'procrastinate_release_unknown_jobs',
        'procrastinate_rescue_jobs', 'procrastinate_retry_job', 'procrastinate_succeed_jobs',
        'procrastinate_unregister_worker'
    ],
    'a worker may call what runs jobs'
);

select is_empty(
    $$select pg_temp.may_use('test_worker')$$, 'a worker may touch no table and no sequence'
);

select is_empty($$select pg_temp.may_call('test_reader')$$, 'a reader may call nothing');

select set_eq(
    $$select pg_temp.may_use('test_reader')$$,
    array[
        'select jobs_overview', 'select tasks', 'select queues', 'select workers',
        'select lock_events'
    ],
    'a reader may look at what holds no arguments'
);

select set_eq(
    $$select pg_temp.may_call('test_admin')$$,
    array[
        'procrastinate_cancel_job', 'procrastinate_declare_task', 'procrastinate_defer_job',
        'procrastinate_defer_jobs', 'procrastinate_get_job', 'procrastinate_pause_queue',
        'procrastinate_purge_jobs', 'procrastinate_repair', 'procrastinate_rerun_job',
        'procrastinate_rescue_jobs', 'procrastinate_resume_queue'
    ],
    'an admin may call what people call'
);

select set_eq(
    $$select pg_temp.may_use('test_admin')$$,
    array[
        'insert jobs (task_name)', 'insert jobs (args)', 'insert jobs (queue_name)',
        'insert jobs (priority)', 'insert jobs (lock)', 'insert jobs (queueing_lock)',
        'insert jobs (scheduled_at)', 'usage ready_seq', 'select own_jobs',
        'select jobs_overview', 'select tasks', 'select queues', 'select workers',
        'select lock_events', 'select jobs', 'delete jobs',
        'update jobs (task_name)', 'update jobs (args)', 'update jobs (queue_name)',
        'update jobs (priority)', 'update jobs (lock)', 'update jobs (queueing_lock)',
        'update jobs (scheduled_at)', 'update workers (stop_requested)'
    ],
    'an admin may look at jobs, edit what waits, delete, and ask workers to stop'
);

select set_eq(
    $$
    select fn.proname::text
    from pg_proc as fn
    where
        fn.pronamespace = 'public'::regnamespace and fn.proname ~ '^procrastinate_'
        and not has_function_privilege('public', fn.oid, 'execute')
    $$,
    $$select pg_temp.may_call(role_name)
    from unnest(array['test_shop', 'test_worker', 'test_reader', 'test_admin']) as role_name$$,
    'each public function is for one of the roles'
);

select is_empty(
    $$
    select role_name, format('%I', rel.relname)
    from pg_class as rel
    cross join unnest(array['test_shop', 'test_worker', 'test_reader', 'test_admin']) as role_name
    where
        rel.relnamespace = 'public'::regnamespace
        and has_schema_privilege(role_name, 'public', 'create')
    $$,
    'nobody may create anything in the schema'
);

select is_empty(
    $$
    select att.attrelid::regclass, att.attname
    from pg_attribute as att
    where
        att.attrelid in (
            'procrastinate_jobs_overview'::regclass, 'procrastinate_own_jobs'::regclass
        )
        and (
            att.attname in ('args', 'result', 'error', 'ready_seq', 'due_at')
            or col_description(att.attrelid, att.attnum) is null
        )
        and att.attnum > 0
    $$,
    'the views have no arguments, results and errors, and a comment for each column'
);

-- Producers.

select procrastinate_declare_task('declared', queue_name => 'mail', priority => 3);

select is(
    pg_temp.as_role('test_shop', $$select procrastinate_defer_job(
        'shop', '{"secret": 1}', lock => 'a', queueing_lock => 'q',
        scheduled_at => '2100-01-01 00:00:00+00'
    )$$),
    'done', 'a producer defers a job with everything that a job can have'
);

select is(
    pg_temp.as_role('test_shop', $$select procrastinate_defer_job(
        'shop', '{"secret": 2}', lock => 'b', queueing_lock => 'q', on_conflict => 'replace'
    )$$),
    'done', 'a producer replaces a waiting job'
);

select is(
    pg_temp.as_role(
        'test_shop', $$select procrastinate_defer_jobs('[{"task_name": "declared"}]')$$
    ),
    'done', 'a producer defers many jobs'
);

select is(
    (select row(job.queue_name, job.priority)::text from pg_temp.job('declared') as job),
    '(mail,3)', 'its jobs take what is declared of their task, which it cannot read'
);

select is(
    (select job.created_by from pg_temp.job('shop') as job),
    'test_shop', 'a job says who deferred it, not who owns the function'
);

set local session authorization test_bank;
\copy procrastinate_jobs (task_name, args, lock, scheduled_at) from 'tests/sql/support/jobs.tsv'
reset session authorization;

select is(
    (select count(*)::integer from procrastinate_jobs as job where job.created_by = 'test_bank'),
    5,
    'a producer loads jobs by COPY'
);

select ok(
    exists (select from procrastinate_lock_events as event where 'a' = any(event.locks)),
    'the triggers write for it what it may not write'
);

select is(
    pg_temp.as_role('test_bank', $$
        insert into procrastinate_jobs (task_name, args) values ('bank', '{"pin": 7}')
    $$),
    'done', 'a producer inserts a job'
);

select is(
    pg_temp.as_role('test_shop', denied.statement), '42501',
    'a producer may not: ' || denied.statement
)
from unnest(array[
    'insert into procrastinate_jobs (id, task_name) values (1, ''x'')',
    'insert into procrastinate_jobs (task_name, created_by) values (''x'', ''test_bank'')',
    'insert into procrastinate_jobs (task_name, status) values (''x'', ''failed'')',
    'insert into procrastinate_jobs (task_name, ready_seq) values (''x'', 1)',
    'insert into procrastinate_jobs (task_name) values (''x'') returning id',
    'insert into procrastinate_jobs (task_name) values (''x'') on conflict (id) do nothing',
    'select id from procrastinate_jobs',
    'update procrastinate_jobs set priority = 1',
    'delete from procrastinate_jobs',
    'update procrastinate_own_jobs set status = ''todo''',
    'delete from procrastinate_own_jobs',
    'select * from procrastinate_jobs_overview',
    'select * from procrastinate_tasks',
    'select procrastinate_get_job(1)',
    'select procrastinate_cancel_job(1)',
    'select procrastinate_register_worker()',
    'select procrastinate_declare_task(''x'')',
    'select _procrastinate_notify_queue(''x'')',
    'select setval(''procrastinate_ready_seq'', 1)',
    'select nextval(''procrastinate_jobs_id_seq'')',
    'insert into procrastinate_lock_events (locks) values (''{x}'')',
    'create table public.mine ()',
    'create function public.mine() returns void language sql as '''''
]) as denied (statement);

create temporary table seen (task_name text);
grant insert on seen to public;
-- Cheap: the planner calls it before what the view says.
create function pg_temp.peep(task_name text)
returns boolean
language plpgsql
cost 0.0001
as $$
begin
    insert into pg_temp.seen values (task_name);
    return false;
end;
$$;

select pg_temp.as_role('test_shop', $$
    insert into pg_temp.seen select 'own: ' || own.task_name from procrastinate_own_jobs as own
$$);
select pg_temp.as_role('test_shop', $$
    select * from procrastinate_own_jobs as own where pg_temp.peep('peeped: ' || own.task_name)
$$);
select set_eq(
    'select seen.task_name from pg_temp.seen',
    array['own: shop', 'own: declared', 'peeped: shop', 'peeped: declared'],
    'a producer sees its own jobs; so does a function in its query, and no others'
);

-- Workers.

create temporary table fetched (id bigint, attempt integer, args jsonb);
grant all on fetched to public;

select is(
    pg_temp.as_role('test_worker', 'select procrastinate_register_worker(''wanda'')'),
    'done', 'a worker registers'
);

select is(
    pg_temp.as_role('test_worker', format(
        'insert into fetched select id, attempt, args from procrastinate_fetch_jobs(%s, null, 100)',
        pg_temp.worker('wanda')
    )),
    'done', 'a worker fetches'
);

select is(
    (select count(*)::integer from fetched), 6,
    'it gets the jobs of all producers: of each lock the first, and no scheduled one'
);

select is(
    pg_temp.as_role('test_worker', format(
        doing.statement, pg_temp.worker('wanda'), pg_temp.id(doing.task)
    )),
    'done', 'a worker may: ' || doing.statement
)
from (
    values
    ('select procrastinate_finish_job(%2$s, 1, worker_id => %1$s)', 'bank'),
    ('select procrastinate_fail_job(%2$s, 1, ''broken'', worker_id => %1$s)', 'declared'),
    ('select procrastinate_retry_job(%2$s, 1, worker_id => %1$s)', 'free'),
    ('select procrastinate_release_jobs(%1$s, array[%2$s])', 'a1'),
    ('select procrastinate_succeed_jobs(%1$s, array[%2$s], array[1])', 'past'),
    (
        'select procrastinate_finish_jobs('
        '''[{"job_id": %2$s, "attempt": 1, "status": "failed"}]'')',
        'shop'
    ),
    ('select procrastinate_heartbeat(%1$s)', null),
    ('select procrastinate_fetch_job(%1$s)', null),
    ('select procrastinate_release_unknown_jobs(%1$s, ''{}'')', null),
    ('select procrastinate_next_due()', null),
    ('select procrastinate_rescue_jobs()', null),
    ('select procrastinate_listen_channels(array[''mail''])', null),
    ('select procrastinate_declare_task(''bank'', max_attempts => 3)', null),
    ('select procrastinate_unregister_worker(%1$s)', null)
) as doing (statement, task);

select is(
    (
        select string_agg(job.task_name || ' ' || job.status, ', ' order by job.task_name)
        from procrastinate_jobs as job
    ),
    'a1 todo, a2 todo, bank succeeded, declared failed, free todo, later todo, past succeeded, '
    'shop failed',
    'and it had its effect'
);

select is(
    pg_temp.as_role('test_worker', denied.statement), '42501',
    'a worker may not: ' || denied.statement
)
from unnest(array[
    'select id from procrastinate_jobs',
    'update procrastinate_jobs set status = ''todo''',
    'select * from procrastinate_workers',
    'select * from procrastinate_own_jobs',
    'select procrastinate_defer_job(''x'')',
    'select procrastinate_get_job(1)',
    'select procrastinate_purge_jobs(''0'')',
    'select procrastinate_pause_queue(''mail'')',
    'select * from _procrastinate_claim(1, array[1])'
]) as denied (statement);

-- Readers.

select is(
    pg_temp.as_role('test_reader', reading.statement), 'done',
    'a reader may: ' || reading.statement
)
from unnest(array[
    'select id, task_name, lock, status from procrastinate_jobs_overview',
    'select * from procrastinate_tasks',
    'select * from procrastinate_queues',
    'select * from procrastinate_workers',
    'select count(*) from procrastinate_lock_events'
]) as reading (statement);

select is(
    pg_temp.as_role('test_reader', denied.statement), '42501',
    'a reader may not: ' || denied.statement
)
from unnest(array[
    'select args from procrastinate_jobs',
    'select id from procrastinate_jobs',
    'update procrastinate_jobs_overview set priority = 1',
    'delete from procrastinate_jobs_overview',
    'update procrastinate_workers set stop_requested = true',
    'select procrastinate_defer_job(''x'')',
    'select * from procrastinate_abort_requests'
]) as denied (statement);

-- Admins.

select is(
    pg_temp.as_role('test_admin', format(doing.statement, pg_temp.id(doing.task))),
    'done', 'an admin may: ' || doing.statement
)
from (
    values
    ('select args, result, error from procrastinate_jobs where id = %s', 'free'),
    ('select procrastinate_get_job(%s)', 'free'),
    ('select procrastinate_rerun_job(%s)', 'shop'),
    ('select procrastinate_cancel_job(%s, abort => true)', 'later'),
    (
        'update procrastinate_jobs set priority = 9, queue_name = ''fast'', lock = ''c'', '
        'args = ''{}'', scheduled_at = null, task_name = ''a3'' where id = %s',
        'a2'
    ),
    ('delete from procrastinate_jobs where id = %s', 'a1'),
    ('select id from procrastinate_jobs where id = %s for update', 'free'),
    ('select procrastinate_pause_queue(''mail'')', null),
    ('select procrastinate_resume_queue(''mail'')', null),
    ('select procrastinate_purge_jobs(''0'')', null),
    ('select procrastinate_repair()', null),
    ('select procrastinate_rescue_jobs()', null),
    ('select procrastinate_defer_job(''x'', lock => ''x'')', null),
    ('update procrastinate_workers set stop_requested = true', null)
) as doing (statement, task);

select is(
    pg_temp.as_role('test_admin', denied.statement), '42501',
    'an admin may not: ' || denied.statement
)
from unnest(array[
    'update procrastinate_jobs set status = ''cancelled'', finished_at = now()',
    'update procrastinate_jobs set ready_seq = 1',
    'update procrastinate_jobs set created_by = ''x''',
    'truncate procrastinate_jobs',
    'alter table procrastinate_jobs disable trigger user',
    'drop table procrastinate_jobs',
    'create index on procrastinate_jobs (id)',
    'create or replace function procrastinate_get_job(bigint) returns void language sql as ''''',
    'insert into procrastinate_jobs (task_name, created_by) values (''x'', ''test_shop'')',
    'select setval(''procrastinate_ready_seq'', 1)',
    'select procrastinate_register_worker()',
    'delete from procrastinate_workers'
]) as denied (statement);

-- Nothing of theirs runs with the rights of the owner.

create temporary table ran_as (role_name text);
grant insert on ran_as to public;
create schema evil authorization test_shop;

-- What would be found instead of ours, by a path of the caller or by a better match.
select is(
    pg_temp.as_role('test_shop', trap.statement), 'done', 'a producer sets a trap: ' || trap.name
)
from (
    values
    ('a function', $$
        create function evil.sprung() returns boolean language plpgsql as
        'begin insert into pg_temp.ran_as values (current_user); return true; end'
    $$),
    ('a function by the name of a helper', $$
        create function evil._procrastinate_notify_queue(text) returns void language sql
        as 'select evil.sprung()'
    $$),
    ('a temporary function by that name', $$
        create function pg_temp._procrastinate_notify_queue(text) returns void language sql
        as 'select evil.sprung()'
    $$),
    ('a function by the name of one of PostgreSQL', $$
        create function evil.char_length(text) returns integer language sql
        as 'select evil.sprung()::integer'
    $$),
    ('an operator', $$
        create function evil.equals(
            public.procrastinate_job_status, public.procrastinate_job_status
        )
        returns boolean language sql as 'select evil.sprung()';
        create operator evil.= (
            function = evil.equals, leftarg = public.procrastinate_job_status,
            rightarg = public.procrastinate_job_status
        )
    $$),
    ('temporary tables', $$
        create temporary table procrastinate_jobs (like public.procrastinate_own_jobs);
        create temporary table procrastinate_tasks (task_name text);
        create temporary table procrastinate_lock_events (locks text[])
    $$),
    ('a temporary sequence', 'create temporary sequence procrastinate_ready_seq'),
    ('a temporary type', 'create type pg_temp.procrastinate_new_job as (id text)')
) as trap (name, statement);

select is(
    pg_temp.as_role('test_shop', $$
        set local search_path = pg_temp, evil, public, pg_catalog;
        select public.procrastinate_defer_job('trapped', '{"by": "call"}', lock => 'trap');
        select public.procrastinate_defer_job('trapped', queueing_lock => 'trap');
        select public.procrastinate_defer_jobs('[{"task_name": "trapped"}]');
        insert into public.procrastinate_jobs (task_name, lock, scheduled_at)
        values ('trapped', 'trap', '2100-01-01')
    $$),
    'done', 'a producer defers jobs on a path of its own'
);

select is(
    (
        select count(*)::integer from public.procrastinate_jobs as job
        where job.task_name = 'trapped' and job.created_by = 'test_shop'
    ),
    4, 'they are where the jobs of the queue are'
);

select is_empty(
    'select * from pg_temp.procrastinate_jobs', 'and not where the path of the producer leads'
);

select is_empty('select * from pg_temp.procrastinate_lock_events', 'nor are their events');

select is_empty('select * from pg_temp.ran_as', 'none of the traps was sprung');

create function public.unpinned() returns integer
language plpgsql security definer as 'begin return char_length(''x''); end';

select pg_temp.as_role('test_shop', $$
    set local search_path = pg_temp, evil, public, pg_catalog;
    select public.unpinned()
$$);
select set_eq(
    'select ran_as.role_name from pg_temp.ran_as', 'select current_user',
    'a function that runs as its owner and does not pin its path would have walked into one'
);

select is(
    pg_temp.as_role('test_shop', $$
        create trigger thief after insert on pg_temp.procrastinate_jobs
        referencing new table as inserted
        for each statement execute function public._procrastinate_jobs_inserted()
    $$),
    '42501', 'a producer cannot hang a trigger of ours, which runs as the owner, on its own table'
);

drop table
    pg_temp.procrastinate_jobs, pg_temp.procrastinate_tasks, pg_temp.procrastinate_lock_events;
drop sequence pg_temp.procrastinate_ready_seq;

-- Names of queues are data wherever they go, also as names of channels.

create temporary view hostile as
select named.queue_name
from (
    values
    (repeat('x', 43)), (repeat('x', 60)), (repeat('ü', 60)), (repeat('x', 512)),
    ('"; drop table procrastinate_jobs; --'), ('''; select evil.sprung(); --'), ('a"b''c\d$$e'),
    ('procrastinate_any_queue'), ('%I %s %L'), (e'line\nbreak\ttab')
) as named (queue_name);

select is(
    pg_temp.as_role('test_shop', format(
        'select procrastinate_defer_job(%L, queue_name => %L)', 'hostile', hostile.queue_name
    )),
    'done', 'a producer may call a queue: ' || left(to_json(hostile.queue_name)::text, 60)
)
from hostile;

select set_eq(
    $$select job.queue_name from procrastinate_jobs as job where job.task_name = 'hostile'$$,
    'select hostile.queue_name from hostile',
    'each job is in the queue of that name'
);

select is_empty(
    $$
    select channel
    from hostile, procrastinate_listen_channels(array[hostile.queue_name]) as channel
    where octet_length(channel) > 63 or channel !~ '^procrastinate_queue#'
    $$,
    'whatever the name of a queue, its channel is one of ours and has at most 63 bytes'
);

select is(
    pg_temp.as_role('test_worker', format(
        'select procrastinate_fetch_jobs(%s, array[%L], 10)',
        pg_temp.worker('willy'), hostile.queue_name
    )),
    'done', 'a worker fetches from it'
)
from hostile
where hostile.queue_name ~ 'drop table';

select is(
    (
        select job.status::text from procrastinate_jobs as job
        where job.task_name = 'hostile' and job.queue_name ~ 'drop table'
    ),
    'doing', 'and gets the job'
);

-- Running roles.sql.

grant execute on function procrastinate_get_job to procrastinate_reader;
grant select on procrastinate_jobs to procrastinate_producer;
\ir ../../sql/roles.sql

select is_empty(
    $$select pg_temp.may_call('test_reader')$$, 'roles.sql takes back what was granted beside it'
);

select is(
    has_table_privilege('test_shop', 'procrastinate_jobs', 'select'), false, 'on tables as well'
);

select is(
    pg_temp.as_role('test_shop', 'select procrastinate_defer_job(''x'')'),
    'done', 'run again, it gives what it gave'
);

select * from finish();
rollback;
