-- What the tests arrange with: jobs are known by the name of their task, workers by their own.

-- What a test draws and notes in sequences would outlast its rollback, and floors lead the next
-- test astray; a sequence that is restarted in this transaction is as before after it.
do $$
declare
    name text;
begin
    for name in
        select known.sequencename
        from pg_sequences as known
        where known.schemaname = 'public' and known.sequencename like 'procrastinate\_%'
    loop
        execute format('alter sequence %I restart', name);
    end loop;
end;
$$;

create function pg_temp.id(task text)
returns bigint
language sql
as $$
    select job.id from procrastinate_jobs as job where job.task_name = task
$$;

create function pg_temp.job(task text)
returns procrastinate_jobs
language sql
as $$
    select job.* from procrastinate_jobs as job where job.task_name = task
$$;

-- The worker of that name, registered when it is first asked for.
create function pg_temp.worker(worker_name text = 'ann')
returns bigint
language sql
as $$
    select coalesce(
        (
            select known.id
            from procrastinate_workers as known
            where known.name = worker_name and known.gone_at is null
        ),
        procrastinate_register_worker(worker_name)
    )
$$;

-- The tasks that a fetch returns, in order: 'first second', or '' for none.
create function pg_temp.fetch(
    max_jobs integer = 1,
    queue_names text[] = null,
    worker_name text = 'ann'
)
returns text
language sql
as $$
    select coalesce(string_agg(fetched.task_name, ' ' order by fetched.ordinality), '')
    from procrastinate_fetch_jobs(
        pg_temp.worker(worker_name), queue_names, max_jobs
    ) with ordinality as fetched
$$;

-- Let the queue bring everything up to date, without claiming a job.
create function pg_temp.settle()
returns text
language sql
as $$
    select pg_temp.fetch(1, array['a queue that is not used'])
$$;

create function pg_temp.finish(task text, final_status text = 'succeeded')
returns void
language sql
as $$
    select procrastinate_finish_job(job.id, job.attempts + 1, final_status)
    from procrastinate_jobs as job
    where job.task_name = task and job.status = 'doing'
$$;

create function pg_temp.fail(task text, reason text = 'no luck')
returns text
language sql
as $$
    select procrastinate_fail_job(job.id, job.attempts + 1, reason)
    from procrastinate_jobs as job
    where job.task_name = task and job.status = 'doing'
$$;

-- Finish what runs, fetch ten, and so on until nothing comes: 'first other, second' is two rounds.
create function pg_temp.drain()
returns text
language plpgsql
as $$
declare
    rounds text[] := '{}';
    fetched text;
begin
    loop
        perform pg_temp.finish(job.task_name)
        from procrastinate_jobs as job
        where job.status = 'doing';
        fetched := pg_temp.fetch(10);
        exit when fetched = '';
        rounds := rounds || fetched;
    end loop;
    return array_to_string(rounds, ', ');
end;
$$;

-- The same tasks in the order of their names, where their turns are not the point.
create function pg_temp.sorted(fetched text)
returns text
language sql
as $$
    select coalesce(string_agg(task, ' ' order by task collate "C"), '')
    from regexp_split_to_table(fetched, ' ') as task
$$;

-- How a statement is refused: no row means that it was not.
create function pg_temp.refusal(statement text)
returns table (code text, message text, hint text, check_name text)
language plpgsql
as $$
begin
    execute statement;
exception
    when others then
        get stacked diagnostics
            code = returned_sqlstate,
            message = message_text,
            hint = pg_exception_hint,
            check_name = constraint_name;
        return next;
end;
$$;
