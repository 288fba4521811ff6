-- Create one job.

create function procrastinate_defer_job(
    task_name text,
    args jsonb = '{}',
    queue_name text = null,
    priority integer = null,
    lock text = null,
    queueing_lock text = null,
    scheduled_at timestamptz = null,
    on_conflict text = 'raise'
)
returns bigint
language plpgsql
set search_path from current
as $$
declare
    task procrastinate_tasks;
    job_id bigint;
begin
    perform _procrastinate_check_job(
        task_name, args, queue_name, lock, queueing_lock, scheduled_at, on_conflict
    );
    select declared.* into task
    from procrastinate_tasks as declared
    where declared.task_name = procrastinate_defer_job.task_name;

    queue_name := coalesce(queue_name, task.queue_name, 'default');
    priority := coalesce(priority, task.priority, 0);
    lock := coalesce(lock, task.lock);

    if queueing_lock is not null then
        return _procrastinate_defer_once((
            nextval('procrastinate_jobs_id_seq'),
            task_name, args, queue_name, priority, lock, queueing_lock, scheduled_at
        ), on_conflict);
    end if;

    insert into procrastinate_jobs as job (
        task_name, args, queue_name, priority, lock, scheduled_at
    )
    values (task_name, args, queue_name, priority, lock, scheduled_at)
    returning job.id into job_id;
    return job_id;
end;
$$;

comment on function procrastinate_defer_job is
'Create one job and return its id. It exists when the transaction of the caller commits. Null '
'queue, priority and lock take what procrastinate_declare_task said, else default, 0 and none. '
'Higher priority runs first; scheduled_at is not to be started before. on_conflict says what '
'happens if a job with this queueing_lock already waits and was never started: raise (PC002), '
'skip, or replace, which gives that job the new task, args, queue, lock, priority and schedule; '
'both return its id. Errors: 22023 bad argument; PC002. Example: select '
'procrastinate_defer_job(''send_email'', ''{"to": "ann"}'', lock => ''ann'').';

create function _procrastinate_check_job(
    task_name text,
    args jsonb,
    queue_name text,
    lock text,
    queueing_lock text,
    scheduled_at timestamptz,
    on_conflict text
)
returns void
language plpgsql
set search_path from current
as $$
begin
    if char_length(task_name) between 1 and 512
        and jsonb_typeof(args) = 'object'
        and coalesce(char_length(queue_name) between 1 and 512, true)
        and coalesce(char_length(lock) between 1 and 512, true)
        and coalesce(char_length(queueing_lock) between 1 and 512, true)
        and coalesce(
            scheduled_at between '0001-01-03 00:00:00+00' and '9999-12-29 00:00:00+00', true
        )
        and on_conflict in ('raise', 'skip', 'replace')
    then
        return;
    end if;

    perform _procrastinate_check_name('task_name', task_name);
    perform _procrastinate_check_name('queue_name', coalesce(queue_name, 'default'));
    perform _procrastinate_check_name('lock', coalesce(lock, 'none'));
    perform _procrastinate_check_name('queueing_lock', coalesce(queueing_lock, 'none'));
    if args is null or jsonb_typeof(args) <> 'object' then
        perform _procrastinate_refuse(
            'args', format('must be a JSON object, not %s', coalesce(jsonb_typeof(args), 'null'))
        );
    elsif scheduled_at not between '0001-01-03 00:00:00+00' and '9999-12-29 00:00:00+00' then
        perform _procrastinate_refuse('scheduled_at', 'must lie between the years 1 and 9999');
    end if;
    perform _procrastinate_refuse('on_conflict', 'must be raise, skip or replace');
end;
$$;

comment on function _procrastinate_check_job is
'Raise 22023 for the first argument of a new job that is wrong. The common case is one expression.';

create function _procrastinate_defer_once(new_job procrastinate_new_job, on_conflict text)
returns bigint
language plpgsql
set search_path from current
as $$
declare
    waiting_id bigint;
begin
    loop
        insert into procrastinate_jobs (
            id, task_name, args, queue_name, priority, lock, queueing_lock, scheduled_at
        )
        values (new_job.*)
        on conflict (queueing_lock)
        where queueing_lock is not null and status = 'todo' and attempts = 0
        do nothing;
        if found then
            return new_job.id;
        end if;

        if on_conflict = 'replace' then
            perform _procrastinate_act(false);
            update procrastinate_jobs as job
            set
                task_name = new_job.task_name,
                args = new_job.args,
                queue_name = new_job.queue_name,
                priority = new_job.priority,
                lock = new_job.lock,
                scheduled_at = new_job.scheduled_at
            where
                job.queueing_lock = new_job.queueing_lock
                and job.status = 'todo' and job.attempts = 0
            returning job.id into waiting_id;
        else
            select job.id into waiting_id
            from procrastinate_jobs as job
            where
                job.queueing_lock = new_job.queueing_lock
                and job.status = 'todo' and job.attempts = 0;
        end if;

        if found and on_conflict = 'raise' then
            raise exception 'job % already waits with queueing lock %',
                waiting_id, new_job.queueing_lock
                using
                    errcode = 'PC002',
                    hint = 'Use on_conflict => ''skip'' or ''replace'', or wait until it starts.';
        end if;
        -- Not found: it was fetched between the two statements and waits no longer, so try again.
        exit when found;
    end loop;
    return waiting_id;
end;
$$;

comment on function _procrastinate_defer_once is
'Create a job that carries a queueing lock, or do as on_conflict says with the one that waits. '
'Returns the id of the job that now waits.';
