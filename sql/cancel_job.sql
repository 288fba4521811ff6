-- Cancel what waits; ask what runs to stop.

create function procrastinate_cancel_job(job_id bigint, abort boolean = false)
returns text
language plpgsql
set search_path from current
as $$
declare
    found_status procrastinate_job_status;
begin
    loop
        select job.status into found_status from procrastinate_jobs as job where job.id = job_id;
        if not found then
            perform _procrastinate_refuse_job(job_id);
        end if;

        if found_status = 'doing' and abort then
            perform _procrastinate_request_abort(job_id);
        end if;
        if found_status <> 'todo' then
            return found_status;
        end if;

        perform _procrastinate_act(false);
        update procrastinate_jobs as job
        set
            status = 'cancelled',
            ready_seq = null,
            due_at = null,
            finished_at = clock_timestamp(),
            purge_at = _procrastinate_purge_at(job.task_name)
        where job.id = job_id and job.status = 'todo';
        if found then
            return 'cancelled';
        end if;
        -- It was started in between: look again.
    end loop;
end;
$$;

comment on function procrastinate_cancel_job is
'Cancel a waiting job. With abort, ask the worker of a running one to stop it: returns doing, and '
'a retry, failure or rescue of the job then ends aborted. Otherwise changes nothing. Returns the '
'status that the job then has. Never waits for a run that is just being finished. Errors: PC005 no '
'such job; 22023. Example: select procrastinate_cancel_job(42, abort => true).';

create function _procrastinate_request_abort(job_id bigint)
returns void
language plpgsql
set search_path from current
as $$
begin
    perform 1 from procrastinate_jobs as job
    where job.id = job_id and job.status = 'doing'
    for update skip locked;

    if found then
        update procrastinate_jobs as job set abort_requested = true where job.id = job_id;
    else
        -- Somebody, most likely its finish, holds the row: note it where nobody waits.
        insert into procrastinate_abort_requests (job_id) values (job_id);
    end if;
end;
$$;

comment on function _procrastinate_request_abort is
'Ask for the abort of a running job without waiting for its row.';

create function _procrastinate_purge_at(task_name text)
returns timestamptz
language plpgsql
set search_path from current
as $$
begin
    return clock_timestamp() + (
        select task.keep_finished
        from procrastinate_tasks as task
        where task.task_name = _procrastinate_purge_at.task_name
    );
end;
$$;

comment on function _procrastinate_purge_at is
'When a job of this task that is cancelled now is to be deleted (null: never).';

create function _procrastinate_carry_over_aborts()
returns void
language plpgsql
set search_path from current
as $$
begin
    if not exists (select from procrastinate_abort_requests) then
        return;
    end if;

    perform _procrastinate_act(false);
    with free as materialized (
        select job.id
        from procrastinate_jobs as job
        where
            job.id = any(array(select request.job_id from procrastinate_abort_requests as request))
            and job.status in ('todo', 'doing')
        for update skip locked
    )
    update procrastinate_jobs as job
    set
        abort_requested = true,
        status = case job.status when 'todo' then 'cancelled' else job.status end,
        finished_at = case job.status when 'todo' then clock_timestamp() end,
        purge_at = case job.status when 'todo' then _procrastinate_purge_at(job.task_name) end,
        ready_seq = null,
        due_at = null
    from free
    where job.id = any(array[free.id]);

    delete from procrastinate_abort_requests as request
    where not exists (
        select from procrastinate_jobs as job
        where job.id = request.job_id and job.finished_at is null and not job.abort_requested
    );
end;
$$;

comment on function _procrastinate_carry_over_aborts is
'Carry noted requests over to jobs whose row is free by now; a job that waits again is cancelled.';
